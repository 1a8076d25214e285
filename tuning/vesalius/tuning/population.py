"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): what each member of each generation sets.

Trial ``generation * size + member`` trains its share of the steps from where its parent's run paused. Between two
generations the worst members take the place of copies of the best (truncation selection) whose settings are perturbed;
the others go on as they are. Everything here is a function of the study's seed, the trial's number and the records of
the generation before: a study that was killed comes to the same population.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import digest, flatten
from vesalius.platform.contracts import Choice, mutables
from vesalius.platform.errors import SettingError, StudyError
from vesalius.tuning.noted import is_start, record_of
from vesalius.tuning.spaces import chosen, point

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from vesalius.platform.contracts import Range
    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.dimension import Dimension, Value
    from vesalius.tuning.spec import Record, StudySpec

_PART = 5
"""The worst fifth of a generation is replaced by copies of the best fifth (Jaderberg et al. 2017, section 4.1)."""
FACTORS = (0.8, 1.2)
RESAMPLED = 0.25
"""How often a setting that would be perturbed is drawn from its space instead."""
_MUTABLE_TRAINING = ("training.clip_norm",)
_MOST_DRAWS = 50


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A trial of the generation before.

    Attributes:
        values: that it set, by key; of a start outside of the spaces those of the start.
        record: what became of it.
        is_start: whether it has had the start's settings all along.
    """

    values: Mapping[str, Any]
    record: Record
    is_start: bool


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a trial is to be.

    Attributes:
        values: that it sets, by key.
        parent: the trial that it goes on from; None in the first generation.
        is_start: whether it has the start's settings, and had them all along.
    """

    values: dict[str, Any]
    parent: Record | None = None
    is_start: bool = False


def check_mutable(base: RunSettings, searched: Sequence[Dimension]) -> None:
    """Check that a population may search settings: those alone that may change in mid-training.

    Raises:
        SettingError: one may not; names those of the method that may.
    """
    known = [f"method.{name}" for name in sorted(mutables(type(base.method)))] + list(_MUTABLE_TRAINING)
    fixed = [one.key for one in searched if one.key not in known]
    if fixed:
        raise SettingError(
            f"--population changes settings in mid-training, and {', '.join(fixed)} must not change there: leave "
            f"{'it' if len(fixed) == 1 else 'them'} out, or search some of {', '.join(known)} with --space"
        )


def mutable_spaces(base: RunSettings, declared: Mapping[str, Any]) -> dict[str, None]:
    """Return what a population searches where nothing was asked for: the declared spaces of mutable settings.

    Raises:
        SettingError: there is none.
    """
    names = mutables(type(base.method))
    found = {key: None for key in declared if key.removeprefix("method.") in names}
    if not found:
        raise SettingError(
            "the method declares no space of a setting that may change in mid-training: give one with --space, such as "
            "training.clip_norm=0.1..10"
        )
    return found


def breed(spec: StudySpec, base: RunSettings, number: int, trials: Sequence[FrozenTrial]) -> Member:
    """Return what a trial is to be.

    Args:
        spec: of the study, whose population it is of.
        base: the settings that the study starts from.
        number: of the trial.
        trials: all trials there are, by number; the generation before this one's has ended.

    Raises:
        StudyError: none of the generation before has come through.
    """
    assert spec.population is not None
    generation, place = spec.population.place(number)
    if not generation:
        return _first(spec, base, place)
    size = spec.population.size
    before = [_earlier(spec, base, one) for one in trials[(generation - 1) * size : generation * size]]
    own = before[place]
    living = [one for one in before if one.record.ending == "paused"]
    if not living:
        raise StudyError(
            f"every member of generation {generation - 1} of study '{spec.name}' has failed, the last one because: "
            f"{own.record.reason}; begin a new study with narrower spaces"
        )
    if own in living and (own.is_start or own not in _worst(spec, before)):
        return Member(values=_set(spec, base, own), parent=own.record, is_start=own.is_start)
    draw = _generator(spec, number)
    parents = _best(spec, before) or living
    parent = parents[int(draw.random() * len(parents))]
    return Member(values=_mutated(spec, base, parent.values, draw), parent=parent.record)


def _earlier(spec: StudySpec, base: RunSettings, trial: FrozenTrial) -> Earlier:
    record, starts = record_of(trial), is_start(trial)
    assert record is not None, "a generation is bred when the one before has ended"
    values: Mapping[str, Any] = trial.params
    if starts and not values:
        flat = flatten(base)
        values = {one.key: flat[one.key] for one in spec.searched}
    return Earlier(values=values, record=record, is_start=starts)


def _set(spec: StudySpec, base: RunSettings, own: Earlier) -> dict[str, Any]:
    """Return the values of one that goes on; a start outside of the spaces sets none."""
    return {} if own.is_start and point(base, spec.searched) is None else dict(own.values)


def _ranked(spec: StudySpec, before: Sequence[Earlier]) -> list[Earlier]:
    """Return those with a figure, best first; of equals the first member."""
    judged = [one for one in before if one.record.ending == "paused" and spec.criterion in one.record.figures]
    return sorted(judged, key=lambda one: -one.record.figures[spec.criterion or ""])


