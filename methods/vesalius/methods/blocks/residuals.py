"""Scores of methods that restore slices: |volume - restoration|, put together and post-processed in 3D."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from vesalius.methods.blocks.maps import MEDIANS, MapSettings, Window
from vesalius.methods.blocks.slices import SliceSettings, score_slices, take_all
from vesalius.platform.contracts import Choice, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import CohortFacts, Score, Volume

_SECTION = "Baur et al. 2018, section 3.1, postprocessing"


class ResidualMapSettings(MapSettings):
    """The paper's post-processing: a median over 5^3 voxels, then a slightly eroded brain mask."""

    median_pool: Window = setting(
        5, "edge of the median window in voxels; 1 is none", source=_SECTION, inference_space=MEDIANS
    )
    voxels: Literal["all", "brain"] = setting(
        "brain", "where the map is kept: the whole box, or zero outside the brain", source=_SECTION
    )
    erosion: int = setting(
        1,
        "voxels that the brain is eroded by before the map is kept inside it",
        ge=0,
        source=f"{_SECTION}: slightly; the number is this implementation's",
        inference_space=Choice(values=(0, 1, 2)),
    )
    residual: Literal["absolute", "brighter", "darker"] = setting(
        "absolute",
        "what of volume - restoration counts: its size, or only where the volume is brighter, or darker, than the "
        "restoration: where lesions are known to be bright, as in FLAIR, the other sign is false alarms",
        source="Baur et al. 2018, section 2: the difference, taken as its size; the others are this implementation's",
        space=Choice(values=("absolute", "brighter", "darker")),
    )
    # Not searched: these methods have neither a minimum nor an average, and without them it changes nothing.
    outside: Literal["zero", "left_out"] = setting(
        "zero",
        "what a window at the surface of a map kept inside the brain takes from outside: zeros, or nothing; without "
        "effect where min_pool and average_pool are 1",
        source="this implementation",
    )


_RESIDUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute": torch.abs,
    "brighter": lambda difference: difference.clamp(min=0),
    "darker": lambda difference: (-difference).clamp(min=0),
}


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
    maps: ResidualMapSettings,
    device: torch.device,
    draw: Callable[[Volume, int], Tensor] | None = None,
) -> list[Score]:
    """Return scores of volumes from the restoration of their slices.

    The slices of all volumes pass together, ``slices.together`` at a time. The map is the residual that ``maps`` asks
    for, of several channels the largest, then post-processed.

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
    stack, each = take_all(volumes, cohort, slices, device)
    drawn = [
        draw(volume, len(own.index)) if draw is not None else torch.zeros(len(own.index), 0)
        for volume, own in zip(volumes, each, strict=True)
    ]
    passes = zip(torch.split(stack.image, slices.together), torch.split(torch.cat(drawn), slices.together), strict=True)
    parts = [restore(image, start.to(device)) for image, start in passes]
    restored = torch.cat([part.image for part in parts])
    return score_slices(
        volumes,
        each,
        slices,
        maps,
        evidence=_RESIDUALS[maps.residual](stack.image - restored).amax(1),
        restored=restored,
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
    )
