"""The contract suite of methods, continued: a run may pause and go on as another one, under mutable settings too."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import flatten, override
from vesalius.platform.contracts import mutables
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.methods import assert_same
from vesalius.platform.testing.training_runs import CPU, build, training_settings
from vesalius.platform.training import Checkpoints, Forerunner, Pause, pause_at, stage_steps, stage_subjects, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.store import CohortStore


def assert_exact_pause(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """Three runs, each going on from the one before, end with the weights of a single one bit for bit."""
    whole = in_turn(method_type, [settings], [1.0], store)
    parts = in_turn(method_type, [settings] * 3, [1 / 3, 2 / 3, 1.0], store)
    assert_same(whole, parts, "a run that paused twice")


def assert_mutable_settings(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """A run with one step of an optimiser goes on under another value of each mutable setting, which has its effect."""
    keys = sorted(mutables(method_type.settings_type))
    if not keys:
        return
    share = _share_of_one_step(build(method_type, settings, store), store)
    whole = in_turn(method_type, [settings], [1.0], store)
    for key in keys:
        changed = other_value(settings, key)
        mixed = in_turn(method_type, [settings, changed], [share, 1.0], store)
        if _is_same(mixed, whole):
            from_the_start = in_turn(method_type, [changed], [1.0], store)
            assert _is_same(from_the_start, whole), f"'{key}' is mutable, and a change in mid-training has no effect"


def in_turn(
    method_type: type[Method],
    settings: Sequence[MethodSettings],
    shares: Sequence[float],
    store: CohortStore,
) -> Mapping[str, Tensor]:
    """Return the weights of the last of some runs, each of which goes on from the one before and pauses at its share.

    Args:
        method_type: of all of them.
        settings: of each.
        shares: at which each pauses.
        store: of the cohort.
    """
    forerunner: tuple[Checkpoints, Forerunner] | None = None
    with tempfile.TemporaryDirectory() as home:
        for number, (own, share) in enumerate(zip(settings, shares, strict=True)):
            folder = Path(home) / str(number) / "checkpoints"
            method = build(method_type, own, store)
            result = train(
                method,
                store,
                training_settings(),
                folder,
                device=CPU,
                forerunner=forerunner,
                until=share,
            )
            if result.paused is not None:
                paused = result.paused
                chosen = Forerunner(run=str(number), checkpoint=paused.checkpoint, weights_sha256=paused.weights_sha256)
                forerunner = (Checkpoints(folder), chosen)
        assert result.paused is None, "the last run was to come to its end"
        return method.state_dict()


def other_value(settings: MethodSettings, key: str) -> MethodSettings:
    """Return settings with another value of one of them, near to the one it has."""
    value: Any = flatten(settings)[key]
    nearby: tuple[Any, ...] = (value + 1, value - 1) if isinstance(value, int) else (1.2 * value, 0.8 * value, 0.1)
    for one in nearby:
        if one != value:
            try:
                return override(settings, {key: one})
            except SettingError:
                continue
    raise AssertionError(f"no other value of '{key}' near {value} is allowed")


def _share_of_one_step(method: Method, store: CohortStore) -> float:
    """Return the share of all steps at which the first optimisers have taken one."""
    stages = method.stages()
    steps = [stage_steps(stage, len(stage_subjects(stage, store, method.cohort)), method.cohort) for stage in stages]
    first = next(index for index, stage in enumerate(stages) if stage.optimizers)
    share = (sum(steps[:first]) + 1) / sum(steps)
    assert pause_at(share, stages, steps) == Pause(first, 1), "the settings for tests must give a stage several steps"
    return share


def _is_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(value.equal(right[name]) for name, value in left.items())
