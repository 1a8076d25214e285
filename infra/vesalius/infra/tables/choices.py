"""What can be chosen: settings with their search spaces, presets, the steps of a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.text import Text

from vesalius.infra.tables.frames import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic.fields import FieldInfo
    from rich.table import Table


def describe_settings(values: BaseModel, prefix: str = "") -> list[dict[str, Any]]:
    """Return one row a leaf of some settings: key, value, description, source, search spaces and who reads it first."""
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
                "inference_space": extra.get("inference_space"),
                "since": extra.get("since") or getattr(type(values), "since", None),
                "mutable": bool(extra.get("mutable")),
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
        if row["mutable"]:
            said.append("  may change in mid-training", style="dim")
        table.add_row(row["key"], _value_text(row["default"]), said, _space_text(row["space"], row["inference_space"]))
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


def deviations(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return where a method parts from its paper, and why."""
    table = plain(title="where it parts from the paper", title_style="dim")
    for head in ("the paper", "here", "why"):
        table.add_column(head, ratio=1)
    for row in rows:
        table.add_row(row["paper"], row["here"], row["why"])
    return table


def memory(document: Mapping[str, Any]) -> Table:
    """Return what training takes, stage by stage: a document of :class:`vesalius.infra.footprint.Footprint`."""
    grid = " x ".join(str(edge) for edge in document["grid"])
    held = f"{document['num_parameters']:,} parameters; with buffers {mib(document['parameter_bytes'])}"
    title = f"memory of training on {grid} voxels, float32  ({held})"
    table = plain(title=title, title_style="dim")
    table.add_column("stage", style="cyan", no_wrap=True)
    for head in ("batch", "gradients", "optimiser", "kept for backward"):
        table.add_column(head, justify="right")
    for row in document["stages"]:
        numbers = [mib(row[f"{key}_bytes"]) for key in ("gradient", "optimizer", "activation")]
        table.add_row(row["stage"], str(row["batch_size"]), *numbers)
    table.caption = (
        f"together {mib(document['peak_bytes'])} at most; measured on one and two groups of a batch's items on the CPU."
        " Not in it: temporary tensors, workspaces of libraries, cached volumes, scoring"
    )
    table.caption_justify = "left"
    return table


def mib(num_bytes: int) -> str:
    """Return bytes in MiB or GiB, three figures."""
    value = num_bytes / 2**20
    return f"{value:.3g} MiB" if value < 1000 else f"{value / 1024:.3g} GiB"


def presets(chosen: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return presets with what they change from the defaults."""
    table = plain(title="presets  (--preset NAME)", title_style="dim")
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("changes")
    for name, changes in chosen.items():
        said = ", ".join(f"{key}={_value_text(value)}" for key, value in changes.items())
        table.add_row(name, said or "nothing: the defaults are the paper's")
    return table


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _space_text(space: Mapping[str, Any] | None, inference: Mapping[str, Any] | None = None) -> str:
    if space is None:
        return f"{_space_text(inference)} (of a finished run)" if inference else ""
    if "values" in space:
        return " | ".join(_value_text(value) for value in space["values"])
    return f"{space['low']:g} to {space['high']:g}" + (", log" if space.get("log") else "")


def _type_text(info: FieldInfo) -> str:
    kind = info.annotation
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
