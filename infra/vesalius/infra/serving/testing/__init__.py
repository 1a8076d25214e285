"""What the tests of a server share: a model, the verb in a process of its own, one without Ray, hostile requests."""
