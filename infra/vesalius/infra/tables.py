"""Tables for people: settings, listings and figures. Each takes the very document that ``--json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo

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


def plain(**options: Any) -> Table:
    """Return an empty table in the house style: a rule under the head, no cage around the rest."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_justify="left", **options)


def heading(name: str, summary: str) -> Text:
    """Return a name and the sentence about it."""
    return Text.assemble((name, "bold cyan"), "  ", summary)


def plain_text(text: str) -> Text:
    """Return text as it stands: brackets are brackets, not markup."""
    return Text(text)


def listing(rows: Sequence[Mapping[str, Any]], head: str) -> Table:
    """Return names with their sentences; ``rows`` hold ``name`` and ``summary``."""
    table = plain()
    table.add_column(head, style="cyan", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(row["name"], row["summary"])
    return table


def describe_settings(values: BaseModel, prefix: str = "") -> list[dict[str, Any]]:
    """Return one row a leaf of some settings: key, value, description, source and search space."""
    rows: list[dict[str, Any]] = []
    for name, info in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            rows.extend(describe_settings(value, prefix=f"{prefix}{name}."))
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        rows.append(
            {
                "key": f"{prefix}{name}",
                "default": _jsonable(value),
                "type": _type_text(info),
                "description": info.description or "",
                "source": extra.get("source") or "",
                "space": extra.get("space"),
            }
        )
    return rows


def settings(rows: Sequence[Mapping[str, Any]], prefix: str) -> Table:
    """Return the rows of :func:`describe_settings` as a table; ``prefix`` is what ``--set`` wants before the key."""
    table = plain(title=f"settings  (--set {prefix}.KEY=VALUE)", title_style="dim")
    table.add_column("key", style="cyan", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("what it is", ratio=2)
    table.add_column("search space", style="dim")
    for row in rows:
        said = Text(row["description"])
        if row["source"]:
            said.append(f"  [{row['source']}]", style="dim")
        table.add_row(row["key"], _value_text(row["default"]), said, _space_text(row["space"]))
    return table


def paper_steps(steps: Sequence[Mapping[str, str]]) -> Table:
    """Return a paper's preprocessing, step by step: what it says and where, what is done here, where the two part."""
    table = plain(title="steps of the paper", title_style="dim")
    for head in ("the paper", "here", "where they part"):
        table.add_column(head, ratio=1)
    for step in steps:
        said = Text(step["paper"])
        said.append(f"  [{step['section']}]", style="dim")
        table.add_row(said, step["ours"], step["deviation"])
    return table


def presets(chosen: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return presets with what they change from the defaults."""
    table = plain(title="presets  (--preset NAME)", title_style="dim")
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("changes")
    for name, changes in chosen.items():
        said = ", ".join(f"{key}={_value_text(value)}" for key, value in changes.items())
        table.add_row(name, said or "nothing: the defaults are the paper's")
    return table


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


def promotion(document: Mapping[str, Any]) -> Table:
    """Return what the gate said: candidate, champion, and the difference that decides."""

    def number(key: str, sign: str = "") -> str:
        value = document.get(key)
        return "-" if value is None else f"{value:{sign}.4f}"

    rows: list[tuple[str, object]] = [
        ("gate", f"{document['num_subjects']} subjects, {document['num_lesions']} with lesions"),
        ("candidate", f"AP {number('average_precision')}  (version {document['version']} of {document['name']})"),
    ]
    if document.get("champion_version") is None:
        rows.append(("champion", "none until now"))
    else:
        rows.append(
            ("champion", f"AP {number('champion_average_precision')}  (version {document['champion_version']})")
        )
        if document.get("lower_bound") is not None:
            bound = f"above {number('lower_bound', '+')} with {document['confidence']:.0%} confidence"
            rows.append(("difference", f"{number('difference', '+')}, {bound}"))
    rows.append(("decision", "promoted" if document["promoted"] else "kept back"))
    return key_values(rows)


def gate(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return several promotions in their order: who challenged whom, and what came of it."""
    first = rows[0]
    title = f"gate: {first['num_subjects']} subjects, {first['num_lesions']} with lesions, {first['voxel_set']} voxels"
    table = plain(title=title, title_style="bold")
    table.add_column("challenger", style="cyan", no_wrap=True)
    for head in ("AP", "champion's AP", "difference", "at least (95 %)"):
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


def pairs(head: str, values: Mapping[str, str]) -> Table:
    """Return names with a sentence each."""
    table = plain()
    table.add_column(head, style="cyan", no_wrap=True)
    table.add_column("", overflow="fold")
    for key, value in values.items():
        table.add_row(key, value)
    return table


def key_values(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return two columns, keys dim and values plain."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs:
        table.add_row(key, str(value))
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


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _space_text(space: Mapping[str, Any] | None) -> str:
    if space is None:
        return ""
    if "values" in space:
        return " | ".join(_value_text(value) for value in space["values"])
    return f"{space['low']:g} to {space['high']:g}" + (", log" if space.get("log") else "")


def _type_text(info: FieldInfo) -> str:
    kind = info.annotation
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def exported(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return the files of an export, with their voxels."""
    table = plain(title=title, title_style="dim")
    table.add_column("subject", style="cyan", overflow="fold")
    table.add_column("volume")
    table.add_column("voxels", no_wrap=True)
    table.add_column("mm", no_wrap=True)
    table.add_column("type", style="dim")
    table.add_column("file", overflow="fold")
    for row in rows:
        channel = f" {row['channel']}" if row["channel"] else ""
        voxels = " x ".join(str(size) for size in row["shape"])
        spacing = " x ".join(f"{step:.3g}" for step in row["spacing_mm"])
        table.add_row(row["subject_id"], f"{row['what']}{channel}", voxels, spacing, row["dtype"], row["path"])
    return table


def findings(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what stands out, a line a finding."""
    table = plain(title="what stands out", title_style="bold")
    table.add_column("subject", style="cyan", overflow="fold")
    table.add_column("")
    table.add_column("why", overflow="fold")
    for row in rows:
        style = "bold red" if row["severity"] == "alarm" else "yellow"
        table.add_row(row["subject_id"], Text(row["severity"], style=style), Text(row["sentence"]))
    return table
