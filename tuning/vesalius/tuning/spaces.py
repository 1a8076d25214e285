"""The spaces of a study: what a method declares, narrowed or widened, and checked before anything starts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from vesalius.platform.config import flatten, kinds_of, override
from vesalius.platform.contracts import Choice, Range, read_after, read_since, spaces
from vesalius.platform.errors import InputError, SettingError
from vesalius.tuning.dimension import Condition, Dimension, parse_space, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import BaseModel

    from vesalius.platform.runs import RunSettings

    Check = Callable[[RunSettings], None]
    """Raises an InputError where a method refuses settings on the study's cohort."""

TRAINING = (
    "seed",
    "precision",
    "micro_batch_size",
    "checkpoint_activations",
    "channels_last",
    "clip_norm",
    "deterministic",
)
"""Of the loop's settings, those that a study may search: the others say where a run computes, and when it is seen."""

_MOST_COMBINATIONS = 4096
_MOST_ASKED = 64
"""Of these, how many the method is built for: what that many refuse with one value is refused for the value."""


def declared(base: RunSettings, *, inference: bool = False) -> dict[str, Range | Choice]:
    """Return the spaces that a method declares of its settings, by dotted key.

    ``inference`` adds those that are for studies of a finished run.
    """
    return {f"method.{name}": space for name, space in spaces(type(base.method), inference=inference).items()}


def dimensions(
    base: RunSettings, given: Mapping[str, Any], check: Check, *, taken_over: Sequence[str] = ()
) -> tuple[Dimension, ...]:
    """Return what a study searches, checked.

    Args:
        base: the settings that a study starts from.
        given: by key (``num_classes`` is ``method.num_classes``), a text such as ``4..16``, a list, a mapping, or None
            for the space that the method declares. Empty takes all that the method declares; of a study that takes
            stages over, what of that is read later, as far as it fits the base's settings, and these with it.
        check: asked of settings with each choice and both ends of each range; it may raise an InputError.
        taken_over: the method's first stages, where trials start after these.

    Raises:
        SettingError: a key names no setting (with the nearest known one) or one that the stages taken over have read,
            a space is empty or of the wrong type, a value is one that the method refuses, a condition leads in a
            circle, or nothing is left to search.
    """
    own = declared(base, inference=True)
    wanted = {full_key(key): value for key, value in given.items()}
    if len(wanted) < len(given):
        raise SettingError("a setting has two spaces: give each of them one")
    if not wanted:
        wanted = dict.fromkeys(_by_default(base, check, taken_over))
    if not wanted:
        raise SettingError("the method declares no search space: give one with --space, such as training.seed=1,2,3")
    found = []
    for key, value in wanted.items():
        _require_known(base, key)
        _require_later(base, key, taken_over)
        if value is None and key not in own:
            raise SettingError(f"the method declares no space of '{key}': give one, such as --space {key}=LOW..HIGH")
        space, condition = (own[key], None) if value is None else parse_space(key, value)
        one = _dimension(base, key, space, condition)
        found.append(one if given or not taken_over else _around(base, one))
    ordered = _parents_first(found)
    _check_values(base, ordered, check)
    return tuple(ordered)


def _by_default(base: RunSettings, check: Check, taken_over: Sequence[str]) -> list[str]:
    """Return the keys that a study searches where none are named."""
    if not taken_over:
        return list(declared(base))
    later = read_after(type(base.method), taken_over)
    keys = [key for key in declared(base, inference=True) if key.removeprefix("method.") in later]
    return [key for key in keys if _fits(base, key, check)]


def _fits(base: RunSettings, key: str, check: Check) -> bool:
    """Say whether a declared space has no value that is refused beside the run's own settings."""
    one = _dimension(base, key, declared(base, inference=True)[key], None)
    return all(_refusal(base, {key: value}, check) is None for value in one.probes())


def _around(base: RunSettings, one: Dimension) -> Dimension:
    """Return a declared space with the run's own value in it, which is where its study starts."""
    value = plain(flatten(base)[one.key])
    if one.own(value) is not None:
        return one
    if isinstance(one.space, Choice):
        return one.model_copy(update={"space": Choice(values=(value, *one.space.values))})
    if isinstance(value, str):  # such as a number that is to be chosen
        return one
    ends = {"low": min(one.space.low, value), "high": max(one.space.high, value)}
    return one.model_copy(update={"space": one.space.model_copy(update=ends)})


def _require_later(base: RunSettings, key: str, taken_over: Sequence[str]) -> None:
    """Refuse to search what stages have read that are taken over as they are.

    Raises:
        SettingError: says which.
    """
    group, _, name = key.partition(".")
    if not taken_over or group == "training" or name in read_after(type(base.method), taken_over):
        return
    stage = read_since(type(base.method))[name] or taken_over[0]
    raise SettingError(
        f"'{key}' is read by the stage '{stage}', which trials take over as it was trained: search what later stages "
        "or scoring read, or start after an earlier stage"
    )


def chosen(base: RunSettings, values: Mapping[str, Any]) -> RunSettings:
    """Return the settings of a trial.

    Raises:
        SettingError: the settings class refuses these values together.
    """
    return override(base, values)


def point(base: RunSettings, searched: Sequence[Dimension]) -> dict[str, Any] | None:
    """Return where the base's own settings lie in the spaces, or None where they lie outside."""
    flat = flatten(base)
    values: dict[str, Any] = {}
    for one in searched:
        if one.condition is not None and not one.condition.holds(flat):
            continue
        value = one.own(flat[one.key])
        if value is None:
            return None
        values[one.key] = value
    return values


