"""How the encoder of an implicit field is trained, and where it has a restoration start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vesalius.methods.implicit_field.classes import assign_classes, mode_pool
from vesalius.methods.implicit_field.encoder import CodeEncoder, draw_voxels, on_cells
from vesalius.platform.contracts import Stage, WholeVolumes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.methods.implicit_field.method import ImplicitField
    from vesalius.platform.contracts import Batch, Metrics, Update, View, Volume


class WarmStart:
    """The encoder's side of an implicit field whose code stands for a volume.

    Args:
        method: the field; its ``encoder`` is what is trained and asked.
    """

    num_axes = 3
    num_position = 0

    def __init__(self, method: ImplicitField) -> None:
        self.method = method
        self.settings = method.settings.encoder

    def new_encoder(self) -> CodeEncoder | None:
        """Return an untrained encoder, or None where the settings ask for none."""
        if not self.settings.epochs:
            return None
        return CodeEncoder(
            num_axes=self.num_axes,
            num_position=self.num_position,
            cells=self.settings.cells,
            width=self.settings.width,
            latent_dim=self.method.settings.latent_dim,
        )

    def stages(self, batch_size: int) -> list[Stage]:
        """Return the stage ``encoder``, or none; network, codes and classes are frozen in it.

        Its learning rate falls as the decoder's does.
        """
        encoder = self.method.encoder
        if encoder is None:
            return []
        stage = Stage(
            name="encoder",
            view=self.view(),
            batch_size=batch_size,
            epochs=self.settings.epochs,
            trains=(encoder,),
            optimizers={"adam": torch.optim.Adam(encoder.parameters(), lr=self.settings.learning_rate)},
            step=self._step,
            lr=self.method.learning_rate,
            begin=self._begin,
        )
        return [stage]

    def view(self) -> View:
        """Return how the encoder looks at the cohort."""
        return WholeVolumes()

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the loss summed over the batch's points, and their number.

        ``code_weight`` 0 is Eq. 2 with the encoder's codes, through the frozen decoder; 1 is their squared distance to
        the training codes, in units of those codes' variance (1: no better than their mean).
        """
        weight = self.settings.code_weight
        code, labels, position = self.encoded(batch)
        total: Tensor = torch.zeros((), device=code.device)
        if weight < 1:
            total = total + (1 - weight) * self.method.loss_of(code, labels, position, math.inf)[0]
        if weight > 0:
            table = self.method.codes.weight
            variance = (table - table.mean(0)).square().mean().clamp(min=torch.finfo(table.dtype).tiny)
            error = (code - table[self.method.code_rows(batch)]).square().mean(1) / variance
            total = total + weight * labels.shape[1] * error.sum()
        return total, labels.numel()

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (B, Z) of a batch of the view, and classes (B, K) at K points of each item (B, K, 3)."""
        method = self.method
        classes = assign_classes(batch.image[:, 0], method.centres)
        code = self._encode(classes, method.cohort.spacing_mm, method.cohort.box_mm, batch.position)
        size, num_classes = method.settings.mode_pool_training, method.settings.num_classes
        pooled = torch.stack([mode_pool(each, size, num_classes) for each in classes])
        index = draw_voxels(batch, method.settings.points, method.cohort.grid).unbind(-1)
        axes = method.axes(method.cohort.grid, method.cohort.spacing_mm)
        position = torch.stack([axis[along] for axis, along in zip(axes, index, strict=True)], dim=-1)
        item = torch.arange(len(batch), device=position.device)[:, None]
        return code, pooled[(item, *index)], position

    def codes_of(self, volume: Volume) -> Tensor:
        """Return the codes that the encoder gives a new volume: (1, Z)."""
        method = self.method
        classes = assign_classes(volume.image[0].to(method.centres.device), method.centres)
        no_position = method.centres.new_empty(1, 0)
        return self._encode(classes[None], volume.spacing_mm, method.cohort.box_mm, no_position)

    def _encode(
        self, classes: Tensor, spacing_mm: Sequence[float], box_mm: Sequence[float], position: Tensor
    ) -> Tensor:
        """Return codes (B, Z) of class volumes or slices (B, *A axes) uint8 of any grid."""
        encoder, centres = self.method.encoder, self.method.centres
        assert encoder is not None
        seen = (centres - centres.mean()) / centres.std()
        outside = assign_classes(centres.new_tensor([self.method.cohort.background]), centres)
        background = float(seen[outside.long()])
        cells = on_cells(seen[classes.long()], spacing_mm, box_mm, self.settings.cells, background)
        code: Tensor = encoder(cells, position)
        return code.float()

    def _begin(self) -> None:
        """Start from the training codes' mean: the best answer that does not look."""
        if self.method.encoder is not None:
            with torch.no_grad():
                self.method.encoder.output.bias.copy_(self.method.codes.weight.mean(0))

    def _step(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", self.loss, batch)}
