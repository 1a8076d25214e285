"""What a study learns from earlier ones of its method: figures that are comparable, else settings to be run again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from vesalius.platform.config import Settings, flatten
from vesalius.platform.contracts import Choice
from vesalius.platform.errors import SettingError
from vesalius.platform.runs import flat_settings
from vesalius.platform.tracking import as_param
from vesalius.tuning.analysis import TrialRow, analyse, pareto_front
from vesalius.tuning.samplers import LEARNING
from vesalius.tuning.spaces import chosen
from vesalius.tuning.spec import LOCAL, Learnt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.dimension import Dimension, Value
    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.spec import StudySpec

AGAIN = 3
"""How many of an earlier study's best are run again where its figures are not comparable."""


class PastTrial(Settings):
    """A trial of an earlier study that came to an end.

    Attributes:
        number: in its study.
        settings: all that its run was set, by dotted key, as text.
        figures: by name; empty where it was stopped.
        percent: how far its training came.
        passed: the criterion's best pass, of a trial that was stopped.
    """

    number: int
    settings: dict[str, str]
    figures: dict[str, float] = Field(default_factory=dict)
    percent: float = 100.0
    passed: float | None = None


class PastStudy(Settings):
    """An earlier study, wherever it was found.

    Attributes:
        name: of the study.
        method: that it searched.
        cohort_digest: of what it was judged on.
        objectives: their names.
        criterion: by which its trials were stopped.
        num_workers: of a trial.
        start_sha256: of the weights that its trials started from; empty where they trained all stages.
        trials: complete and stopped ones.
    """

    name: str
    method: str
    cohort_digest: str
    objectives: tuple[str, ...]
    criterion: str | None
    num_workers: int
    start_sha256: str = ""
    trials: tuple[PastTrial, ...]


class Lesson(NamedTuple):
    """What is taken from an earlier study.

    Attributes:
        learnt: its trials, as the new study has them.
        caveat: a sentence where they are not simply learnt from, else empty.
    """

    learnt: tuple[Learnt, ...]
    caveat: str


def settings_as_text(settings: RunSettings) -> dict[str, str]:
    """Return settings by dotted key as a tracked run has them."""
    flat = flat_settings(settings.method.model_dump(mode="json"), settings.training)
    return {key: as_param(value) for key, value in flat.items()}


def past_study(folder: StudyFolder, base: RunSettings) -> PastStudy:
    """Return a study of this home as an earlier one.

    Args:
        folder: of the study.
        base: the settings that its trials started from.

    Raises:
        StudyError: it has not begun, or its storage does not answer.
    """
    spec = folder.spec
    trials = []
    for row in analyse(folder).trials:
        if row.state not in ("complete", "pruned"):
            continue
        last = row.curve[-1] if row.curve and row.state == "pruned" else None
        trials.append(
            PastTrial(
                number=row.number,
                settings=settings_as_text(chosen(base, row.values)),
                figures=row.figures,
                percent=100.0 if last is None else last[0],
                passed=None if last is None else last[1],
            )
        )
    return PastStudy(
        name=spec.name,
        method=spec.method,
        cohort_digest=spec.cohort_digest,
        objectives=spec.objectives,
        criterion=spec.criterion,
        num_workers=spec.num_workers,
        start_sha256=spec.start_sha256,
        trials=tuple(trials),
    )


