"""The contract suite's part on settings: none changes what stages have learnt that are done before it is read.

See :func:`vesalius.platform.contracts.setting`. A study that starts its trials after a finished stage rests on this.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch
from safetensors.torch import load_file

from vesalius.platform.config import flatten, kinds_of, override
from vesalius.platform.contracts import SCORING, read_since
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.training_runs import CPU, Broken, build, training_settings
from vesalius.platform.training import Checkpoints, Unwatched, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.store import CohortStore

_NEVER = 10**9


def assert_settings_are_read_since(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """A setting that says since when it is read names a stage; what the stages before have learnt is the same with it.

    All settings of one ``since`` are changed together, each to another value that fits, and one training is broken off
    where that stage would begin. Selectable stages make a single validation pass, which leaves nothing to be chosen.
    """
    marked: dict[str, list[str]] = {}
    for key, since in read_since(type(settings)).items():
        if since is not None:
            marked.setdefault(since, []).append(key)
    names = _stages(method_type, settings, store)
    plain = dict(_learnt(method_type, settings, store, names))
    for since, keys in marked.items():
        for changed in _changed(method_type, settings, store, keys):
            theirs = _stages(method_type, changed, store)
            known = [*names, *theirs, SCORING]
            assert since in known, f"{', '.join(keys)}: there is no stage '{since}', only {', '.join(known)}"
            before = theirs[: theirs.index(since)] if since in theirs else theirs
            for stage, learnt in _learnt(method_type, changed, store, before):
                where = f"of {', '.join(keys)}, said to be read since '{since}', one changes stage '{stage}'"
                assert learnt.keys() == plain[stage].keys(), f"{where}: it learns other weights"
                for name, value in learnt.items():
                    assert torch.equal(value, plain[stage][name]), f"{where}: {name}"


def _stages(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> list[str]:
    return [stage.name for stage in build(method_type, settings, store).stages()]


def _learnt(
    method_type: type[Method], settings: MethodSettings, store: CohortStore, stages: list[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give what the first stages have learnt, by stage; the others are not trained."""
    if not stages:
        return
    loop = training_settings(validate_every=_NEVER, checkpoint_every=_NEVER)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(Broken):
            train(
                build(method_type, settings, store), store, loop, Path(folder), device=CPU, watcher=_Until(stages[-1])
            )
        checkpoints = Checkpoints(Path(folder))
        for stage in stages:
            name = checkpoints.end_of(stage)
            weights = load_file(Path(folder) / name / "weights.safetensors")
            yield stage, {key: weights[key] for key in checkpoints.state(name).learnt or ()}


class _Until(Unwatched):
    """Breaks off at the end of a stage."""

    def __init__(self, stage: str) -> None:
        self._figure = f"{stage}/seconds"

    def milestone(self, overall: int, metrics: Mapping[str, float]) -> None:
        """Hear of a milestone."""
        if self._figure in metrics:
            raise Broken


def _changed(
    method_type: type[Method], settings: MethodSettings, store: CohortStore, keys: Sequence[str]
) -> list[MethodSettings]:
    """Return settings of which every key has another value in one: as many of them together as fit."""
    waiting = list(keys)
    found = []
    while waiting:
        chosen, left = settings, []
        for key in waiting:
            other = _with_others(method_type, chosen, store, [key])
            if other is None:
                left.append(key)
            else:
                chosen = other
        if len(left) == len(waiting):  # one of them fits beside another value of a second one alone
            pairs = (_with_others(method_type, settings, store, [left[0], key]) for key in keys if key != left[0])
            together = next((pair for pair in pairs if pair is not None), None)
            assert together is not None, f"no other value of {left.pop(0)} fits the preset"
            chosen, left = together, left[1:]
        found.append(chosen)
        waiting = left
    return found


def _with_others(
    method_type: type[Method], settings: MethodSettings, store: CohortStore, keys: Sequence[str]
) -> MethodSettings | None:
    """Return settings with other values of the keys that fit together, or None."""
    flat = flatten(settings)
    for values in itertools.product(*(_others(type(settings), key, flat[key]) for key in keys)):
        with contextlib.suppress(SettingError):
            changed = override(settings, dict(zip(keys, values, strict=True)))
            if all(flatten(changed)[key] != flat[key] for key in keys):
                build(method_type, changed, store).stages()
                return changed
    return None


def _others(kind: Any, key: str, value: Any) -> Iterator[Any]:
    """Give values that a setting may have instead."""
    for one in kinds_of(kind, key):
        if get_origin(one) is Literal:
            yield from (other for other in get_args(one) if other != value)
        elif one is bool:
            yield not value
        elif one in (int, float):
            known = value if isinstance(value, int | float) else 1
            # Two more keep a window odd; the last ones stay within bounds.
            yield from (known * 2, known + 2, known + 1, known / 2, 1, 0.25, 0)
        elif get_origin(one) is tuple:
            yield tuple(2 * each for each in value)
