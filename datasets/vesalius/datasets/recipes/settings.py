"""The settings of a recipe: data, not code. Stored as JSON in the cohort store and in every model trained on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vesalius.platform.config import Settings


def _three(value: Any) -> Any:
    """Let one number stand for three equal ones: ``--set recipe.spacing_mm=2``."""
    return (value, value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_Length = Annotated[float, Field(gt=0, le=1000)]
_Count = Annotated[int, Field(ge=1, le=2048)]
_Value = Annotated[float, Field(ge=-1e6, le=1e6)]
Lengths = Annotated[tuple[_Length, _Length, _Length], BeforeValidator(_three)]
Counts = Annotated[tuple[_Count, _Count, _Count], BeforeValidator(_three)]

TEMPLATE_CENTER_MM = (0.0, -17.0, 5.0)
"""Centre of the MNI152 brain's bounding box (measured on nilearn's template: x -72..72, y -107..73, z -72..82 mm)."""

TEMPLATE_BRAIN_MM = (145.0, 181.0, 155.0)
"""That bounding box, from the outer face of its first voxel to that of its last."""

TEMPLATE_BOX_MM = (160.0, 192.0, 160.0)
"""A box that holds that brain with 3 mm to spare, whose edges divide by 1, 2, 4 and 8."""

MNI152 = "mni152"
"""The reference that needs no file."""


@dataclass(frozen=True, kw_only=True)
class PaperStep:
    """One step of a paper's preprocessing, and what becomes of it here.

    Attributes:
        paper: what the paper does.
        section: where it says so.
        ours: the recipe's step.
        deviation: where the two part and why; empty where they do not.
    """

    paper: str
    section: str
    ours: str
    deviation: str = ""


class Recipe(Settings):
    """How volumes are prepared. Stored in the cohort store and in every model trained on it.

    The steps, in order: canonical RAS+ orientation; refusal of voxels too long; clip; brain and head masks;
    registration; bias field; outside to the low end; smoothing; one resampling (linear, masks by nearest neighbour);
    denoising; scaling; outside to the low end of ``output_range``.
    """

    max_spacing_ratio: float | None = Field(
        20.0, ge=1, le=1000, description="a volume whose longest voxel edge is more than this many shortest is refused"
    )
    hounsfield: bool = Field(
        False, description="intensities are CT in Hounsfield units; what does not look so is refused"
    )
    clip_minimum: _Value | None = Field(None, description="raise lower intensities to this: 0 removes negative ringing")
    clip_maximum: _Value | None = Field(None, description="lower higher intensities to this: 3071 cuts metal in CT")
    brain: Literal["auto", "given", "nonzero", "otsu", "mr", "ct"] = Field(
        "auto",
        description="auto takes the mask given, else what differs from a constant background, else Otsu's threshold; "
        "mr and ct take the mask given, else what is stripped already, else strip a whole head",
    )
    head: Literal["none", "given", "otsu", "mr", "ct"] = Field(
        "none", description="whether a head mask is kept and from where; mr and ct take the one given first"
    )
    bias: Literal["none", "n4"] = Field(
        "none", description="n4 divides by a smooth field (Tustison et al. 2010), for MR"
    )
    bias_shrink: int = Field(4, ge=1, le=16, description="N4 looks at every so manieth voxel")
    bias_iterations: tuple[_Count, ...] = Field((50, 50, 50, 50), max_length=8, description="N4's, at each level")
    registration: Literal["none", "rigid", "affine"] = Field(
        "none", description="rigid (6 parameters) or affine (12) takes the volume to the reference; none leaves it"
    )
    registration_of: Literal["brain", "head"] = Field(
        "brain", description="what is matched: the brain without its skull, or the whole head (needs a reference file)"
    )
    reference: str = Field(
        MNI152,
        min_length=1,
        description="mni152, or a NIfTI file: its path, or its name in the folder VESALIUS_REFERENCES",
    )
    reference_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of that file; filled in when the recipe is first used"
    )
    crop: Literal["none", "brain"] = Field(
        "none", description="brain stretches each brain's bounding box over the whole grid: no empty border is left"
    )
    spacing_mm: Lengths | None = Field(None, description="voxel size of the grid; null keeps the source's own voxels")
    grid: Counts | None = Field(None, description="voxels of the grid; null takes box_mm, or the source's extent")
    box_mm: Lengths | None = Field(None, description="edges of the grid in mm, used where grid is null")
    center_mm: tuple[float, float, float] | None = Field(
        None,
        description="centre of the grid in world mm; null takes the reference brain's centre with registration, and "
        "otherwise moves each brain's bounding-box centre to the origin",
    )
    antialias: bool = Field(True, description="smooth before a coarser grid, so that noise is averaged and not picked")
    smoothing_mm: float = Field(0.0, ge=0, le=50, description="sigma of a further Gaussian before resampling")
    denoise: Literal["none", "curvature_flow"] = Field(
        "none", description="curvature_flow smooths along edges and not across them (Sethian), on the grid"
    )
    denoise_time_step: float = Field(
        0.05, gt=0, le=0.0625, description="of curvature flow; beyond 1/16 it is unstable in three dimensions"
    )
    denoise_iterations: int = Field(5, ge=1, le=50, description="of curvature flow")
    scale: Literal["percentile", "window", "histogram", "none"] = Field(
        "percentile",
        description="percentile clips over the brain, window clips at window_hu, histogram equalises over scale_over; "
        "each then maps to output_range; none leaves intensities alone",
    )
    scale_over: Literal["brain", "head"] = Field(
        "brain", description="voxels that percentiles and histograms are taken over"
    )
    percentile_low: float = Field(0.0, ge=0, lt=100, description="lower clip, a percentile")
    percentile_high: float = Field(98.0, gt=0, le=100, description="upper clip, a percentile")
    window_hu: tuple[_Value, _Value] | None = Field(None, description="lower and upper clip of scale=window")
    histogram_bins: int = Field(4096, ge=2, le=65536, description="bins of the histogram that is equalised")
    output_range: tuple[_Value, _Value] = Field((0.0, 1.0), description="what scaling maps to")
    background: Literal["brain", "head", "keep"] = Field(
        "brain", description="what lies outside the brain, or the head, is set to the low end of output_range; or kept"
    )
    structures: Literal["given", "ct"] = Field(
        "given",
        description="given keeps the labels that come with the data; ct takes skull, left and right hemisphere from "
        "them where they name all three, else from the CT: what is not registered must lie in MNI space, midline at 0",
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="type of the stored intensities")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for problem in (self._geometry(), self._intensities()):
            if problem:
                raise ValueError(problem)
        return self

    def _geometry(self) -> str:
        if self.registration != "none" and self.spacing_mm is None:
            return f"registration '{self.registration}' needs a spacing_mm: there is no source grid to keep"
        if self.spacing_mm is None and self.box_mm is not None and self.grid is None:
            return "box_mm needs a spacing_mm"
        if self.reference == MNI152 and self.reference_sha256 is not None:
            return "reference_sha256 belongs to a reference file, and mni152 has none"
        if self.registration_of == "head" and self.reference == MNI152:
            return "registration_of 'head' needs a reference file: mni152 has no skull"
        if self.registration_of == "head" and self.head == "none":
            return "registration_of 'head' needs a head mask: set head to mr, ct, otsu or given"
        if self.crop == "brain" and self.target_grid() is None:
            return "crop 'brain' needs a grid, or a box_mm and a spacing_mm"
        if self.structures == "ct" and not self.hounsfield:
            return "structures 'ct' needs hounsfield: the skull is what is denser than 300 HU"
        if self.structures == "ct" and self._is_centred():
            return "structures 'ct' needs a registration or a center_mm: around its own centre a brain has no midline"
        return ""

    def _is_centred(self) -> bool:
        """Return whether each brain is moved to the origin by its bounding box alone."""
        placed = self.spacing_mm is not None and self.target_grid() is not None
        return self.registration == "none" and self.center_mm is None and placed

    def _intensities(self) -> str:
        if self.percentile_low >= self.percentile_high:
            return f"percentile_low must be below percentile_high ({self.percentile_high:g})"
        if not self.output_range[0] < self.output_range[1]:
            return "output_range must rise, such as [0, 1] or [-1, 1]"
        if self.scale == "window" and (self.window_hu is None or not self.window_hu[0] < self.window_hu[1]):
            return "scale 'window' needs a window_hu that rises, such as [-20, 100]"
        if self.clip_minimum is not None and self.clip_maximum is not None and self.clip_minimum >= self.clip_maximum:
            return f"clip_minimum must be below clip_maximum ({self.clip_maximum:g})"
        if "head" in (self.background, self.scale_over) and self.head == "none":
            return "background or scale_over 'head' needs a head mask: set head to mr, ct, otsu or given"
        if self.hounsfield and self.bias == "n4":
            return "bias 'n4' is for MR: CT has no bias field"
        return ""

    def target_grid(self) -> tuple[int, int, int] | None:
        """Return the voxels of the grid where the recipe fixes them, None where each source does."""
        if self.grid is not None:
            return self.grid
        box = self.box_mm or (TEMPLATE_BOX_MM if self.registration != "none" else None)
        if box is None or self.spacing_mm is None:
            return None
        # A hair is taken off so that 160 mm in steps of 0.1 mm is 1600 voxels and not 1601.
        d, h, w = (math.ceil(edge / step - 1e-6) for edge, step in zip(box, self.spacing_mm, strict=True))
        return (d, h, w)
