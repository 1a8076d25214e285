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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.platform.store.files import remove, write_file
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.space import space_errors
from vesalius.platform.training import TrainingSettings
from vesalius.tuning.dimension import Dimension

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COHORT = "cohort"

Ending = Literal["complete", "pruned", "failed", "repeated", "refused"]
"""``repeated``: the values of an earlier trial; ``refused``: values that the method's settings refuse together. Both
are drawn and put back: neither is trained, counts as a trial, or is one to a sampler or a pruner."""
COUNTED: tuple[Ending, ...] = ("complete", "pruned", "failed")


class Start(Settings):
    """A run whose finished stages a study's trials take over.

    Attributes:
        run: its name.
        stages: these stages, in order; trials start after the last of them.
        weights_sha256: of the checkpoint there.
        trains: whether trials have stages left to train, with the settings that the study starts from.
        has_passes: whether validation passes are made in these.
    """

    run: str
    stages: tuple[str, ...] = Field(min_length=1)
    weights_sha256: str
    trains: bool
    has_passes: bool

    @property
    def text(self) -> str:
        """``RUN@STAGE``."""
        return f"{self.run}@{self.stages[-1]}"


class Learnt(Settings):
    """A trial of an earlier study that this one learns from: as it was, or by running its values again.

    Attributes:
        study: the earlier one.
        number: of the trial there.
        values: what it set of what is searched here, by dotted key.
        figures: by objective; empty where it was stopped, or is run again.
        percent: how far its training came.
        passed: the criterion's best pass of a trial that was stopped.
    """

    study: str
    number: int
    values: dict[str, Any]
    figures: dict[str, float] = Field(default_factory=dict)
    percent: float = 100.0
    passed: float | None = None

    @property
    def source(self) -> str:
        """Study and number."""
        return f"{self.study}/{self.number}"

    @property
    def is_known(self) -> bool:
        """Whether it is known what the values come to; else they are run here."""
        return bool(self.figures) or self.passed is not None


class Place(Settings):
    """Where a study's folder is.

    Attributes:
        host: name of the machine, or of the container.
        path: absolute.
        inode: of the folder: another container that mounts the same volume finds the same one.
    """

    host: str
    path: str
    inode: int

    def is_same(self, other: Place) -> bool:
        """Say whether two are one folder, which may have been renamed."""
        return [self.host == other.host, self.path == other.path, self.inode == other.inode].count(True) >= 2


class StudySpec(Settings):
    """All that decides a study.

    Attributes:
        name: the folder's.
        token: of this folder: tells the trials that were begun from here from those of other drivers of one study.
        place: of the folder that has the token, where drivers share the study.
        method: name in the methods' table.
        preset: where the method's settings start, a preset or ``RUN@STAGE``; a tag.
        settings: the method's settings that trials start from, complete, as plain JSON.
        training: the loop's settings.
        store: absolute path or URL of the cohort store.
        cohort_digest: its digest when the study was created; a changed store is refused.
        searched: the spaces.
        objectives: what is made better; several give a front.
        sampler: its name.
        pruner: its name; ``none`` where trials are trained to their end.
        criterion: by which a trial may be stopped early; None where nothing says enough of the objective.
        seed: of the sampler.
        trials: how many, over all drivers.
        num_workers: of a trial; above 1 it is a run of Ray Train.
        concurrent: trials side by side.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker; a fraction shares a device.
        storage: where Optuna keeps the study, without a password. Empty in the file where it is ``optuna.db`` beside
            that: a folder that was moved or copied has its own.
        source_digest: of the cohort that lesions were set into, where the study is judged on a copy with them.
        start: the run that trials start from; None where they train all stages.
        shared: whether other drivers may have a part in it; a file in the folder is nobody else's.
        experiment: name of the experiment that the runs are tracked under.
        created: time of creation, UTC, ISO 8601.
        learn_from: names of earlier studies that it learns from.
        learnt: what it takes from them; settled when the study is begun.
    """

    name: str
    token: str
    place: Place | None = None
    method: str
    preset: str = "paper"
    settings: dict[str, Any]
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    store: str
    cohort_digest: str
    searched: tuple[Dimension, ...]
    objectives: tuple[str, ...] = Field(min_length=1)
    sampler: str = "tpe"
    pruner: str = "none"
    criterion: str | None = None
    seed: int = Field(0, ge=0)
    trials: int = Field(ge=1)
    num_workers: int = Field(1, ge=1)
    concurrent: int = Field(1, ge=1)
    cpus: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    source_digest: str = ""
    storage: str = ""
    start: Start | None = None
    shared: bool = False
    experiment: str
    created: str
    learn_from: tuple[str, ...] = ()
    learnt: tuple[Learnt, ...] = ()

    def terms(self) -> dict[str, Any]:
        """Return what all drivers of one study must agree on."""
        value = self.model_dump(mode="json")
        names = ("method", "settings", "cohort_digest", "searched", "objectives", "criterion", "num_workers")
        # Threads and memory are each machine's own affair.
        loop = {key: one for key, one in value["training"].items() if key not in LOCAL}
        # A copy of the run, under another name, is the same start.
        weights = None if self.start is None else [list(self.start.stages), self.start.weights_sha256]
        # In which order they were given says nothing.
        value["searched"] = sorted(value["searched"], key=lambda one: one["key"])
        return {**{name: value[name] for name in names}, "training": loop, "start": weights}

    def run_id(self, number: int, seed: int | None = None) -> str:
        """Return the name of a trial's run, or of the one that trains it again with another seed."""
        return f"{self.name}-{number:04d}" + ("" if seed is None else f"-seed{seed}")


LOCAL = ("threads", "cache_mib", "prefetch", "readers", "device")
"""Of the loop's settings, those that say how a machine computes and not what."""


class Record(Settings):
    """What became of a trial.

    Attributes:
        number: of the trial in its study.
        ending: how it ended.
        reason: why it failed, in a sentence.
        run_id: its run.
        figures: by name: of the validation split and of what it took.
        percent: how far its training came.
        passed: the criterion's best pass of a trial that was stopped.
        is_transient: whether a failure was of the moment (want of memory, a worker that died) and not of its settings.
    """

    number: int
    ending: Ending
    reason: str = ""
    run_id: str = ""
    figures: dict[str, float] = Field(default_factory=dict)
    percent: float = 100.0
    passed: float | None = None
    is_transient: bool = False


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


def check_new_study(home: Path, name: str) -> None:
    """Check that a study of that name can be made.

    Raises:
        StudyError: it is no plain name, or a study of that name exists.
    """
    if not _NAME.fullmatch(name):
        raise StudyError(f"{name!r} cannot name a study: use letters, digits, '.', '_' and '-' only")
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
