"""Stages that trials of one study have in common: trained once, and taken over by the others.

A trial's weights are a function of its settings, its seed and the cohort. So what another trial's run has learnt up to
the end of a stage is what this one would learn, bit for bit, if all settings are equal that are read up to there.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from vesalius.platform.config import flatten, validate
from vesalius.platform.contracts import read_after
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.runs import RunFolder
from vesalius.platform.training import Checkpoints
from vesalius.platform.training.selection import validation_subjects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.runs import RunSpec
    from vesalius.platform.store import CohortStore


def find_shared(spec: RunSpec, method: Method, store: CohortStore, home: Path, study: str) -> str | None:
    """Return ``RUN@STAGE``, of the study's runs the one that has most in common with a new one, or None.

    Runs need not have come to their end: the checkpoint at the end of a stage is kept.

    Args:
        spec: of the new run.
        method: built from its settings.
        store: its cohort.
        home: of the runs.
        study: its name.
    """
    names = _shareable(method, store, spec.training.validate_subjects)
    # Stages that all trials take over from a run are no gain.
    own = spec.start_from.partition("@")[2] if spec.start_from else ""
    most = names.index(own) + 1 if own in names else 0
    found = None
    for run in _runs(home, study):
        for stage in names[most:]:
            with contextlib.suppress(RunError, SettingError):
                if run.run_id != spec.run_id and _is_same(run, spec, method, tuple(names[: names.index(stage) + 1])):
                    found, most = f"{run.run_id}@{stage}", names.index(stage) + 1
    return found


def _shareable(method: Method, store: CohortStore, num_validated: int) -> list[str]:
    """Return the names of the first stages whose outcome hangs on what they read, and on no validation pass.

    A pass scores, and scoring may read any setting: by one that differs, another pass may come to be the best.
    """
    stages = list(method.stages())
    if not validation_subjects(store, num_validated)[1]:
        return [stage.name for stage in stages]
    first = next((number for number, stage in enumerate(stages) if stage.selectable), len(stages))
    return [stage.name for stage in stages[:first]]


def _runs(home: Path, study: str) -> Iterator[RunFolder]:
    name = re.compile(rf"{re.escape(study)}-\d{{4,}}(-seed\d+)?")
    folder = home / "runs"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if name.fullmatch(path.name):
            yield RunFolder(path)


def _is_same(run: RunFolder, spec: RunSpec, method: Method, stages: tuple[str, ...]) -> bool:
    """Say whether a run has finished these stages with what a new one would read in them.

    Raises:
        RunError, SettingError: it cannot be read, or has not finished them.
    """
    theirs = run.spec
    for name in ("method", "cohort_digest", "training", "num_workers", "start_from"):
        if getattr(theirs, name) != getattr(spec, name):
            return False
    kind = type(method.settings)
    late = read_after(kind, stages)
    other = flatten(validate(kind, theirs.settings, str(run.path)))
    if any(other[key] != value for key, value in flatten(method.settings).items() if key not in late):
        return False
    checkpoints = Checkpoints(run.checkpoints)
    return checkpoints.state(checkpoints.end_of(stages[-1])).finished_stages == stages
