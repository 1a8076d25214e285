"""A folder of volumes: which files are one volume, and what is kept of each through kills and moves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vesalius.infra.folders import Case, cases_in, results, scoring
from vesalius.infra.folders.results import clear_partial, keep_result, kept_result
from vesalius.platform.errors import SettingError, StoreError

CHANNELS = ("T1w", "FLAIR")


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def found(folder: Path, channels: tuple[str, ...] = CHANNELS) -> dict[str, Case]:
    return {case.name: case for case in cases_in(folder, channels)}


def test_the_files_of_a_volume_lie_side_by_side(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "anna_FLAIR.nii", "anna_T1w.nii.gz", "ben/FLAIR.nii.gz", "ben/T1w.nii.gz")
    cases = found(folder)
    assert {name: [path.name for path in case.files] for name, case in cases.items()} == {
        "anna": ["anna_T1w.nii.gz", "anna_FLAIR.nii"],
        "ben": ["T1w.nii.gz", "FLAIR.nii.gz"],
    }
    assert not any(case.problem for case in cases.values())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("anna_T1w.nii", "anna_T1w.nii.gz", "anna_FLAIR.nii.gz"), "are both T1w of one volume"),
        (("anna_T1w.nii", "anna.T1w.nii", "anna_FLAIR.nii.gz"), "are both T1w of one volume"),
        (("anna_T1w.nii", "anna/FLAIR.nii"), "lie in different folders"),
        (("anna_T1w.nii", "anna_FLAIR.nii", "anna/T1w.nii", "anna/FLAIR.nii"), "lie in different folders"),
    ],
)
def test_files_that_may_be_of_two_volumes_are_none(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    folder = write(tmp_path / "in", *names, "ben_T1w.nii", "ben_FLAIR.nii")
    cases = found(folder)
    assert set(cases) == {"anna", "ben"}
    assert said in cases["anna"].problem
    assert {str(path.relative_to(folder)) for path in cases["anna"].files} == set(names), "none is dropped"
    assert sum(str(folder / name) in cases["anna"].problem for name in names) == 2, "both are named"
    assert not cases["ben"].problem


def test_the_folders_own_name_is_not_mixed_with_a_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "T1w.nii", "in_FLAIR.nii")
    with pytest.raises(SettingError, match="would both be called 'in'"):
        found(folder)


@pytest.mark.parametrize("channels", [("ce", "T1_ce"), ("T1_ce", "ce")])
def test_the_longest_channel_that_fits_is_meant(tmp_path: Path, channels: tuple[str, str]) -> None:
    folder = write(tmp_path / "in", "a_T1_ce.nii", "a_ce.nii")
    case = found(folder, channels)["a"]
    assert not case.problem
    assert [path.name for path in case.files] == [f"a_{channel}.nii" for channel in channels]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an answer, of which two files are written."""

    def write_answer(given: Any, folder: Path, stem: str) -> dict[str, str]:
        paths = {"map": folder / f"{stem}_map.nii.gz", "picture": folder / f"{stem}.png"}
        for path in paths.values():
            path.write_bytes(given.voxels)
        return {kind: str(path) for kind, path in paths.items()}

    monkeypatch.setattr(results, "write_answer", write_answer)
    monkeypatch.setattr(results, "describe_answer", lambda _: {"image_score": 0.5})
    return SimpleNamespace(record=SimpleNamespace(notes={}), voxels=b"voxels")


class KillError(BaseException):
    """Ends a write where it stands."""


@pytest.mark.parametrize("calls", range(8))
def test_a_kill_while_a_result_is_replaced_leaves_one_or_none(
    tmp_path: Path, answer: Any, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Kills before every removal and renaming, and sees what the next run makes of it."""
    out, case = tmp_path, Case(name="anna", files=(tmp_path / "anna.nii",))
    keep_result(out, case, "old", answer)
    left = [calls]

    def until_killed(call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KillError
            return call(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        # What a removal of a folder consists of, too.
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(os, name, until_killed(getattr(os, name)))
        with contextlib.suppress(KillError):
            keep_result(out, case, "new", answer)
    clear_partial(out)
    rows = [kept_result(out, case, key) for key in ("old", "new")]
    assert rows.count(None) >= 1
    assert (out / "anna").exists() == any(rows), "what is there is whole"
    keep_result(out, case, "new", answer)
    assert kept_result(out, case, "new") is not None
    clear_partial(out)
    assert [path.name for path in out.iterdir()] == ["anna"]


def test_a_row_names_places_that_are(tmp_path: Path, answer: Any) -> None:
    case = Case(name="anna", files=(tmp_path / "in" / "anna.nii",))
    answer.record.notes["warnings"] = [f"{case.files[0]} does not say where it lies"]
    written = keep_result(tmp_path / "out", case, "key", answer)
    assert written["warnings"] == ["anna.nii does not say where it lies"]
    assert kept_result(tmp_path / "out", case, "key") == written
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    moved = Case(name="anna", files=(tmp_path / "archive" / "anna.nii",))
    row = kept_result(tmp_path / "elsewhere", moved, "key")
    assert row is not None
    assert row["files"] == [str(moved.files[0])]
    assert all(Path(path).read_bytes() == b"voxels" for path in row["written"].values())
    assert row.keys() == written.keys()
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "anna" / "result.json").read_text()


def test_a_result_of_another_format_is_none(tmp_path: Path, answer: Any) -> None:
    case = Case(name="anna", files=(tmp_path / "anna.nii",))
    keep_result(tmp_path, case, "key", answer)
    path = tmp_path / "anna" / "result.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "format": 1}))
    assert kept_result(tmp_path, case, "key") is None
    shutil.rmtree(tmp_path / "anna")
    (tmp_path / "anna").mkdir()
    with pytest.raises(StoreError, match="is no result of this command"):
        keep_result(tmp_path, case, "key", answer)


@pytest.mark.parametrize(
    ("device", "error", "expected"),
    [
        ("cpu", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError),
        (
            "cuda",
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            MemoryError,
        ),
        ("cuda:0", MemoryError("no room"), MemoryError),
        ("cuda", torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        ("cuda", RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), RuntimeError),
        ("cpu", RuntimeError("a defect"), RuntimeError),
    ],
)
def test_torchs_want_of_memory_has_the_name_by_which_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, error: Exception, expected: type[Exception]
) -> None:
    """A GPU is a worker's own: with fewer workers it has no more memory."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(scoring, "load_model", lambda *_: (None, None))
    monkeypatch.setattr(scoring, "key_of", lambda *_: "key")
    monkeypatch.setattr(scoring, "score_with", fail)
    work = scoring.FolderWork(model=tmp_path, out=tmp_path, device=device)()
    with pytest.raises(Exception, match=str(error)) as raised:
        work(Case(name="anna", files=()))
    assert type(raised.value) is expected
