"""A row's settings within a time: the paper's where they fit, else the demo's, with as many epochs as fit."""

from __future__ import annotations

import gc
import math
import re
from typing import TYPE_CHECKING, Any

import torch

from vesalius.infra.pipeline import method_type
from vesalius.infra.pipeline.estimating import Estimate, estimate
from vesalius.infra.reproduce.kept import kept
from vesalius.infra.tables import as_time
from vesalius.platform.config import Settings, digest, flatten, override
from vesalius.platform.errors import SettingError
from vesalius.platform.training import Alone, choose_device
from vesalius.platform.training.memory import is_out_of_memory
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vesalius.infra.reproduce.protocol import Row
    from vesalius.platform.contracts import MethodSettings
    from vesalius.platform.store import CohortStore
    from vesalius.platform.training import TrainingSettings

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BUDGET = re.compile(r"(?:\d+(?:\.\d+)?(?:s|min|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(s|min|m|h|d)")
_HEADROOM = 0.85
"""Of the budget that settings are scaled to: a machine is never as quiet as while it is probed."""


class Choice(Settings):
    """What a row is trained with.

    Attributes:
        preset: ``paper`` and so on, or ``demo``.
        settings: the method's, complete, as plain JSON.
        scaled: whether these are not the paper's.
        steps: that training takes.
        paper_steps: that the paper's settings take on this cohort.
        fraction: steps of how many.
        said: in one sentence.
    """

    preset: str
    settings: dict[str, Any]
    scaled: bool
    steps: int
    paper_steps: int
    fraction: float
    said: str


def parse_budget(text: str) -> float:
    """Return the seconds of a time such as ``90s``, ``20m``, ``1.5h`` or ``1h30m``.

    Raises:
        SettingError: it is none, or nothing.
    """
    plain = text.strip().lower().replace(" ", "")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(plain))
    if not _BUDGET.fullmatch(plain) or not math.isfinite(seconds) or seconds <= 0:
        raise SettingError(f"--budget is '{text}': expected a time, such as 90s, 20m, 1h30m or 2d")
    return seconds


def paper_settings(row: Row) -> MethodSettings:
    """Return a row's settings as the paper has them.

    Raises:
        SettingError: the method, its preset or a setting is not known here.
    """
    presets = method_type(row.method).presets()
    if row.preset not in presets:
        raise SettingError(f"{row.method} has no preset '{row.preset}': it has {', '.join(presets)}")
    return override(presets[row.preset], row.settings)


def scaled_settings(row: Row, small: str | None = "demo") -> MethodSettings:
    """Return a row's settings scaled down: its method's ``demo`` preset, made this row's by ``scaled``.

    ``small`` is another preset, or None for the row's own settings, of which epochs alone are to be cut.

    Raises:
        SettingError: the method or a setting is not known here.
    """
    if small is None:
        return paper_settings(row)
    presets = method_type(row.method).presets()
    return override(presets.get(small, paper_settings(row)), row.scaled)


def choose(
    row: Row,
    training: TrainingSettings,
    store: CohortStore,
    splits: Sequence[str],
    budget_seconds: float | None,
    *,
    num_volumes: int | None = None,
    small: str | None = "demo",
    probes: Path | None = None,
) -> Choice:
    """Return what a row is trained with.

    Args:
        row: of a paper's table.
        training: the loop's settings.
        store: the cohort it is trained on.
        splits: those to be scored.
        budget_seconds: for training and scoring; None takes the paper's settings as they stand.
        num_volumes: to be scored; all of the splits where None.
        small: the preset of the methods that is scaled; None keeps the row's own settings and cuts the epochs alone,
            and where that cannot be takes ``demo``.
        probes: folder where what was probed is kept, and found again by a row of the same settings: two probes never
            agree, and such rows are to be one run. None keeps nothing.

    Raises:
        SettingError: not one step of each stage and the scoring fit; says what they take.
        RuntimeError: what is to be scaled does not fit the memory either.
    """
    paper = paper_settings(row)
    plan = _plan(row, paper, store, training)
    if budget_seconds is None:
        return _as_they_stand(row, paper, plan.total)
    start = scaled_settings(row, small)

    def probe(settings: MethodSettings, limit_seconds: float) -> Estimate:
        def make() -> Estimate:
            return estimate(
                row.method,
                settings,
                training,
                store,
                splits,
                limit_seconds,
                num_volumes=num_volumes,
                scoring_limit_seconds=budget_seconds,
            )

        if probes is None:
            return make()
        key = digest(
            [
                row.method,
                settings.model_dump(mode="json"),
                training.model_dump(mode="json"),
                store.digest,
                list(splits),
                num_volumes,
                str(limit_seconds),
                budget_seconds,
            ]
        )
        return kept(probes / f"probe-{row.method}-{key[:16]}.json", Estimate, make)

    def not_kept(why: str) -> Choice:
        instead = choose(row, training, store, splits, budget_seconds, num_volumes=num_volumes, probes=probes)
        said = f"{instead.said}; --scale epochs was set aside: {why}"
        return instead.model_copy(update={"said": said}) if instead.scaled else instead

    # What is to be scaled is probed to its end, unless its scoring alone is too long; else the probe stops as soon as
    # the paper's settings do not fit.
    whole = _within_memory(lambda: probe(paper, math.inf if start == paper else budget_seconds))
    if whole is not None and whole.complete and whole.total_seconds <= budget_seconds:
        return _as_they_stand(row, paper, plan.total)
    if whole is None and small is None:
        return not_kept("the paper's networks do not fit this machine's memory")
    # The limit is for the stop of a hopeless probe alone: epochs can be cut, so that only a single step has to fit.
    probed = whole if whole is not None and start == paper else probe(start, math.inf)
    learning_steps = sum(num for stage, num in zip(plan.stages, plan.steps, strict=True) if stage.optimizers)
    try:
        settings = fit_epochs(start, paper, probed, budget_seconds, learning_steps)
    except SettingError:
        if small is not None:
            raise
        return not_kept("with the paper's networks scoring, or what cannot be cut, takes longer")
    steps = _plan(row, settings, store, training).total
    would = "do not fit this machine's memory"
    if whole is not None:
        would = f"would take {'' if whole.complete else 'more than '}{as_time(whole.total_seconds)} here"
    return Choice(
        preset=row.preset if small is None else small,
        settings=settings.model_dump(mode="json"),
        scaled=True,
        steps=steps,
        paper_steps=plan.total,
        fraction=steps / plan.total,
        said=f"scaled to {as_time(budget_seconds)}: "
        + ("the paper's networks" if small is None else f"preset {small}")
        + f", {steps:,} steps; the paper's settings are {plan.total:,} steps and {would}",
    )


