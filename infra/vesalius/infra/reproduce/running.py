"""One row: choose its settings, train it, judge it; and find again what an earlier call did."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vesalius.infra import pipeline
from vesalius.infra.reproduce.budget import Choice, choose, paper_settings, scaled_settings
from vesalius.infra.reproduce.kept import kept
from vesalius.infra.reproduce.levels import SPLIT
from vesalius.platform.config import Settings, digest, flatten, validate
from vesalius.platform.errors import DiskSpaceError, SettingError, VesaliusError
from vesalius.platform.runs import begun_run
from vesalius.platform.training import Checkpoints, TrainingSettings, choose_device
from vesalius.platform.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.infra.console import Terminal
    from vesalius.infra.pipeline import ThresholdRule
    from vesalius.infra.reproduce.cohort import Cohorts
    from vesalius.infra.reproduce.protocol import Protocol, Row
    from vesalius.platform.evaluation import Figures, VoxelSet
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.store import CohortStore

THRESHOLD_SUBJECTS = 8
"""Of the training split, that a threshold on it is chosen on where there is a budget."""
_SPECIAL = str.maketrans(dict.fromkeys(" ()/*=", "-"))


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rows of a call share.

    Attributes:
        protocol: the paper's.
        cohorts: what is learnt from and judged on.
        home: of the runs.
        out: where choices of settings, and what they were chosen by, are kept.
        budget_seconds: a row's, or None for the paper's settings.
        num_workers: Ray Train workers; 0 trains in this process.
        device: cpu, cuda or auto.
        threads: of CPU, of one worker; None shares out the machine's cores.
        small: the preset that is scaled to the budget; None cuts the epochs of each row's own settings alone.
        at_once: rows that share this machine.
    """

    protocol: Protocol
    cohorts: Cohorts
    home: Path
    out: Path
    budget_seconds: float | None
    num_workers: int
    device: str
    threads: int | None
    small: str | None
    at_once: int = 1

    def store_of(self, row: Row) -> CohortStore:
        """Return the store that a row is trained on."""
        finer = self.cohorts.finer if row.finer is not None else None
        return finer or self.cohorts.reference

    def splits(self) -> list[str]:
        """Return the splits that a row's maps are needed of, each once."""
        return list(dict.fromkeys([self.rule.split, "validation", SPLIT]))

    @property
    def rule(self) -> ThresholdRule:
        """The protocol's; within a budget, of a training split of which some subjects are scored and not all."""
        rule = self.protocol.rule
        if self.budget_seconds is None or rule.split != "train":
            return rule
        return rule.model_copy(update={"subjects": THRESHOLD_SUBJECTS})

    def num_scored(self, store: CohortStore) -> int:
        """Return how many volumes are scored for a row."""
        others = sum(len(store.subjects(split)) for split in self.splits() if split != self.rule.split)
        return others + len(self.rule.chosen(store))

    def training(self) -> TrainingSettings:
        """Return the loop's settings."""
        return TrainingSettings.model_validate({"device": self.device, "threads": self.threads})


