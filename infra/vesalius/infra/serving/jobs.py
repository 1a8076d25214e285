"""What travels between the ingress and the scorers: which version, a prepared volume, what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vesalius.platform.contracts import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.platform.contracts import Matrix4
    from vesalius.platform.errors import VesaliusError


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A version as it travels to a scorer.

    Attributes:
        reference: by which any machine finds it.
        folder: where it lies on the machine that found it.
        digest: that it must have.
    """

    reference: str
    folder: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prepared volume on its way to a scorer: arrays, which travel without a copy."""

    pinned: Pinned
    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    head: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float, float]
    affine: Matrix4

    def volume(self) -> Volume:
        """Return what a method takes. What came through shared memory may not be written: it is copied."""
        return Volume(
            subject_id="upload",
            image=torch.from_numpy(np.array(self.image)),
            brain=torch.from_numpy(np.array(self.brain)),
            spacing_mm=self.spacing_mm,
            affine=self.affine,
            head=None if self.head is None else torch.from_numpy(np.array(self.head)),
        )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of a volume: a score, or why there is none.

    Attributes:
        map: (D, H, W).
        image_score: see :class:`vesalius.platform.contracts.Score`.
        seconds: of the call, divided by the volumes in it.
        together: volumes in the call.
        error: an error of ours, or the name of one that is not.
    """

    map: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    image_score: float = 0.0
    seconds: float = 0.0
    together: int = 1
    error: VesaliusError | str | None = None
