"""The cohort store on S3 (moto's server, on this machine): the contract suite, two writers at once, bad addresses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.platform.errors import StoreError
from vesalius.platform.geometry import write_nifti
from vesalius.platform.store import CohortStore, RemotePath, SubjectArrays, connection, place_of, remote_lock
from vesalius.platform.testing.s3 import BUCKET, environment, s3_server
from vesalius.platform.testing.store import CHECKS_ANYWHERE
from vesalius.platform.testing.store_at_url import (
    check_a_writer_that_lost_its_lock_commits_nothing,
    check_survives_a_kill_at_every_request,
    check_survives_an_outage_at_every_request,
)
from vesalius.platform.testing.store_cases import add, assert_holds, example_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.platform.store import Place
    from vesalius.platform.testing.store_cases import Case

CHANNELS = ("T1w",)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RemotePath:
    """Return an empty place of this test's own."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    place = place_of(f"s3://{BUCKET}/{abs(hash(request.node.name))}")
    assert isinstance(place, RemotePath)
    return place


def make(path: Place) -> CohortStore:
    return CohortStore.create(path, recipe={"name": "s3"}, channels=CHANNELS)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            # The longest, in requests: in memory they run each time, by the same code.
            check,
            marks=[pytest.mark.long]
            if any(word in check.__name__ for word in ("digest", "repair", "second_ingest"))
            else [],
        )
        for check in CHECKS_ANYWHERE
        if "damage" not in check.__name__
    ],
    ids=lambda check: check.__name__,
)
def test_contract(check: Callable[[Any, Any], None], s3: RemotePath) -> None:
    """All but the flipping of every byte, which is hundreds of full checks: that runs in memory, by the same code."""
    check(make, s3)


@pytest.mark.long
@pytest.mark.parametrize("check", [check_survives_a_kill_at_every_request, check_survives_an_outage_at_every_request])
def test_interrupted_at_requests(check: Callable[..., None], s3: RemotePath) -> None:
    """At each third request; at every one in memory (``tests/contract``): the client's code is the same."""
    check(make, s3, stride=3)


def test_a_writer_that_lost_its_lock(s3: RemotePath) -> None:
    check_a_writer_that_lost_its_lock_commits_nothing(make, s3)


def test_damage_is_named_and_repaired(s3: RemotePath) -> None:
    store = make(s3)
    cases = [example_case(number, CHANNELS) for number in range(3)]
    add(store, cases)
    digest = store.digest
    flipped = store.folder("sub-00") / "image" / "c.0.0.0.0"
    content = flipped.read_bytes()
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (store.folder("sub-01") / "labels" / "brain" / "0" / "zarr.json").unlink()
    (s3 / "stray.txt").write_text("x")
    problems = CohortStore.open(s3).check()
    assert any(f"{flipped} is not what was committed" in sentence for sentence in problems)
    assert any("labels/brain/0/zarr.json is missing" in sentence for sentence in problems)
    assert any("stray.txt does not belong to the store" in sentence for sentence in problems)
    (s3 / "stray.txt").unlink()
    assert store.repair() == ["sub-00", "sub-01"]
    assert CohortStore.open(s3).check() == []
    add(store, cases)
    assert CohortStore.open(s3).digest == digest


# ---- two at once


def test_a_manifest_is_replaced_only_if_it_is_the_one_that_was_read(s3: RemotePath) -> None:
    """Even where both believe to hold the lock: If-Match on the ETag lets one of two through."""
    content, version = b"first", (s3 / "object").create(b"first")
    assert (s3 / "object").read_versioned() == (content, version)
    newer = (s3 / "object").replace(b"second", version)
    with pytest.raises(connection.Conflict):
        (s3 / "object").replace(b"third", version)
    with pytest.raises(FileExistsError):
        (s3 / "object").create(b"fourth")
    assert (s3 / "object").read_versioned() == (b"second", newer)
    # A repeated request whose first answer was lost is no conflict.
    assert (s3 / "object").replace(b"second", version) == newer
    assert (s3 / "object").create(b"second") == newer
    with pytest.raises(connection.Conflict):
        (s3 / "gone").replace(b"x", version)


