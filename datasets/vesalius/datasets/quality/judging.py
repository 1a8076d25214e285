"""From figures to sentences: what stands out, how far beyond its limit, and what to do."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.quality.comparison import turned_brain
from vesalius.datasets.quality.report import TITLES, Finding, Limits, Measures, SubjectQuality
from vesalius.datasets.quality.sharing import add_leaks, add_twins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vesalius.datasets.quality.survey import Seen

# 1.4826 MAD is the standard deviation of a normal distribution.
_MAD_TO_DEVIATION = 1.4826
_KINDS = list(TITLES)
# A page is passed on: it names files, and not where somebody keeps them.
_FOLDERS = re.compile(r"(?<![\w.])(?:/[^\s/:]+)+/(?=[^\s/:])")

_HEADER = "correct the orientation in the file's header (sform and qform), and take the subject in again"
_REPLACE = "look at the source file; drop the subject from the raw data, or put it right, and take it in again"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What stands out.

    Attributes:
        findings: by subject id, the gravest first.
        cohort: about the cohort as a whole.
        medians: by measure.
        deviations: by measure.
        cannot: what is not and cannot be seen.
        order: key that sorts subjects, those that stand out first.
    """

    findings: Mapping[str, tuple[Finding, ...]]
    cohort: tuple[Finding, ...]
    medians: dict[str, float]
    deviations: dict[str, float]
    cannot: tuple[str, ...]
    order: Callable[[SubjectQuality], Any]


def judge(seen: Seen, limits: Limits) -> Judgement:
    """Turn what was measured into findings."""
    medians, deviations = _robust(seen.measures)
    found: dict[str, list[Finding]] = defaultdict(list)
    for subject_id, reason in seen.unreadable.items():
        found[subject_id].append(
            Finding(kind="damaged", severity="alarm", sentence=reason, advice="run `vesalius check --repair`")
        )
    for subject_id in seen.empty:
        sentence = "its brain mask is empty, so nothing else could be looked at"
        found[subject_id].append(Finding(kind="brain", severity="alarm", sentence=sentence, advice=_REPLACE))
    for number, subject_id in enumerate(seen.order):
        found[subject_id] += _of_subject(seen, number, limits, medians, deviations)
    add_twins(seen, found)
    add_leaks(seen, found)
    for subject_id, record in seen.records.items():
        for sentence in record.notes.get("warnings", ()):
            said = _FOLDERS.sub("", str(sentence))
            found[subject_id].append(
                Finding(kind="warning", severity="look", sentence=said, advice="look at the picture")
            )
    sorted_findings = {key: tuple(sorted(value, key=_gravity)) for key, value in found.items() if value}
    return Judgement(
        findings=sorted_findings,
        cohort=tuple(_of_cohort(seen, limits)),
        medians=medians,
        deviations=deviations,
        cannot=tuple(_cannot(seen, limits)),
        order=lambda subject: (
            (*_gravity(subject.findings[0]), subject.subject_id)
            if subject.findings
            else (2, 0, 0.0, subject.subject_id)
        ),
    )


def _gravity(finding: Finding) -> tuple[int, int, float]:
    return (finding.severity != "alarm", _KINDS.index(finding.kind), -finding.excess)


def _robust(measures: tuple[Measures, ...]) -> tuple[dict[str, float], dict[str, float]]:
    medians: dict[str, float] = {}
    deviations: dict[str, float] = {}
    for name in Measures.model_fields:
        values = np.array([value for one in measures if (value := getattr(one, name)) is not None], dtype=np.float64)
        if values.size:
            medians[name] = float(np.median(values))
            deviations[name] = float(_MAD_TO_DEVIATION * np.median(np.abs(values - medians[name])))
    return medians, deviations


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


def _of_subject(
    seen: Seen, number: int, limits: Limits, medians: Mapping[str, float], deviations: Mapping[str, float]
) -> list[Finding]:
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


def _of_cohort(seen: Seen, limits: Limits) -> list[Finding]:
    found = []
    if seen.common_brain is not None:
        as_it_lies, turned, words = turned_brain(seen.common_brain)
        if turned - as_it_lies >= limits.orientation_gain:
            found.append(
                Finding(
                    kind="orientation",
                    severity="look",
                    sentence=f"the shape of the cohort's common brain fits MNI152 better if it is taken to lie {words} "
                    f"({turned:.2f} instead of {as_it_lies:.2f})",
                    advice="look at a few pictures: the headers of all files may be wrong in the same way",
                    excess=(turned - as_it_lies) / limits.orientation_gain,
                )
            )
    cuts = [one.cut_share for one in seen.measures if one.cut_share is not None]
    if cuts and float(np.median(cuts)) > limits.cut_share:
        found.append(
            Finding(
                kind="truncated",
                severity="look",
                sentence=f"half of the brains end flat at a face, by more than {100 * float(np.median(cuts)):.0f} % of "
                "their widest cross-section",
                advice="look whether the prepared box (recipe.box_mm) is too small for them",
                excess=float(np.median(cuts)) / limits.cut_share,
            )
        )
    return found


def _cannot(seen: Seen, limits: Limits) -> list[str]:
    said = [
        "Left and right: a head is so nearly symmetric that its picture does not tell them apart. A file whose header "
        "does not say where it lies is noted at ingest, and a mirrored copy of another subject is found; a volume that "
        "was mirrored by itself is not.",
        "What most of the cohort has in common counts as normal here. Only the orientation of the common brain is held "
        "against MNI152.",
        "Pictures are compared at 6 mm: fine detail, noise, motion and small lesions are for your eyes.",
    ]
    if not seen.judged:
        said.append(
            f"Only {len(seen.order)} subjects: fewer than {limits.min_subjects} are not judged against each other. "
            "Orientation, placement, modality and likeness are not looked at."
        )
    if seen.frame == "own":
        said.append(
            "The subjects lie on different grids, so each is looked at around its own brain: a shift is not seen."
        )
    elif seen.brains_centred:
        said.append(
            "The recipe moves every brain to the middle of the grid: a shift is undone before it could be seen."
        )
    return said