def _num_replaced(before: Sequence[Earlier]) -> int:
    return max(1, len(before) // _PART) if len(before) > 1 else 0


def _best(spec: StudySpec, before: Sequence[Earlier]) -> list[Earlier]:
    return _ranked(spec, before)[: max(1, _num_replaced(before))]


def _worst(spec: StudySpec, before: Sequence[Earlier]) -> list[Earlier]:
    """Return who is replaced beside those that failed, who count among the worst.

    Where nothing has been judged yet there is no worst. The best are never among them.
    """
    ranked = _ranked(spec, before)
    failed = sum(one.record.ending != "paused" for one in before)
    num = max(0, min(_num_replaced(before) - failed, len(ranked) - len(_best(spec, before))))
    return ranked[len(ranked) - num :]


def _first(spec: StudySpec, base: RunSettings, place: int) -> Member:
    """Return a member of the first generation: the start, then draws from the spaces, no two alike where they can."""
    start = point(base, spec.searched)
    if not place:
        return Member(values=start or {}, is_start=True)
    taken = [] if start is None else [start]
    for number in range(1, place + 1):
        draw = _generator(spec, number)
        taken.append(_accepted(spec, base, taken, lambda one, draw=draw: _sample(one, draw)))  # type: ignore[misc]
    return Member(values=taken[-1])


def _mutated(spec: StudySpec, base: RunSettings, parent: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a parent's settings, each perturbed or now and then drawn from its space."""

    def choose(one: Dimension) -> Value:
        again = one.key not in parent or draw.random() < RESAMPLED
        return _sample(one, draw) if again else perturbed(one, parent[one.key], draw.random(), draw.random())

    return _accepted(spec, base, [parent], choose)


def _accepted(
    spec: StudySpec, base: RunSettings, taken: Sequence[Mapping[str, Any]], choose: Callable[[Dimension], Value]
) -> dict[str, Any]:
    """Return values that the settings class takes together, if possible others than those that are taken.

    Raises:
        StudyError: none of some draws is taken together.
    """
    flat = flatten(base)
    possible: dict[str, Any] | None = None
    for _ in range(_MOST_DRAWS):
        values: dict[str, Any] = {}
        for one in spec.searched:
            if one.condition is None or one.condition.holds({**flat, **values}):
                values[one.key] = choose(one)
        try:
            chosen(base, values)
        except SettingError:
            continue
        possible = values
        if values not in taken:
            break
    if possible is None:
        raise StudyError(
            f"{_MOST_DRAWS} draws from the spaces of study '{spec.name}' are refused by the method's settings: begin a "
            "new study with spaces whose values go together"
        )
    return possible


def perturbed(one: Dimension, value: Any, side: float, second: float) -> Value:
    """Return a value near to another one in a space.

    A number is multiplied by one of :data:`FACTORS`, and a whole one moves by one at least; of a choice it is a
    neighbour in the order in which the values are given. Where the space ends on one side, it is the other side. What
    no factor moves, such as a zero, is drawn from the space.

    Args:
        one: the setting.
        value: that it has; it may lie outside of the space.
        side: below a half for down, 0 to 1.
        second: for a draw, where it comes to that, 0 to 1.
    """
    if isinstance(one.space, Choice):
        at = one.space.values.index(own) if (own := one.own(value)) is not None else 0
        near = [one.space.values[index] for index in (at - 1, at + 1) if 0 <= index < len(one.space.values)]
        return near[0] if side < 0.5 else near[-1]
    near = []
    # What is no number, such as the null of a start outside of the space, no factor moves either.
    moves = zip(FACTORS, (-1, 1), strict=True) if isinstance(value, int | float) else ()
    for factor, step in moves:
        moved = value * factor
        if one.whole:
            moved = step * max(step * round(moved), step * value + 1)
        moved = min(max(moved, one.space.low), one.space.high)
        if moved != value:
            near.append(int(moved) if one.whole else moved)
    if not near:
        return _from_range(one, one.space, second)
    return near[0] if side < 0.5 else near[-1]


def _sample(one: Dimension, draw: random.Random) -> Value:
    share = draw.random()
    if isinstance(one.space, Choice):
        return one.space.values[int(share * len(one.space.values))]
    return _from_range(one, one.space, share)


def _from_range(one: Dimension, space: Range, share: float) -> Value:
    """Return the value at a share of a range, of its logarithm where it is logarithmic."""
    low, high = space.low, space.high
    room = 0.5 if one.whole else 0.0  # each whole number has as much room as any other
    ends = (low - room, high + room)
    value = ends[0] * (ends[1] / ends[0]) ** share if space.log else ends[0] + share * (ends[1] - ends[0])
    value = min(max(value, low), high)
    return min(math.floor(value + 0.5), int(high)) if one.whole else value


def _generator(spec: StudySpec, number: int) -> random.Random:
    return random.Random(int(digest([spec.seed, "population", number]), 16))
