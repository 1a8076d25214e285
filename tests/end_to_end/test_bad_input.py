"""Bad input: one sentence, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (14, 12, 10)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content, but for locks, which hold a process id."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def assert_refused(done: Any, *words: str) -> None:
    """One sentence on stderr that holds ``words``, exit code 2, nothing on stdout, no defect."""
    assert done.exit_code == 2, (done.exit_code, done.stderr, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error ")]
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in said[0], said[0]


# ---- files that are not what they should be


def volume(seed: int = 0) -> Any:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    noise = np.random.default_rng(seed).normal(0, 0.05, SHAPE)
    return (brain * (1.0 + 0.3 * grid[0] + noise)).astype(np.float32)


def write(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    nibabel.Nifti1Image(array, affine).to_filename(path)
    return path


def truncated(folder: Path) -> Path:
    path = write(folder / "bad.nii.gz", volume())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def truncated_inside(folder: Path) -> Path:
    # A whole gzip file round half a volume: the gzip checksum does not give it away.
    whole = gzip.decompress(write(folder / "bad.nii.gz", volume()).read_bytes())
    path = folder / "bad.nii.gz"
    path.write_bytes(gzip.compress(whole[: len(whole) // 2]))
    return path


def text(folder: Path) -> Path:
    path = folder / "bad.nii"
    path.write_text("this is no volume\n" * 40)
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.write_bytes(b"")
    return path


def absent(folder: Path) -> Path:
    return folder / "bad.nii.gz"


def four_dimensional(folder: Path) -> Path:
    return write(folder / "bad.nii.gz", np.stack([volume(), volume()], axis=-1))


def not_a_number(folder: Path) -> Path:
    array = volume()
    array[6, 5, 4] = np.nan
    return write(folder / "bad.nii.gz", array)


def infinite(folder: Path) -> Path:
    array = volume()
    array[6, 5, 4] = np.inf
    return write(folder / "bad.nii.gz", array)


def all_zero(folder: Path) -> Path:
    return write(folder / "bad.nii.gz", np.zeros(SHAPE, np.float32))


def singular(folder: Path) -> Path:
    path = write(folder / "bad.nii", volume())
    content = bytearray(path.read_bytes())
    content[252:256] = b"\x00\x00\x01\x00"  # NIfTI-1: no qform, an sform
    content[312:328] = content[296:312]  # whose third row is its second
    path.write_bytes(bytes(content))
    return path


BAD_FILES: list[tuple[Callable[[Path], Path], str]] = [
    (truncated, "bad.nii.gz"),
    (truncated_inside, "bad.nii.gz"),
    (text, "bad.nii"),
    (empty_file, "bad.nii.gz"),
    (absent, "bad.nii.gz"),
    (four_dimensional, "4D"),
    (not_a_number, "NaN"),
    (infinite, "infinit"),
    (all_zero, "bad.nii.gz"),
    (singular, "affine"),
]
each_bad_file = pytest.mark.parametrize(("make", "word"), BAD_FILES, ids=[make.__name__ for make, _ in BAD_FILES])


def manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "subjects.csv"
    with path.open("w", newline="") as file:
        names = list(dict.fromkeys(key for row in rows for key in row))
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
    return path


def good_rows(folder: Path, num: int = 2) -> list[dict[str, str]]:
    return [
        {
            "subject_id": f"good-{index}",
            "image": str(write(folder / f"good-{index}.nii.gz", volume(index + 1))),
            "split": "train" if index < num - 1 else "validation",
        }
        for index in range(num)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Give a small cohort from files, and a baseline trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    source = manifest(folder, good_rows(folder, 4))
    store, home = folder / "cohort", folder / "home"
    assert call("ingest", "manifest", source, store, "--recipe", "as_is").exit_code == 0
    done = call("train", "healthy_atlas", store, "--workers", 0, "--name", "atlas", "--home", home)
    assert done.exit_code == 0, done.stderr
    return SimpleNamespace(store=store, home=home, run="atlas", folder=folder)


@each_bad_file
def test_ingest_names_the_file_and_takes_in_the_others(make: Callable[[Path], Path], word: str, tmp_path: Path) -> None:
    rows = [*good_rows(tmp_path), {"subject_id": "bad", "image": str(make(tmp_path)), "split": "train"}]
    store = tmp_path / "cohort"
    done = call("ingest", "manifest", manifest(tmp_path, rows), store, "--recipe", "as_is", "--json")
    assert_refused(done, "1 of 3 subjects", "bad", word)
    assert list(json.loads(done.stdout)["failed"]) == ["bad"]
    cohort = CohortStore.open(store)
    assert [record.subject_id for record in cohort.subjects()] == ["good-0", "good-1"]
    assert cohort.check() == []
    assert sorted(path.name for path in (store / "subjects").iterdir() if path.is_dir()) == ["good-0", "good-1"]
    assert not list((store / ".partial").iterdir())


@each_bad_file
def test_ingest_of_nothing_good_leaves_no_store(make: Callable[[Path], Path], word: str, tmp_path: Path) -> None:
    source = manifest(tmp_path, [{"subject_id": "bad", "image": str(make(tmp_path)), "split": "train"}])
    before = tree(tmp_path)
    done = call("ingest", "manifest", source, tmp_path / "cohort", "--recipe", "as_is")
    assert_refused(done, "bad", word)
    assert tree(tmp_path) == before
    assert not (tmp_path / "cohort").exists()


@each_bad_file
def test_score_names_the_file_and_writes_nothing(
    make: Callable[[Path], Path], word: str, trained: SimpleNamespace, tmp_path: Path
) -> None:
    path = make(tmp_path)
    before = tree(tmp_path), tree(trained.home)
    done = call("score", trained.run, path, "--out", tmp_path / "out", "--home", trained.home)
    assert_refused(done, word)
    assert done.stdout == ""
    assert (tree(tmp_path), tree(trained.home)) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["brain_mask", "lesion_mask"])
def test_a_mask_of_another_shape(role: str, tmp_path: Path) -> None:
    rows = good_rows(tmp_path)
    small = write(tmp_path / "mask.nii.gz", np.ones((14, 12, 9), np.uint8))
    rows[1][role] = str(small)
    store = tmp_path / "cohort"
    done = call("ingest", "manifest", manifest(tmp_path, rows), store, "--recipe", "as_is")
    assert_refused(done, "good-1", "mask.nii.gz", "14")
    assert [record.subject_id for record in CohortStore.open(store).subjects()] == ["good-0"]


# ---- subjects


def test_a_duplicate_subject_stops_the_ingest(tmp_path: Path) -> None:
    rows = good_rows(tmp_path)
    source = manifest(tmp_path, [*rows, {**rows[1], "subject_id": "good-0"}])
    before = tree(tmp_path)
    done = call("ingest", "manifest", source, tmp_path / "cohort", "--recipe", "as_is")
    assert_refused(done, "good-0")
    assert tree(tmp_path) == before
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("name", ["../escaped", "a/b", "..", "a b"])
def test_a_subject_id_stays_inside_the_store(name: str, tmp_path: Path) -> None:
    rows = good_rows(tmp_path)
    rows[0]["subject_id"] = name
    source = manifest(tmp_path, rows)
    before = tree(tmp_path)
    done = call("ingest", "manifest", source, tmp_path / "deep" / "cohort", "--recipe", "as_is")
    assert_refused(done, name)
    assert tree(tmp_path) == before
    assert not (tmp_path / "deep").exists()


def test_an_anomalous_subject_is_refused_in_training(tmp_path: Path) -> None:
    rows = good_rows(tmp_path)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[6:8, 5:7, 4:6] = 1
    rows[0]["lesion_mask"] = str(write(tmp_path / "lesion.nii.gz", lesion))
    source = manifest(tmp_path, rows)
    done = call("ingest", "manifest", source, tmp_path / "cohort", "--recipe", "as_is")
    assert_refused(done, "good-0", "train")
    assert [record.subject_id for record in CohortStore.open(tmp_path / "cohort").subjects()] == ["good-1"]
    allowed = call("ingest", "manifest", source, tmp_path / "told", "--recipe", "as_is", "--allow-anomalous-training")
    assert allowed.exit_code == 0
    assert len(CohortStore.open(tmp_path / "told").subjects("train")) == 1


# ---- stores, settings, runs


@pytest.mark.parametrize("kind", ["empty", "foreign", "file", "absent"])
@pytest.mark.parametrize("verb", ["check", "train", "score", "evaluate"])
def test_a_store_that_is_not_one(verb: str, kind: str, trained: SimpleNamespace, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind in ("empty", "foreign"):
        place.mkdir()
    if kind == "foreign":
        (place / "holiday.jpg").write_bytes(b"x")
    if kind == "file":
        place.write_text("x")
    arguments: list[object] = {
        "check": ["check", place],
        "train": ["train", "healthy_atlas", place, "--workers", 0, "--home", tmp_path / "home"],
        "score": ["score", trained.run, "--split", "test", "--store", place, "--home", trained.home],
        "evaluate": ["evaluate", trained.run, "--store", place, "--home", trained.home],
    }[verb]
    before = tree(tmp_path), tree(trained.home)
    assert_refused(call(*arguments), "place")
    assert (tree(tmp_path), tree(trained.home)) == before
    assert not (tmp_path / "home").exists()


def test_ingest_into_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "holiday.jpg").write_bytes(b"x")
    source = manifest(tmp_path, good_rows(tmp_path))
    before = tree(tmp_path)
    assert_refused(call("ingest", "manifest", source, tmp_path / "cohort", "--recipe", "as_is"), "holiday.jpg")
    assert tree(tmp_path) == before


def test_an_unknown_setting(trained: SimpleNamespace, tmp_path: Path) -> None:
    done = call("train", "implicit_field", trained.store, "--set", "method.latent_dims=8", "--home", tmp_path / "home")
    assert_refused(done, "unknown setting 'method.latent_dims'", "did you mean 'method.latent_dim'?")
    assert not list(tmp_path.iterdir())


def test_more_classes_than_intensities(tmp_path: Path) -> None:
    rows = good_rows(tmp_path, 3)
    for index, row in enumerate(rows):
        few = np.roll(np.round(volume() * 2), index, axis=2)  # a handful of distinct values
        write(Path(row["image"]), few.astype(np.float32))
    store, home = tmp_path / "cohort", tmp_path / "home"
    assert call("ingest", "manifest", manifest(tmp_path, rows), store, "--recipe", "as_is").exit_code == 0
    before = tree(store)
    done = call(
        "train", "implicit_field", store, "--preset", "tiny", "--set", "method.num_classes=200", "--workers", 0,
        "--name", "many", "--home", home,
    )  # fmt: skip
    assert_refused(done, "num_classes", "200")
    assert tree(store) == before
    run = home / "runs" / "many"
    assert json.loads((run / "state.json").read_text())["state"] == "failed"
    assert not (run / "model").exists()
    assert not [path for path in run.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--resume", "atlsa"],
        ["evaluate", "atlsa"],
        ["score", "atlsa", "--split", "validation"],
        ["promote", "atlsa", "--name", "brain"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_run_names_the_nearest(arguments: list[str], trained: SimpleNamespace) -> None:
    before = tree(trained.home)
    assert_refused(call(*arguments, "--home", trained.home), "atlsa", "did you mean 'atlas'?")
    assert tree(trained.home) == before


@pytest.mark.parametrize("reference", ["models:/nobody@champion", "models:/nobody/3", "models:nonsense"])
def test_a_missing_model(reference: str, trained: SimpleNamespace, tmp_path: Path) -> None:
    file = write(tmp_path / "x.nii.gz", volume())
    done = call("score", reference, file, "--out", tmp_path / "out", "--home", trained.home)
    assert_refused(done, "nobody" if "nobody" in reference else "nonsense")
    assert not (tmp_path / "out").exists()


# ---- no disk space


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=1000))


@pytest.mark.usefixtures("full_disk")
def test_ingest_on_a_full_disk(tmp_path: Path) -> None:
    source = manifest(tmp_path, good_rows(tmp_path))
    before = tree(tmp_path)
    assert_refused(call("ingest", "manifest", source, tmp_path / "cohort", "--recipe", "as_is"), "free", "cohort")
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("full_disk")
def test_score_on_a_full_disk(trained: SimpleNamespace, tmp_path: Path) -> None:
    before = tree(trained.home)
    file = trained.folder / "good-0.nii.gz"
    done = call("score", trained.run, file, "--out", tmp_path / "out", "--home", trained.home)
    assert_refused(done, "free", "out")
    assert not (tmp_path / "out").exists()
    assert tree(trained.home) == before


# ---- the real program, from another folder


def run_program(folder: Path, *arguments: object) -> SimpleNamespace:
    done = subprocess.run(
        [sys.executable, "-c", "from vesalius.infra.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )
    return SimpleNamespace(
        exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr, exception=SystemExit(done.returncode)
    )


def test_the_program_itself(trained: SimpleNamespace, tmp_path: Path) -> None:
    bad = truncated(tmp_path)
    before = tree(tmp_path)
    done = run_program(tmp_path, "score", trained.run, bad.name, "--home", trained.home, "--json")
    assert_refused(done, "bad.nii.gz")
    answer = json.loads(done.stdout)["error"]
    assert answer["kind"] == "VolumeError"
    assert answer["exit_code"] == 2
    assert f"error {answer['message']}" in done.stderr
    assert_refused(run_program(tmp_path, "check", "no-such-store"), str(tmp_path / "no-such-store"))
    assert tree(tmp_path) == before
