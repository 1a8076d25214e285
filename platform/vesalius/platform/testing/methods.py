"""The contract suite of methods: what every method must keep, whatever it is.

Each function takes a method's class, small settings (its ``tiny`` preset) and a small prepared cohort, and raises
``AssertionError`` with a sentence where the contract is broken. A new method passes by existing in the table.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from vesalius.platform.config import digest, override
from vesalius.platform.errors import DivergenceError, SettingError
from vesalius.platform.models import ModelCard, load_model, save_model
from vesalius.platform.scoring import score_volume, volume_of
from vesalius.platform.testing.training_runs import (
    CPU,
    BreakAt,
    Broken,
    Recording,
    build,
    free_port,
    one_of_two,
    trained,
    training_settings,
)
from vesalius.platform.training import Checkpoints, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Method, MethodSettings, TableEntry, Volume
    from vesalius.platform.store import CohortStore
    from vesalius.platform.training import TrainingSettings

__all__ = [
    "TWO_WORKERS_ATOL",
    "TWO_WORKERS_RTOL",
    "assert_builds_from_settings",
    "assert_exact_resume",
    "assert_loss_falls",
    "assert_nan_stops",
    "assert_same",
    "assert_save_and_load_keep_scores",
    "assert_scores",
    "assert_two_workers_equal_one",
    "build",
    "free_port",
    "some_volumes",
    "trained",
    "training_settings",
]

TWO_WORKERS_RTOL = 2e-3
TWO_WORKERS_ATOL = 2e-4
"""Two workers add the same numbers in another order; float32 Adam carries that difference through the steps."""


def assert_builds_from_settings(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """Settings survive JSON; a typo is named; building twice from one seed gives the same weights; stages differ."""
    again = method_type.settings_type.model_validate(json.loads(settings.model_dump_json()))
    assert again == settings, "settings must survive their own JSON"
    assert digest(again) == digest(settings), "equal settings must have one digest"
    name = next(iter(type(settings).model_fields))
    with pytest.raises(SettingError, match=name):
        override(settings, {name + "x": 1})
    first, second = (build(method_type, settings, store) for _ in range(2))
    assert_same(first.state_dict(), second.state_dict(), "two builds from one seed")
    stages = first.stages()
    names = [stage.name for stage in stages]
    assert names, "a method has at least one stage"
    assert len(set(names)) == len(names), f"stage names must be unique, got {names}"


def assert_exact_resume(
    method_type: type[Method],
    settings: MethodSettings,
    store: CohortStore,
    *,
    moments: int = 4,
    training: TrainingSettings | None = None,
) -> None:
    """Broken off at several steps and resumed, the final weights equal those of an unbroken run bit for bit.

    ``training`` may be another than the suite's :func:`training_settings`.
    """
    loop = training or training_settings()
    recording = Recording()
    whole = build(method_type, settings, store)
    with tempfile.TemporaryDirectory() as folder:
        train(whole, store, loop, Path(folder), device=CPU, watcher=recording)
    total = recording.total
    assert total > 0, "training must take at least one step"
    at = sorted({1, total, *(round(total * (i + 1) / moments) for i in range(moments - 1))} - {0})
    breaks = [(step, "step") for step in at]
    # The windows in which a checkpoint of this very step stands: at the end, and at the one nearest to the middle.
    breaks += [(total, "metrics"), (total, "saved"), (total, "milestone")]
    breaks += [(min(recording.saved_at, key=lambda step: abs(step - total / 2)), "saved")]
    for step, moment in breaks:
        where = f"at step {step} of {total} ({moment})"
        with tempfile.TemporaryDirectory() as folder:
            broken = build(method_type, settings, store)
            with contextlib.suppress(Broken):
                train(broken, store, loop, Path(folder), device=CPU, watcher=BreakAt(step, moment))
                raise AssertionError(f"training was not broken off {where}")
            resumed = build(method_type, settings, store)
            train(resumed, store, loop, Path(folder), device=CPU)
        assert_same(whole.state_dict(), resumed.state_dict(), f"a run broken off {where}")


def assert_two_workers_equal_one(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """Two gloo processes end with the weights of one, to the stated tolerance, and with identical replicas."""
    alone = trained(method_type, settings, store).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (free_port(), method_type, settings.model_dump(mode="json"), str(store.path), folder)
        torch.multiprocessing.spawn(one_of_two, args=arguments, nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # torch has no types here
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert_same(ranks[0], ranks[1], "the replicas of two workers")
    for name, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                ranks[0][name], value, rtol=TWO_WORKERS_RTOL, atol=TWO_WORKERS_ATOL, msg=partial("{}: {}".format, name)
            )
        else:
            assert torch.equal(ranks[0][name], value), f"{name} differs between one and two workers"


def assert_loss_falls(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """Every stage that logs a ``loss`` ends with a lower one; a stage that logs none leaves fitted state behind."""
    recording = Recording()
    method = build(method_type, settings, store)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    names = [stage.name for stage in method.stages()]
    with tempfile.TemporaryDirectory() as folder:
        train(method, store, training_settings(), Path(folder), device=CPU, watcher=recording)
        checkpoints = Checkpoints(Path(folder))
        for name in names:
            after = build(method_type, settings, store)
            checkpoints.load_weights(checkpoints.end_of(name), after)
            state = after.state_dict()
            assert any(not torch.equal(before[key], state[key]) for key in state), f"stage '{name}' changed nothing"
            before = {key: value.clone() for key, value in state.items()}
    for name, losses in recording.losses.items():
        quarter = max(1, len(losses) // 4)
        first, last = np.mean(losses[:quarter]), np.mean(losses[-quarter:])
        assert last < first, f"{name} went from {first:.4g} to {last:.4g}"


def assert_scores(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """Maps lie on the volume's grid, are finite and deterministic, and do not depend on the company."""
    method = trained(method_type, settings, store)
    volumes = some_volumes(store)
    together = _scores(method, volumes)
    again = _scores(method, volumes)
    for volume, score, twin in zip(volumes, together, again, strict=True):
        assert tuple(score.map.shape) == volume.shape, f"map {tuple(score.map.shape)} on a grid {volume.shape}"
        assert score.map.dtype == torch.float32, f"a map is float32, got {score.map.dtype}"
        assert torch.isfinite(score.map).all(), "a map must be finite"
        assert np.isfinite(score.image_score), "an image score must be finite"
        assert torch.equal(score.map, twin.map), "scoring twice must give the same map"
        assert score.image_score == twin.image_score, "scoring twice must give the same image score"
        if score.restoration is not None:
            assert score.restoration.shape == volume.image.shape, "a restoration has the image's shape"
            assert torch.isfinite(score.restoration).all(), "a restoration must be finite"
        for name, extra in score.extras.items():
            assert tuple(extra.shape) == volume.shape, f"extra map '{name}' must lie on the volume's grid"
    for volume, score in zip(volumes, together, strict=True):
        (alone,) = _scores(method, [volume])
        spread = float(score.map.std()) + 1e-6
        worst = float((alone.map - score.map).abs().max())
        assert worst < 0.02 * spread, f"a volume scored alone differs by {worst:.3g} from itself among others"
    assert any(float(score.map.std()) > 0 for score in together), "a map that is constant everywhere says nothing"


