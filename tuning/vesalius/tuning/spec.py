"""What decides a study, and what becomes of its trials: as they lie in its folder and in its storage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.training import TrainingSettings
from vesalius.tuning.dimension import Dimension

Ending = Literal["complete", "paused", "pruned", "failed", "repeated", "refused"]
"""``paused``: of a generation that is not the last, for others to go on from; ``repeated``: the values of an earlier
trial; ``refused``: values that the method's settings refuse together. The last two are drawn and put back: neither is
trained, counts as a trial, or is one to a sampler or a pruner."""
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
        population: where trials are members of generations, which go on from one another.
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
    population: Population | None = None
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

    @property
    def start_sha256(self) -> str:
        """Digest of the weights that trials start from; empty where they train all stages."""
        return "" if self.start is None else self.start.weights_sha256

    @property
    def can_be_repeated(self) -> bool:
        """Whether trials can be trained again with other seeds: one run each, that trains something."""
        return self.population is None and (self.start is None or self.start.trains)

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
        figures: by name: of the validation split and of what it took; of a paused trial the criterion's alone.
        percent: how far its training came.
        passed: the criterion's best pass of a trial that was stopped.
        is_transient: whether a failure was of the moment (want of memory, a worker that died) and not of its settings.
        checkpoint: where a paused trial's run stands.
        weights_sha256: of that checkpoint's weights.
    """

    number: int
    ending: Ending
    reason: str = ""
    run_id: str = ""
    figures: dict[str, float] = Field(default_factory=dict)
    percent: float = 100.0
    passed: float | None = None
    is_transient: bool = False
    checkpoint: str = ""
    weights_sha256: str = ""
