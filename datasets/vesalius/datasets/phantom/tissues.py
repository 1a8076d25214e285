"""Shares of the tissues in every voxel of a grid, and the structures they make up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vesalius.datasets.phantom.anatomy import BRAIN, DEEP, HEAD, Anatomy, brain_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vesalius.datasets.phantom.lattice import Array, Axes, Triple

STRUCTURES: Final[dict[str, int]] = {
    "left_cerebral_cortex": 1,
    "right_cerebral_cortex": 2,
    "left_cerebral_white_matter": 3,
    "right_cerebral_white_matter": 4,
    "left_lateral_ventricle": 5,
    "right_lateral_ventricle": 6,
    "left_csf": 7,
    "right_csf": 8,
    "left_thalamus": 9,
    "right_thalamus": 10,
    "left_caudate": 11,
    "right_caudate": 12,
    "left_lentiform": 13,
    "right_lentiform": 14,
    "left_cerebellum": 15,
    "right_cerebellum": 16,
    "left_hippocampus": 17,
    "right_hippocampus": 18,
    "midline_ventricles": 19,
    "brainstem": 20,
}
"""Label of each structure in :attr:`PhantomSubject.structures`; 0 is outside the brain. Left is x < 0."""

MOUTH_MM = 6.0  # depth over which a sulcus narrows
BLUR_MM = 3.5  # of the image itself, beside the size of a voxel
SKULL_MM = 6.5  # from the inner table to the outer


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """A subject on a grid.

    Attributes:
        shares: (D, H, W) share of each voxel by tissue; they add up to 1.
        structures: (D, H, W) uint8, labels of :data:`STRUCTURES`.
        brain: (D, H, W) bool.
        head: (D, H, W) bool.
    """

    shares: dict[str, Array]
    structures: NDArray[np.uint8]
    brain: NDArray[np.bool_]
    head: NDArray[np.bool_]


def read_tissues(anatomy: Anatomy, axes: Axes, spacing_mm: Triple, *, skull_stripped: bool) -> Tissues:
    """Read a subject on a grid; without ``skull_stripped`` with skull and scalp, and then the brain in them."""
    at = {name: BRAIN.read(values, axes) for name, values in anatomy.fields.items()}
    at |= {name: DEEP.read(values, axes) for name, values in anatomy.deep.items()}
    width = seen_mm(spacing_mm)
    brain = brain_mask(at, axes)
    pial, white = _cortex(at, anatomy, width)
    stem = inside(at["stem"], width)
    cerebellum, core = _cerebellum(at, 1 - stem, width)
    pial, white = pial * (1 - stem), white * (1 - stem)
    lateral, midline = inside(at["ventricle"], width), inside(at["midline_ventricle"], width)
    solid = 1 - np.maximum(lateral, midline)
    shares = {"cerebellar_grey": (cerebellum - core) * solid}
    left = solid
    nuclei = np.zeros_like(solid)
    for name in ("thalamus", "caudate", "lentiform", "hippocampus"):
        shares[name] = inside(at[name], width) * left * (1 - stem)
        left = left - shares[name]
        nuclei += shares[name]
    # The nuclei lie within the white matter; what they take, it loses.
    around = np.clip(solid - nuclei, 0, 1)
    shares["grey"] = (pial - white) * around
    shares["white"] = (white + stem) * around + core * solid
    shares["csf"] = np.clip(1 - sum(shares.values()), 0, 1)
    paired = {
        "cerebral_cortex": shares["grey"],
        "cerebral_white_matter": white * around,
        "lateral_ventricle": lateral,
        "csf": shares["csf"] - np.maximum(lateral, midline),
        "cerebellum": cerebellum * solid,
        **{name: shares[name] for name in ("thalamus", "caudate", "lentiform", "hippocampus")},
    }
    structures = _structures(paired, {"midline_ventricles": midline, "brainstem": stem * solid}, axes)
    structures[~brain] = 0
    cavity = HEAD.read(anatomy.head["cavity"], axes)
    outside = HEAD.read(anatomy.head["head"], axes)
    if not skull_stripped:
        shares = _with_skull(shares, cavity, outside, width)
    return Tissues(shares=shares, structures=structures, brain=brain, head=(outside > 0) | brain)


def _cortex(at: Mapping[str, Array], anatomy: Anatomy, width: float) -> tuple[Array, Array]:
    """Shares below the pial and below the white surface of the cerebrum."""
    thick = np.float32(anatomy.thickness_mm)
    depth = at["cerebrum"] - np.float32(0.8)
    pial = inside(depth, width)
    white = inside(depth - thick, width)
    # A sulcus is a wedge: wide at its mouth, a mere contact of its banks below.
    mouth = np.float32(anatomy.sulcus_mm) * at["mouth"] * np.exp(-np.maximum(depth, 0) * np.float32(1 / MOUTH_MM))
    for distance, half in (
        (np.hypot(at["sheet"], np.maximum(at["excess"], 0)), mouth + np.float32(0.25)),
        (np.hypot(at["x"], np.maximum(at["core"], 0)), mouth * np.float32(0.5) + np.float32(0.35)),
        (at["insula"], mouth + np.float32(0.6)),
    ):
        pial *= _beyond(distance, half, width)
        white *= _beyond(distance, half + thick, width)
    return pial, white


def _cerebellum(at: Mapping[str, Array], free: Array, width: float) -> tuple[Array, Array]:
    """Shares of the cerebellum and of its white core and branches."""
    depth = at["cerebellum"] - np.float32(0.8)
    cerebellum = inside(depth, width) * _beyond(at["leaf"], 0.12, width) * free
    core = inside(depth - np.float32(13), width)
    branches = np.minimum(depth - np.float32(4), np.abs(at["leaf"]) - np.float32(2.5))
    return cerebellum, np.maximum(core, inside(branches, width)) * cerebellum


def _structures(paired: Mapping[str, Array], single: Mapping[str, Array], axes: Axes) -> NDArray[np.uint8]:
    """Label each voxel with the structure that takes the largest share of it."""
    right = (np.asarray(axes[0]) >= 0).astype(np.uint8)[:, None, None]
    candidates = [(share, np.uint8(STRUCTURES[f"left_{name}"]) + right) for name, share in paired.items()]
    candidates += [(share, np.full_like(right, STRUCTURES[name])) for name, share in single.items()]
    best = np.full_like(candidates[0][0], -1)
    structures = np.zeros(best.shape, np.uint8)
    for share, label in candidates:
        better = share > best
        best = np.where(better, share, best)
        structures = np.where(better, label, structures)
    return structures


def _with_skull(shares: Mapping[str, Array], cavity: Array, outside: Array, width: float) -> dict[str, Array]:
    """Put the brain and its fluid into the cavity of a skull of 6.5 mm, under fat and muscle."""
    inner = inside(cavity, width)
    bone = inside(cavity + np.float32(SKULL_MM), width)
    marrow = inside(cavity + np.float32(4.5), width) - inside(cavity + np.float32(2), width)
    skin = inside(outside, width)
    fat = inside(cavity + np.float32(12.5), width)
    return {
        **{name: share * inner for name, share in shares.items()},
        "marrow": marrow,
        "bone": bone - inner - marrow,
        "fat": (fat - bone) * skin,
        "muscle": (1 - fat) * skin,
        "air": (1 - bone) * (1 - skin),
    }


def seen_mm(spacing_mm: Triple) -> float:
    """Return the millimetres that a voxel sees: its own edge and the image's blur."""
    return float(np.hypot(np.mean(spacing_mm), BLUR_MM))


