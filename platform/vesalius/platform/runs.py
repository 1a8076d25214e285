"""A run's folder: what was asked for, how far it is, its checkpoints, its model, its scores.

::

    HOME/runs/<run id>/
      run.json          the specification; written first, and again where a study computes elsewhere from then on
      state.json        created | training | finished | paused | interrupted | failed
      paused.json       what it was where it paused, if another run is to go on from there
      progress.json     where training is, for whoever looks
      reserved          what its workers hold of a cluster while they train
      begun             how often its workers have begun under the same driver
      checkpoints/      see vesalius.platform.training.checkpoint
      model/            the trained model, written last
      scores/<split>/   anomaly maps
      training_memory.json  what some steps held at most, where a table asked for it
      figures/          pictures
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import re
import secrets
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from vesalius.platform.config import Settings, flatten, validate
from vesalius.platform.contracts import MethodSettings
from vesalius.platform.errors import RunError, SettingError
from vesalius.platform.home import home as home
from vesalius.platform.store.files import write_file
from vesalius.platform.store.space import space_errors
from vesalius.platform.training.pausing import Forerunner, Paused
from vesalius.platform.training.settings import TrainingSettings

if TYPE_CHECKING:
    from pathlib import Path

RunState = Literal["created", "training", "finished", "paused", "interrupted", "failed"]
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunSettings(Settings):
    """What may be set of a run, under one root: ``method.*`` and ``training.*``.

    Attributes:
        method: of the method; see :meth:`of`.
        training: of the loop.
    """

    method: MethodSettings
    training: TrainingSettings = Field(default_factory=TrainingSettings)

    @classmethod
    def of(cls, method: MethodSettings, training: TrainingSettings | None = None) -> RunSettings:
        """Return settings whose ``method`` is of that method's own class, so that an override is checked against it."""
        loop = training or TrainingSettings()
        kind = create_model(
            "RunSettings", __base__=cls, method=(type(method), method), training=(TrainingSettings, loop)
        )
        return kind(method=method)


class RunSpec(Settings):
    """All that decides a run's outcome, and where it is tracked.

    Attributes:
        run_id: the folder's name.
        method: name in the methods' table.
        settings: the method's settings as plain JSON, complete.
        training: the loop's settings.
        store: absolute path or URL of the cohort store.
        cohort_digest: the store's digest when the run was created; a changed store is refused.
        num_workers: Ray Train workers; 0 trains in the calling process, without Ray.
        start_from: ``RUN@STAGE`` where training starts after another run's finished stage.
        shared_from: ``RUN@STAGE`` of another trial of the same study, which has trained the first stages with the same
            settings: they are taken over where they can still be read, and trained again where not.
        forerunner: the checkpoint of another run that it goes on from, where it does.
        until: the share of all steps after which it pauses, for other runs to go on from.
        experiment: name of the experiment it is tracked under.
        mlflow_tracking_uri: where it is tracked, without a password (see ``tracking.with_password``), or None where it
            is not.
        mlflow_run_id: the tracked run; a resumed run goes on in the same one.
        created: time of creation, UTC, ISO 8601.
    """

    run_id: str
    method: str
    settings: dict[str, Any]
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    store: str
    cohort_digest: str
    num_workers: int = Field(1, ge=0)
    start_from: str | None = None
    shared_from: str | None = None
    forerunner: Forerunner | None = None
    until: float = Field(1.0, gt=0, le=1)
    experiment: str = "vesalius"
    mlflow_tracking_uri: str | None = None
    mlflow_run_id: str | None = None
    created: str

    def flat(self) -> dict[str, Any]:
        """Return every setting under its dotted key, for tracking: ``method.*``, ``training.*`` and the rest."""
        rest = {"method": self.method, "store": self.store, "num_workers": self.num_workers}
        return {**rest, **flat_settings(self.settings, self.training)}


def flat_settings(method: dict[str, Any], training: TrainingSettings) -> dict[str, Any]:
    """Return a run's settings under their dotted keys, ``method.*`` and ``training.*``.

    Args:
        method: the method's, complete, as plain JSON.
        training: the loop's.
    """
    own = {f"method.{key}": value for key, value in _flat(method).items()}
    return {**own, **flatten(training, prefix="training.")}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Progressed(Settings):
    """Where training is."""

    stage: str = ""
    step: int = 0
    num_steps: int = 0
    overall: int = 0
    total: int = 0


NODES_ARE_BACK = "nodes are back: more workers go on"
"""What has ended a group that was asked to make room for a larger one."""


class Group(Settings):
    """A group of workers that trained a run for a while.

    Attributes:
        num_workers: of it.
        began: UTC, ISO 8601.
        step: that it went on from, over all stages.
        lost: what ended the group before it; empty for a driver's first one.
    """

    num_workers: int
    began: str
    step: int
    lost: str = ""

    @property
    def follows_loss(self) -> bool:
        """Whether workers of the group before it were lost: it was neither stopped nor asked to make room."""
        return self.lost not in ("", NODES_ARE_BACK)


