"""Two-dimensional methods on volumes: which slices are taken, and how what is found in them becomes a volume again.

S is the number of slices taken of a volume; h, w are the plane's axes in their order in D, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import model_validator
from torch.nn import functional as F

from vesalius.methods.blocks.maps import check_channels, finish_map, image_score
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, Score, Slices, axis_positions, setting, slice_indices
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.methods.blocks.maps import Box, MapSettings
    from vesalius.platform.contracts import CohortFacts, Volume


class SliceSettings(Settings):
    """Which slices of a volume a two-dimensional method is trained on, and which it scores."""

    axis: Literal[0, 1, 2] = setting(
        2, "the axis sliced: 0 sagittal, 1 coronal, 2 axial", source="both papers: axial slices"
    )
    every: int = setting(1, "take each n-th slice", source="this implementation", ge=1)
    scored: Literal["replicated", "all"] = setting(
        "replicated",
        "replicated: score the slices that training takes, and give every other slice the nearest one's map; "
        "all: score every slice of the extent",
        source="Naval Marimont and Tarroni 2021, section 3",
        since=SCORING,
        inference_space=Choice(values=("replicated", "all")),
    )
    first: float = setting(
        0.0, "where the slices begin, as a fraction of the axis", ge=0, lt=1, source="this implementation"
    )
    last: float = setting(
        1.0, "where the slices end, as a fraction of the axis", gt=0, le=1, source="this implementation"
    )
    together: int = setting(32, "slices scored in one pass at most", source="this implementation", ge=1, since=SCORING)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.last <= self.first:
            raise ValueError(f"slices end at {self.last} of the axis, before they begin at {self.first}")
        return self

    def view(self) -> Slices:
        """Return the view that training takes: empty slices too, for what groups them for batch statistics."""
        return Slices(axis=self.axis, every=self.every, extent=(self.first, self.last))


@dataclass(frozen=True, kw_only=True)
class SliceStack:
    """The slices of a volume that are scored.

    Attributes:
        image: (S, C, h, w).
        brain: (S, h, w) bool.
        position: (S, 1) normalised coordinate along the sliced axis, as ``Batch.position`` of the view Slices.
        index: the slices' places along the axis.
    """

    image: Tensor
    brain: Tensor
    position: Tensor
    index: tuple[int, ...]


def take_slices(volume: Volume, cohort: CohortFacts, settings: SliceSettings) -> SliceStack:
    """Return the slices of ``volume`` that are scored, on the volume's device.

    Raises:
        VolumeError: the settings' extent holds no slice of this volume.
    """
    view = settings.view()
    if settings.scored == "all":
        view = Slices(axis=view.axis, extent=view.extent)
    index = slice_indices(view, volume.shape)
    if not index:
        raise VolumeError(
            f"{volume.subject_id}: no slice lies between {settings.first} and {settings.last} of an axis of "
            f"{volume.shape[settings.axis]} voxels: widen slices.first and slices.last"
        )
    axis = settings.axis
    places = torch.tensor(index)
    position = axis_positions(volume.shape[axis], volume.spacing_mm[axis], cohort.box_mm[axis])[places]
    on = volume.image.device
    return SliceStack(
        image=volume.image.index_select(axis + 1, places.to(on)).movedim(axis + 1, 0),
        brain=volume.brain.index_select(axis, places.to(volume.brain.device)).movedim(axis, 0),
        position=position[:, None].to(on),
        index=tuple(index),
    )


def take_all(
    volumes: Sequence[Volume], cohort: CohortFacts, settings: SliceSettings, device: torch.device
) -> tuple[SliceStack, list[SliceStack]]:
    """Return the scored slices of all volumes in one stack on ``device``, and each volume's own, where it is.

    What the one stack gives, ``torch.split(found, [len(own.index) for own in each])`` shares out again.

    Raises:
        VolumeError: a volume has other channels, or slices of another make, than the cohort's.
    """
    for volume in volumes:
        check_channels(volume, cohort)
        check_plane(volume, cohort, settings.axis)
    each = [take_slices(volume, cohort, settings) for volume in volumes]
    together = SliceStack(
        image=torch.cat([stack.image.to(device) for stack in each]),
        brain=torch.cat([stack.brain.to(device) for stack in each]),
        position=torch.cat([stack.position.to(device) for stack in each]),
        index=tuple(place for stack in each for place in stack.index),
    )
    return together, each


def assemble(slices: Tensor, index: tuple[int, ...], shape: tuple[int, int, int], settings: SliceSettings) -> Tensor:
    """Return (..., D, H, W) from slices (S, ..., h, w) at ``index`` along the axis.

    A slice between two scored ones takes the nearer one's values (of two as near, the lower one's), so that with every
    n-th slice scored each stands for n: the papers replicate, without saying which way. Outside the extent the volume
    is zero.
    """
    axis = settings.axis
    first, last = (round(fraction * shape[axis]) for fraction in (settings.first, settings.last))
    scored = torch.tensor(index)
    wanted = torch.arange(first, last)
    nearest = (wanted[:, None] - scored[None, :]).abs().argmin(dim=1)
    filled = slices.index_select(0, nearest.to(slices.device))
    volume = slices.new_zeros((shape[axis], *slices.shape[1:]))
    volume[first:last] = filled
    # The sliced axis goes back to its place among the last three.
    return volume.movedim(0, volume.ndim - 3 + axis)


def score_slices(
    volumes: Sequence[Volume],
    each: Sequence[SliceStack],
    slices: SliceSettings,
    maps: MapSettings,
    *,
    evidence: Tensor,
    restored: Tensor,
    extras: Mapping[str, Tensor] | None = None,
    average: Box | None = None,
) -> list[Score]:
    """Return the volumes' scores from what was found in the slices of :func:`take_all`, on the volumes' devices.

    Outside the slices' extent the map is zero and the restoration the volume itself: nothing was looked at there.

    Args:
        volumes: what is scored.
        each: their stacks.
        slices: how slices become a volume.
        maps: the post-processing.
        evidence: (S, h, w) of all volumes.
        restored: (S, C, h, w) of all volumes.
        extras: further maps (S, h, w) by name; they become volumes and are not post-processed.
        average: the averaging window where it is no cube.
    """
    sizes = [len(stack.index) for stack in each]
    beside = {name: torch.split(values, sizes) for name, values in (extras or {}).items()}
    scores = []
    parts = zip(volumes, each, torch.split(evidence, sizes), torch.split(restored, sizes), strict=True)
    for number, (volume, stack, found, healthy) in enumerate(parts):
        brain = volume.brain.to(found.device)
        map_DHW = finish_map(assemble(found, stack.index, volume.shape, slices), brain, maps, average)
        on = volume.image.device
        whole = assemble(healthy, stack.index, volume.shape, slices).to(on)
        scores.append(
            Score(
                map=map_DHW.to(on),
                image_score=image_score(map_DHW, brain, maps),
                restoration=torch.where(_looked_at(volume.shape, slices).to(on), whole, volume.image),
                extras={
                    name: assemble(values[number], stack.index, volume.shape, slices).to(on)
                    for name, values in beside.items()
                },
            )
        )
    return scores


def _looked_at(shape: tuple[int, int, int], settings: SliceSettings) -> Tensor:
    """Return which planes lie within the extent, bool, of length 1 along the axes that are not sliced."""
    first, last = (round(fraction * shape[settings.axis]) for fraction in (settings.first, settings.last))
    place = torch.arange(shape[settings.axis])
    inside = (place >= first) & (place < last)
    return inside.view([-1 if axis == settings.axis else 1 for axis in range(3)])


def padded_plane(cohort: CohortFacts, axis: int, multiple: int) -> tuple[int, int]:
    """Return the plane (h, w) across ``axis`` of the cohort's grid, each edge made a multiple of ``multiple``."""
    h, w = (num for at, num in enumerate(cohort.grid) if at != axis)
    return (-(-h // multiple) * multiple, -(-w // multiple) * multiple)


def pad_plane(image: Tensor, plane: tuple[int, int], value: float) -> Tensor:
    """Return (..., h, w) padded with ``value`` to ``plane``, as evenly on both sides as can be."""
    (h, w), (height, width) = image.shape[-2:], plane
    top, left = (height - h) // 2, (width - w) // 2
    return F.pad(image, (left, width - w - left, top, height - h - top), value=value)


def crop_plane(image: Tensor, plane: tuple[int, int]) -> Tensor:
    """Return (..., h, w) of ``plane``, the part that :func:`pad_plane` was given."""
    (height, width), (h, w) = image.shape[-2:], plane
    top, left = (height - h) // 2, (width - w) // 2
    return image[..., top : top + h, left : left + w]


def check_plane(volume: Volume, cohort: CohortFacts, axis: int) -> None:
    """Refuse a volume whose slices are of another size or spacing than those that the model was trained on.

    Raises:
        VolumeError: names the volume, what was found and what was expected.
    """
    found, expected = (
        tuple((num, round(mm, 3)) for at, (num, mm) in enumerate(zip(shape, spacing, strict=True)) if at != axis)
        for shape, spacing in ((volume.shape, volume.spacing_mm), (cohort.grid, cohort.spacing_mm))
    )
    if found != expected:
        words = [" x ".join(f"{num} voxels of {mm:g} mm" for num, mm in plane) for plane in (found, expected)]
        raise VolumeError(
            f"{volume.subject_id}: its slices are {words[0]} but the model was trained on {words[1]}: "
            "prepare it with the recipe and grid of the model's cohort"
        )