HOLD = """
import sys, time
from vesalius.platform.store import CohortStore

with CohortStore.open(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_by_name_and_forgotten_once_it_is_killed(s3: RemotePath) -> None:
    store = make(s3)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(s3)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"is being written by process {process.pid} on .* since 20"):
            add(store, [example_case(0, CHANNELS)])
        assert store.check() == [], "a writer at work is no problem"
        process.kill()
    add(store, [example_case(0, CHANNELS)])
    assert_holds(CohortStore.open(s3), example_case(0, CHANNELS))


def test_a_writer_on_another_machine_is_taken_over_only_when_it_is_silent(
    s3: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "BEAT_SECONDS", 0.3)
    monkeypatch.setattr(remote_lock, "EXPIRY_SECONDS", 2.0)
    store = make(s3)
    foreign = remote_lock.this_process().model_copy(update={"machine": "another", "host": "elsewhere"})
    lock = s3 / ".lock"
    # Renewed by a machine whose clock is an hour behind: old by ours, and alive.
    late = foreign.model_copy(update={"renewed": time.time() - 3600})
    version = lock.replace(late.model_dump_json().encode(), lock.read_versioned()[1])
    beating = True

    def beat(_: float) -> None:
        nonlocal version
        if beating:
            newer = late.model_copy(update={"renewed": late.renewed + 1})
            version = lock.replace(newer.model_dump_json().encode(), version)

    monkeypatch.setattr("vesalius.platform.store.remote_lock.time.sleep", beat)
    with pytest.raises(StoreError, match=r"is being written by process .* on elsewhere"):
        add(store, [example_case(0, CHANNELS)])
    beating = False
    add(store, [example_case(0, CHANNELS)])
    assert len(CohortStore.open(s3).subjects()) == 1


def test_a_lock_is_renewed_while_it_is_held(s3: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "BEAT_SECONDS", 0.1)
    store = make(s3)
    with store.lock():
        first = remote_lock.read_lock(s3 / ".lock")
        time.sleep(0.6)
        second = remote_lock.read_lock(s3 / ".lock")
        assert first is not None
        assert second is not None
        assert second.token == first.token
        assert second.renewed > first.renewed
    free = remote_lock.read_lock(s3 / ".lock")
    assert free is not None
    assert free.state == "free"


def test_a_server_without_conditional_writes_is_refused(s3: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(s3)
    real = RemotePath._create

    def careless(self: RemotePath, content: bytes) -> Any:
        return self._call("pipe_file", content)

    monkeypatch.setattr(RemotePath, "_create", careless)
    with pytest.raises(StoreError, match="takes no conditional writes"):
        add(store, [example_case(0, CHANNELS)])
    monkeypatch.setattr(RemotePath, "_create", real)
    # One that creates as asked and replaces whatever is there.
    monkeypatch.setattr(RemotePath, "_put_if", lambda self, content, version: careless(self, content))
    with pytest.raises(StoreError, match="takes no conditional writes"):
        add(store, [example_case(0, CHANNELS)])
    monkeypatch.undo()


# ---- bad addresses: one sentence, exit code 2, bounded time


def refused(*arguments: str) -> str:
    started = time.monotonic()
    done = CliRunner().invoke(app, list(arguments))
    assert time.monotonic() - started < 45, "it must never hang for a minute"
    assert done.exit_code == 2, (done.exit_code, done.stderr, done.exception)
    said = [line for line in done.stderr.splitlines() if line.startswith("error ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    from vesalius.datasets.layouts.bids import BidsLayout

    return BidsLayout().write_example(tmp_path / "raw")


def both_ways(raw: Path, url: str) -> Iterator[str]:
    """Give what reading and what writing says."""
    yield refused("check", url)
    yield refused("ingest", "bids", str(raw), url)


def test_no_credentials(s3: RemotePath, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for sentence in both_ways(raw, str(s3)):
        assert "there are no usable credentials for it: set AWS_ACCESS_KEY_ID" in sentence


def test_a_bucket_that_is_not_there(s3: RemotePath, raw: Path) -> None:
    for sentence in both_ways(raw, "s3://no-such-bucket/cohort"):
        assert "there is no bucket 'no-such-bucket'" in sentence


def test_a_place_that_holds_no_store(s3: RemotePath, raw: Path) -> None:
    assert "is not a cohort store" in refused("check", str(s3))
    (s3 / "letters" / "one.txt").write_text("dear")
    assert "is not empty and not a cohort store (it holds letters)" in refused("ingest", "bids", str(raw), str(s3))
    assert s3.files() == ["letters/one.txt"]


def test_the_package_is_not_installed(s3: RemotePath, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(connection, "_systems", {})
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    for sentence in both_ways(raw, str(s3)):
        assert "the package s3fs is not installed: install it with pip install 'vesalius[s3]'" in sentence


def test_nothing_listens_there(s3: RemotePath, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for sentence in both_ways(raw, str(s3)):
            assert "nothing answers within 25 seconds" in sentence
            assert "AWS_ENDPOINT_URL" in sentence


@pytest.mark.long
def test_somebody_listens_and_never_answers(s3: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert "nothing answers within 25 seconds" in refused("check", str(s3))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no place for a store: expected s3://BUCKET/PATH"),
        ("s3://no good/cohort", "'no good' cannot name a bucket"),
        (f"s3://{BUCKET}/../other", "names no place for a store"),
        ("s4://bucket/cohort", "'s4://' is no file system that can hold a store"),
        ("ftp://user:secret@host/cohort", "a password in a URL would be written into runs and logs"),
    ],
)
def test_urls_that_name_no_store(s3: RemotePath, url: str, words: str) -> None:
    sentence = refused("check", url)
    assert words in sentence
    assert "secret" not in sentence


# ---- the verbs


def called(*arguments: object) -> Any:
    """Call a verb in this process and return its document."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return json.loads(done.stdout)


