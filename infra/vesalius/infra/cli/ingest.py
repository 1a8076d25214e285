"""``vesalius ingest``: from files in a known layout to a cohort store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import JsonOption, SetOption, absolute, changes, place
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.datasets.ingest import IngestReport
    from vesalius.datasets.recipes import Recipe
    from vesalius.datasets.splits import SplitSettings

Share = Annotated[float | None, typer.Option(min=0, help="Share of subjects drawn into this split.")]


def ingest(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help="See `vesalius datasets`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder or file that the layout reads.")],
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="The store to make or add to: a folder or a URL, as s3://BUCKET/NAME."),
    ],
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help="Image to take, such as T1w; several make channels.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How to prepare volumes (default: what suits the layout)", show_default=False)
    ] = None,
    assignments: SetOption = None,
    train: Share = None,
    validation: Share = None,
    gate: Share = None,
    test: Share = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks at once; 0 works in this process.")] = 0,
    allow_anomalous_training: Annotated[
        bool,
        typer.Option(
            "--allow-anomalous-training",
            help="Subjects with lesions that are given the training split are taken into it and trained on.",
        ),
    ] = False,
    within: Annotated[
        Path | None,
        typer.Option(
            help="Folder that every file must lie in, with links followed (default: ROOT, or the folder of ROOT).",
            show_default=False,
        ),
    ] = None,
    montage: Annotated[Path | None, typer.Option(help="Draw every subject on one PNG, to look at.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare the volumes that LAYOUT finds in ROOT and write them to STORE.

    Settings are `recipe.KEY` (see `vesalius datasets`) and `splits.KEY` (train, validation, gate, test, seed).
    A second ingest adds what is new and changes nothing else. A subject that cannot be taken in does not stop the
    others: it is named at the end, with the reason, and the exit code is 2.
    """
    with Terminal(as_json) as terminal:
        from vesalius.datasets.ingest import ingest as take_in

        shares = {"train": train, "validation": validation, "gate": gate, "test": test}
        chosen, splits = choose_settings(layout, recipe, assignments or [], shares)
        with terminal.progress("ingest") as progress:
            report = take_in(
                layout,
                absolute(root),
                place(store),
                recipe=chosen,
                modalities=modality or (),
                splits=splits,
                num_workers=workers,
                allow_anomalous_training=allow_anomalous_training,
                within=None if within is None else absolute(within),
                progress=progress,
            )
        document: dict[str, Any] = report.model_dump(mode="json")
        if montage is not None and (report.added or report.unchanged):
            from vesalius.infra.pictures import draw_store_montage

            document["montage"] = str(draw_store_montage(place(store), absolute(montage)))
        for subject, warnings in report.warnings.items():
            for warning in warnings:
                terminal.warn(f"{subject}: {warning}")
        terminal.result(document, *_say(report, document.get("montage")))
        report.raise_for_failures()


def choose_settings(
    layout: str, recipe: str | None, assignments: list[str], shares: dict[str, float | None]
) -> tuple["Recipe", "SplitSettings"]:
    """Return the recipe and the splits: named ones, changed by ``recipe.*`` and ``splits.*`` assignments.

    Raises:
        SettingError: an unknown layout, recipe or key (with the nearest known one), or a value that does not fit.
    """
    from pydantic import create_model

    from vesalius.datasets import LAYOUTS
    from vesalius.datasets.recipes import Recipe, recipe_named
    from vesalius.datasets.splits import SplitSettings
    from vesalius.platform.config import Settings, override
    from vesalius.platform.tables import lookup

    kind = lookup(LAYOUTS, layout, "layout")
    start = recipe_named(recipe or kind.default_recipe)
    combined = create_model(
        "IngestSettings", __base__=Settings, recipe=(Recipe, start), splits=(SplitSettings, SplitSettings())
    )
    values = changes(assignments, {f"splits.{split}": share for split, share in shares.items()})
    chosen = override(combined(), values)
    return getattr(chosen, "recipe"), getattr(chosen, "splits")  # noqa: B009 - fields made above


def _say(report: "IngestReport", montage: str | None) -> list[Any]:
    from vesalius.infra import tables

    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items() if count)
    rows: list[tuple[str, object]] = [
        ("store", report.store),
        ("added", len(report.added)),
        ("unchanged", len(report.unchanged)),
        ("failed", len(report.failed)),
        ("splits", splits or "none"),
        ("channels", ", ".join(report.channels)),
        ("digest", report.digest),
        ("seconds", f"{report.seconds:.1f}"),
    ]
    if montage is not None:
        rows.append(("montage", montage))
    shown: list[Any] = [tables.key_values(rows)]
    if report.failed:
        shown.append(tables.pairs("not taken in", report.failed))
    return shown
