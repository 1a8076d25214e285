"""A study's folder: what was asked for, what each trial came to, its storage.

::

    HOME/studies/<name>/
      study.json         the specification; written last of what a study begins with, then only under the lock
      trials/0007.json   what became of a trial; written by its worker, before the driver hears of it
      seeds/0007-3.json  what became of it when it was trained again with seed 3
      test.json          the best beside the start on the test split, where that was asked for at the end
      optuna.db          the study's storage, unless another one was given
      cohort/            the cohort with synthetic lesions in its validation volumes, where they were asked for
      ray/               what Ray Tune writes while it runs; nothing is read from it again
      .lock              held by the one process that begins, changes or drives the study from here

The runs of the trials lie among all other runs, under the names ``<study>-0007`` and ``<study>-0007-seed3``.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.platform.config import validate
from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.platform.store.files import remove, write_file
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.space import space_errors
from vesalius.tuning.spec import Place, Record, StudySpec

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COHORT = "cohort"


class StudyFolder:
    """A study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec(self) -> StudySpec:
        """What was asked for.

        Raises:
            StudyError: ``study.json`` is missing or damaged.
        """
        path = self.path / "study.json"
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError):
            raise StudyError(f"{path} is missing or damaged: begin the study anew with `vesalius tune`") from None
        try:
            spec = validate(StudySpec, value, str(path))
        except SettingError as error:
            raise StudyError(f"{error}; the study is of another version: begin it anew") from None
        return spec if spec.shared else spec.model_copy(update={"storage": file_address(self.path)})

    @property
    def lock(self) -> Path:
        """File that the one process driving the study from here holds."""
        return self.path / ".lock"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            StudyError: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.lock))
            except StoreError as error:
                raise StudyError(str(error)) from None
            yield

    @property
    def cohort(self) -> Path:
        """Folder for the cohort with synthetic lesions."""
        return self.path / _COHORT

    @property
    def ray(self) -> Path:
        """Folder for what Ray Tune writes."""
        return self.path / "ray"

    @property
    def has_ended(self) -> bool:
        """Whether any trial has come to its end here."""
        return any((self.path / "trials").glob("*.json"))

    def record(self, number: int, seed: int | None = None) -> Record | None:
        """Return what a worker wrote of a trial, or None where it has not come to its end.

        Args:
            number: of the trial.
            seed: that it was trained again with, or None for the trial itself.
        """
        try:
            return Record.model_validate_json(self._place(number, seed).read_text())
        except (OSError, ValueError):
            return None

    def repeats(self) -> dict[tuple[int, int], Record]:
        """Return what became of trials that were trained again, by number and seed."""
        found = {}
        for path in (self.path / "seeds").glob("*-*.json"):
            number, _, seed = path.stem.partition("-")
            record = self.record(int(number), int(seed)) if number.isdigit() and seed.isdigit() else None
            if record is not None:
                found[int(number), int(seed)] = record
        return found

    def keep(self, record: Record, seed: int | None = None) -> None:
        """Write what became of a trial, or of its training with another seed."""
        path = self._place(record.number, seed)
        with space_errors(self.path):
            path.parent.mkdir(exist_ok=True)
            write_file(path, record.model_dump_json(indent=1).encode(), self.path)

    def _place(self, number: int, seed: int | None) -> Path:
        if seed is None:
            return self.path / "trials" / f"{number:04d}.json"
        return self.path / "seeds" / f"{number:04d}-{seed}.json"

    def rewrite(self, spec: StudySpec) -> None:
        """Write the specification: the first time, or with another number of trials."""
        if spec.shared and spec.place is None:
            spec = spec.model_copy(update={"place": self._here()})
        if not spec.shared:
            spec = spec.model_copy(update={"storage": ""})
        with space_errors(self.path):
            write_file(self.path / "study.json", spec.model_dump_json(indent=1).encode(), self.path)

    def claim(self) -> bool:
        """Make the token this folder's alone, under its lock; return whether it is another one since.

        In a storage that drivers share a copy of a folder would take the trials of the first one for its own. A folder
        that was moved keeps its token. A file in the folder needs none of this: a copy has its own.
        """
        spec, here = self.spec, self._here()
        if not spec.shared or spec.place == here:
            return False
        before = spec.place
        is_copy = before is not None and not before.is_same(here) and not self._was_moved(before, spec.token)
        token = secrets.token_hex(8) if is_copy else spec.token
        self.rewrite(spec.model_copy(update={"token": token, "place": here}))
        return is_copy

    def _here(self) -> Place:
        path = self.path.absolute()
        return Place(host=socket.gethostname(), path=str(path), inode=path.stat().st_ino)

    def _was_moved(self, before: Place, token: str) -> bool:
        """Say whether nothing of the study is left where it was; of another machine nobody can say so."""
        if before.host != self._here().host:
            return False
        try:
            return StudyFolder(Path(before.path)).spec.token != token
        except StudyError:
            return True