def learn(past: PastStudy, spec: StudySpec, base: RunSettings) -> Lesson:
    """Return what a new study takes from an earlier one of its method.

    Trials on the same cohort, with the same settings but for what is searched, and with all the figures that the new
    study judges by, teach its sampler as they are: the same settings would train to the same weights. Where there is
    none, up to :data:`AGAIN` of the best are run again. Of either kind only what lies in the new spaces.

    Args:
        past: the earlier study.
        spec: of the new one.
        base: the settings that its trials start from.
    """
    inside = [
        (one, values) for one in past.trials if (values := _inside(one.settings, base, spec.searched)) is not None
    ]
    if not inside:
        held = "none of its trials came to an end" if not past.trials else "no trial of it lies in the spaces"
        return Lesson((), f"nothing is learnt from study '{past.name}': {held}")
    why = _why_not(past, spec)
    if not why:
        known = [found for one, values in inside if (found := _known(past, one, values, spec, base)) is not None]
        if known and spec.sampler in LEARNING:
            return Lesson(tuple(known), "")
        why = "it has other settings besides those that are searched, or other figures"
        if known:
            why = f"sampler {spec.sampler} does not learn from trials that it has not drawn"
    best = _best(past, inside, spec.objectives)
    if not best:
        return Lesson((), f"nothing is learnt from study '{past.name}': {why}, and no trial of it is complete")
    said = f"the best {len(best)} of its trials that lie in the spaces are run again"
    return Lesson(best, f"study '{past.name}' is not comparable ({why}): {said}")


def _why_not(past: PastStudy, spec: StudySpec) -> str:
    """Return why no figure of an earlier study is comparable, or nothing."""
    if past.cohort_digest != spec.cohort_digest:
        return "it is of another cohort"
    if past.num_workers != spec.num_workers:
        return f"its trials had {past.num_workers} workers, not {spec.num_workers}"
    if past.start_sha256 != spec.start_sha256:
        return "its trials took over other weights, or none"
    return ""


def _known(
    past: PastStudy, one: PastTrial, values: dict[str, Any], spec: StudySpec, base: RunSettings
) -> Learnt | None:
    """Return a trial as one that is known, or None where it is not comparable."""
    if _shared(settings_as_text(chosen(base, values))) != _shared(one.settings):
        return None
    figures = {name: one.figures[name] for name in spec.objectives if name in one.figures}
    if len(figures) == len(spec.objectives):
        return Learnt(study=past.name, number=one.number, values=values, figures=figures)
    can_stop = len(spec.objectives) == 1 and spec.criterion is not None and past.criterion == spec.criterion
    if one.passed is None or not can_stop:
        return None
    return Learnt(study=past.name, number=one.number, values=values, percent=one.percent, passed=one.passed)


def _best(
    past: PastStudy, inside: Sequence[tuple[PastTrial, dict[str, Any]]], objectives: tuple[str, ...]
) -> tuple[Learnt, ...]:
    """Return the best complete trials, by the new study's objectives where they have these figures, as to be run."""
    for names in (objectives, past.objectives):
        found = {one.number: (one, values) for one, values in inside if set(names) <= set(one.figures)}
        rows = [TrialRow(number=number, state="complete", figures=one.figures) for number, (one, _) in found.items()]
        best: list[int] = []
        while rows and len(best) < AGAIN:  # what is not beaten, then what is beaten by these alone
            best += pareto_front(rows, names)
            rows = [row for row in rows if row.number not in best]
        if best:
            return tuple(Learnt(study=past.name, number=one, values=found[one][1]) for one in best[:AGAIN])
    return ()


def _inside(settings: Mapping[str, str], base: RunSettings, searched: Sequence[Dimension]) -> dict[str, Any] | None:
    """Return where a trial's settings lie in the spaces, or None where they lie outside or are refused together."""
    flat = flatten(base)
    values: dict[str, Any] = {}
    for one in searched:
        if one.condition is not None and not one.condition.holds({**flat, **values}):
            continue
        value = _value(one, settings[one.key]) if one.key in settings else None
        if value is None:
            return None
        values[one.key] = value
    try:
        chosen(base, values)
    except SettingError:
        return None
    return values


def _value(one: Dimension, text: str) -> Value | None:
    """Return a setting that is kept as text as a space has it, or None where it lies outside."""
    try:
        value = one.own(json.loads(text))
    except ValueError:
        value = None
    if value is None and isinstance(one.space, Choice):  # a text that reads like a number, or one that does not
        return next((known for known in one.space.values if known == text), None)
    return value


def _shared(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings without those that each machine has of its own."""
    return {key: value for key, value in settings.items() if key.removeprefix("training.") not in LOCAL}
