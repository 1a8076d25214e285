"""Candidate against champion on the same subjects: over all of them, and within subgroups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.config import unknown_setting
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.evaluation import PairedResult, paired_bootstrap, paired_image_auroc
from vesalius.platform.registry.gates.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vesalius.platform.registry.gates.evidence import Evidence, Judged
    from vesalius.platform.registry.gates.settings import BetterGate, ComparedFigure, Gates, SubgroupsGate
    from vesalius.platform.store import SubjectRecord

NAMES = {
    "average_precision": "average precision",
    "best_dice": "best Dice",
    "auroc": "AUROC",
    "fpr_at_95_recall": "false positive rate at 95 % recall",
    "image_auroc": "image AUROC",
}


def better(gate: BetterGate, gates: Gates, evidence: Evidence) -> tuple[Verdict, PairedResult | None]:
    """Answer whether the candidate is better than the champion, and give the comparison where there is one."""
    champion, name = evidence.champion, NAMES[gate.figure]
    if champion is None:
        sentence = "there is no champion to be better than"
        return Verdict(gate="better", outcome="does not apply", limit=gate.margin, sentence=sentence), None
    try:
        result = _compared(gate.figure, gate.confidence, gates, evidence.candidate, champion, evidence.subjects)
    except CohortError as error:
        said = str(error)
        return Verdict(gate="better", outcome="cannot be evaluated", limit=gate.margin, sentence=said), None
    passed = result.lower_bound > gate.margin
    margin = f", asked is more than {gate.margin:g}" if gate.margin else ""
    figures = (
        f"{name} {result.a:.4f} on the gate against {result.b:.4f} of version {evidence.champion_version} "
        f"(difference {result.difference:+.4f}, above {result.lower_bound:+.4f} with {result.confidence:.0%} "
        f"confidence{margin}; {result.num_subjects} subjects)"
    )
    short = f"fell short of the champion by {gate.margin - result.lower_bound:.4f}: "
    verdict = Verdict(
        gate="better",
        outcome="passed" if passed else "failed",
        figure=result.difference,
        bound=result.lower_bound,
        limit=gate.margin,
        low=result.low,
        high=result.high,
        num_subjects=result.num_subjects,
        sentence=figures if passed else short + figures,
    )
    return verdict, result


def check_subgroups(gates: Gates, subjects: Sequence[SubjectRecord]) -> None:
    """Check that the gate's subjects have the labels that subgroups are made by.

    Raises:
        SettingError: they do not; names the nearest one.
    """
    if gates.subgroups is not None:
        _groups(gates.subgroups, subjects)


def subgroups(gate: SubgroupsGate, gates: Gates, evidence: Evidence) -> Verdict:
    """Answer whether the candidate is worse than the champion in some subgroup.

    Raises:
        SettingError: the gate's subjects know no such label; names the nearest one.
    """
    groups = _groups(gate, evidence.subjects)
    champion = evidence.champion
    details, failed, judged = [], [], []
    for key, value, ids in groups:
        detail = _subgroup(gate, gates, evidence.candidate, champion, key, value, ids, evidence.subjects)
        details.append(detail)
        if "lower_bound" in detail:
            judged.append(detail)
            if not detail["passed"]:
                failed.append(detail)
    facts: dict[str, Any] = {"gate": "subgroups", "limit": -gate.worse_by, "details": tuple(details)}
    name = NAMES[gate.figure]
    if champion is None:
        return Verdict(outcome="does not apply", sentence="there is no champion to be worse than", **facts)
    if not judged:
        sentence = (
            f"none of {len(groups)} subgroups by {', '.join(gate.by)} has the {gate.min_lesions} subjects with a "
            "lesion that are asked for: enlarge the gate, or lower min_lesions"
        )
        return Verdict(outcome="cannot be evaluated", sentence=sentence, **facts)
    worst = min(judged, key=lambda detail: detail["lower_bound"])
    unjudged = len(details) - len(judged)
    small = f"; {unjudged} too small to be judged" if unjudged else ""
    told = (
        f"{worst['key']} {worst['value']}: {name} {worst['candidate']:.4f} against {worst['champion']:.4f} "
        f"(difference {worst['difference']:+.4f}, above {worst['lower_bound']:+.4f} with {gate.confidence:.0%} "
        f"confidence, {worst['num_subjects']} subjects)"
    )
    if failed:
        sentence = (
            f"{len(failed)} of {len(judged)} subgroups may be worse by more than {gate.worse_by:g}: {told}{small}"
        )
    else:
        sentence = f"none of {len(judged)} subgroups is worse by {gate.worse_by:g}, the least sure being {told}{small}"
    return Verdict(
        outcome="failed" if failed else "passed",
        figure=worst["difference"],
        bound=worst["lower_bound"],
        low=worst["low"],
        high=worst["high"],
        num_subjects=worst["num_subjects"],
        sentence=sentence,
        **facts,
    )


def _compared(
    figure: ComparedFigure,
    confidence: float,
    gates: Gates,
    candidate: Judged,
    champion: Judged,
    subjects: Sequence[SubjectRecord],
    ids: Collection[str] | None = None,
) -> PairedResult:
    if figure == "image_auroc":
        chosen = [record for record in subjects if ids is None or record.subject_id in ids]
        return paired_image_auroc(
            [candidate.scores.record(record.subject_id).image_score for record in chosen],
            [champion.scores.record(record.subject_id).image_score for record in chosen],
            [record.has_lesion for record in chosen],
            num=gates.num_resamples,
            seed=gates.seed,
            confidence=confidence,
        )
    first, second = (
        [
            histogram
            for record, histogram in zip(judged.records, judged.histograms, strict=True)
            if ids is None or record.subject_id in ids
        ]
        for judged in (candidate, champion)
    )
    return paired_bootstrap(first, second, figure, num=gates.num_resamples, seed=gates.seed, confidence=confidence)


def _subgroup(
    gate: SubgroupsGate,
    gates: Gates,
    candidate: Judged,
    champion: Judged | None,
    key: str,
    value: str,
    ids: Collection[str],
    subjects: Sequence[SubjectRecord],
) -> dict[str, Any]:
    counted = {
        record.subject_id: histogram
        for record, histogram in zip(candidate.records, candidate.histograms, strict=True)
        if record.subject_id in ids
    }
    anomalous = sum(record.has_lesion for record in subjects if record.subject_id in ids)
    by_image = gate.figure == "image_auroc"
    num_lesions = anomalous if by_image else sum(one.num_positives > 0 for one in counted.values())
    num_subjects = len(ids) if by_image else len(counted)
    detail: dict[str, Any] = {
        "key": key,
        "value": value,
        "figure": gate.figure,
        "num_subjects": num_subjects,
        "num_lesions": num_lesions,
    }
    if num_lesions < gate.min_lesions:
        return {**detail, "why_not": f"{num_lesions} of its subjects have a lesion, {gate.min_lesions} are asked for"}
    if by_image and len(ids) - anomalous < 2:
        return {**detail, "why_not": "fewer than two of its subjects are healthy"}
    if champion is None:
        return {**detail, "why_not": "there is no champion"}
    try:
        result = _compared(gate.figure, gate.confidence, gates, candidate, champion, subjects, ids)
    except CohortError as error:
        return {**detail, "why_not": str(error)}
    return {
        **detail,
        "candidate": result.a,
        "champion": result.b,
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "lower_bound": result.lower_bound,
        "passed": result.lower_bound > -gate.worse_by,
    }


def _groups(gate: SubgroupsGate, subjects: Sequence[SubjectRecord]) -> list[tuple[str, str, frozenset[str]]]:
    """Return key, value and subjects of each subgroup; a subject of which a label is not known is in none by it."""
    strangers = sorted(set(gate.bins) - set(gate.by))
    if strangers:
        raise SettingError(f"subgroups.bins: {unknown_setting(strangers[0], list(gate.by))}")
    known = sorted({key for record in subjects for key in _labels(record)})
    found: list[tuple[str, str, frozenset[str]]] = []
    for key in gate.by:
        if key not in known:
            raise SettingError(f"subgroups.by: no gate subject has '{key}'; {_known(key, known)}")
        members: dict[str, set[str]] = {}
        order: dict[str, float] = {}
        for record in subjects:
            value = _labels(record).get(key)
            if value is None:
                continue
            text, rank = _value(key, value, gate.bins.get(key))
            members.setdefault(text, set()).add(record.subject_id)
            order[text] = rank
        found.extend((key, text, frozenset(members[text])) for text in sorted(members, key=lambda t: (order[t], t)))
    return found


def _known(key: str, known: Sequence[str]) -> str:
    if not known:
        return "they have neither group, labels nor demographics"
    return unknown_setting(key, known).partition(": ")[2]


def _labels(record: SubjectRecord) -> dict[str, Any]:
    found: dict[str, Any] = {} if record.group is None else {"group": record.group}
    for kind, values in (("labels", record.labels), ("demographics", record.demographics)):
        found.update({f"{kind}.{name}": value for name, value in values.items() if value is not None})
    return found


def _value(key: str, value: Any, bounds: Sequence[float] | None) -> tuple[str, float]:
    if bounds is None:
        return (f"{value:g}" if isinstance(value, float) else str(value)), 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"subgroups.bins: {key} is {value!r} somewhere, which is no number: leave its bins out")
    place = int(np.searchsorted(bounds, value, side="right"))
    if place == 0:
        return f"below {bounds[0]:g}", 0.0
    if place == len(bounds):
        return f"from {bounds[-1]:g}", float(place)
    return f"{bounds[place - 1]:g} to below {bounds[place]:g}", float(place)
