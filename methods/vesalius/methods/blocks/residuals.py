"""Scores of methods that restore slices: |volume - restoration|, put together and post-processed in 3D."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from vesalius.methods.blocks.maps import MapSettings, Window, check_channels, finish_map, image_score
from vesalius.methods.blocks.slices import SliceSettings, SliceStack, assemble, check_plane, take_slices
from vesalius.platform.contracts import Score, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import CohortFacts, Volume

_SECTION = "Baur et al. 2018, section 3.1, postprocessing"


class ResidualMapSettings(MapSettings):
    """The paper's post-processing: a median over 5^3 voxels, then a slightly eroded brain mask."""

    median_pool: Window = setting(5, "edge of the median window in voxels; 1 is none", source=_SECTION)
    voxels: Literal["all", "brain"] = setting(
        "brain", "where the map is kept: the whole box, or zero outside the brain", source=_SECTION
    )
    erosion: int = setting(
        1,
        "voxels that the brain is eroded by before the map is kept inside it",
        ge=0,
        source=f"{_SECTION}: slightly; the number is this implementation's",
    )


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Slices as a method would have them healthy.

    Attributes:
        image: (S, C, h, w).
        extras: further maps (S, h, w) by name.
    """

    image: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


def score_by_residual(
    volumes: Sequence[Volume],
    restore: Callable[[Tensor, Tensor], Restored],
    *,
    cohort: CohortFacts,
    slices: SliceSettings,
    maps: MapSettings,
    device: torch.device,
    draw: Callable[[Volume, int], Tensor] | None = None,
) -> list[Score]:
    """Return scores of volumes from the restoration of their slices.

    The slices of all volumes pass together, ``slices.together`` at a time. The map is the absolute residual, of several
    channels the largest, then post-processed. Outside the slices' extent the map is zero and the restoration the volume
    itself: nothing was looked at there.

    Args:
        volumes: with slices of the cohort's plane.
        restore: ``(image (S, C, h, w), drawn (S, ...)) -> restored``, on ``device``.
        cohort: what the model was trained on.
        slices: which slices.
        maps: post-processing.
        device: where ``restore`` computes.
        draw: ``(volume, S) -> (S, ...)`` noise or starts of a volume's slices, keyed by the volume's content.

    Raises:
        VolumeError: a volume has other channels or slices than the cohort.
    """
    stacks: list[SliceStack] = []
    drawn: list[Tensor] = []
    for volume in volumes:
        check_channels(volume, cohort)
        check_plane(volume, cohort, slices.axis)
        stack = take_slices(volume, cohort, slices)
        stacks.append(stack)
        num = len(stack.index)
        drawn.append(draw(volume, num) if draw is not None else torch.zeros(num, 0))
    images = torch.cat([stack.image.to(device) for stack in stacks])
    passes = zip(torch.split(images, slices.together), torch.split(torch.cat(drawn), slices.together), strict=True)
    parts = [restore(image, start.to(device)) for image, start in passes]
    names = list(parts[0].extras)
    numbers = [len(stack.index) for stack in stacks]
    restored = torch.split(torch.cat([part.image for part in parts]), numbers)
    extras = {name: torch.split(torch.cat([part.extras[name] for part in parts]), numbers) for name in names}
    scores = []
    for at, (volume, stack) in enumerate(zip(volumes, stacks, strict=True)):
        beside = {name: values[at] for name, values in extras.items()}
        scores.append(_score(volume, stack, Restored(image=restored[at], extras=beside), slices, maps))
    return scores


def _score(volume: Volume, stack: SliceStack, restored: Restored, slices: SliceSettings, maps: MapSettings) -> Score:
    device = restored.image.device
    residual = (stack.image.to(device) - restored.image).abs().amax(1)
    brain = volume.brain.to(device)
    map_DHW = finish_map(assemble(residual, stack.index, volume.shape, slices), brain, maps)
    looked_at = assemble(torch.ones_like(residual, dtype=torch.bool), stack.index, volume.shape, slices)
    whole = assemble(restored.image, stack.index, volume.shape, slices)
    home = volume.image.device
    return Score(
        map=map_DHW.to(home),
        image_score=image_score(map_DHW, brain, maps),
        restoration=torch.where(looked_at, whole, volume.image.to(device)).to(home),
        extras={
            name: assemble(values, stack.index, volume.shape, slices).to(home)
            for name, values in restored.extras.items()
        },
    )
