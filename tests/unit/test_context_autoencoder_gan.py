"""The context autoencoder: what is blanked out, and what its loss counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from vesalius.methods.context_autoencoder_gan import (
    ContextAutoencoderGAN,
    ContextAutoencoderGANSettings,
    MaskingSettings,
)
from vesalius.platform.config import override
from vesalius.platform.errors import SettingError
from vesalius.platform.testing.made_up import made_up_batch, made_up_facts

if TYPE_CHECKING:
    from vesalius.platform.contracts import Batch

GRID = (18, 21, 5)


def batch(num: int = 8, step: int = 0) -> Batch:
    image = torch.rand((num, 1, *GRID[:2]), generator=torch.Generator().manual_seed(step))
    return made_up_batch(image, stage="context_autoencoder", step=step, brain=image[:, 0] > 0.3)


def build(background: float = 0.0, **changes: Any) -> ContextAutoencoderGAN:
    torch.manual_seed(0)
    settings = ContextAutoencoderGAN.presets()["tiny"]
    assert isinstance(settings, ContextAutoencoderGANSettings)
    return ContextAutoencoderGAN(override(settings, changes), made_up_facts(GRID, background=background))


def test_what_is_blanked_belongs_to_the_item() -> None:
    method = build()
    items = batch()
    whole = method.blanked(items)
    assert whole.shape == (8, 1, 18, 21)
    assert torch.equal(method.blanked(items), whole)
    assert torch.equal(method.blanked(items.select(5, 8)), whole[5:8])
    assert torch.equal(method.blanked(items.take(torch.tensor([6, 1]))), whole[[6, 1]])
    assert len({tuple(mask.flatten().tolist()) for mask in whole}) == 8
    assert not torch.equal(method.blanked(batch(step=1)), whole)


def test_rectangles_lie_whole_within_the_slice_and_blank_a_quarter_at_most() -> None:
    for edge, (tall, wide) in ((0.25, (4, 5)), (1.0, (18, 21)), (0.01, (1, 1))):
        method = build(**{"masking.blocks": 1, "masking.edge": edge})
        blanked = method.blanked(batch(64))[:, 0]
        assert (blanked.flatten(1).sum(1) == tall * wide).all()
        assert (blanked.any(2).sum(1) == tall).all()
        assert (blanked.any(1).sum(1) == wide).all()
    four = build().blanked(batch(64)).flatten(1).sum(1)
    assert int(four.max()) <= 4 * 4 * 5
    assert int(four.min()) >= 4 * 5
    everywhere = build(**{"masking.blocks": 1}).blanked(batch(2_000)).any(0)
    assert bool(everywhere.all())
    nothing = build(**{"masking.blocks": 0})
    assert not nothing.blanked(batch()).any()


@pytest.mark.parametrize("counted", ["all", "blanked"])
def test_the_loss_counts_the_whole_slice_or_what_was_blanked(counted: str) -> None:
    # A background other than 0 tells what blanks a slice from what only happens to be its value.
    method = build(background=-1.0, **{"masking.counted": counted}).eval()
    items = batch()
    with torch.no_grad():
        _, _, observed = method.loss(items)
        blanked = method.blanked(items)
        restored = method.network(torch.where(blanked, -1.0, items.image))
    gaps, mask = np.abs((restored - items.image).numpy()), blanked.numpy()
    expected = [gap[m].mean() if counted == "blanked" else gap.mean() for gap, m in zip(gaps, mask, strict=True)]
    assert float(observed["reconstruction"]) == pytest.approx(sum(expected), rel=1e-5)


def test_counting_what_is_blanked_where_nothing_is_is_refused() -> None:
    with pytest.raises(SettingError, match=r"with 0 blocks nothing is blanked, so that no value counts: set counted"):
        override(MaskingSettings(), {"blocks": 0, "counted": "blanked"})
