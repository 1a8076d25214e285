"""What quality control says: plain, frozen, JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vesalius.platform.config import Settings

Kind = Literal[
    "damaged",
    "duplicate",
    "leak",
    "orientation",
    "placement",
    "brain",
    "modality",
    "dissimilar",
    "truncated",
    "warning",
]
Severity = Literal["alarm", "look"]

TITLES: dict[Kind, str] = {
    "damaged": "Damaged",
    "leak": "One person in two splits",
    "duplicate": "Same content twice",
    "orientation": "Turned or flipped",
    "placement": "Misplaced",
    "modality": "Another kind of image",
    "dissimilar": "Unlike the others",
    "truncated": "Cut off",
    "brain": "Brain mask",
    "warning": "Noted at ingest",
}
"""What a finding is called, the gravest first: that is the order they are listed in."""


class Limits(Settings):
    """Where a measure becomes a finding.

    A measure that is judged against the cohort has to lie ``robust_deviations`` from the cohort's median, in units of
    1.4826 times the median absolute deviation (a normal distribution's standard deviation), and beyond an absolute
    margin as well: the first alone would raise an alarm in a cohort whose members are all but equal, the second alone
    in one that differs by nature.

    Attributes:
        min_subjects: fewer subjects than this are not judged against each other.
        robust_deviations: see above.
        orientation_gain: a subject is turned where another orientation's similarity is higher by this.
        orientation_least: and where that is at least so high: an image that fits in no way is not turned, but another.
        overlap_margin: Dice with the cohort's common brain below the median by this.
        offset_margin_mm: distance of the brain's centre from the median centre.
        contrast_margin: correlation with the cohort's median image inside the brain below the median by this.
        information_margin: normalised mutual information below the median by this.
        histogram_margin: distance (first Wasserstein, intensities scaled to [0, 1]) above the median by this.
        volume_factor: brain larger or smaller than the median by this factor.
        cut_share: area of the brain that ends at a face, over its largest cross-section along the same axis.
        cut_margin: the same above the cohort's median by this.
        twin_correlation: two subjects are one where what sets them apart from the cohort correlates so highly.
        template_overlap: Dice of the cohort's common brain with MNI152's from which on the cohort lies in its space.
    """

    min_subjects: int = Field(6, ge=3)
    robust_deviations: float = Field(6.0, gt=0)
    orientation_gain: float = Field(0.03, gt=0)
    orientation_least: float = Field(0.4, gt=0, lt=1)
    overlap_margin: float = Field(0.08, gt=0)
    offset_margin_mm: float = Field(12.0, gt=0)
    contrast_margin: float = Field(0.25, gt=0)
    information_margin: float = Field(0.02, gt=0)
    histogram_margin: float = Field(0.08, gt=0)
    volume_factor: float = Field(1.35, gt=1)
    cut_share: float = Field(0.1, gt=0, lt=1)
    cut_margin: float = Field(0.07, gt=0, lt=1)
    twin_correlation: float = Field(0.9, gt=0, lt=1)
    template_overlap: float = Field(0.8, gt=0, lt=1)


class Finding(Settings):
    """One thing about one subject, or about the whole cohort.

    Attributes:
        kind: what it is about.
        severity: ``alarm`` where something is most likely wrong, ``look`` where a person should look.
        sentence: what stands out and by which figures.
        advice: what to do.
        others: ids of the other subjects it is about.
        excess: how far beyond its limit the measure lies, in multiples of the limit; orders findings of one kind.
    """

    kind: Kind
    severity: Severity
    sentence: str
    advice: str
    others: tuple[str, ...] = ()
    excess: float = 0.0


class Measures(Settings):
    """A subject's figures; None where one cannot be taken.

    Attributes:
        similarity: correlation with the cohort's median image over both brains, after both are centred.
        turned: the highest similarity in another orientation.
        overlap: Dice of the brain with the cohort's common brain, as they lie.
        template_overlap: Dice of the brain with MNI152's: as they lie in its space, else after both are centred.
        offset_mm: distance of the brain's centre from the cohort's median centre; None where grids differ.
        contrast: correlation with the cohort's median image inside the common brain, the lowest of all channels.
        information: normalised mutual information with it (Studholme et al. 1999: 1 unrelated, 2 equal), the lowest.
        histogram_distance: of the intensities inside the brain from the cohort's median histogram, the highest.
        brain_ml: volume of the brain mask.
        cut_share: area of the brain at the face where most of it ends, over its largest cross-section.
        twin: the highest correlation of what sets it apart from the cohort with what sets another subject apart.
    """

    similarity: float | None = None
    turned: float | None = None
    overlap: float | None = None
    template_overlap: float | None = None
    offset_mm: float | None = None
    contrast: float | None = None
    information: float | None = None
    histogram_distance: float | None = None
    brain_ml: float | None = None
    cut_share: float | None = None
    twin: float | None = None


class SubjectQuality(Settings):
    """A subject as quality control sees it.

    Attributes:
        subject_id: in the store.
        split: its split.
        group: its group.
        has_lesion: as recorded.
        person: whom the volume is of, where the ingest noted one.
        demographics: as recorded.
        measures: its figures.
        histograms: by channel, the share of the brain's voxels in each bin from the 0.5th to the 99.5th percentile.
        findings: the gravest first; empty for most.
    """

    subject_id: str
    split: str
    group: str | None = None
    has_lesion: bool = False
    person: str | None = None
    demographics: dict[str, str | float | int | bool | None] = Field(default_factory=dict)
    measures: Measures = Measures()
    histograms: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def alarm(self) -> bool:
        """Whether one of the findings is an alarm."""
        return any(finding.severity == "alarm" for finding in self.findings)


class CohortQuality(Settings):
    """A cohort as quality control sees it.

    Attributes:
        num_subjects: how many were looked at.
        frame: ``template`` all lie on one grid in MNI space, ``grid`` on one grid elsewhere, ``own`` grids differ.
        judged: whether there are enough subjects to judge them against each other.
        limits: the thresholds.
        medians: of every measure over the cohort.
        deviations: 1.4826 times the median absolute deviation of every measure.
        histograms: the cohort's median histogram by channel.
        findings: about the cohort as a whole.
        subjects: those that stand out first, the gravest at the top; the others by id.
        cannot: what is not and cannot be seen here, in sentences.
    """

    num_subjects: int
    frame: Literal["template", "grid", "own"]
    judged: bool
    limits: Limits
    medians: dict[str, float] = Field(default_factory=dict)
    deviations: dict[str, float] = Field(default_factory=dict)
    histograms: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    subjects: tuple[SubjectQuality, ...] = ()
    cannot: tuple[str, ...] = ()

    @property
    def outliers(self) -> tuple[SubjectQuality, ...]:
        """Subjects with a finding, the gravest first."""
        return tuple(subject for subject in self.subjects if subject.findings)