def inside(depth: Array, width: float, *, thick: float = np.inf) -> Array:
    """Share of a voxel of edge ``width`` that lies inside a surface ``depth`` below which its centre is.

    A body ``thick`` mm across that is thinner than the voxel never fills it.
    """
    share = depth * np.float32(1 / width)
    share += np.float32(0.5)
    return np.asarray(np.clip(share, 0, min(1.0, thick / width), out=share))


def _beyond(distance: Array, half: Array | float, width: float) -> Array:
    """Share of a voxel farther than ``half`` from a sheet that its centre is ``distance`` away from (either side)."""
    upper = np.clip(distance + np.float32(width / 2), -half, half)
    lower = np.clip(distance - np.float32(width / 2), -half, half)
    return np.asarray(1 - (upper - lower) * np.float32(1 / width))


def replaced(tissues: Tissues, share: Array, by: str, brain: NDArray[np.bool_] | None = None) -> Tissues:
    """Give ``share`` of each voxel to one tissue; the others keep their proportions."""
    left = 1 - share
    shares: Mapping[str, Array] = {name: old * left for name, old in tissues.shares.items()}
    given = share + shares[by] if by in shares else share
    return replace(
        tissues,
        shares={**shares, by: given},
        brain=tissues.brain if brain is None else tissues.brain | brain,
        head=tissues.head if brain is None else tissues.head | brain,
    )
