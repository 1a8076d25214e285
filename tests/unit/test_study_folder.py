"""A study's folder: who may write in it, and what a moved one holds."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from vesalius.infra.pipeline import change_study
from vesalius.platform.errors import StudyError
from vesalius.platform.store.lock import exclusive
from vesalius.tuning import StudyFolder, create_study, find_study, new_study
from vesalius.tuning.testing import toy_spec, toy_study

if TYPE_CHECKING:
    from pathlib import Path


def test_a_moved_or_copied_study_has_its_own_storage(tmp_path: Path) -> None:
    study = toy_study(tmp_path / "one")
    assert study.spec.storage == f"sqlite:///{tmp_path}/one/studies/toy/optuna.db"
    assert str(tmp_path / "one" / "studies") not in (study.path / "study.json").read_text()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert find_study(tmp_path / "two", "toy").spec.storage == f"sqlite:///{tmp_path}/two/studies/toy/optuna.db"


def test_a_copy_of_a_shared_study_signs_with_a_token_of_its_own(tmp_path: Path) -> None:
    study = toy_study(tmp_path / "one", shared=True, storage=f"sqlite:///{tmp_path}/team.db")
    token = study.spec.token
    assert not study.claim()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = find_study(tmp_path / "two", "toy")
    change_study(copy, {"trials": 9})  # which is no claim
    assert copy.claim()
    assert copy.spec.token != token
    assert not copy.claim(), "it is the copy's own from now on"
    assert not study.claim()
    assert study.spec.token == token
    shutil.move(tmp_path / "one", tmp_path / "three")
    moved = find_study(tmp_path / "three", "toy")
    assert not moved.claim()
    assert moved.spec.token == token, "a folder that was moved goes on with what it has begun"
    assert moved.spec.place is not None
    assert moved.spec.place.path == str(moved.path)


@pytest.mark.parametrize(
    ("changes", "is_copy"),
    [
        ({"host": "another"}, False),  # a container that mounts the same volume
        ({"host": "another", "inode": 1}, True),  # another machine with the same path
        ({"host": "another", "path": "/gone"}, True),  # nobody can say whether it is still there
        ({"path": "/gone", "inode": 1}, False),  # moved to another disk
        ({"inode": 1}, False),  # restored where it was
    ],
)
def test_a_folder_is_known_by_two_of_machine_path_and_inode(
    tmp_path: Path, changes: dict[str, object], is_copy: bool
) -> None:
    study = toy_study(tmp_path, shared=True, storage=f"sqlite:///{tmp_path}/team.db")
    spec = study.spec
    assert spec.place is not None
    study.rewrite(spec.model_copy(update={"place": spec.place.model_copy(update=changes)}))
    assert study.claim() == is_copy
    assert (study.spec.token != spec.token) == is_copy
    assert study.spec.place == spec.place


def test_a_copy_of_a_study_in_its_own_folder_takes_its_trials_along(tmp_path: Path) -> None:
    study = toy_study(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = find_study(tmp_path / "two", "toy")
    assert not copy.claim()
    assert copy.spec.token == study.spec.token


def test_a_shared_storage_stays_where_it_is(tmp_path: Path) -> None:
    assert toy_study(tmp_path, shared=True, storage="sqlite:////team.db").spec.storage == "sqlite:////team.db"


def test_only_one_of_two_makes_a_study(tmp_path: Path) -> None:
    with (
        new_study(tmp_path, "toy") as study,
        pytest.raises(StudyError, match=r"studies/toy is being written by process \d+"),
    ):
        create_study(tmp_path, toy_spec(tmp_path, seed=2))
    assert not study.path.exists(), "nothing came of it"
    create_study(tmp_path, toy_spec(tmp_path, seed=1))
    with pytest.raises(StudyError, match="exists already"):
        create_study(tmp_path, toy_spec(tmp_path, seed=2))
    assert find_study(tmp_path, "toy").spec.seed == 1


def test_a_study_that_is_made_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def check(home: Path, name: str) -> None:
        if seen:
            raise StudyError("exists already")
        seen.append(name)
        StudyFolder(home / "studies" / name).path.mkdir(parents=True)
        StudyFolder(home / "studies" / name).rewrite(toy_spec(home))

    monkeypatch.setattr("vesalius.tuning.folder.check_new_study", check)
    with pytest.raises(StudyError, match="exists already"):
        create_study(tmp_path, toy_spec(tmp_path, seed=2))
    assert find_study(tmp_path, "toy").spec.seed == 0


@pytest.mark.parametrize(
    ("before", "gpus", "after"), [("auto", 0, "cpu"), ("cuda", 0, "cpu"), ("cpu", 0.5, "auto"), ("cuda", 0.5, "cuda")]
)
def test_a_study_that_goes_on_with_other_devices_trains_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, gpus: float, after: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    study = toy_study(tmp_path, concurrent=1, training={"device": before})
    change_study(study, {"gpus": gpus})
    assert (study.spec.gpus, study.spec.training.device) == (gpus, after)
    change_study(study, {"trials": 9})
    assert study.spec.training.device == after


@pytest.mark.parametrize("name", ["precious.txt", "cohort/zarr.json", "trials/0000.json"])
def test_a_folder_of_somebody_elses_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "studies" / "toy" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(StudyError, match=rf"is no study and holds {name.split('/')[0]}: move it away"):
        create_study(tmp_path, toy_spec(tmp_path))
    assert path.read_text() == "mine"
    assert [one.name for one in (tmp_path / "studies" / "toy").iterdir()] == [name.split("/")[0]]


def test_what_somebody_puts_into_a_study_that_comes_to_nothing_stays(tmp_path: Path) -> None:
    with new_study(tmp_path, "toy") as study:
        (study.cohort / "half").mkdir(parents=True)
        (study.path / "notes.txt").write_text("mine")
    assert [path.name for path in study.path.iterdir()] == ["notes.txt"]


def test_a_beginning_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "studies" / "toy"
    (path / "cohort" / "half").mkdir(parents=True)
    for name in (".lock", "study.json.0123"):
        (path / name).write_text("")
    create_study(tmp_path, toy_spec(tmp_path))
    assert sorted(one.name for one in path.iterdir()) == [".lock", "study.json"]


def test_a_study_that_is_driven_is_not_changed(tmp_path: Path) -> None:
    study = toy_study(tmp_path, concurrent=1)
    with exclusive(study.lock), pytest.raises(StudyError, match="is being written by process"):
        change_study(study, {"trials": 9})
    assert study.spec.trials == 6
    change_study(study, {"trials": 9})
    assert study.spec.trials == 9
