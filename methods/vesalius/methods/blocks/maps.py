"""Score maps: windows, their settings, the number for a whole volume.

Windows are counted in voxels, as in the papers. Borders never invent data: a minimum sees only voxels inside the
volume (padding is plus infinity), an average divides by the voxels inside the volume (padding is left out). What the
surface of the brain is to a map kept inside it, a setting says (``MapSettings.outside``).
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch.nn import functional as F

from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, setting
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import CohortFacts, Score, Volume


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("expected an odd number of voxels, so that the window has a centre")
    return value


_WINDOW_VALUES = 2**25
"""Values of all windows that a median holds at a time: 128 MiB."""

Window = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""Edge of a cubic window in voxels: odd, 1 for no pooling."""

MEDIANS = Choice(values=(1, 3, 5))
MINIMA = Choice(values=(1, 3, 5))
AVERAGES = Choice(values=(1, 3, 5, 7, 9, 15))
"""Windows that a study of a finished run searches."""

Box = tuple[int, int, int]
"""Edges of a window along D, H, W in voxels, each odd."""


class MapSettings(Settings):
    """How raw evidence becomes a score map and a number for the volume."""

    since: ClassVar[str | None] = SCORING

    median_pool: Window = setting(
        1, "edge of the median window in voxels; 1 is none", source="this implementation", inference_space=MEDIANS
    )
    min_pool: Window = setting(
        1, "edge of the minimum window in voxels; 1 is none", source="this implementation", inference_space=MINIMA
    )
    average_pool: Window = setting(
        1, "edge of the averaging window in voxels; 1 is none", source="this implementation", inference_space=AVERAGES
    )
    voxels: Literal["all", "brain"] = setting(
        "all", "where the map is kept: the whole box, or zero outside the brain", source="this implementation"
    )
    erosion: int = setting(
        0,
        "voxels that the brain is eroded by before a map is kept inside it (voxels = brain)",
        ge=0,
        source="this implementation",
        inference_space=Choice(values=(0, 1, 2)),
    )
    outside: Literal["zero", "left_out"] = setting(
        "zero",
        "what a window at the surface of a map kept inside the brain takes from outside: zeros, which dim the rim, "
        "where registration and skull-stripping err most, or nothing; without effect on a map of all voxels",
        source="this implementation",
    )
    image_score: Literal["top_mean", "max", "mean"] = setting(
        "top_mean",
        "the volume's number: mean of the highest fraction, maximum or mean of the map inside the brain",
        source="this implementation",
    )
    top_fraction: float = setting(
        0.01, "fraction of brain voxels that top_mean averages", gt=0, le=1, source="this implementation"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.erosion and self.voxels == "all":
            raise ValueError("erosion has no effect on a map of all voxels: set voxels to brain, or erosion to 0")
        return self


class BrainMapSettings(MapSettings):
    """Inside the brain, averaged: what a baseline takes, to which the background would be the greatest anomaly of all.

    Of the choices tried on the phantom's validation split this is the most favourable.
    """

    average_pool: Window = setting(
        5, "edge of the averaging window in voxels; 1 is none", source="this implementation", inference_space=AVERAGES
    )
    voxels: Literal["all", "brain"] = setting(
        "brain", "where the map is kept: the whole box, or zero outside the brain", source="this implementation"
    )
    outside: Literal["zero", "left_out"] = setting(
        "zero",
        "what a window at the surface of the map takes from outside of the brain: zeros, which dim the rim, where "
        "registration and skull-stripping err most, or nothing; without effect on a map of all voxels",
        source="this implementation",
        space=Choice(values=("zero", "left_out")),
    )


def min_pool(map_DHW: Tensor, size: int, inside_DHW: Tensor | None = None) -> Tensor:
    """Return the minimum over a cube of ``size`` voxels (odd) around each voxel of a (..., D, H, W) map.

    Voxels outside the volume do not count: the padding is plus infinity. Nor do those outside ``inside_DHW`` (bool,
    (D, H, W)) where it is given; the result is zero there.
    """
    pooled = map_DHW if inside_DHW is None else map_DHW.masked_fill(~inside_DHW, torch.inf)
    if size > 1:
        pooled = -pooled.reshape(-1, 1, *map_DHW.shape[-3:])
        # A cubic minimum is three minima along the axes: 3 n comparisons a voxel instead of n^3.
        for axis in range(3):
            pooled = F.max_pool3d(pooled, *_line(axis, size))
        pooled = -pooled.reshape(map_DHW.shape)
    return pooled if inside_DHW is None else pooled.masked_fill(~inside_DHW, 0)


def median_pool(map_DHW: Tensor, size: int) -> Tensor:
    """Return the median over a cube of ``size`` voxels (odd) around each voxel of a (D, H, W) map.

    Only voxels inside the volume count. Of an even number of values it is the lower of the middle two.
    """
    if size == 1:
        return map_DHW
    reach = size // 2
    padded = F.pad(map_DHW, (reach,) * 6, value=float("nan"))
    num_depth, num_rows, num_columns = map_DHW.shape
    # A slab at a time: the windows of all voxels together would take size^3 times the map's memory.
    depth = max(1, _WINDOW_VALUES // (num_rows * num_columns * size**3))
    slabs = []
    for first in range(0, num_depth, depth):
        slab = padded[first : min(first + depth, num_depth) + 2 * reach]
        windows = slab.unfold(0, size, 1).unfold(1, size, 1).unfold(2, size, 1).flatten(-3)
        with _any_index():
            slabs.append(torch.nanmedian(windows, dim=-1).values)
    return torch.cat(slabs)


@contextlib.contextmanager
def _any_index() -> Iterator[None]:
    """Let through what PyTorch refuses on CUDA in deterministic mode for its indices alone, which nobody reads."""
    refuses, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(refuses, warn_only=warns)


def erode(mask_DHW: Tensor, voxels: int) -> Tensor:
    """Return a mask (D, H, W) without the voxels that have one outside it within ``voxels`` steps along the axes.

    What lies beyond the volume counts as inside: a brain that the grid cuts off loses nothing at the cut.
    """
    eroded = mask_DHW.bool()
    for _ in range(voxels):
        kept = eroded.clone()
        for axis in range(3):
            num = eroded.shape[axis]
            kept.narrow(axis, 0, num - 1).logical_and_(eroded.narrow(axis, 1, num - 1))
            kept.narrow(axis, 1, num - 1).logical_and_(eroded.narrow(axis, 0, num - 1))
        eroded = kept
    return eroded


def average_pool(map_DHW: Tensor, size: int | Box, inside_DHW: Tensor | None = None) -> Tensor:
    """Return the mean over a cube of ``size`` voxels (odd) around each voxel of a (..., D, H, W) map.

    Three sizes, along D, H and W, are those of a box. Only voxels inside the volume count: at a border the sum is
    divided by what is there. Where ``inside_DHW`` (bool, (D, H, W)) is given, only its voxels count, and the result is
    zero outside it.
    """
    pooled = map_DHW if inside_DHW is None else map_DHW.masked_fill(~inside_DHW, 0)
    box = (size, size, size) if isinstance(size, int) else size
    if box == (1, 1, 1):
        return pooled
    if inside_DHW is None:
        return _window_mean(pooled, box) / _fraction_in_volume(pooled, box)
    # A voxel inside counts itself, so that the fraction is one voxel of the box at least where the result is kept.
    fraction = _window_mean(inside_DHW.to(map_DHW.dtype), box).clamp(min=0.5 / math.prod(box))
    return (_window_mean(pooled, box) / fraction).masked_fill(~inside_DHW, 0)


def smooth(map_DHW: Tensor, size: int, brain_DHW: Tensor, settings: MapSettings) -> Tensor:
    """Return the mean over a cube of ``size`` voxels around each voxel of a (..., D, H, W) map; of 1 the map itself.

    Of a map that is kept inside the brain, what lies outside is zero or left out (``outside``).
    """
    if size == 1:  # a median that follows sees what lies outside of the brain, as of every other method
        return map_DHW
    map_DHW, inside = _restricted(map_DHW, brain_DHW, settings)
    return average_pool(map_DHW, size, inside)


def finish_map(map_DHW: Tensor, brain_DHW: Tensor, settings: MapSettings, average: Box | None = None) -> Tensor:
    """Return the score map (D, H, W): median, minimum, then average, kept inside the (eroded) brain where asked.

    The median comes before the map is kept inside the brain, as in Baur et al. 2018; minimum and average after. Their
    windows at the brain's surface take zeros from outside it, or leave what lies there out (``outside``). Zeros dim
    the rim of the brain; a minimum takes it away. Outside the brain the map is zero in the end; all of it is, where the
    brain is empty.

    Args:
        map_DHW: raw evidence.
        brain_DHW: bool.
        settings: the windows and where the map is kept.
        average: the averaging window along D, H and W where it is no cube, in place of ``average_pool``.
    """
    brain_DHW = erode(brain_DHW, settings.erosion)
    map_DHW = median_pool(map_DHW, settings.median_pool)
    map_DHW, inside = _restricted(map_DHW, brain_DHW, settings)
    map_DHW = average_pool(min_pool(map_DHW, settings.min_pool, inside), average or settings.average_pool, inside)
    return _restricted(map_DHW, brain_DHW, settings)[0]


def _restricted(map_DHW: Tensor, brain_DHW: Tensor, settings: MapSettings) -> tuple[Tensor, Tensor | None]:
    """Return the map, zero where it is not kept, and the mask that windows heed."""
    if settings.voxels == "all":
        return map_DHW, None
    brain_DHW = brain_DHW.bool()
    return map_DHW.masked_fill(~brain_DHW, 0), brain_DHW if settings.outside == "left_out" else None


def image_score(map_DHW: Tensor, brain_DHW: Tensor, settings: MapSettings) -> float:
    """Return the volume's number from its score map, inside the brain (the whole box where the brain is empty)."""
    inside = map_DHW[brain_DHW] if bool(brain_DHW.any()) else map_DHW.flatten()
    if settings.image_score == "max":
        return float(inside.max())
    if settings.image_score == "mean":
        return float(inside.double().mean())
    count = max(1, round(settings.top_fraction * inside.numel()))
    return float(torch.topk(inside, count, sorted=False).values.double().mean())


def check_channels(volume: Volume, cohort: CohortFacts) -> None:
    """Refuse a volume whose channels are not those that the model was trained on.

    Raises:
        VolumeError: the number of channels differs; names the volume.
    """
    found, expected = int(volume.image.shape[0]), len(cohort.channels)
    if found != expected:
        names = ", ".join(cohort.channels)
        raise VolumeError(
            f"{volume.subject_id}: the volume has {found} channels but the model was trained on {expected} ({names}): "
            "prepare it with the same modalities"
        )


def check_grid(volume: Volume, cohort: CohortFacts) -> None:
    """Refuse a volume of another grid, for networks that know one place for every structure.

    Raises:
        VolumeError: the voxels' number or size differs; names the volume.
    """
    found, expected = (
        (shape, tuple(round(mm, 3) for mm in spacing))
        for shape, spacing in ((volume.shape, volume.spacing_mm), (cohort.grid, cohort.spacing_mm))
    )
    if found != expected:
        words = [
            f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm"
            for shape, spacing in (found, expected)
        ]
        raise VolumeError(
            f"{volume.subject_id}: it has {words[0]} but the model was trained on {words[1]}: "
            "prepare it with the recipe and grid of the model's cohort"
        )


def score_in_portions(
    volumes: Sequence[Volume], cohort: CohortFacts, together: int, scored: Callable[[Sequence[Volume]], Sequence[Score]]
) -> list[Score]:
    """Return ``scored`` of volumes of the cohort's grid, ``together`` at a time.

    Raises:
        VolumeError: a volume has other channels, or another grid, than the cohort; none has been scored by then.
    """
    for volume in volumes:
        check_channels(volume, cohort)
        check_grid(volume, cohort)
    portions = (volumes[first : first + together] for first in range(0, len(volumes), together))
    return [score for portion in portions for score in scored(portion)]


def _line(axis: int, size: int) -> tuple[tuple[int, int, int], int, tuple[int, int, int]]:
    """Return (kernel, stride, padding) of a pooling along one of D, H, W."""
    kernel, padding = [1, 1, 1], [0, 0, 0]
    kernel[axis], padding[axis] = size, size // 2
    return (kernel[0], kernel[1], kernel[2]), 1, (padding[0], padding[1], padding[2])


def _window_mean(map_DHW: Tensor, box: Box) -> Tensor:
    """Return the mean over each box of voxels of a (..., D, H, W) map, zeros beyond the volume counted in."""
    pooled = map_DHW.reshape(-1, 1, *map_DHW.shape[-3:])
    # Padding by hand: torch refuses its own where an axis is shorter than the window.
    for axis, size in enumerate(box):
        kernel, stride, (d, h, w) = _line(axis, size)
        pooled = F.avg_pool3d(F.pad(pooled, (w, w, h, h, d, d)), kernel, stride)
    return pooled.reshape(map_DHW.shape)


def _fraction_in_volume(map_DHW: Tensor, box: Box) -> Tensor:
    """Return what fraction of the box around each voxel lies in the volume: (D, H, W)."""
    # The number of voxels in a clipped box is a product over the axes.
    lines = []
    for num, size in zip(map_DHW.shape[-3:], box, strict=True):
        index = torch.arange(num, device=map_DHW.device)
        inside = (index + size // 2 + 1).clamp(max=num) - (index - size // 2).clamp(min=0)
        lines.append(inside.to(map_DHW.dtype) / size)
    return lines[0][:, None, None] * lines[1][:, None] * lines[2]
