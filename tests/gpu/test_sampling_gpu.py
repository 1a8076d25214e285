"""On a CUDA device: page-locked batches hold what others hold, and augmentation gives what the CPU gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from vesalius.platform.contracts import Augmentation, Slices, Stage, View, WholeVolumes
from vesalius.platform.loading import VolumeCache, augmented, batches, load_batch

if TYPE_CHECKING:
    from vesalius.platform.store import CohortStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

EVERYTHING = Augmentation(
    rotation_degrees=12, scale=(-0.1, 0.2), elastic_mm=2, elastic_spacing_mm=8, contrast=0.3, brightness=0.2, centre=0.5
)
CUDA = torch.device("cuda")


def _stage(view: View, **changes: Any) -> Stage:
    return Stage(**{"name": "s", "view": view, "batch_size": 4, "epochs": 2, "step": lambda b, u: {}, **changes})


@pytest.mark.parametrize("view", [Slices(axis=0), WholeVolumes()], ids=str)
def test_page_locked_batches_arrive_whole(toy_store: CohortStore, view: View) -> None:
    facts, stage = toy_store.facts(), _stage(view)
    cache = VolumeCache(toy_store, facts.subjects, 2**30)
    moved = []
    for batch in batches(cache, stage, facts, seed=0, start=0, stop=3, pin=True):
        assert batch.image.is_pinned()
        moved.append(batch.to(CUDA))
    for step, batch in enumerate(moved):
        assert torch.equal(batch.image.cpu(), load_batch(cache, stage, facts, seed=0, step=step).image)


@pytest.mark.parametrize("view", [Slices(axis=0), WholeVolumes()], ids=str)
def test_augmentation_on_the_device_is_the_cpus_and_does_not_depend_on_company(
    toy_store: CohortStore, view: View
) -> None:
    facts, stage = toy_store.facts(), _stage(view, augmentation=EVERYTHING)
    cache = VolumeCache(toy_store, facts.subjects, 2**30)
    batch = load_batch(cache, stage, facts, seed=0, step=0)
    here, there = augmented(batch), augmented(batch.to(CUDA))
    inside = here.brain & there.brain.cpu()
    assert (here.brain != there.brain.cpu()).float().mean() < 0.01, "but for voxels half-way between two"
    mask = inside[:, None].expand_as(here.image)
    torch.testing.assert_close(there.image.cpu()[mask], here.image[mask], rtol=1e-3, atol=1e-3)
    again = augmented(batch.to(CUDA))
    assert torch.equal(again.image, there.image)
    alone = augmented(batch.select(1, 2).to(CUDA))
    assert torch.equal(alone.image, there.image[1:2])
