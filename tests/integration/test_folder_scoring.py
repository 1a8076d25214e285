"""A folder and a split scored by workers: the maps of one process, gone on with after a kill, bad volumes as rows."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra import pipeline
from vesalius.infra.cli.app import app
from vesalius.infra.folders import cases_in
from vesalius.infra.serving.testing.server import AFFINE, make_model, write_head
from vesalius.platform.cluster import session
from vesalius.platform.cluster.holding import map_held
from vesalius.platform.errors import PartialScoreError, SettingError, WorkerLostError
from vesalius.platform.scoring import ScoreStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vesalius.platform.store import CohortStore

# The warnings are of Ray's own.
pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(2):
        yield


def call(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("folders") / "model")


def write_folder(folder: Path, num: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(num):
        write_head(folder / f"subject-{number}.nii.gz", number)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*_map.nii.gz"))}


def voxels(path: Path) -> Any:
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


@pytest.mark.usefixtures("ray_session")
def test_workers_write_what_one_process_writes(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 4)
    home = ("--home", tmp_path / "home", "--device", "cpu")
    alone = call("score", model, folder, "--out", tmp_path / "alone", *home)
    spread = call("score", model, folder, "--out", tmp_path / "spread", "--workers", 2, *home)
    assert [row["name"] for row in spread["volumes"]] == [f"subject-{number}" for number in range(4)]
    for one, other in zip(alone["volumes"], spread["volumes"], strict=True):
        single = call("score", model, one["files"][0], "--out", tmp_path / "single", *home)
        for key in ("image_score", "anomalous_ml", "threshold", "highest"):
            assert one[key] == other[key] == single[key]
        maps = [voxels(row["written"]["map"]) for row in (one, other, single)]
        assert maps[0].max() > 2
        np.testing.assert_array_equal(maps[0], maps[1])
        np.testing.assert_array_equal(maps[0], maps[2])
    assert not (tmp_path / "spread" / ".partial").exists()
    with (tmp_path / "spread" / "scores.csv").open() as file:
        assert [float(row["image_score"]) for row in csv.DictReader(file)] == [
            row["image_score"] for row in spread["volumes"]
        ]


def test_a_bad_volume_is_a_row_and_the_others_stand(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 3)
    (folder / "subject-1.nii.gz").write_bytes((folder / "subject-1.nii.gz").read_bytes()[:300])
    (folder / "notes.txt").write_text("not a volume")
    (folder / "zeros.nii").write_bytes(bytes(400))
    document = call("score", model, folder, "--out", tmp_path / "out", code=2)
    states = {row["name"]: row["state"] for row in document["volumes"]}
    assert states == {"subject-0": "scored", "subject-1": "failed", "subject-2": "scored", "zeros": "failed"}
    assert document["num_failed"] == 2
    broken = next(row for row in document["volumes"] if row["name"] == "subject-1")
    assert "subject-1.nii.gz is truncated" in broken["error"]
    write_head(folder / "subject-1.nii.gz", 1)
    (folder / "zeros.nii").unlink()
    again = call("score", model, folder, "--out", tmp_path / "out")
    assert [row["state"] for row in again["volumes"]] == ["kept", "scored", "kept"]


def test_what_is_damaged_or_of_another_model_is_scored_again(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 3)
    out = tmp_path / "out"
    first = call("score", model, folder, "--out", out)
    whole = content(out)
    target = out / "subject-1" / "subject-1_map.nii.gz"
    target.write_bytes(target.read_bytes()[:-5])
    (out / "subject-2" / "subject-2.png").unlink()
    again = call("score", model, folder, "--out", out)
    assert [row["state"] for row in again["volumes"]] == ["kept", "scored", "scored"]
    np.testing.assert_array_equal(voxels(target), voxels(out / "subject-1" / "subject-1_map.nii.gz"))
    assert content(out).keys() == whole.keys()
    write_head(folder / "subject-0.nii.gz", 9)
    assert [row["state"] for row in call("score", model, folder, "--out", out)["volumes"]] == ["scored", "kept", "kept"]
    other = make_model(tmp_path / "other", mean=0.5)
    moved = call("score", other, folder, "--out", out)
    assert {row["state"] for row in moved["volumes"]} == {"scored"}
    assert moved["volumes"][1]["image_score"] != first["volumes"][1]["image_score"]


def test_a_folder_of_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 1)
    (tmp_path / "out" / "subject-0").mkdir(parents=True)
    (tmp_path / "out" / "subject-0" / "thesis.txt").write_text("ten years")
    document = call("score", model, folder, "--out", tmp_path / "out", code=2)
    assert "is no result of this command" in document["volumes"][0]["error"]
    assert (tmp_path / "out" / "subject-0" / "thesis.txt").read_text() == "ten years"


def test_a_killed_run_goes_on(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 8)
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "score", str(model), str(folder)]
    run = subprocess.Popen([*command, "--out", str(out)], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("subject-*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(30)
    done = {path.parent.name for path in out.glob("subject-*/result.json")}
    assert 2 <= len(done) < 8
    times = {name: (out / name / "result.json").stat().st_mtime_ns for name in done}
    document = call("score", model, folder, "--out", out)
    assert {row["name"] for row in document["volumes"] if row["state"] == "kept"} == done
    assert {name: (out / name / "result.json").stat().st_mtime_ns for name in done} == times
    assert len(content(out)) == 8
    assert not (out / ".partial").exists()


def test_channels_are_told_by_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("anna_T1w", "anna_FLAIR", "ben/T1w", "ben/FLAIR", "cora_T1w", "dora"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(np.zeros((3, 3, 3), np.float32), AFFINE).to_filename(folder / f"{name}.nii.gz")
    cases = {case.name: case for case in cases_in(folder, ("T1w", "FLAIR"))}
    assert set(cases) == {"anna", "ben", "cora", "dora"}
    assert [path.name for path in cases["anna"].files] == ["anna_T1w.nii.gz", "anna_FLAIR.nii.gz"]
    assert [path.parent.name for path in cases["ben"].files] == ["ben", "ben"]
    assert "there is no FLAIR beside" in cases["cora"].problem
    assert "does not say which channel" in cases["dora"].problem
    (folder / "ben").rename(folder / "a b")
    shutil.copytree(folder / "a b", folder / "a_b")
    with pytest.raises(SettingError, match="would both be called 'a_b'"):
        cases_in(folder, ("T1w", "FLAIR"))


def die_at(number: int, marks: Path) -> Callable[[int], int]:
    def work(item: int) -> int:
        marks.mkdir(exist_ok=True)
        tries = len(list(marks.glob(f"{item}-*")))
        (marks / f"{item}-{tries}").touch()
        if item == number and tries < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return work


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_dies_is_replaced_and_its_work_tried_again(tmp_path: Path) -> None:
    from functools import partial

    outcomes = dict(map_held(partial(die_at, 3, tmp_path / "marks"), range(8), num_workers=2))
    assert outcomes == {number: number * number for number in range(8)}


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_there_is_room_for_hold_nothing_up(tmp_path: Path) -> None:
    from functools import partial

    outcomes = dict(map_held(partial(die_at, 3, tmp_path / "marks"), range(12), num_workers=5))
    assert outcomes == {number: number * number for number in range(12)}


class OnlyHere:
    """Cannot be taken up on a worker."""

    def __reduce__(self) -> Any:
        return vanished, ()

    def __call__(self) -> Callable[[int], int]:
        raise AssertionError("it is never called")


def vanished() -> OnlyHere:
    raise ModuleNotFoundError("No module named 'elsewhere'")


@pytest.mark.usefixtures("ray_session")
def test_what_no_worker_can_take_up_is_one_sentence() -> None:
    with pytest.raises(WorkerLostError, match=r"workers in a row died as they started.*No module named 'elsewhere'"):
        list(map_held(OnlyHere(), range(4), num_workers=2))


def always_dying(number: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return work


@pytest.mark.usefixtures("ray_session")
def test_what_kills_its_actor_each_time_is_named_and_the_others_stand() -> None:
    from functools import partial

    outcomes = dict(map_held(partial(always_dying, 2), range(6), num_workers=2))
    assert isinstance(outcomes.pop(2), WorkerLostError)
    assert outcomes == {number: number for number in (0, 1, 3, 4, 5)}


@pytest.mark.usefixtures("ray_session")
def test_a_split_by_workers_is_the_split_of_one_process(toy_store: CohortStore, tmp_path: Path) -> None:
    run = pipeline.start_run(
        "healthy_atlas", toy_store.path, home=tmp_path, assignments=["training.threads=1"], num_workers=0, name="atlas"
    )
    pipeline.train(run)
    alone = pipeline.score_run(run, "test")
    kept = {record.subject_id: alone.map(record.subject_id).copy() for record in alone.records}
    shutil.rmtree(alone.path)
    spread = pipeline.score_run(run, "test", num_workers=2)
    assert [record.subject_id for record in spread.records] == sorted(kept)
    for name, expected in kept.items():
        np.testing.assert_array_equal(spread.map(name), expected)
    chunk = max((spread.path / "subjects" / "test-02").rglob("c.*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-3])
    before = (spread.path / "subjects" / "test-01" / "zarr.json").stat().st_mtime_ns
    again = pipeline.score_run(run, "test", num_workers=1)
    np.testing.assert_array_equal(again.map("test-02"), kept["test-02"])
    assert (spread.path / "subjects" / "test-01" / "zarr.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("ray_session")
def test_a_subject_that_cannot_be_scored_keeps_the_others(toy_store: CohortStore, tmp_path: Path) -> None:
    from vesalius.platform.store import CohortStore as Store

    store = Store.open(shutil.copytree(toy_store.path, tmp_path / "store"))
    run = pipeline.start_run(
        "healthy_atlas", store.path, home=tmp_path, assignments=["training.threads=1"], num_workers=0, name="atlas"
    )
    pipeline.train(run)
    victim = max((store.path / "subjects" / "test-01").rglob("c.*"), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PartialScoreError, match="1 of 4 subjects") as raised:
        pipeline.score_run(run, "test", num_workers=2)
    assert set(raised.value.failed) == {"test-01"}
    victim.write_bytes(whole)
    assert len(pipeline.score_run(run, "test", num_workers=2).records) == 4
    assert isinstance(ScoreStore.open(pipeline.scores_folder(run, "test", store)), ScoreStore)