def studies_folder(home: Path) -> Path:
    """Return where a home keeps its studies."""
    return home / "studies"


def check_study_name(name: str) -> None:
    """Check that something can be a study's name, whether there is one or not.

    Raises:
        StudyError: it is no plain name.
    """
    if not _NAME.fullmatch(name):
        raise StudyError(f"{name!r} cannot name a study: use letters, digits, '.', '_' and '-' only")


def check_new_study(home: Path, name: str) -> None:
    """Check that a study of that name can be made.

    Raises:
        StudyError: it is no plain name, or a study of that name exists.
    """
    check_study_name(name)
    if (studies_folder(home) / name / "study.json").exists():
        raise StudyError(
            f"a study '{name}' exists already: go on with `vesalius tune --resume {name}`, or choose another name"
        )


def file_address(folder: Path) -> str:
    """Return the address of the storage in a study's own folder."""
    return f"sqlite:///{folder.absolute() / 'optuna.db'}"


@contextlib.contextmanager
def new_study(home: Path, name: str) -> Iterator[StudyFolder]:
    """Claim the folder of a new study; what is made in it goes again unless its specification comes to be written.

    What a process that was killed left of a study that it was beginning goes too: it wrote the lock first.

    Raises:
        StudyError: it is no plain name, a study of that name exists or is being made by another process, or the folder
            holds something that is not a study's.
    """
    check_new_study(home, name)
    folder = StudyFolder(studies_folder(home) / name)
    with space_errors(home):
        folder.path.mkdir(parents=True, exist_ok=True)
    _check_own(folder)
    with folder.alone():
        check_new_study(home, name)  # somebody else may have made it a moment ago
        _clear(folder)
        try:
            yield folder
        finally:
            if not (folder.path / "study.json").exists():
                _clear(folder)
                folder.lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty: what somebody else put there meanwhile stays
                    folder.path.rmdir()
                    folder.path.parent.rmdir()


def _check_own(folder: StudyFolder) -> None:
    """Refuse a folder that holds what no study that was being begun has left there.

    Raises:
        StudyError: it does.
    """
    there = {path.name for path in folder.path.iterdir()}
    if "study.json" in there:
        return  # made a moment ago, which is said under the lock
    others = sorted(
        there - {path.name for path in _begun(folder)} - {folder.lock.name} if folder.lock.name in there else there
    )
    if others:
        raise StudyError(
            f"{folder.path} is no study and holds {', '.join(others[:3])}: move it away, or choose another name"
        )


def _begun(folder: StudyFolder) -> list[Path]:
    """Return what a study that is being begun has made but for its lock and its specification."""
    return [one for one in folder.path.iterdir() if one.name == _COHORT or one.name.startswith("study.json.")]


def _clear(folder: StudyFolder) -> None:
    for path in _begun(folder):
        remove(path)


def create_study(home: Path, spec: StudySpec) -> StudyFolder:
    """Make the folder of a new study and write its specification.

    Raises:
        StudyError: it is no plain name, or a study of that name exists.
    """
    with new_study(home, spec.name) as folder:
        folder.rewrite(spec)
    return folder


def find_study(home: Path, name: str) -> StudyFolder:
    """Return the study of that name.

    Raises:
        StudyError: there is none; names the nearest one.
    """
    folder = studies_folder(home)
    if _NAME.fullmatch(name) and (folder / name / "study.json").is_file():
        return StudyFolder(folder / name)
    names = sorted(path.parent.name for path in folder.glob("*/study.json"))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else (f"there are {', '.join(names)}" if names else "there is none yet")
    raise StudyError(f"no study '{name}' in {home}: {hint}")
