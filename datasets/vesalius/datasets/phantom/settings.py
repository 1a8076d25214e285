"""What a phantom is to look like: grid, contrasts, variability, lesions. Frozen and saved as JSON."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vesalius.datasets.phantom.lattice import Triple
from vesalius.platform.config import Settings

Modality = Literal["T1w", "T2w", "FLAIR", "CT"]
Hemisphere = Literal["left", "right"]
_Count = Annotated[int, Field(ge=1, le=2048)]
_Length = Annotated[float, Field(gt=0, le=1000)]

Finding = Literal[
    "intraparenchymal",
    "subdural",
    "epidural",
    "fracture",
    "hydrocephalus",
    "craniectomy",
    "shunt",
    "metal",
    "motion",
    "noise",
    "wrong_orientation",
    "wrong_registration",
]
"""What a head CT may show: three bleeds, other findings, what an operation leaves, and what spoils an image."""
NEED_SKULL: tuple[Finding, ...] = ("fracture",)
"""Findings that lie in what skull-stripping takes away."""


class LesionSettings(Settings):
    """One lesion to be planted.

    Attributes:
        size_mm: diameter of the ball whose volume the lesion has (inside the brain).
        contrast: relative change of the T1w intensity at full depth, -0.3 is 30 % darker. The other modalities
            answer with the factors of :data:`vesalius.datasets.phantom.contrast.LESION_RESPONSE`.
        softness_mm: width of the border over which the change rises from nothing to full.
        irregularity: deviation of the outline from an ellipsoid, as a fraction of the radius.
        texture: deviation of the change inside the lesion, as a fraction of the change.
        hemisphere: side the centre is drawn in; None draws it anywhere in the cerebrum.
        center_mm: centre in RAS+ millimetres instead of a drawn one.
    """

    size_mm: float = Field(20.0, gt=0, le=120)
    contrast: float = Field(-0.3, ge=-1, le=3)
    softness_mm: float = Field(3.0, ge=0, le=40)
    irregularity: float = Field(0.25, ge=0, le=0.6)
    texture: float = Field(0.2, ge=0, le=1)
    hemisphere: Hemisphere | None = None
    center_mm: Triple | None = None


class FindingSettings(Settings):
    """One finding of a head; what else it needs is drawn from the subject's seed.

    Attributes:
        kind: which.
        hemisphere: the side that a bleed, a fracture, an operation or metal is on.
        severity: from the smallest of its kind (0) to the largest (1).
    """

    kind: Finding
    hemisphere: Hemisphere = "left"
    severity: float = Field(0.5, ge=0, le=1)


class VariabilitySettings(Settings):
    """How much healthy subjects differ. The defaults are measured on real brains: docs/decisions/0003-phantom.md.

    Attributes:
        scale: deviation of the residual size along each axis, relative.
        rotation_degrees: deviation of the residual rotation about each axis.
        translation_mm: deviation of the residual shift along each axis.
        warp_large_mm: deviation of the smooth displacement on a scale of 60 mm.
        warp_small_mm: deviation of the smooth displacement on a scale of 25 mm.
        outline_mm: deviation of the outline that skull-stripping leaves, on a scale of 15 mm; no tissue moves.
        asymmetry: share of the displacement's variance that differs between the hemispheres.
        shared_folding: share of the folding pattern's variance that all subjects have in common.
        sulcus_mm: width of a sulcus at its mouth, before regions and subjects differ.
        sulcus_spread: deviation of the logarithm of a subject's sulcal width.
        sulcus_region_spread: deviation of the logarithm of the sulcal width from region to region of a subject.
        thickness_mm: mean thickness of the cortex, which the image's blur thins.
        thickness_spread: deviation of the logarithm of a subject's cortical thickness.
        ventricle_spread: deviation of the logarithm of a subject's ventricular width.
        contrast_spread: deviation of the logarithm of a subject's tissue intensities, each tissue by itself.
        texture: deviation of the smooth intensity differences within a tissue, relative.
        bias: deviation of the logarithm of the bias field (not for CT).
        noise: deviation of the Rician noise relative to white matter in T1w; of Gaussian noise in CT, see contrast.
    """

    scale: float = Field(0.012, ge=0, le=0.2)
    rotation_degrees: float = Field(1.0, ge=0, le=10)
    translation_mm: float = Field(0.7, ge=0, le=10)
    warp_large_mm: float = Field(1.7, ge=0, le=8)
    warp_small_mm: float = Field(0.6, ge=0, le=4)
    outline_mm: float = Field(1.6, ge=0, le=4)
    asymmetry: float = Field(0.4, ge=0, le=1)
    shared_folding: float = Field(0.97, ge=0, le=1)
    sulcus_mm: float = Field(7.5, gt=0, le=10)
    sulcus_spread: float = Field(0.05, ge=0, le=1)
    sulcus_region_spread: float = Field(0.5, ge=0, le=2)
    thickness_mm: float = Field(4.5, gt=0, le=10)
    thickness_spread: float = Field(0.02, ge=0, le=1)
    ventricle_spread: float = Field(0.25, ge=0, le=1)
    contrast_spread: float = Field(0.03, ge=0, le=0.5)
    texture: float = Field(0.035, ge=0, le=0.5)
    bias: float = Field(0.04, ge=0, le=0.5)
    noise: float = Field(0.017, ge=0, le=0.5)


class PhantomSettings(Settings):
    """The grid and the look of a phantom.

    Attributes:
        shape: voxels along i (left to right), j (posterior to anterior), k (inferior to superior); any size.
        box_mm: physical size of the grid along i, j, k; voxel sizes follow, so a small grid shows the whole head.
        center_mm: centre of the grid in RAS+ millimetres; the brain lies as in MNI space.
        modalities: contrasts to make, in the order of the channel axis.
        skull_stripped: leave out everything outside the brain (0, or -1000 HU in CT).
        hyperdense: put in what is bright in the CT of a healthy head: calcifications, venous sinuses, bone that rises
            into the brain's outline (:mod:`vesalius.datasets.phantom.hyperdense`).
        variability: how much healthy subjects differ.
    """

    shape: tuple[_Count, _Count, _Count] = (64, 64, 64)
    box_mm: tuple[_Length, _Length, _Length] = (192.0, 192.0, 192.0)
    center_mm: Triple = (0.0, -18.0, 8.0)
    modalities: tuple[Modality, ...] = Field(("T1w",), min_length=1)
    skull_stripped: bool = True
    # Left out of what is written where it is off: phantoms without it keep the digest they had before there was any.
    hyperdense: bool = Field(False, exclude_if=lambda on: not on)
    variability: VariabilitySettings = VariabilitySettings()

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along i, j, k."""
        d, h, w = (box / num for box, num in zip(self.box_mm, self.shape, strict=True))
        return (d, h, w)


class CohortSettings(Settings):
    """A cohort of phantoms.

    Attributes:
        num_train: healthy subjects to learn from.
        num_validation: subjects for choices; as in the two below, two in three have a lesion.
        num_gate: subjects that promotion looks at.
        num_test: subjects that results are reported on.
        seed: of the whole cohort.
        phantom: grid and look.
        findings: what the subjects with something in them have, one kind after the other; none are the lesions of
            docs/decisions/0003-phantom.md. A kind may be named more than once to be more frequent.
    """

    num_train: int = Field(16, ge=0)
    num_validation: int = Field(6, ge=0)
    num_gate: int = Field(6, ge=0)
    num_test: int = Field(9, ge=0)
    seed: int = 0
    phantom: PhantomSettings = PhantomSettings()
    findings: tuple[Finding, ...] = ()

    @model_validator(mode="after")
    def _skull_is_there(self) -> Self:
        lacking = [kind for kind in self.findings if kind in NEED_SKULL]
        if lacking and self.phantom.skull_stripped:
            raise ValueError(f"a {lacking[0]} lies in the skull: set phantom.skull_stripped to false, or leave it out")
        return self
