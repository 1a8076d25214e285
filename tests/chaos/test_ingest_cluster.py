"""Ingest on Ray while workers and nodes die: their subjects are tried again, the others never notice.

Subjects are read by a reader of this test's own, which notes each attempt (who, where, from when to when) in a folder
and does there what a control file asks: linger, crash, run out of memory.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from vesalius.datasets.ingest import IngestReport, ingest
from vesalius.datasets.layouts.example import example_affine, example_head
from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.recipes import centered
from vesalius.platform.cluster import session
from vesalius.platform.geometry import write_nifti
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own

READER = """
import json, os, signal, time
from pathlib import Path
from vesalius.datasets.reading import read_subject

def read(raw, modalities):
    import ray

    place = Path(raw.parameters["place"])
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    note = place / f"{raw.subject_id}.{os.getpid()}.{time.monotonic_ns()}.json"
    fact = {"subject": raw.subject_id, "pid": os.getpid(), "node": node, "start": time.monotonic()}
    note.write_text(json.dumps(fact))
    before = len(list(place.glob(f"{raw.subject_id}.*.json"))) - 1
    asked = place / f"do-{raw.subject_id}"
    action = asked.read_text() if asked.exists() else ""
    if action == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if action == "out of memory" and before < 2:
        raise MemoryError
    if (place / "linger").exists():
        time.sleep(float((place / "linger").read_text()))
    volumes = read_subject(raw, modalities)
    note.write_text(json.dumps({**fact, "end": time.monotonic()}))
    return volumes
"""


class NotingLayout:
    """Some heads, read by the reader above."""

    default_recipe: ClassVar[str] = "as_is"
    about: ClassVar[About] = About(tree="heads", source="generated", terms="none")

    def __init__(self, folder: Path, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "noting_reader.py").write_text(READER)
        monkeypatch.syspath_prepend(str(folder / "code"))
        monkeypatch.setenv("PYTHONPATH", str(folder / "code"))  # for the workers
        for index in range(num):
            write_nifti(folder / f"s{index}.nii.gz", example_head(index), example_affine())
        self.num = num

    def ask(self, subject_id: str, action: str) -> None:
        (self.folder / f"do-{subject_id}").write_text(action)

    def modalities(self, root: Path) -> tuple[str, ...]:
        return ("T1w",)

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        return [
            RawSubject(
                subject_id=f"s{index}",
                images={"T1w": str(root / f"s{index}.nii.gz")},
                reader="noting_reader:read",
                parameters={"place": str(root)},
            )
            for index in range(self.num)
        ]

    def write_example(self, root: Path) -> Path:
        return root

    def attempts(self) -> list[dict[str, Any]]:
        found = []
        for path in self.folder.glob("s*.json"):
            text = path.read_text()
            if text:
                found.append(json.loads(text))
        return sorted(found, key=lambda attempt: attempt["start"])

    def tries(self) -> Counter[str]:
        return Counter(attempt["subject"] for attempt in self.attempts())

    def take_in(self, store: Path, num_workers: int) -> IngestReport:
        return ingest(self, self.folder, store, recipe=centered(4.0), num_workers=num_workers)


@pytest.fixture
def two_workers() -> Iterator[None]:
    with session(2):
        yield


@contextmanager
def meanwhile(work: Any) -> Iterator[None]:
    """Do something beside the block; what goes wrong there is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def assert_whole(layout: NotingLayout, store: Path, tmp_path: Path, *, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]  # an empty set of str
    """Check that the store holds everybody but those named, as an ingest in one process would."""
    for path in layout.folder.glob("do-*"):
        path.unlink()
    (layout.folder / "linger").unlink(missing_ok=True)
    found = CohortStore.open(store)
    assert found.check() == []
    assert not list((store / ".partial").iterdir())
    expected = {f"s{index}" for index in range(layout.num)}
    assert {record.subject_id for record in found.subjects()} == expected - without
    again = layout.take_in(store, 0)
    assert set(again.added) == without
    assert again.digest == layout.take_in(tmp_path / "alone", 0).digest


