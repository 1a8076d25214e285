"""From figures to sentences: what stands out, how far beyond its limit, and what to do."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.quality.comparison import turned_brain
from vesalius.datasets.quality.departures import of_subject
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
        found[subject_id] += of_subject(seen, number, limits, medians, deviations)
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
