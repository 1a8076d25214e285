"""An ingest killed by SIGKILL: what was committed stays, the next one goes on, the digest is an unbroken one's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.example import example_affine, example_head
from vesalius.datasets.layouts.manifest import write_manifest
from vesalius.datasets.recipes import centered
from vesalius.platform.errors import StoreError
from vesalius.platform.geometry import write_nifti
from vesalius.platform.store import CohortStore, find_problems

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long

NUM_SUBJECTS = 10

DRIVER = """
import sys
from pathlib import Path
from vesalius.datasets import ingest as module
from vesalius.datasets.recipes import centered

module._COMMIT_SECONDS = 0.0
if __name__ == "__main__":
    module.ingest("manifest", Path(sys.argv[1]), Path(sys.argv[2]), recipe=centered(2.0), num_workers=int(sys.argv[3]),
        progress=lambda done, total, note: print(done, flush=True))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    rows = []
    for index in range(NUM_SUBJECTS):
        write_nifti(folder / f"{index}.nii.gz", example_head(index), example_affine())
        rows.append({"subject_id": f"s{index}", "image": f"{index}.nii.gz"})
    write_manifest(folder / "cohort.csv", rows)
    return folder / "cohort.csv"


def kill_after(raw: Path, store: Path, num_done: int, delay: float, num_workers: int) -> None:
    """Start an ingest and SIGKILL it some time after it has prepared ``num_done`` subjects."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(raw), str(store), str(num_workers)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= num_done > 0:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_again_and_again(raw: Path, tmp_path: Path, num_workers: int) -> None:
    unbroken = ingest("manifest", raw, tmp_path / "unbroken", recipe=centered(2.0))
    store_path = tmp_path / "store"
    moments = random.Random(num_workers)
    seen: set[str] = set()
    for num_done in (1, 3, 6) if num_workers else (1, 2, 3, 5, 7, 9):
        kill_after(raw, store_path, num_done, moments.uniform(0, 0.15), num_workers)
        try:
            store = CohortStore.open(store_path)
        except StoreError:
            assert not seen, "a store that could be read cannot be read any more"
            continue
        # What the killed one left lies about until the next one clears it or takes it in: unfinished, or written whole
        # and not committed. Every committed subject is whole.
        for problem in find_problems(store_path):
            assert problem.subject_id is None, problem.sentence
            assert "an interrupted ingest left" in problem.sentence or "never committed" in problem.sentence
        committed = {record.subject_id for record in store.subjects()}
        assert seen <= committed, "what was committed is gone"
        seen = committed
        for subject_id in committed:
            assert store.record(subject_id) == CohortStore.open(tmp_path / "unbroken").record(subject_id)
    report = ingest("manifest", raw, store_path, recipe=centered(2.0))
    assert set(report.unchanged) == seen
    assert report.digest == unbroken.digest
    # Workers outlive a killed driver for a while: what one of them leaves unfinished, the next writer clears.
    store = CohortStore.open(store_path)
    deadline = time.monotonic() + 60
    while (problems := store.check()) and time.monotonic() < deadline:
        assert all("an interrupted ingest left" in sentence for sentence in problems), problems
        time.sleep(1)
        with store.lock():
            pass
    assert store.check() == []
    assert sorted(entry.name for entry in (store_path / "subjects").iterdir() if entry.is_dir()) == sorted(
        f"s{index}" for index in range(NUM_SUBJECTS)
    )
