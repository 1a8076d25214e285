"""``vesalius evaluate``: figures of one or several runs, side by side."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vesalius.infra.cli.options import DeviceOption, HomeOption, JsonOption, VoxelsOption, absolute, home_folder, place
from vesalius.infra.console import Terminal


def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs.")],
    split: Annotated[str, typer.Option(help="Split to report.")] = "test",
    voxels: VoxelsOption = "both",
    policy: Annotated[
        Literal["auto", "best_dice", "quantile"],
        typer.Option(help="How the threshold is chosen; auto: best_dice where its split has lesions."),
    ] = "auto",
    quantile: Annotated[
        float | None,
        typer.Option(help="Of --policy quantile: share of healthy voxels below the threshold (default: 0.98)"),
    ] = None,
    threshold_split: Annotated[
        Literal["train", "validation"], typer.Option(help="Split that the threshold is chosen on.")
    ] = "validation",
    min_component: Annotated[
        int,
        typer.Option(
            min=1,
            help="Drop components of fewer voxels from what is found, for Dice; 26 neighbours touch.",
            metavar="N",
        ),
    ] = 1,
    store: Annotated[str | None, typer.Option(help="Another store of the same grid (default: each run's own)")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw subjects, restorations and maps on this PNG.")] = None,
    histogram: Annotated[
        Path | None,
        typer.Option(help="Draw the scores of healthy against lesion voxels on this PNG, of the brain or of --voxels."),
    ] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a split with finished runs and print their figures side by side.

    The threshold is chosen on the validation split (or that of --threshold-split) and kept with the model, with
    --min-component; on that of another --store for this evaluation alone, and where that store has none, the model's
    own is taken. A store that holds images the model was trained on outside its training split is refused. Figures are
    also written to the run's folder and MLflow, under the same keys. best_dice is an upper bound: its threshold is the
    best one for the very voxels it is reported on.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import pipeline, tables
        from vesalius.infra.cli.options import one_of
        from vesalius.platform.config import validate
        from vesalius.platform.runs import find_run
        from vesalius.platform.store import CohortStore

        one_of(split, ["train", "validation", "gate", "test"], "split")
        rule = validate(
            pipeline.ThresholdRule,
            {"policy": policy, "quantile": quantile, "split": threshold_split, "min_component": min_component},
            "threshold",
        )
        folder = home_folder(home)
        found = [find_run(folder, name) for name in dict.fromkeys(runs)]
        for run in found:
            pipeline.require_model(run)
        other = CohortStore.open(place(store)) if store else None
        rows: list[dict[str, Any]] = []
        judged = []
        for run in found:
            with terminal.progress(run.run_id) as progress:
                figures = pipeline.evaluate_run(run, split, store=other, rule=rule, device=device, progress=progress)
            judged.append((run, figures))
            rows.extend({"run": run.run_id, **one.model_dump(mode="json")} for one in figures.values())
        sets = ["all", "brain"] if voxels == "both" else [voxels]
        rows = [row for row in rows if row["voxel_set"] in sets]
        document: dict[str, Any] = {"split": split, "figures": rows}
        if picture is not None:
            from vesalius.infra.pictures import draw_runs

            document["picture"] = str(draw_runs(judged, split, absolute(picture), store=other))
        if histogram is not None:
            from vesalius.infra.pictures import draw_histograms

            counted: Literal["all", "brain"] = "all" if voxels == "all" else "brain"
            drawn = draw_histograms(judged, split, absolute(histogram), store=other, voxel_set=counted)
            document["histogram"] = str(drawn)
        shown = []
        for name in sets:
            of_set = [row for row in rows if row["voxel_set"] == name]
            shown.append(tables.figures(of_set, tables.figures_title(of_set[0]), with_runs=len(found) > 1))
        files = [f"{kind}: {document[kind]}" for kind in ("picture", "histogram") if kind in document]
        terminal.result(document, *shown, *files)