def assert_save_and_load_keep_scores(
    method_type: type[Method],
    settings: MethodSettings,
    store: CohortStore,
    name: str,
    methods: Mapping[str, TableEntry],
) -> None:
    """A saved and loaded model gives the same maps bit for bit; nothing in its folder is a pickle."""
    method = trained(method_type, settings, store)
    volumes = some_volumes(store)[:2]
    with tempfile.TemporaryDirectory() as folder:
        save_model(
            Path(folder) / "model",
            method,
            ModelCard(
                method=name,
                settings=settings.model_dump(mode="json"),
                cohort=store.facts(),
                recipe=store.recipe,
                run_id="contract",
                stage="",
                step=0,
            ),
        )
        files = sorted(path.suffix for path in (Path(folder) / "model").rglob("*") if path.is_file())
        assert set(files) <= {".json", ".safetensors"}, f"a model is safetensors and JSON, found {files}"
        loaded, _ = load_model(Path(folder) / "model", methods)
    for kept, other in zip(_scores(method, volumes), _scores(loaded, volumes), strict=True):
        assert torch.equal(kept.map, other.map), "a loaded model must give the same map"
        assert kept.image_score == other.image_score, "a loaded model must give the same image score"


class _Poisoned:
    """A cohort whose volumes turn out not to be finite."""

    def __init__(self, store: CohortStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def image(self, subject_id: str) -> Any:
        return np.full_like(self._store.image(subject_id), np.nan)

    def stored(self, subject_id: str, role: str, box: Any = None) -> Any:
        values = self._store.stored(subject_id, role, box)
        return np.full_like(values, np.nan) if role == "image" else values


def assert_nan_stops(method_type: type[Method], settings: MethodSettings, store: CohortStore) -> None:
    """A NaN stops training with a message that names the stage and the step, and leaves no checkpoint of it."""
    method = build(method_type, settings, store)
    first = method.stages()[0].name
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(DivergenceError, match=f"step 0 of stage '{first}'"):
            train(method, _Poisoned(store), training_settings(), Path(folder), device=CPU)  # type: ignore[arg-type]  # stands in for a store
        assert not list(Path(folder).iterdir()), "nothing may be kept of a step that was not finite"


def some_volumes(store: CohortStore) -> list[Volume]:
    """Return up to three volumes of validation, else of train."""
    records = store.subjects("validation") or store.subjects("train")
    return [volume_of(store, record) for record in records[:3]]


def _scores(method: Method, volumes: Sequence[Volume]) -> list[Any]:
    method.eval()
    if len(volumes) == 1:
        score, _ = score_volume(method, volumes[0], CPU, effort="quick")
        return [score]
    with torch.no_grad():
        return list(method.score(volumes, effort="quick"))


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], what: str) -> None:
    """Both have the same entries, bit for bit."""
    assert left.keys() == right.keys(), f"{what}: other entries in the state"
    for name, value in left.items():
        other = right[name]
        same = torch.equal(value, other)
        if not same:
            gap = float((value.double() - other.double()).abs().max())
            raise AssertionError(f"{what}: {name} differs by up to {gap:.3g}")