def healthy_case(number: int) -> Case:
    """Return a held-out subject with positive intensities and no lesion."""
    record, arrays = example_case(number, CHANNELS, all_roles=False)
    image = np.random.default_rng(number).uniform(1, 2, arrays.image.shape).astype(np.float32)
    changed = record.model_copy(update={"split": "test", "labels": {}})
    return changed, SubjectArrays(image=image, brain=np.ones(record.shape, dtype=np.bool_))


def test_export_and_lesions_take_urls(s3: RemotePath, tmp_path: Path) -> None:
    """From one URL to another, and the files are those of a store in a folder."""
    cases = [healthy_case(number) for number in range(3)]
    add(make(s3 / "healthy"), cases)
    add(make(tmp_path / "healthy"), cases)
    mask = np.zeros(cases[0][0].shape, dtype=np.uint8)
    mask[3:7, 2:5, 4:8] = 1
    write_nifti(tmp_path / "masks" / "one.nii.gz", mask, cases[0][0].affine)
    for place in (s3, tmp_path):
        planted = called(
            "lesions", f"{place}/healthy", f"{place}/planted", "--masks", tmp_path / "masks", "--set",
            "lesions.min_voxels=10",
        )  # fmt: skip
        assert (len(planted["planted"]), len(planted["healthy"])) == (2, 1)
    here, there = CohortStore.open(tmp_path / "planted"), CohortStore.open(s3 / "planted")
    assert there.digest == here.digest
    assert there.check() == []
    assert "is the store that the lesions are for" in refused(
        "lesions", f"{s3}/healthy", f"{s3}/healthy/", "--masks", str(tmp_path / "masks")
    )
    exported = []
    for place, out in ((s3, tmp_path / "a"), (tmp_path, tmp_path / "b")):
        arguments = ("--all", "--what", "image", "--what", "lesion", "--out", out)
        document = called("export", f"{place}/planted", *arguments)
        assert document["store"] == f"{place}/planted"
        exported.append({Path(file["path"]).name: file for file in document["files"]})
    assert sorted(exported[0]) == sorted(exported[1])
    assert len(exported[0]) == 5
    for name, file in exported[0].items():
        one, other = nibabel.load(file["path"]), nibabel.load(exported[1][name]["path"])
        assert isinstance(one, nibabel.Nifti1Image)
        assert isinstance(other, nibabel.Nifti1Image)
        assert np.array_equal(one.affine, other.affine)
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    sentence = refused("export", f"{s3}/planted", "--all", "--out", f"{s3}/files")
    assert "s3://... is a URL, and only stores lie at URLs" in sentence
    assert not (s3 / "files").exists()


