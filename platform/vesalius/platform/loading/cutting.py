"""Items cut out of volumes into the rows of a batch; one cutter a view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.contracts import Patches, Points, Slices, WholeVolumes, axis_positions
from vesalius.platform.errors import CohortError
from vesalius.platform.loading.copying import copy_rows
from vesalius.platform.loading.stream import random_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.contracts import CohortFacts, Stage, View
    from vesalius.platform.loading.stream import Grid
    from vesalius.platform.loading.voxels import Voxels

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Voxels ``[start, stop)`` along D, H, W."""

_MAX_TURNS = 16
"""Turns of drawing and rejecting before foreground voxels are listed: a foreground of a tenth fails a fifth of them."""


class Cutter:
    """Cuts the items of one stage.

    Args:
        stage: whose view says what an item is.
        facts: grid, spacing and channels.
        seed: the run's.
    """

    def __init__(self, stage: Stage, facts: CohortFacts, seed: int) -> None:
        self.view: View = stage.view
        self.grid: Grid = facts.grid
        self.foreground = foreground_of(stage.view)
        self._key = (seed, stage.name)
        self._num_channels = len(facts.channels)
        self._background = facts.background
        self._spacing_mm, self._box_mm = facts.spacing_mm, facts.box_mm
        self._axes = self._axes_of(facts.grid, facts.spacing_mm)
        self._cut: Callable[..., None] = {
            Points: self._points,
            Patches: self._patches,
            Slices: self._slices,
            WholeVolumes: self._volumes,
        }[type(stage.view)]

    def _axes_of(self, grid: Grid, spacing_mm: tuple[float, float, float]) -> list[NDArray[np.float32]]:
        """Return the coordinates of voxel centres along D, H, W in the cohort's box."""
        axes = zip(grid, spacing_mm, self._box_mm, strict=True)
        return [axis_positions(*axis).numpy() for axis in axes]

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one item's image, brain and position."""
        view, channels = self.view, self._num_channels
        if isinstance(view, Points):
            num = view.per_volume
            return (num, channels, view.neighbourhood**3), (num,), (num, 3)
        if isinstance(view, Patches):
            cube = (view.size,) * 3
            return (channels, *cube), cube, (3,)
        if isinstance(view, Slices):
            plane = tuple(n for axis, n in enumerate(self.grid) if axis != view.axis)
            return (channels, *plane), plane, (1,)
        return (channels, *self.grid), self.grid, (0,)

    def boxes(self, places: NDArray[np.int64]) -> tuple[Box, ...] | None:
        """Return what must be read of a volume for the items at ``places``, or None where that is all of it."""
        view = self.view
        if isinstance(view, Slices):
            whole = [(0, n) for n in self.grid]
            boxes = []
            for place in places.tolist():
                sides = list(whole)
                sides[view.axis] = (place, place + 1)
                boxes.append((sides[0], sides[1], sides[2]))
            return tuple(boxes)
        if isinstance(view, Patches) and view.sampling in ("uniform", "discard"):
            return tuple(self._boxes(self._centres(places)))
        return None

    def cut(
        self,
        voxels: Voxels,
        places: NDArray[np.int64],
        rows: Sequence[int],
        image: NDArray[np.float32],
        brain: NDArray[np.bool_],
        position: NDArray[np.float32],
    ) -> NDArray[np.bool_]:
        """Write the items at ``places`` of one volume into ``rows`` of the batch; return which of them to keep.

        Raises:
            CohortError: the view draws from the foreground and the volume has none.
        """
        keep = np.ones(len(rows), dtype=np.bool_)
        self._cut(voxels, places, rows, image, brain, position, keep)
        return keep

    # ---- points

    def _points(self, voxels: Voxels, places: Any, rows: Any, image: Any, brain: Any, position: Any, _: Any) -> None:
        view = self.view
        assert isinstance(view, Points)
        grid = voxels.mask("brain").shape
        depth, height, width = grid
        axes = self._axes
        spacing_mm = voxels.spacing_mm or self._spacing_mm
        # A hair of difference between files of one grid is no other grid: the store takes it for the same.
        if grid != self.grid or not np.allclose(spacing_mm, self._spacing_mm, rtol=0, atol=1e-4):
            axes = self._axes_of((depth, height, width), spacing_mm)
        mask = voxels.mask("brain").reshape(-1)
        channels = [channel.reshape(-1) for channel in voxels.image]
        for place, row in zip(places.tolist(), rows, strict=True):
            random = random_of("points", *self._key, place)
            flat = self._voxels(random, voxels, view.per_volume) if self.foreground else None
            if flat is None:
                flat = random.integers(0, mask.size, view.per_volume)
            # NumPy vectorises division by one number, but neither divmod nor unravel_index: three times as long.
            plane = flat // width
            i = plane // height
            index = (i, plane - i * height, flat - plane * width)
            for axis, places_along in enumerate(index):
                position[row, :, axis] = axes[axis].take(places_along)
            brain[row] = mask.take(flat)
            if view.neighbourhood == 1:
                for channel, values in enumerate(channels):
                    image[row, :, channel, 0] = values.take(flat)
                continue
            neighbours = _neighbours(index, grid, view.neighbourhood)
            for channel, values in enumerate(channels):
                image[row, :, channel] = values.take(neighbours)

    def _voxels(self, random: np.random.Generator, voxels: Voxels, num: int) -> NDArray[np.int64]:
        """Draw voxels uniformly from the foreground: by rejection, since listing a foreground costs a full pass."""
        mask = voxels.mask(self.foreground).reshape(-1)
        found: list[NDArray[np.int64]] = []
        for _ in range(_MAX_TURNS):
            drawn = random.integers(0, mask.size, num)
            found.append(drawn[mask[drawn]])
            if sum(map(len, found)) >= num:
                return np.concatenate(found)[:num]
        inside = np.flatnonzero(mask)
        if not len(inside):
            raise CohortError(f"subject {voxels.subject} has no voxel in its {self.foreground} mask to draw from")
        found.append(inside[random.integers(0, len(inside), num)])
        return np.concatenate(found)[:num]

    # ---- patches

    def _centres(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw centres uniformly: one generator for all patches of a visit, since making one costs as much as a cut."""
        view = self.view
        assert isinstance(view, Patches)
        visits, numbers = np.divmod(places, view.per_volume)
        centres = np.empty((len(places), 3), dtype=np.int64)
        for visit in dict.fromkeys(visits.tolist()):
            drawn = random_of("patches", *self._key, visit).integers(0, self.grid, (view.per_volume, 3))
            centres[visits == visit] = drawn[numbers[visits == visit]]
        return centres

    def _patches(
        self, voxels: Voxels, places: Any, rows: Any, image: Any, brain: Any, position: Any, keep: Any
    ) -> None:
        view = self.view
        assert isinstance(view, Patches)
        if view.sampling in ("uniform", "discard"):
            centres = self._centres(places)
        else:
            centres = np.array([self._foreground_centre(voxels, place) for place in places.tolist()])
        for axis in range(3):
            position[rows, axis] = self._axes[axis][centres[:, axis]]
        size = view.size
        lows = centres - size // 2
        inside: list[bool] = np.all((lows >= 0) & (lows + size <= self.grid), axis=1).tolist()
        looks = view.sampling == "discard"
        background = self._background if view.background is None else view.background
        items = zip(rows, lows.tolist(), self._boxes(centres), inside, strict=True)
        for number, (row, low, box, whole) in enumerate(items):
            if whole and voxels.is_whole and not looks:  # most of them, without a detour: it costs what a cut does
                i, j, k = low
                copy_rows(image[row], voxels.image[:, i : i + size, j : j + size, k : k + size])
                copy_rows(brain[row], voxels.masks["brain"][i : i + size, j : j + size, k : k + size])
                continue
            values, masks = voxels.part(box)
            patch, mask = image[row], brain[row]
            if not whole:
                patch[...], mask[...] = background, False
                within = [(start - one, stop - one) for one, (start, stop) in zip(low, box, strict=True)]
                (i, a), (j, b), (k, c) = within
                patch, mask = patch[:, i:a, j:b, k:c], mask[i:a, j:b, k:c]
            copy_rows(patch, values)
            copy_rows(mask, masks["brain"])
            if looks:
                keep[number] = masks[self.foreground].any()

    def _boxes(self, centres: NDArray[np.int64]) -> list[Box]:
        """Return the part of each patch that lies inside the grid."""
        view = self.view
        assert isinstance(view, Patches)
        lows = centres - view.size // 2
        starts, stops = np.maximum(lows, 0).tolist(), np.minimum(lows + view.size, self.grid).tolist()
        return [((i, a), (j, b), (k, c)) for (i, j, k), (a, b, c) in zip(starts, stops, strict=True)]

    def _foreground_centre(self, voxels: Voxels, place: int) -> NDArray[np.int64]:
        view = self.view
        assert isinstance(view, Patches)
        random = random_of("patch", *self._key, place)
        if view.sampling == "touching":
            for _ in range(_MAX_TURNS):
                centre = random.integers(0, self.grid)
                if voxels.part(self._boxes(centre[None])[0])[1][self.foreground].any():
                    return centre
            # A foreground this small is seldom met: list the centres whose patch reaches it.
            return self._touching(random, voxels)
        flat = self._voxels(random, voxels, 1)
        return np.array(np.unravel_index(flat[0], self.grid), dtype=np.int64)

    def _touching(self, random: np.random.Generator, voxels: Voxels) -> NDArray[np.int64]:
        from scipy.ndimage import maximum_filter

        view = self.view
        assert isinstance(view, Patches)
        reached = maximum_filter(voxels.mask(self.foreground), size=view.size, mode="constant", cval=0)
        inside = np.flatnonzero(reached)
        if not len(inside):
            raise CohortError(f"subject {voxels.subject} has no voxel in its {self.foreground} mask to draw from")
        return np.array(np.unravel_index(inside[random.integers(len(inside))], self.grid), dtype=np.int64)

    # ---- slices and whole volumes

    def _slices(self, voxels: Voxels, places: Any, rows: Any, image: Any, brain: Any, position: Any, keep: Any) -> None:
        view = self.view
        assert isinstance(view, Slices)
        boxes = self.boxes(places)
        assert boxes is not None
        for number, (place, row, box) in enumerate(zip(places.tolist(), rows, boxes, strict=True)):
            values, masks = voxels.part(box)
            image[row] = values.squeeze(view.axis + 1)
            brain[row] = masks["brain"].squeeze(view.axis)
            position[row] = self._axes[view.axis][place]
            if view.discard_background:
                keep[number] = masks[self.foreground].any()

    def _volumes(self, voxels: Voxels, places: Any, rows: Any, image: Any, brain: Any, *_: Any) -> None:
        for row in rows:
            image[row], brain[row] = voxels.image, voxels.mask("brain")


def _neighbours(index: Iterable[NDArray[Any]], grid: Sequence[int], n: int) -> NDArray[Any]:
    reach = np.arange(-((n - 1) // 2), n // 2 + 1)
    i, j, k = (np.clip(v[:, None] + reach, 0, size - 1) for v, size in zip(index, grid, strict=True))
    _, height, width = grid
    cube = (i[:, :, None, None] * height + j[:, None, :, None]) * width + k[:, None, None, :]
    return cube.reshape(len(cube), n**3)


def foreground_of(view: View) -> str:
    """Return the mask that a view's sampling looks at, or nothing where it looks at none."""
    if isinstance(view, Points):
        return "" if view.within == "grid" else view.within
    if isinstance(view, Patches):
        return "" if view.sampling == "uniform" else view.foreground
    if isinstance(view, Slices):
        return view.foreground if view.discard_background else ""
    return ""