class RunFolder:
    """A run on disk. Reading is free for all; ``training`` writes from rank 0 and the driver only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def spec(self) -> RunSpec:
        """What was asked for.

        Raises:
            RunError: ``run.json`` is missing or damaged.
        """
        path = self.path / "run.json"
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError):
            raise RunError(f"{path} is missing or damaged: start the run anew with `vesalius train`") from None
        return validate(RunSpec, value, str(path))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.path / "model"

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "figures"

    def scores(self, split: str) -> Path:
        """Folder of a split's anomaly maps."""
        return self.path / "scores" / split

    @property
    def state(self) -> RunState:
        """How the run stands, as last written."""
        try:
            state: RunState = json.loads((self.path / "state.json").read_text())["state"]
        except (OSError, ValueError, KeyError):
            return "created"
        return state

    @property
    def progress(self) -> Progressed:
        """Where training is, as last written."""
        try:
            return Progressed.model_validate_json((self.path / "progress.json").read_text())
        except (OSError, ValueError):
            return Progressed()

    @property
    def paused(self) -> Paused | None:
        """What it was where it paused, or None where it has not."""
        try:
            return Paused.model_validate_json((self.path / "paused.json").read_text())
        except (OSError, ValueError):
            return None

    def set_paused(self, paused: Paused) -> None:
        """Write what it was where it paused."""
        self._write("paused.json", paused.model_dump_json(indent=1))

    def set_state(self, state: RunState) -> None:
        """Write how the run stands."""
        self._write("state.json", json.dumps({"state": state}))

    def set_progress(self, progress: Progressed) -> None:
        """Write where training is. Not synced: it is for those who look, and written several times a second."""
        with space_errors(self.path):
            aside = self.path / ".progress.json.partial"
            aside.write_text(progress.model_dump_json())
            aside.replace(self.path / "progress.json")

    def rewrite(self, spec: RunSpec) -> None:
        """Write the specification, whose outcome must be the same: on what device, with how many threads."""
        self._write("run.json", spec.model_dump_json(indent=1))

    @property
    def lock(self) -> Path:
        """File that the one process training the run holds."""
        return self.path / ".lock"

    @property
    def end_request(self) -> Path:
        """File whose presence asks the workers to end at their next checkpoint, for more of them to go on."""
        return self.path / "end-request"

    def begin_attempt(self) -> str:
        """Write who trains the run from now on and return it; workers that an earlier driver left behind then stop."""
        attempt = secrets.token_hex(8)
        self._write("attempt", attempt)
        return attempt

    @property
    def attempt(self) -> str:
        """Who trains the run now."""
        try:
            return (self.path / "attempt").read_text()
        except OSError:
            return ""

    @property
    def groups(self) -> list[Group]:
        """The groups of workers that have trained the run on a cluster, in order."""
        try:
            lines = (self.path / "groups.jsonl").read_text().splitlines()
        except OSError:
            return []
        return [Group.model_validate_json(line) for line in lines]

    def note_group(self, num_workers: int, step: int, lost: str) -> None:
        """Note that a group begins to train, from what step on, and what ended the one before it."""
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        group = Group(num_workers=num_workers, began=began, step=step, lost=lost)
        lines = [one.model_dump_json() for one in [*self.groups, group]]
        self._write("groups.jsonl", "\n".join(lines) + "\n")

    @property
    def has_checkpointed(self) -> bool:
        """Whether a checkpoint has ever been written: if so, one must be there."""
        return (self.path / "checkpointed").exists()

    def note_checkpoint(self) -> None:
        """Remember that a checkpoint has been written."""
        if not self.has_checkpointed:
            self._write("checkpointed", "")

    def _write(self, name: str, text: str) -> None:
        with space_errors(self.path):
            write_file(self.path / name, text.encode(), self.path)


def new_run_id(method: str) -> str:
    """Return an id that sorts by time and names its method."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{method}-{now}-{secrets.token_hex(2)}"


def check_run_name(run_id: str) -> None:
    """Check that something can be a run's id, whether there is one or not.

    Raises:
        RunError: it is not a plain name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise RunError(f"{run_id!r} cannot name a run: use letters, digits, '.', '_' and '-' only")


def check_new_run(home: Path, run_id: str) -> None:
    """Check that a run of that id can be made.

    Raises:
        RunError: the id is not a plain name, or a run of that id exists.
    """
    check_run_name(run_id)
    if (home / "runs" / run_id).exists():
        raise RunError(
            f"a run '{run_id}' exists already: go on with `vesalius train --resume {run_id}`, or choose another name"
        )


def create_run(home: Path, spec: RunSpec) -> RunFolder:
    """Make the folder of a new run and write its specification.

    Raises:
        RunError: the id is not a plain name, or a run of that id exists.
    """
    check_new_run(home, spec.run_id)
    folder = RunFolder(home / "runs" / spec.run_id)
    try:
        folder.path.mkdir(parents=True)
    except FileExistsError:
        check_new_run(home, spec.run_id)
        raise
    folder.rewrite(spec)
    folder.set_state("created")
    return folder


def list_runs(home: Path) -> list[RunFolder]:
    """Return the runs of a home, oldest first; one that cannot be read is left out, and named where it is asked for."""
    folder = home / "runs"
    if not folder.is_dir():
        return []
    found: list[tuple[str, str]] = []
    for path in folder.iterdir():
        with contextlib.suppress(RunError, SettingError):
            found.append((RunFolder(path).spec.created, path.name))
    return [RunFolder(folder / name) for _, name in sorted(found)]


def begun_run(home: Path, run_id: str) -> RunFolder | None:
    """Return the run of that id, or None where there is none."""
    folder = RunFolder(home / "runs" / run_id)
    return folder if _RUN_ID.fullmatch(run_id) and (folder.path / "run.json").is_file() else None


def find_run(home: Path, run_id: str) -> RunFolder:
    """Return the run of that id.

    Raises:
        RunError: there is none; names the nearest one.
    """
    found = begun_run(home, run_id)
    if found is not None:
        return found
    names = [run.run_id for run in list_runs(home)]
    near = difflib.get_close_matches(run_id, names, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean '{near[0]}'?"
    else:
        hint = f"the latest is '{names[-1]}'" if names else "there is none yet: start one with `vesalius train`"
    raise RunError(f"no run '{run_id}' in {home}: {hint}")
