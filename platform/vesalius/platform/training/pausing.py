"""Where a run pauses, so that it goes on as another run: at a share of all its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.platform.config import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.contracts import Stage


@dataclass(frozen=True, order=True)
class Pause:
    """A place in a run, between two steps.

    Attributes:
        stage_index: the stage to go on in; the number of stages at the run's end.
        step: of that stage, the one to go on with.
    """

    stage_index: int
    step: int


class Paused(Settings):
    """What a run was when it paused.

    Attributes:
        checkpoint: its name.
        weights_sha256: of the checkpoint's weights.
        percent: hundredths of all steps that are done.
        criterion: that the pass at the pause was judged by; None where no pass says anything yet.
        value: its value, higher is better.
    """

    checkpoint: str
    weights_sha256: str
    percent: float
    criterion: str | None = None
    value: float | None = None


class Forerunner(Settings):
    """The checkpoint of another run that a run goes on from.

    Attributes:
        run: its id.
        checkpoint: the checkpoint's name.
        weights_sha256: of the checkpoint's weights.
    """

    run: str
    checkpoint: str
    weights_sha256: str


def pause_at(share: float, stages: Sequence[Stage], steps: Sequence[int]) -> Pause:
    """Return where a run pauses that is to do a share of its steps.

    A stage without optimisers keeps its accumulators in no checkpoint: there it is the stage's end.

    Args:
        share: of all steps, 0 to 1; one step at least.
        stages: of the run.
        steps: that each of them takes.
    """
    left = max(1, round(share * sum(steps)))
    for index, (stage, num) in enumerate(zip(stages, steps, strict=True)):
        if left < num:
            return Pause(index, left) if stage.optimizers or not left else Pause(index + 1, 0)
        left -= num
    return Pause(len(stages), 0)


def is_judged(pause: Pause, stages: Sequence[Stage]) -> bool:
    """Say whether a validation pass at a pause says anything.

    It does in a selectable stage and after one; before that a method may have nothing to score with.
    """
    begun = stages[: pause.stage_index + (pause.step > 0)]
    return any(stage.selectable for stage in begun)
