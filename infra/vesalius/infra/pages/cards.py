"""A subject as the quality page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.quality.report import TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.datasets.quality import CohortQuality, SubjectQuality
    from vesalius.infra.pages.slices import Slices

_SPARK_WIDTH, _SPARK_HEIGHT = 120, 30
_FIRST_FACTS = ("age", "sex", "gender")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a figure is shown.

    Attributes:
        key: its name in the report.
        name: for people.
        unit: behind the number.
        digits: behind the point.
        good: whether ``high`` or ``low`` is good, or neither.
        meaning: one sentence.
    """

    key: str
    name: str
    unit: str
    digits: int
    good: str
    meaning: str


MEASURES = (
    Measure(
        key="similarity",
        name="Similarity",
        unit="",
        digits=2,
        good="high",
        meaning="Correlation with the cohort's median image, both centred on their brains.",
    ),
    Measure(
        key="overlap",
        name="Overlap",
        unit="",
        digits=2,
        good="high",
        meaning="Dice of the brain with the cohort's common brain.",
    ),
    Measure(
        key="template_overlap",
        name="Template",
        unit="",
        digits=2,
        good="high",
        meaning="Dice of the brain with the MNI152 brain.",
    ),
    Measure(
        key="offset_mm",
        name="Offset",
        unit=" mm",
        digits=0,
        good="low",
        meaning="From the cohort's median brain centre to this brain's centre.",
    ),
    Measure(
        key="contrast",
        name="Contrast",
        unit="",
        digits=2,
        good="high",
        meaning="Correlation with the cohort's median image inside the brain.",
    ),
    Measure(
        key="information",
        name="Information",
        unit="",
        digits=2,
        good="high",
        meaning="Normalised mutual information with the cohort's median image inside the brain.",
    ),
    Measure(
        key="histogram_distance",
        name="Histogram",
        unit="",
        digits=3,
        good="low",
        meaning="Distance of the brain's intensities from the cohort's median histogram.",
    ),
    Measure(
        key="brain_ml",
        name="Brain",
        unit=" ml",
        digits=0,
        good="",
        meaning="Volume of the brain mask.",
    ),
    Measure(
        key="cut_share",
        name="Cut",
        unit="",
        digits=2,
        good="low",
        meaning="How flat the brain ends at a face, as a share of its widest cross-section.",
    ),
    Measure(
        key="twin",
        name="Twin",
        unit="",
        digits=2,
        good="low",
        meaning="Highest correlation with another subject in what sets both apart from the cohort.",
    ),
)


def card(subject: SubjectQuality, quality: CohortQuality, slices: Mapping[str, Slices], number: int) -> dict[str, Any]:
    """Return what the template shows of a subject; ``number`` is its place on the page."""
    figures = []
    for measure in MEASURES:
        value = getattr(subject.measures, measure.key)
        if value is not None:
            cohort = quality.medians.get(measure.key)
            figures.append(
                {
                    "key": measure.key,
                    "name": measure.name,
                    "text": as_text(value, measure),
                    "cohort": "" if cohort is None else as_text(cohort, measure),
                }
            )
    facts = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in known_facts(subject)
    ]
    kinds = list(dict.fromkeys(TITLES[finding.kind] for finding in subject.findings))
    pictured = slices.get(subject.subject_id)
    return {
        "subject": subject,
        "number": number,
        "anchor": f"s-{subject.subject_id}",
        "slices": pictured,
        "figures": figures,
        "facts": facts,
        "kinds": kinds,
        "level": "alarm" if subject.alarm else "look" if subject.findings else "fine",
        "histograms": [
            {"channel": channel, "own": _curve(shares, top), "cohort": _area(common, top)}
            for channel, shares in subject.histograms.items()
            for common in [quality.histograms.get(channel, shares)]
            for top in [1.5 * max(*common, 1e-9)]
        ],
        "words": " ".join(
            [subject.subject_id, subject.split, subject.group or "", *facts, *kinds, subject.person or ""]
        ).lower(),
        "sort": {
            "similarity": _sortable(subject.measures.similarity),
            "overlap": _sortable(subject.measures.overlap),
            "template": _sortable(subject.measures.template_overlap),
            "brain": _sortable(subject.measures.brain_ml),
        },
        "alternative": _alternative(subject, kinds),
    }


def _alternative(subject: SubjectQuality, kinds: Sequence[str]) -> str:
    said = f"Sagittal, coronal and axial middle slice of {subject.subject_id} with the outline of its brain mask"
    return f"{said}; stands out: {', '.join(kinds).lower()}" if kinds else said


def known_facts(subject: SubjectQuality) -> list[tuple[str, Any]]:
    """Return demographics with a value, age and sex first: they are what everybody asks."""
    known = [(key, value) for key, value in subject.demographics.items() if value is not None]
    return sorted(known, key=lambda item: item[0].lower() not in _FIRST_FACTS)


def as_text(value: float, measure: Measure) -> str:
    """Return a figure with its unit."""
    return f"{value:.{measure.digits}f}{measure.unit}"


def _sortable(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _curve(shares: Sequence[float], top: float) -> str:
    """Return a histogram as an SVG polyline's points."""
    steps = np.linspace(0, _SPARK_WIDTH, len(shares))
    heights = _SPARK_HEIGHT * (1 - np.clip(np.asarray(shares) / top, 0, 1))
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(steps, heights, strict=True))


def _area(shares: Sequence[float], top: float) -> str:
    return f"0,{_SPARK_HEIGHT} {_curve(shares, top)} {_SPARK_WIDTH},{_SPARK_HEIGHT}"
