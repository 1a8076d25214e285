"""Images of any size under halvings: padded to what they divide, and cropped again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """What the halvings make of a cohort's images: padded with its background to what they divide, and cropped again.

    Attributes:
        shape: the images' axes.
        stages: halvings.
        channels: C.
        background: what is padded with.
    """

    shape: tuple[int, ...]
    stages: int
    channels: int
    background: float

    @property
    def coarsest(self) -> tuple[int, ...]:
        """The grid that all halvings leave."""
        return tuple(-(-num // 2**self.stages) for num in self.shape)

    def pad(self, image: Tensor) -> Tensor:
        """Return (B, C, ...) padded, as evenly on both sides as can be."""
        if self._missing == (0,) * len(self.shape):
            return image
        # Torch pads the last axis first.
        sides = itertools.chain.from_iterable((lack // 2, lack - lack // 2) for lack in reversed(self._missing))
        return F.pad(image, tuple(sides), value=self.background)

    def crop(self, image: Tensor) -> Tensor:
        """Return the part of (B, C, ...) that :meth:`pad` was given."""
        for axis, (lack, num) in enumerate(zip(self._missing, self.shape, strict=True), start=2):
            image = image.narrow(axis, lack // 2, num)
        return image

    @property
    def _missing(self) -> tuple[int, ...]:
        whole = 2**self.stages
        return tuple(num * whole - found for num, found in zip(self.coarsest, self.shape, strict=True))
