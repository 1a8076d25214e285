"""A study's folder: what was asked for, what each trial came to, its storage.

::

    HOME/studies/<name>/
      study.json         the specification; written last of what a study begins with, then only under the lock
      trials/0007.json   what became of a trial; written by its worker, before the driver hears of it
      seeds/0007-3.json  what became of it when it was trained again with seed 3
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
import shutil
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import SettingError, StoreError, StudyError
from vesalius.platform.store.files import write_file
from vesalius.platform.store.lock import exclusive
from vesalius.platform.store.space import space_errors
from vesalius.platform.training import TrainingSettings
from vesalius.tuning.dimension import Dimension

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Ending = Literal["complete", "paused", "pruned", "failed", "repeated", "refused"]
"""``paused``: of a generation that is not the last, for others to go on from; ``repeated``: the values of an earlier
trial, whose figures were taken; ``refused``: values that the method's
settings refuse together, drawn and put back. Neither of the last two is trained, nor counts as a trial."""
COUNTED: tuple[Ending, ...] = ("complete", "paused", "pruned", "failed")


class Population(Settings):
    """A study's population.

    Attributes:
        size: members.
        generations: parts that the training is cut into, of equal numbers of steps.
    """

    size: int = Field(ge=1)
    generations: int = Field(ge=2)

    def place(self, number: int) -> tuple[int, int]:
        """Return a trial's generation and member."""
        return divmod(number, self.size)

    def until(self, number: int) -> float:
        """Return the share of all steps at which a trial pauses; 1 is the end."""
        return (number // self.size + 1) / self.generations

    def is_last(self, number: int) -> bool:
        """Say whether a trial trains to the end."""
        return number // self.size == self.generations - 1


class StudySpec(Settings):
    """All that decides a study.

    Attributes:
        name: the folder's.
        token: of this folder: tells the trials that were begun from here from those of other drivers of one study.
        method: name in the methods' table.
        preset: where the method's settings start; a tag.
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
        population: where trials are members of generations, which go on from one another.
        num_workers: of a trial; above 1 it is a run of Ray Train.
        concurrent: trials side by side.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker; a fraction shares a device.
        storage: where Optuna keeps the study, without a password. Empty in the file where it is ``optuna.db`` beside
            that: a folder that was moved or copied has its own.
        source_digest: of the cohort that lesions were set into, where the study is judged on a copy with them.
        shared: whether other drivers may have a part in it; a file in the folder is nobody else's.
        experiment: name of the experiment that the runs are tracked under.
        created: time of creation, UTC, ISO 8601.
    """

    name: str
    token: str
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
    population: Population | None = None
    num_workers: int = Field(1, ge=1)
    concurrent: int = Field(1, ge=1)
    cpus: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    source_digest: str = ""
    storage: str = ""
    shared: bool = False
    experiment: str
    created: str

    def terms(self) -> dict[str, Any]:
        """Return what all drivers of one study must agree on."""
        value = self.model_dump(mode="json")
        names = (
            "method",
            "settings",
            "cohort_digest",
            "searched",
            "objectives",
            "criterion",
            "num_workers",
            "population",
        )
        # Threads and memory are each machine's own affair.
        loop = {key: one for key, one in value["training"].items() if key not in _LOCAL}
        return {**{name: value[name] for name in names}, "training": loop}

    def run_id(self, number: int, seed: int | None = None) -> str:
        """Return the name of a trial's run, or of the one that trains it again with another seed."""
        return f"{self.name}-{number:04d}" + ("" if seed is None else f"-seed{seed}")


_LOCAL = ("threads", "cache_mib", "prefetch", "readers", "device")


class Record(Settings):
    """What became of a trial.

    Attributes:
        number: of the trial in its study.
        ending: how it ended.
        reason: why it failed, in a sentence.
        run_id: its run.
        figures: by name: of the validation split and of what it took; of a paused trial the criterion's alone.
        percent: how far its training came.
        checkpoint: where a paused trial's run stands.
        weights_sha256: of that checkpoint's weights.
    """

    number: int
    ending: Ending
    reason: str = ""
    run_id: str = ""
    figures: dict[str, float] = Field(default_factory=dict)
    percent: float = 100.0
    checkpoint: str = ""
    weights_sha256: str = ""


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
        if not spec.shared:
            spec = spec.model_copy(update={"storage": ""})
        with space_errors(self.path):
            write_file(self.path / "study.json", spec.model_dump_json(indent=1).encode(), self.path)


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

    Raises:
        StudyError: it is no plain name, or a study of that name exists or is being made by another process.
    """
    check_new_study(home, name)
    folder = StudyFolder(studies_folder(home) / name)
    with space_errors(home):
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.alone():
        check_new_study(home, name)  # somebody else may have made it a moment ago
        try:
            yield folder
        finally:
            if not (folder.path / "study.json").exists():
                shutil.rmtree(folder.path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.path.parent.rmdir()


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
