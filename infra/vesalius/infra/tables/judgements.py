"""How good a method is: figures, image scores, and what the gate said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vesalius.infra.tables.frames import key_values, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


_HEADS = {
    "best_dice": "best Dice",
    "average_precision": "AP",
    "auroc": "AUROC",
    "fpr_at_95_recall": "FPR at 95 %",
    "image_auroc": "image AUROC",
    "seconds_per_volume": "s / volume",
}
_FIGURE_WIDTHS = {"dice": len("0.000 ± 0.000")}
_LOWER_IS_BETTER = {"fpr_at_95_recall", "seconds_per_volume"}


def figures(rows: Sequence[Mapping[str, Any]], title: str, *, with_runs: bool = False) -> Table:
    """Return the figures of several runs on one voxel set, the best of each column in bold.

    Args:
        rows: documents with the nine keys of :data:`vesalius.platform.evaluation.FIGURE_KEYS`; None stands for a
            figure that is not defined.
        title: says the split and the voxels.
        with_runs: name the run beside the method.
    """
    table = plain(title=title, title_style="bold")
    table.add_column("method", style="cyan", overflow="fold")
    columns = [
        "best_dice",
        "dice",
        "average_precision",
        "auroc",
        "fpr_at_95_recall",
        "image_auroc",
        "seconds_per_volume",
    ]
    for key in columns:
        # Names may be folded where the room is narrow, figures never: a cut figure is a wrong one.
        head = "Dice at threshold" if key == "dice" else _HEADS[key]
        table.add_column(head, justify="right", min_width=_FIGURE_WIDTHS.get(key, 6))
    if with_runs:
        table.add_column("run", style="dim", overflow="fold")
    for row in rows:
        cells = []
        for key in columns:
            field = "dice_mean" if key == "dice" else key
            text = _dice_text(row) if key == "dice" else _number(row.get(field), key)
            best = len(rows) > 1 and _is_best(row, rows, field)
            cells.append(Text(text, style="bold green" if best else ""))
        table.add_row(str(row["method"]), *cells, *([str(row["run"])] if with_runs else []))
    return table


def figures_title(row: Mapping[str, Any]) -> str:
    """Return what a table of figures is over, from one of its rows."""
    voxels = {"all": "all voxels", "brain": "voxels inside the brain"}[row["voxel_set"]]
    return f"{row['split']}: {voxels}, {row['num_subjects']} subjects, {row['num_lesions']} with lesions"


def image_scores(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return one line a scored subject, the most anomalous first."""
    table = plain(title=title, title_style="bold")
    table.add_column("subject", style="cyan", no_wrap=True)
    table.add_column("image score", justify="right")
    table.add_column("known lesion")
    table.add_column("s / volume", justify="right")
    for row in sorted(rows, key=lambda row: -row["image_score"]):
        known = "yes" if row["has_lesion"] else ""
        table.add_row(row["subject_id"], f"{row['image_score']:.5g}", known, f"{row['seconds']:.2f}")
    return table


def readers(document: Mapping[str, Any], title: str) -> Table:
    """Return how far readers agree, a line a finding; a dash where their votes leave a figure undefined."""
    table = plain(title=title, title_style="bold")
    table.add_column("finding", style="cyan", no_wrap=True)
    for head in ("majority", "kappa", *document["readers"], "mean"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in document["findings"]:
        values = [row["kappa"], *row["auroc"], row["mean_auroc"]]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        table.add_row(row["finding"], str(row["num_anomalous"]), *cells)
    return table


def promotion(document: Mapping[str, Any]) -> Table:
    """Return what the gate said: candidate, champion, and the difference that decides."""

    def number(key: str, sign: str = "") -> str:
        value = document.get(key)
        return "-" if value is None else f"{value:{sign}.4f}"

    candidate = f"version {document['version']}" if document["version"] else "not registered, for the name"
    rows: list[tuple[str, object]] = [
        ("gate", f"{document['num_subjects']} subjects, {document['num_lesions']} with lesions"),
        ("candidate", f"AP {number('average_precision')}  ({candidate} of {document['name']})"),
    ]
    if document.get("champion_version") is None:
        rows.append(("champion", "none until now"))
    else:
        rows.append(
            ("champion", f"AP {number('champion_average_precision')}  (version {document['champion_version']})")
        )
        if document.get("lower_bound") is not None:
            bound = f"above {number('lower_bound', '+')} with {document['confidence']:.0%} confidence"
            metric = document.get("metric", "average_precision")
            of = "" if metric == "average_precision" else f" of {metric}"
            rows.append((f"difference{of}", f"{number('difference', '+')}, {bound}"))
    decision = "promoted" if document["promoted"] else "kept back"
    if document.get("dry_run"):
        decision = f"dry run: would be {'promoted' if document['passed'] else 'kept back'}"
    rows.append(("decision", decision))
    return key_values(rows)


def gate(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return several promotions in their order: who challenged whom, and what came of it."""
    first = rows[0]
    title = f"gate: {first['num_subjects']} subjects, {first['num_lesions']} with lesions, {first['voxel_set']} voxels"
    table = plain(title=title, title_style="bold")
    table.add_column("challenger", style="cyan", no_wrap=True)
    for head in ("AP", "champion's AP", "difference", f"at least ({first['confidence']:.0%})"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    for row in rows:
        numbers = [
            "-" if row.get(key) is None else f"{row[key]:{form}}"
            for key, form in (
                ("average_precision", ".3f"),
                ("champion_average_precision", ".3f"),
                ("difference", "+.3f"),
                ("lower_bound", "+.3f"),
            )
        ]
        decision = Text("promoted", style="bold green") if row["promoted"] else Text("kept back", style="yellow")
        if row["promoted"] and row.get("champion_version") is None:
            decision.append("  (the first)", style="dim")
        table.add_row(row["method"], *numbers, decision)
    return table


def _is_best(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], field: str) -> bool:
    values = [other[field] for other in rows if other.get(field) is not None]
    if row.get(field) is None or len(set(values)) < 2:
        return False  # nothing stands out where all are the same
    return bool(row[field] == (min(values) if field in _LOWER_IS_BETTER else max(values)))


def _dice_text(row: Mapping[str, Any]) -> str:
    if row.get("dice_mean") is None:
        return "-"
    spread = row.get("dice_std")
    return f"{row['dice_mean']:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if key == "seconds_per_volume" else f"{value:.4f}" if "fpr" in key else f"{value:.3f}"
