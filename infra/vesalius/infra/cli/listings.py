"""``vesalius methods`` and ``vesalius datasets``: what there is, and what can be set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import JsonOption, absolute
from vesalius.infra.console import Terminal


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A method, to see its settings.", show_default=False)
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="D,H,W",
            help="Voxels that training's memory is computed for (default: 64,64,64); large ones take time and memory.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods, or with NAME one method's settings, presets, deviations and memory.

    Settings come with their paper's section and search space. Memory is that of the paper's settings in training, on
    volumes of one modality: counted for weights and optimisers, measured on made-up data for what autograd keeps.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.methods import METHODS
        from vesalius.platform.errors import SettingError
        from vesalius.platform.tables import lookup

        if name is None:
            if grid is not None:
                raise SettingError("--grid goes with the name of a method, as in `vesalius methods implicit_field`")
            rows = [{"name": key, "summary": entry.summary} for key, entry in METHODS.items()]
            terminal.result(
                {"methods": rows}, tables.listing(rows, "Method"), "One method's settings: vesalius methods NAME"
            )
            return
        kind = lookup(METHODS, name, "method")
        voxels = _edges(grid)
        document = {"name": name, "summary": METHODS[name].summary, **describe_method(kind)}
        with terminal.progress("memory of training") as progress:
            progress(0, 1, "a step of the paper's settings; a minute for the largest")
            document["memory"] = describe_memory(kind, voxels)
            progress(1, 1, "")
        shown: list[Any] = [tables.deviations(document["deviations"])] if document["deviations"] else []
        if document["memory"] is not None:
            shown.append(tables.memory(document["memory"]))
        terminal.result(
            document,
            tables.heading(name, document["summary"]),
            tables.settings(document["settings"], "method"),
            tables.presets(document["presets"]),
            *shown,
        )


def _edges(grid: str | None) -> tuple[int, int, int] | None:
    """Return the voxels that --grid asks for.

    Raises:
        SettingError: not three whole numbers from 1 to 2048.
    """
    from vesalius.platform.errors import SettingError

    if grid is None:
        return None
    parts = grid.replace("x", ",").split(",")
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in parts]
    if len(numbers) != 3 or not all(1 <= number <= 2048 for number in numbers):
        raise SettingError(f"--grid is '{grid}': expected three numbers of voxels, such as 160,160,160")
    return (numbers[0], numbers[1], numbers[2])


def describe_memory(kind: Any, grid: tuple[int, int, int] | None) -> dict[str, Any] | None:
    """Return what training with the paper's settings takes, or None where the default grid does not fit the method.

    Raises:
        SettingError: the grid that was asked for does not fit.
    """
    from vesalius.infra.footprint import DEFAULT_GRID, footprint
    from vesalius.platform.errors import InputError

    try:
        return footprint(kind, kind.settings_type(), grid or DEFAULT_GRID).model_dump(mode="json")
    except InputError:
        if grid is not None:
            raise
        return None


def describe_method(kind: Any) -> dict[str, Any]:
    """Return the settings (default, description, source, space, choices), presets and deviations of a method class."""
    from dataclasses import asdict

    from vesalius.infra.tables import describe_settings
    from vesalius.platform.config import flatten

    default = flatten(kind.settings_type())
    presets = {}
    for preset, chosen in kind.presets().items():
        flat = flatten(chosen)
        presets[preset] = {key: value for key, value in flat.items() if value != default.get(key)}
    return {
        "settings": describe_settings(kind.settings_type()),
        "presets": presets,
        "deviations": [asdict(one) for one in kind.deviations],
    }


def datasets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A layout or a recipe, to see more of it.", show_default=False),
    ] = None,
    reads: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With cq500: its reads.csv, to see how far the readers agree on each finding.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the folder layouts and the recipes, or with NAME one of them.

    With --reads, Fleiss' kappa of each finding and the AUROC of each reader against the majority (Bieder et al. 2022,
    table 3).
    """
    with Terminal(as_json) as terminal:
        from vesalius.datasets import LAYOUTS
        from vesalius.datasets.recipes import RECIPES
        from vesalius.infra import tables
        from vesalius.infra.cli.options import one_of
        from vesalius.platform.errors import SettingError

        if reads is not None:
            if name != "cq500":
                raise SettingError("--reads goes with cq500, as in `vesalius datasets cq500 --reads reads.csv`")
            _show_readers(terminal, absolute(reads))
        elif name is None:
            layouts = [{"name": key, "summary": entry.summary} for key, entry in LAYOUTS.items()]
            recipes = [{"name": key, "summary": entry.summary} for key, entry in RECIPES.items()]
            terminal.result(
                {"layouts": layouts, "recipes": recipes},
                tables.listing(layouts, "Layout"),
                tables.listing(recipes, "Recipe"),
                "More of one: vesalius datasets NAME",
            )
        elif one_of(name, [*LAYOUTS, *RECIPES], "layout or recipe") in LAYOUTS:
            _show_layout(terminal, name)
        else:
            _show_recipe(terminal, name)


