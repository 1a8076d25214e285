"""What became of a candidate, in figures and in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.registry.gates import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.evaluation import PairedResult


class Promotion(Settings):
    """What became of a candidate.

    Attributes:
        promoted: whether it is the champion now.
        dry_run: the gates were asked and nothing was written.
        passed: whether every gate let it through; a dry run says no more.
        name: of the registered model.
        version: that holds the candidate; empty in a dry run of a model that is not registered.
        champion_version: the champion it was compared with; None where there was none.
        run_id: the candidate's run.
        verdicts: of the gates, in the order of the gate file; none where it is the champion already.
        average_precision: the candidate's, on the gate; None where the gate holds no lesion.
        champion_average_precision: the champion's, on the same subjects.
        metric: the figure of the gate ``better``.
        difference: the candidate's improvement over the champion by that figure.
        lower_bound: what the difference exceeds with ``confidence``; above the gate's margin promotes.
        short_by: how much the lower bound lacks; 0 where it suffices.
        low: lower end of the two-sided interval of the difference.
        high: upper end of it.
        probability: share of resamples in which the candidate is the better.
        confidence: of the bound and the interval; None where the gate ``better`` is not asked.
        voxel_set: voxels that counted.
        num_subjects: gate subjects that counted.
        num_lesions: those with a lesion.
        test_figures: the candidate's on the test split, as given; nothing is chosen by them.
        champion_test_figures: the champion's, as given when it was promoted.
        by: who asked.
        why: in their words.
        record: number of its entry in the log of promotions; None where nothing was recorded.
        sentence: for the person who asked.
    """

    promoted: bool
    dry_run: bool = False
    passed: bool
    name: str
    version: str
    champion_version: str | None = None
    run_id: str = ""
    verdicts: tuple[Verdict, ...] = ()
    average_precision: float | None = None
    champion_average_precision: float | None = None
    metric: str = "average_precision"
    difference: float | None = None
    lower_bound: float | None = None
    short_by: float = 0.0
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    confidence: float | None = None
    voxel_set: str
    num_subjects: int
    num_lesions: int
    test_figures: dict[str, Any] = Field(default_factory=dict)
    champion_test_figures: dict[str, Any] = Field(default_factory=dict)
    by: str = ""
    why: str = ""
    record: int | None = None
    sentence: str


_NOT_OF_THE_GATE = frozenset(
    {"test_figures", "champion_test_figures", "sentence", "verdicts", "by", "why", "record", "dry_run"}
)


def gate_figures(promotion: Promotion) -> dict[str, Any]:
    """Return what a version is tagged with: the figures that decided."""
    return promotion.model_dump(mode="json", exclude=set(_NOT_OF_THE_GATE))


def compared(result: PairedResult | None, margin: float) -> dict[str, Any]:
    """Return the fields of a promotion that say how candidate and champion compare."""
    if result is None:
        return {}
    return {
        "metric": result.metric,
        "difference": result.difference,
        "lower_bound": result.lower_bound,
        "short_by": max(0.0, margin - result.lower_bound),
        "low": result.low,
        "high": result.high,
        "probability": result.probability,
    }


def sentence_of(facts: Mapping[str, Any], verdicts: Sequence[Verdict], *, dry_run: bool) -> str:
    """Return the one sentence that sums a decision up.

    Args:
        facts: name, version, champion_version and average_precision of the promotion.
        verdicts: of the gates.
        dry_run: nothing will be written.
    """
    name, version, champion = facts["name"], facts["version"], facts["champion_version"]
    who = f"version {version} of '{name}'" if version else f"the model of run '{facts['run_id']}'"
    failing = [verdict for verdict in verdicts if not verdict.passes]
    if len(failing) == 1 and failing[0].gate == "better" and failing[0].outcome == "failed":
        return f"{who} {'falls' if dry_run else 'fell'} {failing[0].sentence.removeprefix('fell ')}"
    if failing:
        told = "; ".join(f"{verdict.gate}: {verdict.sentence}" for verdict in failing)
        keep = "would be kept back" if dry_run else "is kept back"
        return f"{who} {keep} by {len(failing)} of {len(verdicts)} gates: {told}"
    beaten = next((verdict.sentence for verdict in verdicts if verdict.gate == "better"), "")
    if champion is None:
        precision = facts["average_precision"]
        on_gate = "" if precision is None else f" (average precision {precision:.4f} on the gate)"
        if dry_run:
            return f"{who} would be the first champion of '{name}'{on_gate}"
        return f"version {version} is the first champion of '{name}'{on_gate}"
    gates = beaten or f"it passed {', '.join(verdict.gate for verdict in verdicts)}"
    if dry_run:
        return f"{who} would be the new champion of '{name}': {gates}"
    return f"version {version} is the new champion of '{name}': {gates}"
