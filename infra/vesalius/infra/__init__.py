"""The top floor: the command line, its figures and tables, and the demo. It puts the floors below to work."""
