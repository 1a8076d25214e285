"""The 2D implicit field: what differs from the implicit field where a slice has the code and not the volume."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vesalius.methods.blocks import assemble, check_channels, take_slices
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.classes import assign_classes, mode_pool
from vesalius.methods.implicit_field.encoder import draw_voxels
from vesalius.methods.implicit_field.restoration import Field, Target
from vesalius.methods.implicit_field.warm_start import WarmStart
from vesalius.methods.implicit_field_2d.deviations import DEVIATIONS
from vesalius.methods.implicit_field_2d.settings import ImplicitField2DSettings, demo_2d, tiny_2d
from vesalius.platform.contracts import MethodSettings, axis_positions, slice_indices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.methods.blocks import SliceStack
    from vesalius.platform.contracts import Batch, Deviation, Effort, View, Volume


class ImplicitField2D(ImplicitField):
    """Auto-decoder with a code per slice, prediction conditioned on the slice's coordinate (2D of the paper).

    A slice's point has three coordinates as a volume's, the sliced one shared by the slice, so that the network is the
    implicit field's, layer by layer. The slices that training takes each have a code; a new volume's slices are
    restored in one batch, and their maps are put together before the 3D post-processing.

    Attributes:
        codes: (subjects x slices, Z): a subject's slices in order, subject after subject.
    """

    name: ClassVar[str] = "implicit_field_2d"
    settings_type: ClassVar[type[MethodSettings]] = ImplicitField2DSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: ImplicitField2DSettings

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper``; ``demo`` for two CPU cores; ``tiny`` for tests."""
        return {"paper": ImplicitField2DSettings(), "demo": demo_2d(), "tiny": tiny_2d()}

    @property
    def plane(self) -> tuple[int, int]:
        """The axes across which slices lie, of D, H, W."""
        first, second = (axis for axis in range(3) if axis != self.settings.slices.axis)
        return first, second

    def slice_positions(self) -> Tensor:
        """Return (S,) coordinates along the sliced axis of the slices that training takes."""
        axis, cohort = self.settings.slices.axis, self.cohort
        index = slice_indices(self.settings.slices.view(), cohort.grid)
        return axis_positions(cohort.grid[axis], cohort.spacing_mm[axis], cohort.box_mm[axis])[index]

    def num_codes(self) -> int:
        """Return the rows of the code table: one a training slice."""
        return len(self.cohort.subjects) * len(self.slice_positions())

    def warm_start(self) -> SliceWarmStart:
        """Return what trains and asks the encoder."""
        return SliceWarmStart(self)

    def decoder_view(self) -> View:
        """Return how network and codes look at the cohort: whole slices, of which :meth:`observed` draws points."""
        return self.settings.slices.view()

    def code_rows(self, batch: Batch) -> Tensor:
        """Return the row of the code table of each slice, (B,) int64."""
        positions = self.slice_positions().to(batch.position.device)
        return batch.subjects * len(positions) + self._nearest(positions, batch.position[:, 0])

    def observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the classes (B, K) uint8 seen at K points of each slice, and where: (B, K, 3).

        Points are drawn from each slice's noise, with replacement; a plane of no more than ``points`` voxels gives each
        of them once. Mode pooling sees the slice alone.
        """
        settings = self.settings
        classes = assign_classes(batch.image[:, 0], self.centres)
        pooled = mode_pool(classes, settings.mode_pool_training, settings.num_classes, planar=True)
        rows, columns = draw_voxels(batch, settings.points, pooled.shape[1:]).unbind(-1)
        item = torch.arange(len(batch), device=pooled.device)[:, None]
        axes = self.axes(self.cohort.grid, self.cohort.spacing_mm)
        position = batch.position[:, None, :].expand(*rows.shape, 3).clone()
        for axis, index in zip(self.plane, (rows, columns), strict=True):
            position[..., axis] = axes[axis][index]
        return pooled[item, rows, columns], position

    def restorations(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> list[list[tuple[Tensor, Tensor]]]:
        """Return, by volume and restoration, cross-entropy and restored intensities (D, H, W); see ``evidence``.

        Slices that are not scored take the nearest scored one's. Outside the slices' extent the evidence is zero and
        the image is as it was.
        """
        found = super().restorations(volumes, effort=effort)
        num = self.settings.restoration.restorations
        by_volume = []
        first = 0
        for volume in volumes:
            stack = self._slices(volume)
            count = len(stack.index)
            # A list a slice, each holding its restorations.
            slices = found[first : first + count]
            by_volume.append(
                [self._assembled(volume, stack, [restored[number] for restored in slices]) for number in range(num)]
            )
            first += count
        return by_volume

    def restore(self, field: Field, volumes: Sequence[Volume], targets: Sequence[Target], *, effort: Effort) -> Tensor:
        """Return the codes (V, Z) of new volumes' slices (Eq. 4), ``slices.together`` of them in one batch at most."""
        start = torch.cat([self.starts(volume) for volume in volumes])
        codes = torch.empty_like(start)
        members: dict[int, list[int]] = {}
        for number, target in enumerate(targets):
            members.setdefault(target.labels.numel(), []).append(number)
        for num_voxels, numbers in members.items():
            # No more draws than the plane has voxels: of how many points the prior weighs against is a volume's own.
            phases = [(steps, min(points, num_voxels)) for steps, points in self.phases(effort)]
            for first in range(0, len(numbers), self.settings.slices.together):
                part = numbers[first : first + self.settings.slices.together]
                codes[part] = self.optimise(field, [targets[number] for number in part], start[part], phases)
        return codes

    def targets(self, volume: Volume) -> list[Target]:
        """Return what codes are fitted to: each slice that is scored, once a restoration, with points of its own."""
        check_channels(volume, self.cohort)
        settings = self.settings
        stack = self._slices(volume)
        classes = assign_classes(stack.image[:, 0].to(self.centres.device), self.centres)
        pooled = mode_pool(classes, settings.mode_pool_scoring, settings.num_classes, planar=True)
        axes = list(self.axes(volume.shape, volume.spacing_mm))
        along, num = settings.slices.axis, settings.restoration.restorations
        # A volume is hashed once a restoration, not once a slice.
        names = ["points", *(f"points {number}" for number in range(1, num))]
        seeds = [torch.randint(2**62, (len(stack.index),), generator=volume.generator(name)).tolist() for name in names]
        targets = []
        for plane, place, mine in zip(pooled, stack.index, zip(*seeds, strict=True), strict=True):
            here = list(axes)
            here[along] = axes[along][place : place + 1]
            first = Target(labels=plane.unsqueeze(along), axes=(here[0], here[1], here[2]), generator=_seeded(mine[0]))
            targets += [first, *(replace(first, generator=_seeded(seed)) for seed in mine[1:])]
        return targets

    def _start(self, volume: Volume) -> Tensor:
        """Return where the first restoration of each scored slice starts: (S, Z)."""
        stack = self._slices(volume)
        start = self.settings.restoration.start
        if start == "mean":
            known = self.slice_positions()
            of_slices: Tensor = self.codes.weight.view(len(self.cohort.subjects), len(known), -1).mean(0)
            return of_slices[self._nearest(known, stack.position[:, 0].to(known.device)).to(of_slices.device)]
        if start == "encoder":
            return self.warm_start().codes_of(volume)
        drawn = torch.randn(len(stack.index), self.settings.latent_dim, generator=volume.generator("code"))
        return self.settings.code_init_std * drawn

    def _slices(self, volume: Volume) -> SliceStack:
        return take_slices(volume, self.cohort, self.settings.slices)

    def _assembled(
        self, volume: Volume, stack: SliceStack, slices: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return evidence and intensities (D, H, W) of the slices of one restoration of a volume."""
        settings = self.settings.slices
        evidence, restored = (torch.stack(maps).squeeze(settings.axis + 1) for maps in zip(*slices, strict=True))
        covered = assemble(torch.ones_like(restored), stack.index, volume.shape, settings).bool()
        image = volume.image[0].to(restored.device)
        whole = torch.where(covered, assemble(restored, stack.index, volume.shape, settings), image)
        return assemble(evidence, stack.index, volume.shape, settings), whole

    @staticmethod
    def _nearest(known: Tensor, wanted: Tensor) -> Tensor:
        """Return for each wanted coordinate the place of the nearest known one, int64."""
        return (wanted[:, None] - known[None, :]).abs().argmin(dim=1)


class SliceWarmStart(WarmStart):
    """The encoder's side of an implicit field whose code stands for a slice; it is told the slice's coordinate."""

    num_axes = 2
    num_position = 1
    method: ImplicitField2D

    def view(self) -> View:
        """Return how the encoder looks at the cohort."""
        return self.method.decoder_view()

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (B, Z) of a batch of slices, and classes (B, K) at K points of each (B, K, 3)."""
        code = self._of_slices(batch.image[:, 0], self.method.cohort.spacing_mm, batch.position)
        return code, *self.method.observed(batch)

    def codes_of(self, volume: Volume) -> Tensor:
        """Return the codes that the encoder gives the scored slices of a new volume: (S, Z)."""
        stack = take_slices(volume, self.method.cohort, self.method.settings.slices)
        device = self.method.centres.device
        return self._of_slices(stack.image[:, 0].to(device), volume.spacing_mm, stack.position.to(device))

    def _of_slices(self, image: Tensor, spacing_mm: Sequence[float], position: Tensor) -> Tensor:
        plane, box_mm = self.method.plane, self.method.cohort.box_mm
        classes = assign_classes(image, self.method.centres)
        return self._encode(classes, [spacing_mm[axis] for axis in plane], [box_mm[axis] for axis in plane], position)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