def test_a_worker_killed_in_mid_subject_costs_that_subject_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = NotingLayout(tmp_path / "raw", 6, monkeypatch)
    (layout.folder / "linger").write_text("1.0")
    victims: list[str] = []

    def kill() -> None:
        attempt = wait_for(lambda: [one for one in layout.attempts() if "end" not in one])[0]
        os.kill(attempt["pid"], signal.SIGKILL)
        victims.append(attempt["subject"])

    with session(2), meanwhile(kill):
        report = layout.take_in(tmp_path / "store", 2)
    assert report.failed == {}
    assert layout.tries() == {f"s{index}": 2 if f"s{index}" in victims else 1 for index in range(6)}
    assert_whole(layout, tmp_path / "store", tmp_path)


def test_a_file_that_kills_every_worker_is_named_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = NotingLayout(tmp_path / "raw", 5, monkeypatch)
    layout.ask("s1", "segfault")
    with session(2):
        report = layout.take_in(tmp_path / "store", 2)
    assert list(report.failed) == ["s1"]
    assert "s1: its worker process died each of 3 times, the last time alone" in report.failed["s1"]
    assert "\n" not in report.failed["s1"]
    assert layout.tries()["s1"] == 3
    assert max(layout.tries()[f"s{index}"] for index in (0, 2, 3, 4)) == 1, "no neighbour pays for it"
    assert_whole(layout, tmp_path / "store", tmp_path, without={"s1"})


def test_out_of_memory_is_tried_again_with_fewer_and_at_last_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = NotingLayout(tmp_path / "raw", 5, monkeypatch)
    (layout.folder / "linger").write_text("0.3")
    layout.ask("s0", "out of memory")
    with session(2):
        report = layout.take_in(tmp_path / "store", 2)
    assert report.failed == {}
    mine = [one for one in layout.attempts() if one["subject"] == "s0"]
    assert len(mine) == 3
    others = [one for one in layout.attempts() if one["subject"] != "s0"]
    assert all(one["end"] < mine[-1]["start"] for one in others), "the last try has the cluster to itself"
    late = [one for one in others if one["start"] > mine[0]["start"] + 1.0]
    for one, two in itertools.pairwise(late):
        assert two["start"] >= one["end"], "after it ran out of memory, fewer run at once"
    assert_whole(layout, tmp_path / "store", tmp_path)


def test_nodes_that_die_and_come_in_mid_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three raylets: one is killed by SIGKILL, one is taken away, one is added, while 10 subjects are taken in."""
    import ray
    from ray.cluster_utils import Cluster

    layout = NotingLayout(tmp_path / "raw", 10, monkeypatch)
    (layout.folder / "linger").write_text("1.5")
    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False},
    )
    try:
        doomed = cluster.add_node(num_cpus=1, object_store_memory=memory)
        leaving = cluster.add_node(num_cpus=1, object_store_memory=memory)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

        def busy_on(node: Any) -> list[dict[str, Any]]:
            return [one for one in layout.attempts() if one["node"] == node.node_id and "end" not in one]

        # Ray makes nodes in the main thread only, so the ingest runs beside it.
        with ThreadPoolExecutor(1) as beside:
            ingesting = beside.submit(layout.take_in, tmp_path / "store", 3)
            wait_for(lambda: busy_on(doomed))
            os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            wait_for(lambda: busy_on(leaving))
            cluster.remove_node(leaving, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=memory)
            report = ingesting.result(300)
        assert report.failed == {}
        attempts = layout.attempts()
        assert len({one["node"] for one in attempts}) == 4, "work is spread over all nodes, the one that came late too"
        tries = layout.tries()
        gone = {doomed.node_id, leaving.node_id}
        lost = {one["subject"] for one in attempts if one["node"] in gone}
        assert {subject for subject, num in tries.items() if num > 1} <= lost, "only what they held is repeated"
        assert max(tries.values()) <= 3
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_whole(layout, tmp_path / "store", tmp_path)
