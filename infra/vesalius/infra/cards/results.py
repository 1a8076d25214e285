"""Sections on how good it is: what was measured, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.infra.cards.document import Section, Table
from vesalius.infra.pages.overview import split_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.infra.cards.writing import CardSources
    from vesalius.platform.evaluation import Figures, VoxelSet

_NAMES = {
    "average_precision": "average precision",
    "auroc": "AUROC",
    "best_dice": "best Dice",
    "dice_mean": "Dice at threshold",
    "fpr_at_95_recall": "FPR at 95 % recall",
    "image_auroc": "image AUROC",
}
_MEANINGS = (
    ("average precision", "sum over recall steps of precision, all voxels of all subjects pooled"),
    ("AUROC", "area under the ROC curve of voxels, ties counting half"),
    ("best Dice", "best over all thresholds, chosen on the very voxels it is reported on: an upper bound"),
    ("Dice at threshold", "mean over subjects with a lesion, at the threshold below"),
    ("FPR at 95 % recall", "share of healthy voxels called anomalous where 95 % of lesion voxels are"),
    ("image AUROC", "of image scores against whether a subject is anomalous"),
    (
        "(low to high)",
        "95 % percentile interval of a bootstrap over subjects; none where fewer than two would carry it",
    ),
)


def metrics(sources: CardSources) -> Section:
    """What the figures mean, and at which thresholds they stand."""
    rows = tuple(
        (
            voxels,
            f"{one.value:g}",
            one.policy if one.quantile is None else f"{one.policy} {one.quantile:g}",
            one.split,
            str(one.min_component),
        )
        for voxels, one in sources.model.thresholds.items()
    )
    heads = ("voxels", "score at or above", "chosen by", "on", "smallest component")
    tables = [Table(title="Thresholds", heads=heads, rows=rows)] if rows else []
    sentences = (
        ()
        if rows
        else ("The model has no threshold: its scores can be ranked, and say by themselves neither yes nor no.",)
    )
    return Section(title="Metrics", sentences=sentences, facts=_MEANINGS, tables=tuple(tables))


def quantitative_analyses(sources: CardSources) -> Section:
    """Figures with their intervals, of splits and of subgroups, and what the gates said."""
    tables = []
    whole: dict[str, dict[str, Figures]] = {}
    for split in sorted(sources.figures, key=split_order):
        for voxels, one in _titled(sources.figures[split]):
            whole.setdefault(f"All subjects, {voxels}", {})[split] = one
    for subgroup in sources.subgroups:
        for voxels, one in _titled(subgroup.figures):
            whole.setdefault(f"{subgroup.split} by subgroup, {voxels}", {})[subgroup.name] = one
    tables += [_figures(title, rows) for title, rows in whole.items()]
    sentences = []
    if not sources.figures:
        sentences.append("Nothing was measured yet: `vesalius evaluate RUN` does that.")
    promotion = sources.promotion
    if promotion is not None:
        sentences.append(f"At the gate: {promotion.sentence}.")
        if promotion.verdicts:
            rows = tuple((verdict.gate, verdict.outcome, verdict.sentence) for verdict in promotion.verdicts)
            tables.append(Table(title="Gates", heads=("gate", "outcome", "why"), rows=rows))
        tables += _gate_subgroups(sources)
    return Section(title="Quantitative Analyses", sentences=tuple(sentences), tables=tuple(tables))


def _titled(figures: Mapping[VoxelSet, Figures]) -> list[tuple[str, Figures]]:
    names: dict[VoxelSet, str] = {"all": "all voxels", "brain": "voxels inside the brain"}
    return [(names[voxels], one) for voxels, one in figures.items()]


def _figures(title: str, rows: Mapping[str, Figures]) -> Table:
    heads = ("", "subjects", "with lesions", *_NAMES.values(), "s / volume")
    return Table(
        title=title,
        heads=heads,
        rows=tuple(
            (
                name,
                str(one.num_subjects),
                str(one.num_lesions),
                *(_number(one, key) for key in _NAMES),
                "-" if one.seconds_per_volume is None else f"{one.seconds_per_volume:.3g}",
            )
            for name, one in rows.items()
        ),
    )


def _number(figures: Figures, key: str) -> str:
    value = getattr(figures, key)
    if value is None:
        return "-"
    interval = figures.intervals.get(key)
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _gate_subgroups(sources: CardSources) -> list[Table]:
    promotion = sources.promotion
    verdict = next((one for one in promotion.verdicts if one.gate == "subgroups"), None) if promotion else None
    if verdict is None or not verdict.details:
        return []
    rows = []
    for one in verdict.details:
        if "lower_bound" in one:
            difference = f"{one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"
            rows.append(
                (
                    one["key"],
                    one["value"],
                    str(one["num_subjects"]),
                    f"{one['candidate']:.3f}",
                    f"{one['champion']:.3f}",
                    difference,
                )
            )
        else:
            rows.append((one["key"], one["value"], str(one["num_subjects"]), "-", "-", f"not judged: {one['why_not']}"))
    figure = _NAMES.get(str(verdict.details[0].get("figure")), "figure")
    heads = ("by", "subgroup", "subjects", f"{figure}, this model", f"{figure}, champion then", "difference")
    return [Table(title="Gate, by subgroup", heads=heads, rows=tuple(rows))]
