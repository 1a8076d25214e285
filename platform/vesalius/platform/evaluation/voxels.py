"""Which voxels are compared: two named sets, on one reference grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from vesalius.platform.errors import VolumeError
from vesalius.platform.evaluation.components import drop_small_components, mask_dice
from vesalius.platform.evaluation.histogram import Histogram
from vesalius.platform.geometry import resample
from vesalius.platform.scoring.files import as_float16
from vesalius.platform.scoring.native import Placed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord

VoxelSet = Literal["all", "brain"]
"""``all``: every voxel of the grid, as in the implicit-field paper; ``brain``: those inside the brain mask."""
VOXEL_SETS: tuple[VoxelSet, ...] = get_args(VoxelSet)


class Grid(Placed, Protocol):
    """A record that also says how many voxels there are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        ...


def resampled_onto(score_map: NDArray[Any], scored: Grid, reference: Grid) -> NDArray[np.float16]:
    """Bring a map to a reference grid, so that methods on different grids are compared on exactly the same voxels.

    Linear; an exact copy where the grids coincide. Both records belong to one subject: where both were registered from
    its file, the way from one grid to the other leads through the file's own space. A voxel that the map's grid does
    not cover gets the map's least value: nothing was found there.

    Args:
        score_map: (D, H, W) on the grid of ``scored``.
        scored: the record of what was scored.
        reference: the subject's record in the reference store.

    Returns:
        float16, of ``reference.shape``.

    Raises:
        VolumeError: the map does not have the shape of ``scored``.
    """
    if score_map.shape != tuple(scored.shape):
        raise VolumeError(f"an anomaly map has shape {score_map.shape} and its record says {tuple(scored.shape)}")
    bridge = np.eye(4)
    if scored.source is not None and reference.source is not None:
        bridge = np.linalg.solve(np.asarray(scored.source.to_source), np.asarray(reference.source.to_source))
    same_place = np.allclose(bridge @ np.asarray(reference.affine), scored.affine, rtol=0, atol=1e-6)
    if same_place and tuple(scored.shape) == tuple(reference.shape):
        return as_float16(score_map, "an anomaly map")
    values = score_map.astype(np.float32)
    moved = resample(
        values, scored.affine, reference.shape, reference.affine, to_source=bridge, order=1, fill=float(values.min())
    )
    return as_float16(moved, "a resampled anomaly map")


@dataclass(frozen=True, kw_only=True)
class SubjectVoxels:
    """One subject's map on the reference grid beside its truth.

    Attributes:
        score_map: (D, H, W) float16.
        lesion: (D, H, W) bool, or None for a healthy subject.
        inside: by voxel set, (D, H, W) bool, or None where every voxel counts.
    """

    score_map: NDArray[np.float16]
    lesion: NDArray[np.bool_] | None
    inside: Mapping[VoxelSet, NDArray[np.bool_] | None]

    def histogram(self, voxel_set: VoxelSet) -> Histogram:
        """Count the voxels of a set."""
        return Histogram.of(self.score_map, self.lesion, self.inside[voxel_set])

    def dice(self, voxel_set: VoxelSet, threshold: float, min_component: int) -> float | None:
        """Return the Dice of ``score >= threshold`` in a set, components of fewer voxels dropped.

        Components are those of the whole set's segmentation: what lies outside the set neither counts nor connects.
        None without a lesion voxel in the set.
        """
        if self.lesion is None:
            return None
        found, truth = self.score_map >= threshold, self.lesion
        inside = self.inside[voxel_set]
        if inside is not None:
            found, truth = found & inside, truth & inside
        return mask_dice(drop_small_components(found, min_component), truth)


def subject_voxels(
    scores: ScoreStore, store: CohortStore, record: SubjectRecord, voxel_sets: tuple[VoxelSet, ...] = VOXEL_SETS
) -> SubjectVoxels | None:
    """Read one subject's map and truth, once.

    Args:
        scores: with the subject's map, on whatever grid.
        store: the reference store: its grid, its lesion and brain masks.
        record: the subject there.
        voxel_sets: which will be asked for.

    Returns:
        None where the subject counts as anomalous and nobody marked which voxels are.
    """
    lesion = store.mask(record.subject_id, "lesion")
    if record.has_lesion and (lesion is None or not lesion.any()):
        return None
    score_map = resampled_onto(scores.map(record.subject_id), scores.record(record.subject_id), record)
    inside: dict[VoxelSet, NDArray[np.bool_] | None] = {
        name: store.brain(record.subject_id) if name == "brain" else None for name in voxel_sets
    }
    return SubjectVoxels(score_map=score_map, lesion=lesion, inside=inside)


def subject_histograms(
    scores: ScoreStore, store: CohortStore, record: SubjectRecord, voxel_sets: tuple[VoxelSet, ...] = VOXEL_SETS
) -> dict[VoxelSet, Histogram] | None:
    """Count one subject's voxels in each set; see :func:`subject_voxels`."""
    voxels = subject_voxels(scores, store, record, voxel_sets)
    return None if voxels is None else {name: voxels.histogram(name) for name in voxel_sets}


def subject_histogram(
    scores: ScoreStore, store: CohortStore, record: SubjectRecord, voxel_set: VoxelSet = "all"
) -> Histogram | None:
    """Count one subject's voxels in one set; see :func:`subject_voxels`."""
    found = subject_histograms(scores, store, record, (voxel_set,))
    return None if found is None else found[voxel_set]
