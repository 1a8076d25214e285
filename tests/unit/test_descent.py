"""What is asked of two trainings that should be the same: it must see what it is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from vesalius.infra.footprint import batch_of_noise, made_up_cohort
from vesalius.methods import METHODS
from vesalius.platform.tables import lookup
from vesalius.platform.testing.descent import assert_same_changes, assert_same_lengths, descend, lengths_of
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.training import Alone, Updater

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.platform.contracts import Batch, Method
    from vesalius.platform.contracts.stage import LossSum
    from vesalius.platform.testing.descent import Lengths


def of(name: str) -> Method:
    kind: type[Method] = lookup(METHODS, name, "method")
    torch.manual_seed(0)
    return kind(kind.presets()["tiny"], made_up_cohort((16, 12, 16), 4))


def descended(factor: float) -> tuple[Mapping[str, torch.Tensor], Lengths]:
    """Return an autoencoder after two steps along ``factor`` times its gradient, and the lengths."""
    method = of("autoencoder").train()
    lengths = lengths_of(method)
    (stage,) = method.stages()
    update = Updater(stage, Alone(), training_settings(), torch.device("cpu"))

    def loss(batch: Batch) -> LossSum:
        total, *beside = method.loss(batch)  # type: ignore[operator]  # a Module's attributes are untyped
        return factor * total, *beside

    for step in range(2):
        update("adam", loss, batch_of_noise(method, stage, 4, step))
    return method.state_dict(), lengths


def test_a_gradients_multiple_has_the_same_steps_and_other_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    (one, lengths), (other, others) = descended(1.0), descended(2.0)
    assert list(lengths) == ["autoencoder/adam"]
    assert len(lengths["autoencoder/adam"]) == 2
    assert_same_changes(of("autoencoder"), one, other)
    assert_same_lengths(lengths, lengths, share=0)
    with pytest.raises(AssertionError, match="step 0: a gradient of"):
        assert_same_lengths(lengths, others, share=0.4)
    with pytest.raises(AssertionError, match="1 steps and not 2"):
        assert_same_lengths(lengths, {key: value[:1] for key, value in others.items()}, share=1)


def test_a_tensor_of_many_that_changes_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    descend(monkeypatch)
    begun, (one, _) = of("autoencoder"), descended(1.0)
    start = begun.state_dict()
    for key in dict(begun.named_parameters()):
        with pytest.raises(AssertionError, match=key):
            assert_same_changes(begun, one, {**one, key: start[key] + 1.05 * (one[key] - start[key])})
    counter = next(key for key, value in one.items() if not value.is_floating_point())
    with pytest.raises(AssertionError, match=f"{counter} differs"):
        assert_same_changes(begun, one, {**one, counter: one[counter] + 1})


@pytest.mark.parametrize("name", ["autoencoder", "healthy_atlas"])
def test_what_learnt_nothing_is_not_the_same_as_anything(name: str) -> None:
    state = of(name).state_dict()
    with pytest.raises(AssertionError, match="nothing was learnt"):
        assert_same_changes(of(name), state, state)
