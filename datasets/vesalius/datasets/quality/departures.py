"""How one subject departs from its cohort: measures beyond their limits, in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.datasets.quality.report import Finding, Limits, Measures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.datasets.quality.survey import Seen

_HEADER = "correct the orientation in the file's header (sform and qform), and take the subject in again"


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """How far a subject's measures lie from the cohort's medians."""

    measures: Measures
    medians: Mapping[str, float]
    deviations: Mapping[str, float]
    limits: Limits

    def beyond(self, name: str, margin: float, sign: int) -> float:
        """Return the distance from the median over what is allowed: above 1 is an outlier; 0 where not measured."""
        value = getattr(self.measures, name)
        if value is None or name not in self.medians:
            return 0.0
        allowed = max(margin, self.limits.robust_deviations * self.deviations[name])
        return max(0.0, sign * (float(value) - self.medians[name]) / allowed)

    def said(self, name: str, unit: str = "", digits: int = 2) -> str:
        """Return the figure beside the cohort's."""
        value = getattr(self.measures, name)
        return f"{value:.{digits}f}{unit} (cohort {self.medians[name]:.{digits}f}{unit})"


def of_subject(
    seen: Seen, number: int, limits: Limits, medians: Mapping[str, float], deviations: Mapping[str, float]
) -> list[Finding]:
    """Return what stands out of the subject with that number in ``seen.order``."""
    scale = _Scale(measures=seen.measures[number], medians=medians, deviations=deviations, limits=limits)
    found = [*_truncation(scale, seen.cuts[number], judged=seen.judged)]
    likeness = seen.likeness[number]
    if likeness is None:
        return found
    turned = likeness.turned - likeness.similarity
    is_turned = turned >= limits.orientation_gain and likeness.turned >= limits.orientation_least
    if is_turned:
        found.append(
            Finding(
                kind="orientation",
                severity="alarm",
                sentence=f"it fits the cohort better if it is taken to lie {likeness.words}: similarity "
                f"{likeness.turned:.2f} instead of {likeness.similarity:.2f}",
                advice=_HEADER,
                excess=turned / limits.orientation_gain,
            )
        )
    if not is_turned:
        # A head that is turned lies elsewhere for that reason alone.
        found += _placement(scale)
    found += _contrast(scale, seen, number)
    found += _volume(scale)
    excess = scale.beyond("similarity", limits.contrast_margin, -1)
    if excess > 1 and not any(finding.severity == "alarm" for finding in found):
        found.append(
            Finding(
                kind="dissimilar",
                severity="look",
                sentence=f"it is unlike the others: similarity {scale.said('similarity')}",
                advice="look at its picture, its registration and its brain mask",
                excess=excess,
            )
        )
    return found


def _placement(scale: _Scale) -> list[Finding]:
    overlap = scale.beyond("overlap", scale.limits.overlap_margin, -1)
    offset = scale.beyond("offset_mm", scale.limits.offset_margin_mm, 1)
    if max(overlap, offset) <= 1:
        return []
    parts = []
    if overlap > 1:
        parts.append(f"its brain overlaps the cohort's common brain with a Dice of {scale.said('overlap')}")
    if offset > 1:
        parts.append(f"its centre lies {scale.said('offset_mm', ' mm', 0)} from the cohort's")
    return [
        Finding(
            kind="placement",
            severity="alarm",
            sentence=" and ".join(parts),
            advice="look at its registration and its brain mask: give a better mask, or register it beforehand",
            excess=max(overlap, offset),
        )
    ]


def _contrast(scale: _Scale, seen: Seen, number: int) -> list[Finding]:
    """Tell another kind of image from a misfit: the first has another contrast, the second no relation at all."""
    likeness = seen.likeness[number]
    assert likeness is not None  # the caller has looked
    limits, measures = scale.limits, scale.measures
    contrast = scale.beyond("contrast", limits.contrast_margin, -1)
    information = scale.beyond("information", limits.information_margin, -1)
    histogram = scale.beyond("histogram_distance", limits.histogram_margin, 1)
    if max(contrast, histogram) <= 1:
        return []
    channels = seen.records[seen.order[number]].channels
    parts = []
    if contrast > 1:
        name = channels[likeness.channel] if len(channels) > 1 else "its intensities"
        parts.append(f"{name} follow the cohort's inside the brain with a correlation of {scale.said('contrast')}")
    if histogram > 1:
        name = channels[likeness.histogram_channel] if len(channels) > 1 else "its histogram"
        parts.append(f"{name} lies {scale.said('histogram_distance')} from the cohort's, intensities scaled to [0, 1]")
    is_misfit = contrast > 1 and information > 1 and (measures.contrast or 0.0) >= 0 and histogram <= 1
    return [
        Finding(
            kind="dissimilar" if is_misfit else "modality",
            severity="alarm",
            sentence=" and ".join(parts),
            advice="look at its registration, its brain mask and its source file"
            if is_misfit
            else "look whether the file is of another modality, sequence or contrast than its name says",
            excess=max(contrast, histogram),
        )
    ]


def _volume(scale: _Scale) -> list[Finding]:
    value, median = scale.measures.brain_ml, scale.medians["brain_ml"]
    if value is None or not median:
        return []
    # On a logarithmic scale a brain twice as large and one half as large are equally strange.
    factor = max(value / median, median / value)
    allowed = max(
        scale.limits.volume_factor, 1.0 + scale.limits.robust_deviations * scale.deviations["brain_ml"] / median
    )
    if factor <= allowed:
        return []
    return [
        Finding(
            kind="brain",
            severity="alarm",
            sentence=f"its brain mask holds {value:.0f} ml, the cohort's {median:.0f} ml in the median",
            advice="look at its brain mask: skull or neck left in, or brain left out; give a better mask",
            excess=factor / allowed,
        )
    ]


def _truncation(scale: _Scale, face: str, *, judged: bool) -> list[Finding]:
    value = scale.measures.cut_share
    if value is None:
        return []
    limits = scale.limits
    excess = value / limits.cut_share
    # Where all are cut alike, as by a box that is too small, the cohort is told once and not everyone.
    relative = scale.beyond("cut_share", limits.cut_margin, 1) if judged else excess
    if min(excess, relative) <= 1:
        return []
    return [
        Finding(
            kind="truncated",
            severity="alarm",
            sentence=f"its brain ends flat at {face}: the cut is {100 * value:.0f} % of its widest cross-section",
            advice="look whether the scan ends inside the head, or the prepared box is too small (recipe.box_mm)",
            excess=min(excess, relative),
        )
    ]