class Outcome(Settings):
    """What became of a row.

    Attributes:
        choice: what it was trained with; None where that could not be told.
        code_shape: of one item's code with that choice; None where the method does not say.
        run: its run; None where none was begun.
        training_minutes: over all stages.
        error: the sentence that it failed with, or None.
    """

    choice: Choice | None = None
    code_shape: tuple[int, ...] | None = None
    run: str | None = None
    training_minutes: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A row's outcome, with its run and figures where it came to its end.

    Attributes:
        level: figures of the protocol's level, where it is not voxels.
    """

    row: Row
    outcome: Outcome
    run: RunFolder | None = None
    figures: Mapping[VoxelSet, Figures] | None = None
    level: Settings | None = None


def run_row(terminal: Terminal, row: Row, conditions: Conditions) -> Judged:
    """Do all that a row needs, or what is left of it; a failure of its own stays its own.

    Raises:
        DiskSpaceError: there is no room, for any row.
        KeyboardInterrupt: what is done is kept; the same call goes on.
    """
    outcome = Outcome()
    try:
        with terminal.progress(f"probe {row.label}") as progress:
            progress(0, 1, row.method)
            choice = _choice(row, conditions)
            progress(1, 1, choice.said)
        outcome = outcome.model_copy(update={"choice": choice, "code_shape": _code_shape(row, choice, conditions)})
        run = _find_or_start(row, choice, conditions)
        outcome = outcome.model_copy(update={"run": run.run_id})
        with terminal.progress(f"train {row.label}") as progress:
            pipeline.train(run, progress=progress)
        with terminal.progress(f"score {row.label}") as progress:
            figures = pipeline.evaluate_run(
                run,
                SPLIT,
                reference=conditions.cohorts.reference,
                rule=conditions.rule,
                device=conditions.device,
                progress=progress,
            )
            level = conditions.cohorts.level
            found = None
            if level is not None:
                found = level.judge(run, conditions.cohorts, conditions.device, progress)
    except DiskSpaceError:
        raise
    except (VesaliusError, MemoryError, RuntimeError) as error:
        if not isinstance(error, VesaliusError) and not is_out_of_memory(error):
            raise
        said = _sentence(error, conditions)
        terminal.warn(f"{row.label}: {said}")
        return Judged(row=row, outcome=outcome.model_copy(update={"error": said}))
    minutes = training_seconds(run) / 60
    outcome = outcome.model_copy(update={"training_minutes": minutes})
    return Judged(row=row, outcome=outcome, run=run, figures=figures, level=found)


def _sentence(error: Exception, conditions: Conditions) -> str:
    if isinstance(error, VesaliusError):
        return " ".join(str(error).split())
    ways = ["coarser data"]
    if conditions.at_once > 1:
        ways.insert(0, f"fewer than {conditions.at_once} rows at once")
    if conditions.budget_seconds is None:
        ways.insert(0, "a budget, which scales it down")
    return f"this machine has not memory enough for it: give {' or '.join(ways)}"


def training_seconds(run: RunFolder) -> float:
    """Return the seconds that a run has spent in its stages."""
    checkpoints = Checkpoints(run.checkpoints)
    last = checkpoints.last()
    return 0.0 if last is None else sum(checkpoints.state(last).seconds.values())


def _choice(row: Row, conditions: Conditions) -> Choice:
    """Return what the row is trained with; once probed it stays, so that the same call finds the same run.

    It stays for as long as what it was chosen from does: the settings too, since presets change from one version to
    the next.
    """
    store = conditions.store_of(row)
    key = digest(
        [
            row.model_dump(mode="json", include={"label", "method", "preset", "settings", "scaled"}),
            conditions.rule.model_dump(mode="json"),
            store.digest,
            conditions.budget_seconds,
            conditions.training().model_dump(mode="json"),
            str(choose_device(conditions.device)),  # `auto` finds another one on another machine
            conditions.num_workers,
            conditions.small,
            paper_settings(row).model_dump(mode="json"),
            scaled_settings(row, conditions.small).model_dump(mode="json"),
            # What is taken where the row's own settings cannot be kept.
            *([scaled_settings(row).model_dump(mode="json")] if conditions.small is None else []),
        ]
    )
    folder = conditions.out / "choices"
    return kept(
        folder / f"{conditions.protocol.name}-{slug(row.label)}-{key[:8]}.json",
        Choice,
        lambda: choose(
            row,
            conditions.training(),
            store,
            conditions.splits(),
            conditions.budget_seconds,
            num_volumes=conditions.num_scored(store),
            small=conditions.small,
            probes=folder,
        ),
    )


def _code_shape(row: Row, choice: Choice, conditions: Conditions) -> tuple[int, ...] | None:
    kind = pipeline.method_type(row.method)
    settings = validate(kind.settings_type, choice.settings, row.label)
    # Shapes alone: no weight is drawn, so that a row that is done costs nothing.
    with torch.device("meta"):
        return kind(settings, conditions.store_of(row).facts()).code_shape()


def _find_or_start(row: Row, choice: Choice, conditions: Conditions) -> RunFolder:
    """Return the row's run, which may be another row's; its name holds a digest of all that decides its outcome.

    The digest knows no label: two rows of one method, one store and the same settings, those of scoring among them,
    have the same, and the run that either has begun is both rows'.
    """
    store = conditions.store_of(row)
    training = conditions.training()
    key = digest([row.method, choice.settings, training.model_dump(mode="json"), store.digest, conditions.num_workers])
    protocol = conditions.protocol
    for label in dict.fromkeys([*(one.label for one in (*protocol.rows, *protocol.trivial())), row.label]):
        begun = begun_run(conditions.home, _run_id(label, key))
        if begun is not None:
            return begun
    return pipeline.start_run(
        row.method,
        store.path,
        home=conditions.home,
        settings=choice.settings,
        preset=choice.preset,
        assignments=[f"training.device={training.device}", f"training.threads={json.dumps(training.threads)}"],
        num_workers=conditions.num_workers,
        name=_run_id(row.label, key),
        experiment=protocol.name,
    )


def _run_id(label: str, key: str) -> str:
    return f"{slug(label)}-{key[:8]}"


def may_be_one_run(row: Row, other: Row, conditions: Conditions) -> bool:
    """Say whether two rows may come to the same settings: then the second waits for what the first one begins.

    They need not: of two rows that are scaled down alike, the paper's settings of one may fit the budget.
    """
    if row.method != other.method or conditions.store_of(row).digest != conditions.store_of(other).digest:
        return False
    # What is wrong with a row it says by itself.
    with contextlib.suppress(SettingError):
        return any(one in _ends(other, conditions) for one in _ends(row, conditions))
    return False


def _ends(row: Row, conditions: Conditions) -> list[dict[str, Any]]:
    """Return the settings that a row may come to, by dotted key; a budget cuts epochs to whatever there is time for."""
    paper = flatten(paper_settings(row))
    if conditions.budget_seconds is None:
        return [paper]
    return [
        {key: value > 0 if key.rpartition(".")[2] == "epochs" else value for key, value in one.items()}
        for one in (paper, flatten(scaled_settings(row, conditions.small or "demo")))
    ]


def slug(label: str) -> str:
    """Return a label as a name of files and runs."""
    return label.replace("*", "-full").translate(_SPECIAL)