def fit_epochs(
    start: MethodSettings, paper: MethodSettings, probed: Estimate, budget_seconds: float, paper_steps: int
) -> MethodSettings:
    """Return ``start`` with every ``epochs`` multiplied alike, so that learning fills what is left of the budget.

    None is more than the paper's, nor are the steps, whose batches may be smaller. Scoring and the stages without
    optimisers take as long whatever the epochs, so that their time is taken off first.

    Args:
        start: the settings to be scaled.
        paper: the row's settings as the paper has them.
        probed: what ``start`` takes.
        budget_seconds: for training and scoring.
        paper_steps: of the paper's stages with optimisers.

    Raises:
        SettingError: scoring, the stages without optimisers and one step of each other stage take longer than the
            budget.
    """
    fixed = probed.scoring_seconds + probed.fixed_seconds
    room = budget_seconds * _HEADROOM - fixed
    least = sum(seconds for name, seconds in probed.step_seconds.items() if name not in probed.fixed)
    if room <= 0 or room < least:
        raise SettingError(
            f"--budget {as_time(budget_seconds)} is too small here: scoring {probed.num_volumes} volumes takes "
            f"{as_time(probed.scoring_seconds)}, the stages that learn without gradients "
            f"{as_time(probed.fixed_seconds)} and one step of each other stage {as_time(least)} with the smallest "
            f"settings; give it {as_time(2 * (fixed + 100 * least))} or more, or a smaller cohort"
        )
    known = flatten(paper)
    epochs = {key: value for key, value in flatten(start).items() if key.rpartition(".")[2] == "epochs"}
    learning = probed.training_seconds - probed.fixed_seconds
    factor = min(room / max(learning, 1e-9), paper_steps / max(probed.learning_steps, 1))
    wanted = {
        key: min(_whole(value * factor), float(known.get(key, value))) for key, value in epochs.items() if value > 0
    }
    return override(start, {key: value for key, value in wanted.items() if value > 0})


def _as_they_stand(row: Row, paper: MethodSettings, steps: int) -> Choice:
    whose = "the paper's settings" if row.published is not None else "its defaults"
    return Choice(
        preset=row.preset,
        settings=paper.model_dump(mode="json"),
        scaled=False,
        steps=steps,
        paper_steps=steps,
        fraction=1.0,
        said=f"{whose} (preset {row.preset}), {steps:,} steps",
    )


def _whole(epochs: float) -> float:
    """Return three figures of a number of epochs, rounded down: a run's name should not hang on the microsecond."""
    if epochs <= 0:
        return epochs
    scale = 10 ** (math.floor(math.log10(epochs)) - 2)
    return float(f"{math.floor(epochs / scale + 1e-9) * scale:.3g}")


def _plan(row: Row, settings: MethodSettings, store: CohortStore, training: TrainingSettings) -> Plan:
    # Shapes alone: networks that do not fit the memory have a number of steps, too.
    with torch.device("meta"):
        method = method_type(row.method)(settings, store.facts())
        return Plan(method, store, training, Alone(), choose_device(training.device))


def _within_memory(probe: Callable[[], Estimate]) -> Estimate | None:
    """Return what is probed, or None where there is not memory enough for it."""
    try:
        return probe()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Here the error is gone, and with its frames whatever they held: the next probe has all of it.
    gc.collect()
    torch.cuda.empty_cache()
    return None