def full_key(key: str) -> str:
    """Return a setting's key with its group; without one it is the method's."""
    key = key.strip()
    return key if key.split(".")[0] in ("method", "training") else f"method.{key}"


def _require_known(base: RunSettings, key: str) -> None:
    _require_leaf(base, key)
    group, _, name = key.partition(".")
    if group == "training" and name not in TRAINING:
        raise SettingError(
            f"'{key}' changes nothing that a study could judge: of training these are searched: {', '.join(TRAINING)}; "
            "set others with --set"
        )


def _require_leaf(base: RunSettings, key: str) -> None:
    flat = flatten(base)
    if key in flat:
        return
    below = next((name for name in flat if name.startswith(f"{key}.")), None)
    if below is not None:
        raise SettingError(f"'{key}' is a group of settings: name one of them, such as '{below}'")
    override(base, {key: None})  # unknown: it knows how to say what may have been meant


def _dimension(
    base: RunSettings, key: str, space: Range | Choice, condition: tuple[str, tuple[Any, ...]] | None
) -> Dimension:
    kinds = _kinds(type(base), key)
    whole = False
    if isinstance(space, Choice) and any(get_origin(kind) is tuple for kind in kinds):
        # A number stands for a list of that one: steps=200,700 are two choices of a single phase.
        texts = (plain([value]) if isinstance(value, int | float) else value for value in space.values)
        space = Choice(values=tuple(texts))
    if isinstance(space, Range):
        if not kinds & {int, float}:
            raise SettingError(
                f"'{key}' is no number and --space {key} gives a range: list values, separated by commas"
            )
        whole = float not in kinds
        if whole and (space.low % 1 or space.high % 1):
            raise SettingError(
                f"'{key}' takes whole numbers and --space {key} begins or ends between two: give whole ones"
            )
    if condition is None:
        return Dimension(key=key, space=space, whole=whole)
    other = full_key(condition[0])
    _require_leaf(base, other)
    return Dimension(key=key, space=space, whole=whole, condition=Condition(key=other, values=condition[1]))


def _kinds(settings_type: type[BaseModel], key: str) -> set[Any]:
    """Return the plain types that a setting takes."""
    found: set[Any] = set()
    for one in kinds_of(settings_type, key):
        if get_origin(one) is Literal:
            found.update(type(value) for value in get_args(one) if isinstance(value, str))
        else:
            found.add(one)
    return found


def _parents_first(found: Sequence[Dimension]) -> list[Dimension]:
    keys = {one.key for one in found}
    ordered: list[Dimension] = []
    waiting = list(found)
    while waiting:
        done = {one.key for one in ordered} | ({one.condition.key for one in waiting if one.condition} - keys)
        ready = [one for one in waiting if one.condition is None or one.condition.key in done]
        if not ready:
            raise SettingError(f"the condition of '{waiting[0].key}' leads in a circle: leave one of them out")
        ordered += ready
        waiting = [one for one in waiting if one not in ready]
    return ordered


def _check_values(base: RunSettings, searched: Sequence[Dimension], check: Check) -> None:
    """Try every choice and both ends, each with the base's other settings, or with others of the study where need be.

    A value may be impossible beside the base's and possible beside another one that the study searches.
    """
    for one in searched:
        needed = _needed(base, one, searched)
        for value in one.probes():
            said = _refusal(base, {**needed, one.key: value}, check)
            if said is not None and not _possible_beside(base, one, value, needed, searched, check):
                raise SettingError(f"--space {one.key}={one.text()}: the value {value} is refused: {said}")


def _needed(base: RunSettings, one: Dimension, searched: Sequence[Dimension]) -> dict[str, Any]:
    """Return what must be set besides, so that a dimension's condition holds."""
    needed: dict[str, Any] = {}
    by_key = {other.key: other for other in searched}
    flat = flatten(base)
    while one.condition is not None:
        key = one.condition.key
        if not one.condition.holds({**flat, **needed}):
            parent = by_key.get(key)
            possible = [value for value in one.condition.values if parent is not None and parent.own(value) is not None]
            if not possible:
                raise SettingError(
                    f"'{one.key}' is searched if {key} is {', '.join(map(str, one.condition.values))}, which it never "
                    f"is: set it with --set {key}=..., or search it too"
                )
            needed[key] = possible[0]
        if key not in by_key:
            break
        one = by_key[key]
    return needed


def _refusal(base: RunSettings, values: Mapping[str, Any], check: Check) -> str | None:
    try:
        check(override(base, values))
    except InputError as error:
        return str(error)
    return None


def _possible_beside(
    base: RunSettings,
    one: Dimension,
    value: Any,
    needed: Mapping[str, Any],
    searched: Sequence[Dimension],
    check: Check,
) -> bool:
    others = [other for other in searched if other is not one and other.key not in needed]
    asked = 0
    combinations = itertools.product(*(other.probes() for other in others))
    for combination in itertools.islice(combinations, _MOST_COMBINATIONS):
        values = dict(zip((other.key for other in others), combination, strict=True))
        try:
            settings = override(base, {**values, **needed, one.key: value})
        except SettingError:
            continue
        if _refusal(settings, {}, check) is None:
            return True
        asked += 1
        if asked == _MOST_ASKED:
            return False
    return False
