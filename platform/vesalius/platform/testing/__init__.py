"""Contract suites shipped with the package: a new method, layout or store passes them by existing.

============= =====================================================================================
``faults``    a writer stopped, killed, or out of disk space at every single file-system step
``store``     what every cohort store must hold to, kill at any point included
============= =====================================================================================

Nothing here is imported by the rest of the package.
"""