def _show_readers(terminal: Terminal, path: Path) -> None:
    from vesalius.datasets.layouts.cq500 import READERS, read_reads
    from vesalius.infra import tables
    from vesalius.platform.evaluation import agreement

    reads = read_reads(path)
    findings = [one.model_dump(mode="json") for one in agreement(reads.votes, reads.findings)]
    document = {"file": str(path), "num_scans": len(reads.names), "readers": list(READERS), "findings": findings}
    terminal.result(
        document,
        tables.readers(document, f"{len(reads.names)} scans, {len(READERS)} readers"),
        "kappa: Fleiss 1971. R1 to R3: AUROC of a reader's votes against the majority, the reader's own vote included.",
    )


def _show_layout(terminal: Terminal, name: str) -> None:
    from vesalius.datasets import LAYOUTS
    from vesalius.infra import tables

    document = {"name": name, "kind": "layout", "summary": LAYOUTS[name].summary, **describe_layout(name)}
    recipe = document["default_recipe"]
    labels = [{"name": key, "summary": text} for key, text in document["labels"].items()]
    if document["own_labels"]:
        labels.append({"name": "...", "summary": "what columns label:<name> say"})
    facts: list[tuple[str, object]] = [
        ("from", document["source"]),
        ("terms", document["terms"]),
        ("lesion mask", document["lesion_mask"] or "none"),
        ("recipe", f"{recipe}   (more: vesalius datasets {recipe})"),
        ("command", f"vesalius ingest {name} ROOT STORE"),
    ]
    terminal.result(
        document,
        tables.heading(name, LAYOUTS[name].summary),
        "",
        tables.plain_text(document["tree"]),
        "",
        tables.key_values(facts),
        *([tables.listing(labels, "Label")] if labels else []),
        "",
        tables.plain_text(document["description"]),
    )


def describe_layout(name: str) -> dict[str, Any]:
    """Return what a person should know of a layout before the first download, and what it gives."""
    import inspect

    from vesalius.datasets import LAYOUTS
    from vesalius.platform.tables import lookup, resolve

    kind = lookup(LAYOUTS, name, "layout")
    about = kind.about
    return {
        "default_recipe": kind.default_recipe,
        "tree": about.tree,
        "source": about.source,
        "terms": about.terms,
        "labels": dict(about.labels),
        "own_labels": about.own_labels,
        "lesion_mask": about.lesion_mask,
        "description": inspect.cleandoc(resolve(f"{kind.__module__}:__doc__") or ""),
    }


def _show_recipe(terminal: Terminal, name: str) -> None:
    import inspect
    from dataclasses import asdict

    from vesalius.datasets.recipes import RECIPES, recipe_named, steps_of
    from vesalius.infra import tables
    from vesalius.platform.tables import resolve

    rows = tables.describe_settings(recipe_named(name))
    steps = [asdict(step) for step in steps_of(name)]
    module = resolve(RECIPES[name].path).__module__
    description = inspect.cleandoc(resolve(f"{module}:__doc__") or "")
    document = {
        "name": name,
        "kind": "recipe",
        "summary": RECIPES[name].summary,
        "description": description,
        "steps": steps,
        "settings": rows,
    }
    shown: list[Any] = [tables.plain_text(description), tables.paper_steps(steps)] if steps else []
    terminal.result(document, tables.heading(name, RECIPES[name].summary), *shown, tables.settings(rows, "recipe"))
