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
