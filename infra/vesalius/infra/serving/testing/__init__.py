"""What the tests of a server share: a small model, the verb in a process of its own, and requests that mean harm."""
