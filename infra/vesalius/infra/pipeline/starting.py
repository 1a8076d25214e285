"""Studies whose trials start after the finished stages of a run, and search what is read later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.infra.pipeline.training import check_start, choose_settings, require_model
from vesalius.platform.errors import RunError, SettingError, StudyError
from vesalius.platform.runs import find_run
from vesalius.platform.training import Checkpoints
from vesalius.tuning import LOCAL, Start

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from vesalius.infra.pipeline.beginning import StudyRequest
    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.runs import RunFolder
    from vesalius.platform.training import TrainingSettings
    from vesalius.tuning import Dimension


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A run to start from.

    Attributes:
        run: the run.
        stage: that trials start after.
    """

    run: RunFolder
    stage: str

    @property
    def text(self) -> str:
        """``RUN@STAGE``."""
        return f"{self.run.run_id}@{self.stage}"


def find_origin(start_from: str, home: Path) -> Origin:
    """Return the run that ``RUN@STAGE`` names, or ``RUN``, which is after its last stage.

    Raises:
        SettingError: the text is neither.
        RunError: there is no such run, or it has not been trained to its end where no stage is named.
    """
    name, separator, stage = start_from.partition("@")
    if not name or (separator and not stage):
        raise SettingError(f"--from is '{start_from}': expected RUN or RUN@STAGE, such as my-run@adversarial")
    run = find_run(home, name)
    return Origin(run=run, stage=stage or require_model(run).stage)


def filled(request: StudyRequest, origin: Origin) -> StudyRequest:
    """Return a request with what the run says of method and cohort.

    Raises:
        SettingError: the request says something else, or names a preset.
    """
    spec = origin.run.spec
    if request.method not in ("", spec.method):
        raise SettingError(f"run '{origin.run.run_id}' trained {spec.method}, not {request.method}: leave METHOD out")
    if request.preset is not None:
        raise SettingError(
            f"--preset {request.preset} and --from {origin.text} both say where settings start: leave one out"
        )
    return request.model_copy(update={"method": spec.method, "store": request.store or spec.store})


def settings_of(request: StudyRequest, origin: Origin | None) -> tuple[str, MethodSettings, TrainingSettings]:
    """Return where a study's settings start, and the method's and the loop's settings.

    Raises:
        SettingError: an unknown method, preset or key, or a value that does not fit.
    """
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in request.set.items()]
    if origin is None:
        preset = request.preset or "paper"
        return preset, *choose_settings(request.method, preset, texts)
    spec = origin.run.spec
    return origin.text, *choose_settings(request.method, origin.text, texts, spec.settings, spec.training)


def start_of(origin: Origin, method: Method, digest: str, home: Path) -> Start:
    """Return what a study keeps of the run that it starts from.

    Args:
        origin: the run.
        method: built from the settings that the study starts from.
        digest: of the cohort, without lesions that are to be set into it: the training subjects are the same.
        home: of the runs.

    Raises:
        SettingError: a setting that the stages taken over read is not as there.
        RunError: the run was trained on another cohort, or has not finished the stage.
    """
    run, stages = check_start(origin.text, home, origin.run.spec.method, method, {digest})
    checkpoints = Checkpoints(run.checkpoints)
    left = method.stages()[len(stages) :]
    return Start(
        run=run.run_id,
        stages=stages,
        weights_sha256=checkpoints.weights_digest(checkpoints.end_of(origin.stage)),
        trains=bool(left),
        has_passes=any(stage.selectable for stage in left),
    )


def check_has_effect(searched: Sequence[Dimension], given: Iterable[str], start: Start | None) -> None:
    """Refuse to search, or to set, settings of the training where nothing is trained.

    Args:
        searched: the spaces.
        given: settings that were set, by dotted key.
        start: the run to start from.

    Raises:
        SettingError: names one.
    """
    if start is None or start.trains:
        return
    local = {f"training.{name}" for name in LOCAL}
    for key in (*(one.key for one in searched), *given):
        if key.startswith("training.") and key not in local:
            raise SettingError(
                f"'{key}' changes nothing after {start.text}, the last stage: search or set what scoring reads, or "
                "start after an earlier stage"
            )


def check_start_is_there(start: Start, study: str, home: Path) -> None:
    """Check that the run that a study starts from is as it was.

    Raises:
        StudyError: it is gone, or its weights are others.
    """
    lost = f"put it back, or begin a new study instead of '{study}'"
    try:
        checkpoints = Checkpoints(find_run(home, start.run).checkpoints)
        found = checkpoints.weights_digest(checkpoints.end_of(start.stages[-1]))
    except RunError as error:
        raise StudyError(f"study '{study}' starts from {start.text}, which cannot be read ({error}): {lost}") from None
    if found != start.weights_sha256:
        raise StudyError(f"{start.text}, which study '{study}' starts from, has other weights now: {lost}")
