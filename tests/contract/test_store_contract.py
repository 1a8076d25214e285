"""The contract suite, over the store as it is made by default, in the shapes that change what is written, and at a URL.

On S3 the same suite runs in ``tests/integration/test_store_s3.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vesalius.platform.store import ChunkSettings, CohortStore, Place, RemotePath
from vesalius.platform.testing.faults import memory_folder
from vesalius.platform.testing.store import CHECKS, CHECKS_ANYWHERE, CHECKS_AT_URL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.testing.store_cases import StoreFactory


def one_channel(path: Place) -> CohortStore:
    return CohortStore.create(path, recipe={"name": "small"}, channels=("T1w",))


def several_chunks(path: Place) -> CohortStore:
    """Two channels of several chunks: the array is a shard with an index, and not one bare chunk."""
    return CohortStore.create(
        path, recipe={"name": "sharded", "dtype": "float32"}, channels=("T1w", "FLAIR"), chunks=ChunkSettings(chunk=8)
    )


# The steps are the same for a shard; only what lies in the files is not.
TRIALS = [
    pytest.param(
        check,
        make,
        id=f"{check.__name__.removeprefix('check_')}-{make.__name__}",
        marks=[pytest.mark.long] if make is several_chunks and "every_step" in check.__name__ else [],
    )
    for check in CHECKS
    for make in (one_channel, several_chunks)
]


@pytest.mark.parametrize(("check", "make"), TRIALS)
def test_store_contract(check: Callable[[StoreFactory, Path], None], make: StoreFactory) -> None:
    with memory_folder() as folder:
        check(make, folder)


@pytest.mark.parametrize("check", [*CHECKS_ANYWHERE, *CHECKS_AT_URL], ids=lambda check: check.__name__)
def test_store_contract_at_a_url(check: Callable[[StoreFactory, RemotePath], None]) -> None:
    """In memory, where an object is created and replaced as exclusively as on S3."""
    check(one_channel, RemotePath("memory", f"contract/{check.__name__}"))
