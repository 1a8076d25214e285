"""The candidate alone: its false positives, its speed, its lineage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.config import digest
from vesalius.platform.evaluation import VoxelSet, drop_small_components, subject_voxels
from vesalius.platform.registry.gates.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.evaluation import Threshold
    from vesalius.platform.models import ModelCard
    from vesalius.platform.registry.gates.evidence import Evidence, Lineage
    from vesalius.platform.registry.gates.settings import FalsePositivesGate, LineageGate, SecondsGate
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord

_MM3_PER_ML = 1000.0


def false_positives(gate: FalsePositivesGate, voxel_set: VoxelSet, evidence: Evidence) -> Verdict:
    """Answer whether the candidate calls little anomalous in healthy subjects."""
    unit = "ml" if gate.measure == "ml" else ""
    facts: dict[str, Any] = {"gate": "false_positives", "limit": gate.limit, "unit": unit}
    threshold = evidence.candidate.card.thresholds.get(voxel_set)
    if threshold is None:
        sentence = (
            f"the model has no threshold for the voxel set '{voxel_set}': fit one with `vesalius evaluate RUN`, or set "
            "voxel_set in the gate file"
        )
        return Verdict(outcome="cannot be evaluated", sentence=sentence, **facts)
    healthy = [record for record in evidence.candidate.records if not record.has_lesion]
    details = tuple(
        {"subject": record.subject_id, **flagged(evidence.candidate.scores, evidence.store, record, threshold)}
        for record in healthy
    )
    facts |= {"num_subjects": len(healthy), "details": details}
    if len(healthy) < gate.min_subjects:
        sentence = (
            f"the gate holds {len(healthy)} healthy subjects and {gate.min_subjects} are asked for: add some, or leave "
            "false_positives out of the gate file"
        )
        return Verdict(outcome="cannot be evaluated", sentence=sentence, **facts)
    values = [float(detail[gate.measure]) for detail in details]
    mean, bound = upper_bound_of_mean(values, gate.confidence)
    passed = bound <= gate.limit
    called, below, asked = (_shown(value, gate.measure) for value in (mean, bound, gate.limit))
    sentence = (
        f"{called} of a healthy subject is called anomalous at the model's threshold, mean of {len(healthy)} subjects; "
        f"below {below} with {gate.confidence:.0%} confidence, asked is at most {asked}"
    )
    return Verdict(outcome="passed" if passed else "failed", figure=mean, bound=bound, sentence=sentence, **facts)


def _shown(value: float, measure: str) -> str:
    return f"{value:.3g} ml" if measure == "ml" else f"{value:.3%}"


def flagged(
    scores: ScoreStore, store: CohortStore, record: SubjectRecord, threshold: Threshold
) -> dict[str, float | int]:
    """Count what a threshold calls anomalous in a subject: voxels, their share of the voxel set, and millilitres."""
    voxels = subject_voxels(scores, store, record, (threshold.voxel_set,))
    if voxels is None:
        raise ValueError(f"{record.subject_id} has no voxels to count")  # callers ask for healthy subjects
    found = voxels.score_map >= threshold.value
    inside = voxels.inside[threshold.voxel_set]
    num = found.size if inside is None else int(inside.sum())
    if inside is not None:
        found &= inside
    found = drop_small_components(found, threshold.min_component)
    count = int(found.sum())
    return {
        "voxels": count,
        "share": count / num if num else 0.0,
        "ml": count * math.prod(record.spacing_mm) / _MM3_PER_ML,
    }


def upper_bound_of_mean(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the mean of two or more values and its one-sided upper bound by Student's distribution.

    Not by the bootstrap: of three or four subjects its bounds are too narrow, as resamples hold no value that was not
    seen.
    """
    from scipy import stats  # half a second of every verb that judges nothing

    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(array.size)
    return float(array.mean()), float(array.mean() + stats.t.ppf(confidence, array.size - 1) * error)


def seconds(gate: SecondsGate, evidence: Evidence) -> Verdict:
    """Answer whether the candidate is fast enough; measured now."""
    timing = evidence.timed(gate.volumes)
    facts: dict[str, Any] = {
        "gate": "seconds",
        "limit": gate.limit,
        "unit": "s",
        "num_subjects": len(timing.seconds),
        "details": ({"device": timing.device, "seconds": list(timing.seconds)},),
    }
    median = float(np.median(timing.seconds))
    if gate.device is not None and gate.device != timing.kind:
        sentence = (
            f"the limit is of {gate.device} and this is {timing.device} ({median:.3g} s): promote with --device "
            f"{gate.device}, where there is one"
        )
        return Verdict(outcome="cannot be evaluated", figure=median, sentence=sentence, **facts)
    sentence = (
        f"{median:.3g} s a volume on {timing.device}, median of {len(timing.seconds)} scored one by one; asked is at "
        f"most {gate.limit:g} s"
    )
    return Verdict(outcome="passed" if median <= gate.limit else "failed", figure=median, sentence=sentence, **facts)


def lineage(gate: LineageGate, voxel_set: VoxelSet, evidence: Evidence) -> Verdict:
    """Answer whether it is on record where the candidate comes from."""
    known = lineage_items(evidence.candidate.card, evidence.lineage, voxel_set)
    details = tuple({"item": item, "value": known[item][0], "missing": known[item][1]} for item in gate.required)
    missing = [f"{detail['item']} ({detail['missing']})" for detail in details if detail["missing"]]
    sentence = f"missing: {'; '.join(missing)}" if missing else f"{len(details)} of {len(details)} items are on record"
    return Verdict(
        gate="lineage",
        outcome="failed" if missing else "passed",
        figure=float(len(details) - len(missing)),
        limit=float(len(details)),
        unit="items",
        sentence=sentence,
        details=details,
    )


def lineage_items(card: ModelCard, known: Lineage, voxel_set: VoxelSet) -> dict[str, tuple[str, str]]:
    """Return by item its value, and what is wrong where there is none."""

    def item(value: str, missing: str) -> tuple[str, str]:
        return (value, "" if value else missing)

    if known.parent is None:
        parent = ("", "nobody says whether the run started from another one")
    elif not known.parent:
        parent = ("none: trained from the start", "")
    else:
        gone = f"{known.parent} cannot be read any more"
        parent = (known.parent, "" if known.parent_digest else gone)
    threshold = card.thresholds.get(voxel_set)
    return {
        "cohort_digest": item(card.cohort.digest, "the model does not say what it was trained on"),
        "recipe_digest": item(digest(card.recipe) if card.recipe else "", "the model holds no recipe"),
        "settings": item(digest(card.settings) if card.settings else "", "the model holds no settings"),
        "weights": item(card.weights_sha256, "the model does not name its weights"),
        "code_version": item(card.vesalius_version, "the model does not say which version of Vesalius trained it"),
        "run_id": item(card.run_id, "the model names no run"),
        "thresholds": item(
            "" if threshold is None else f"{threshold.value:g}", f"no threshold for the voxel set '{voxel_set}'"
        ),
        "parent": parent,
    }
