"""Why a request is not answered as it wished: a status and one sentence."""

from __future__ import annotations

import errno

from vesalius.platform.errors import DivergenceError, InputError, ModelError, RunError, VesaliusError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the operating system calls a disk that takes no more."""


class Refusal(Exception):
    """A request that is turned down.

    Attributes:
        status: of the answer.
        sentence: for whoever asked.
        retry_seconds: after which it may be tried again, where that may help.
    """

    def __init__(self, status: int, sentence: str, *, retry_seconds: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_seconds = retry_seconds


class Gone(Exception):
    """Whoever asked has hung up: there is no one to answer."""


def refusal_of(error: VesaliusError) -> Refusal:
    """Return how an error of ours is answered."""
    sentence = " ".join(str(error).split())
    if isinstance(error, ModelError | RunError):
        return Refusal(503, sentence, retry_seconds=30)
    if isinstance(error, InputError | DivergenceError):
        return Refusal(422, sentence)
    return Refusal(503, sentence, retry_seconds=30)


def refusal_of_disk(error: OSError) -> Refusal:
    """Return how a failure of the server's disk is answered."""
    if error.errno in FULL:
        return Refusal(503, "the server's disk is full: try again later", retry_seconds=60)
    said = error.strerror or type(error).__name__
    return Refusal(503, f"the server's disk failed ({said}): try again later", retry_seconds=60)
