"""Writes that are in each other's way.

MLflow writes a tag or an alias by looking whether it is there and inserting it where not: of two who write the first
one at the same moment, one is refused by the database's key. Nothing is wrong with either; a second try finds it there.
"""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

AnswerT = TypeVar("AnswerT")

_TRIES = 10
_SAID = re.compile(r"unique|duplicate key|is locked|deadlock|serializ|giving up after", re.IGNORECASE)


def retried(write: Callable[[], AnswerT]) -> AnswerT:
    """Make a write, again where another one was in its way; it must be one that may be made twice.

    Raises:
        Exception: whatever else it raises, and a collision after ten tries.
    """
    for attempt in range(_TRIES):
        try:
            return write()
        except Exception as cause:  # what is no collision goes on
            if attempt == _TRIES - 1 or not collided(cause):
                raise
            time.sleep(random.uniform(0.01, 0.05) * 2 ** min(attempt, 5))
    raise AssertionError("the last try returns or raises")


def collided(cause: BaseException) -> bool:
    """Say whether another write was in the way: the database's own words, which MLflow passes on."""
    module = type(cause).__module__.partition(".")[0]
    return module in ("mlflow", "sqlalchemy", "sqlite3") and bool(_SAID.search(str(cause)[:2000]))
