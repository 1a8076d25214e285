"""A writer killed by SIGKILL: at every file-system step, at any moment from outside, and while it holds the lock."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vesalius.platform.errors import DiskSpaceError, StoreError
from vesalius.platform.store import CohortStore, SubjectArrays, writing
from vesalius.platform.testing.store_cases import Case, add, assert_holds, example_case

CHANNELS = ("T1w",)

# One process imports everything once and forks a writer a step: each dies by its own SIGKILL and leaves its folder.
EVERY_STEP = """
import os, shutil, sys
from pathlib import Path
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.faults import faults
from vesalius.platform.testing.store_cases import add, example_case

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
cases = [example_case(number, ("T1w",), all_roles=False) for number in (0, 1)]
step = 0
while True:
    path = folder / str(step)
    shutil.copytree(base, path)
    child = os.fork()
    if child == 0:
        with faults(path, "sigkill", step):
            add(CohortStore.open(path), cases)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
    if not os.WIFSIGNALED(status):
        break
    step += 1
"""

INGEST = """
import sys
from pathlib import Path
from vesalius.platform.store import CohortStore
sys.path.insert(0, sys.argv[2])
from test_store_kill import big_case, make
from vesalius.platform.testing.store_cases import add

store = make(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    add(store, [big_case(number)])
    print(number, flush=True)
"""

HOLD = """
import sys, time
from pathlib import Path
from vesalius.platform.store import CohortStore

with CohortStore.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def make(path: Path) -> CohortStore:
    return CohortStore.create(path, recipe={"name": "kill"}, channels=CHANNELS)


def big_case(number: int) -> Case:
    """Return a 64-cube: large enough that a kill from outside often falls into the middle of writing it."""
    record, _ = example_case(number, CHANNELS, all_roles=False)
    image = np.random.default_rng(number).normal(size=(1, 64, 64, 64)).astype(np.float32)
    return (
        record.model_copy(update={"shape": (64, 64, 64)}),
        SubjectArrays(image=image, brain=image[0] > 0, lesion=image[0] > 2),
    )


def run_script(text: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.long
def test_sigkill_at_every_step_leaves_what_was_committed_and_can_be_continued(tmp_path: Path) -> None:
    kept, new = (example_case(number, CHANNELS, all_roles=False) for number in (0, 1))
    base, trials = tmp_path / "base", tmp_path / "trials"
    add(make(base), [kept])
    add(make(tmp_path / "unbroken"), [kept, new])
    digest = CohortStore.open(tmp_path / "unbroken").digest
    trials.mkdir()
    with run_script(EVERY_STEP, base, trials) as process:
        output, _ = process.communicate()
    signals = [int(line) for line in output.split()]
    assert process.returncode == 0
    assert len(signals) > 30
    assert signals == [-signal.SIGKILL] * (len(signals) - 1) + [0]
    held: list[int] = []
    for step in range(len(signals)):
        path = trials / str(step)
        store = CohortStore.open(path)
        held.append(len(store.subjects()))
        for case in (kept, new)[: held[-1]]:
            assert_holds(store, case)
        add(make(path), [kept, new])
        again = CohortStore.open(path)
        assert again.digest == digest, f"after SIGKILL at step {step}"
        assert again.check() == []
    # The commit is one step: one subject before it, two after it, nothing between.
    assert held == sorted(held)
    assert set(held) == {1, 2}


@pytest.mark.long
def test_sigkill_at_random_moments_never_costs_a_committed_subject(tmp_path: Path) -> None:
    num_subjects = 12
    path = tmp_path / "killed"
    unbroken = make(tmp_path / "unbroken")
    cases = [big_case(number) for number in range(num_subjects)]
    add(unbroken, cases)
    draw = random.Random(0)
    num_kills = held = 0
    while held < num_subjects:
        with run_script(INGEST, path, Path(__file__).parent, num_subjects) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if num_kills < 8:
                time.sleep(draw.uniform(0, 0.3))
                process.kill()
                num_kills += 1
            process.communicate()
        store = CohortStore.open(path)
        assert len(store.subjects()) >= held
        held = len(store.subjects())
        for record in store.subjects():
            assert_holds(store, cases[int(record.subject_id.removeprefix("sub-"))])
    store = CohortStore.open(path)
    assert num_kills >= 1
    assert store.digest == unbroken.digest
    assert store.check() == []


def test_a_writer_killed_in_the_middle_of_a_subject(tmp_path: Path) -> None:
    path = tmp_path / "store"
    kept, new = (example_case(number, CHANNELS, all_roles=False) for number in (0, 1))
    add(make(path), [kept])
    script = EVERY_STEP.replace("step = 0", "step = 25").replace("step += 1", "break")
    with run_script(script, path, tmp_path) as process:
        output, _ = process.communicate()
    assert output.split() == [str(-signal.SIGKILL)]
    killed = tmp_path / "25"
    assert list((killed / ".partial").iterdir()), "the kill was meant to leave something unfinished"
    store = CohortStore.open(killed)
    assert [record.subject_id for record in store.subjects()] == ["sub-00"]
    assert_holds(store, kept)
    assert any(".partial" in sentence for sentence in store.check())
    add(make(killed), [kept, new])
    assert CohortStore.open(killed).check() == []
    assert_holds(CohortStore.open(killed), new)


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with run_script(HOLD, store.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"is being written by process {process.pid} on .* since 20"), store.lock():
            pass
        process.kill()
    add(store, [example_case(0, CHANNELS)])
    assert len(CohortStore.open(store.path).subjects()) == 1


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 8 MB: what fits is committed, what does not is refused in one sentence and leaves nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    try:
        _fill(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill(disk: Path) -> None:
    store = make(disk / "store")
    add(store, [big_case(0), big_case(1)])
    digest = store.digest
    more = [big_case(number) for number in range(2, 14)]
    for asks_first in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not asks_first:
                # Another program took the room after we asked: the operating system says so in the middle of a file.
                patch.setattr(writing, "require_space", lambda path, num_bytes: None)
            with pytest.raises(DiskSpaceError, match=str(disk)) as caught:
                add(store, more)
        assert "\n" not in str(caught.value)
        assert ("are needed" in str(caught.value)) is asks_first
        assert not list((store.path / ".partial").iterdir())
        again = CohortStore.open(store.path)
        assert again.check() == []
        added = len(again.subjects())
        assert added >= 2
        for number in range(added):
            assert_holds(again, big_case(number))
        assert {entry.name for entry in (store.path / "subjects").iterdir()} == {
            "zarr.json",
            *(f"sub-{number:02d}" for number in range(added)),
        }
        again.forget(f"sub-{number:02d}" for number in range(2, added))
        store = CohortStore.open(store.path)
        assert store.digest == digest