@pytest.mark.long
def test_two_ingests_at_once_into_one_store(s3: RemotePath, raw: Path) -> None:
    """By the command line: one is refused by name, or both end well; nothing is lost and nothing there twice."""
    program = "from vesalius.infra.cli import main; main()"
    arguments = ["ingest", "bids", str(raw), str(s3), "--modality", "T1w", "--recipe", "as_is"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    ended = [(process.communicate(timeout=300), process) for process in started]
    documents = []
    for (said, complained), process in ended:
        if process.returncode == 0:
            documents.append(json.loads(said))
        else:
            assert process.returncode == 2, complained
            assert "is being written by process" in complained
            assert "Traceback" not in complained
    assert documents, "at least one of them ends well"
    store = CohortStore.open(s3)
    ids = [record.subject_id for record in store.subjects()]
    assert sorted(name for document in documents for name in document["added"]) == ids
    assert all(document["digest"] == store.digest for document in documents)
    assert store.check() == []
    folders = [entry.name.partition("@")[0] for entry in (s3 / "subjects").iterdir() if "@" in entry.name]
    assert folders == ids
    assert called(*arguments)["unchanged"] == ids


@pytest.mark.long
def test_every_verb_takes_a_url(s3: RemotePath, tmp_path: Path) -> None:
    """By the command line, in processes of their own, with Ray workers: as a user would."""
    from vesalius.datasets.layouts.phantom import write_cohort
    from vesalius.datasets.phantom import CohortSettings, PhantomSettings

    def vesalius(*arguments: object) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", "from vesalius.infra.cli import main; main()", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "VESALIUS_HOME": str(tmp_path / "home")},
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    cohort = CohortSettings(
        num_train=4, num_validation=3, num_gate=3, num_test=3, phantom=PhantomSettings(shape=(20, 24, 20)), seed=1
    )
    root = write_cohort(tmp_path / "raw", cohort)
    on_disk = vesalius("ingest", "phantom", root, tmp_path / "store")
    at_url = vesalius("ingest", "phantom", root, s3, "--workers", 2, "--montage", tmp_path / "sheet.png")
    assert len(at_url["added"]) == 13
    assert at_url["digest"] == on_disk["digest"], "the place is no part of the cohort"
    assert (tmp_path / "sheet.png").is_file()
    assert vesalius("ingest", "phantom", root, s3)["unchanged"] == at_url["added"]
    assert vesalius("check", s3)["problems"] == []
    for name, workers in (("alone", 0), ("worker", 1)):
        run = vesalius("train", "healthy_atlas", s3, "--preset", "tiny", "--workers", workers, "--name", name)
        assert run["store"] == str(s3)
        assert run["state"] == "finished"
    figures = vesalius("evaluate", "alone", "worker", "--store", s3, "--picture", tmp_path / "picture.png")["figures"]
    assert [one["run"] for one in figures] == ["alone", "alone", "worker", "worker"]
    assert figures[0]["average_precision"] == figures[2]["average_precision"]
    assert (tmp_path / "picture.png").is_file()
    scored = vesalius("score", "alone", "--split", "test", "--store", s3)
    assert (scored["store"], len(scored["subjects"])) == (str(s3), 3)
    assert vesalius("promote", "alone", "--name", "brain", "--store", s3)["promoted"]
