"""Augmentation: drawn first, on the CPU and keyed by the item; then applied, on the device and without chance.

Rotation, scale and elastic displacement are put together into one field of positions, and the image is resampled once.
All arithmetic on the device is elementwise, so an item comes out the same whatever stands beside it in the batch: one
worker or two, a resumed run or an unbroken one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import grid_sample

from vesalius.platform.contracts import Batch, Drawn, Slices
from vesalius.platform.loading.stream import random_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from vesalius.platform.contracts import Augmentation, CohortFacts, View

_POINTS_AT_ONCE = 2**24
"""Positions computed at once: bounds the memory of the field (12 bytes a voxel, and as much again on the way)."""


def draw(
    augmentation: Augmentation,
    view: View,
    facts: CohortFacts,
    *,
    seed: int,
    stage: str,
    step: int,
    items: Sequence[int],
) -> Drawn:
    """Draw for the items of a batch: a pure function of its arguments, each item by itself.

    The same numbers are drawn whatever the magnitudes, so that changing one of them leaves the others' effect alone.
    """
    axes = [axis for axis in range(3) if not (isinstance(view, Slices) and axis == view.axis)]
    box_mm = np.array([facts.box_mm[axis] for axis in axes])
    intervals = np.ceil(box_mm / augmentation.elastic_spacing_mm).astype(int)
    control = (len(axes), *(int(n) + 3 for n in intervals))
    matrices, elastic, gains, shifts, moved = [], [], [], [], []
    for item in items:
        random = random_of("augmentation", seed, stage, step, item)
        shape, bends, tints = random.random(3) < augmentation.probability
        angles = np.deg2rad(augmentation.rotation_degrees) * random.uniform(-1, 1, 1 if len(axes) == 2 else 3)
        least, largest = augmentation.scale
        size = 1 + least + (largest - least) * random.random()
        contrast, brightness = random.uniform(-1, 1, 2)
        displacement = random.standard_normal(control) if augmentation.elastic_mm else np.empty(0)
        matrix = _matrix(angles, size, box_mm) if shape else np.eye(len(axes))
        gain = 1 + augmentation.contrast * contrast if tints else 1.0
        matrices.append(matrix)
        if augmentation.elastic_mm:
            half = (box_mm / 2).reshape(-1, *(1,) * len(axes))
            elastic.append(displacement * (augmentation.elastic_mm * bool(bends)) / half)
        gains.append(gain)
        shifts.append(augmentation.centre * (1 - gain) + (augmentation.brightness * brightness if tints else 0.0))
        moved.append(bool((bends and augmentation.elastic_mm) or not np.array_equal(matrix, np.eye(len(axes)))))
    num = len(items)
    return Drawn(
        matrix=_float32(matrices, (num, len(axes), len(axes))),
        elastic=_float32(elastic, (num, *control)) if augmentation.elastic_mm else torch.empty(num, 0),
        knots=torch.from_numpy(box_mm / augmentation.elastic_spacing_mm).float(),
        gain=_float32(gains, (num,)),
        shift=_float32(shifts, (num,)),
        moved=torch.tensor(moved, dtype=torch.bool),
    )


def augmented(batch: Batch) -> Batch:
    """Return a batch of slices or volumes with what was drawn for it applied, on the device it is on.

    Items for which nothing was drawn keep every bit. What was drawn stays with nobody: it can be drawn again.
    """
    drawn = batch.drawn
    if drawn is None:
        return batch
    image, brain = batch.image, batch.brain
    rows = drawn.moved.nonzero()[:, 0]
    if len(rows):
        image, brain = image.clone(), brain.clone()
        at_once = max(1, _POINTS_AT_ONCE // math.prod(brain.shape[1:]))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            field = positions(drawn.of(functools.partial(torch.index_select, dim=0, index=some)), brain.shape[1:])
            image[some] = grid_sample(
                batch.image[some], field, mode="bilinear", padding_mode="border", align_corners=False
            )
            mask = batch.brain[some][:, None].to(field.dtype)
            brain[some] = (
                grid_sample(mask, field, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0] > 0.5
            )
    if bool((drawn.gain != 1).any()) or bool((drawn.shift != 0).any()):
        one_each = (-1, *(1,) * (image.ndim - 1))
        changed = image * drawn.gain.view(one_each) + drawn.shift.view(one_each)
        image = torch.where(brain[:, None], changed, image)
    return replace(batch, image=image, brain=brain, drawn=None)


def positions(drawn: Drawn, shape: Sequence[int]) -> Tensor:
    """Return where every voxel takes its intensity from: (B, *shape, S), the last axis first as in ``grid_sample``."""
    dimensions = len(shape)
    device = drawn.matrix.device
    axes = []
    for axis, num in enumerate(shape):
        along = (2 * torch.arange(num, dtype=torch.float32, device=device) + 1) / num - 1
        axes.append(along.view(*(num if other == axis else 1 for other in range(dimensions))))
    field = []
    for row in range(dimensions):
        total: Tensor | None = None
        for column, along in enumerate(axes):
            term = drawn.matrix[:, row, column].view(-1, *(1,) * dimensions) * along
            total = term if total is None else total + term
        assert total is not None
        field.append(total)
    if drawn.elastic.ndim > 2:
        bent = drawn.elastic
        for axis, num in enumerate(shape):
            bent = _spline(bent, axis + 2, num, float(drawn.knots[axis]))
        field = [along + bent[:, row] for row, along in enumerate(field)]
    return torch.stack(field[::-1], dim=-1)


def _spline(control: Tensor, axis: int, num: int, intervals: float) -> Tensor:
    """Evaluate a uniform cubic B-spline along one axis at ``num`` voxel centres that span ``intervals`` intervals."""
    place = (torch.arange(num, dtype=torch.float64) + 0.5) / num * intervals
    first = place.floor()
    t = place - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    total: Tensor | None = None
    for offset, weight in enumerate(weights):
        index = (first.long() + offset).to(control.device)
        along = (weight / 6).to(control).view(*(num if other == axis else 1 for other in range(control.ndim)))
        term = control.index_select(axis, index) * along
        total = term if total is None else total + term
    assert total is not None
    return total


def _matrix(angles: NDArray[np.float64], size: float, box_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix, in normalised coordinates, that turns the content by ``angles`` and scales it by ``size``."""
    if len(angles) == 1:
        cosine, sine = math.cos(angles[0]), math.sin(angles[0])
        rotation = np.array([[cosine, -sine], [sine, cosine]])
    else:
        rotation = np.eye(3)
        for axis, angle in enumerate(angles):
            first, second = [other for other in range(3) if other != axis]
            turn = np.eye(3)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            rotation = turn @ rotation
    # A voxel takes its intensity from where the content was before it was turned: the inverse. Turned in millimetres.
    inverse = rotation.T / size
    return inverse * box_mm[None, :] / box_mm[:, None]


def _float32(values: Sequence[object], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32).reshape(shape))
