"""A cohort's facts, a batch, a volume and what a run was asked to be, without any store, for tests of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vesalius.platform.contracts import Batch, CohortFacts, Volume
from vesalius.platform.runs import RunSpec

if TYPE_CHECKING:
    from torch import Tensor

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
"""The affine of voxels of 1 mm."""


def made_up_facts(grid: tuple[int, int, int], **changes: Any) -> CohortFacts:
    """Return the facts of a cohort of two training subjects with one channel, T1w, and voxels of 1 mm.

    Args:
        grid: of the volumes.
        changes: fields that are to be others.
    """
    plain: dict[str, Any] = {
        "subjects": ("a", "b"),
        "spacing_mm": (1.0, 1.0, 1.0),
        "affine": IDENTITY,
        "channels": ("T1w",),
        "digest": "0",
    }
    return CohortFacts(grid=grid, **{**plain, **changes})


def made_up_batch(image: Tensor, **changes: Any) -> Batch:
    """Return a whole global batch of slices or volumes of the first subject, inside the brain throughout.

    Args:
        image: (B, C, h, w) or (B, C, D, H, W).
        changes: fields that are to be others: of patches the places, too.
    """
    num = len(image)
    plain: dict[str, Any] = {
        "stage": "s",
        "step": 0,
        "num_steps": 100,
        "seed": 0,
        "items": torch.arange(num),
        "global_size": num,
        "subjects": torch.zeros(num, dtype=torch.int64),
        "brain": torch.ones(num, *image.shape[2:], dtype=torch.bool),
        "position": torch.zeros(num, {5: 0, 4: 1}[image.ndim]),
    }
    return Batch(image=image, **{**plain, **changes})


def made_up_volume(image: Tensor, brain: Tensor, subject_id: str = "v") -> Volume:
    """Return a prepared volume (C, D, H, W) with its brain (D, H, W), of voxels of 1 mm."""
    return Volume(subject_id=subject_id, image=image, brain=brain, spacing_mm=(1.0, 1.0, 1.0), affine=IDENTITY)


def made_up_spec(uri: str, tracked: str) -> RunSpec:
    """Return what a run was asked to be that is tracked at ``uri`` as ``tracked``; its store and method are names."""
    return RunSpec(
        run_id="run",
        method="vq_vae",
        settings={},
        store="/store",
        cohort_digest="0",
        created="2026-01-01T00:00:00Z",
        mlflow_tracking_uri=uri,
        mlflow_run_id=tracked,
    )
