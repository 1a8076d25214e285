"""``vesalius export``: volumes of a store and maps of a run, as NIfTI files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, StoreArgument, absolute, home_folder, one_of, place
from vesalius.infra.console import Terminal

_WHAT_HELP = (
    "image, brain, head, lesion, structures; with --run also map, restoration, extras (further maps). "
    "May be given several times."
)


def export(
    store: StoreArgument,
    subjects: Annotated[
        list[str] | None, typer.Argument(metavar="[SUBJECT]...", help="Ids of subjects.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder, or a file (.nii, .nii.gz) where one is written.", show_default=False)
    ] = None,
    what: Annotated[
        list[str] | None, typer.Option("--what", help=f"{_WHAT_HELP} [default: image; map with --run]")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The run whose maps are wanted.")] = None,
    all_subjects: Annotated[bool, typer.Option("--all", help="Every subject, instead of named ones.")] = False,
    split: Annotated[str | None, typer.Option(help="With --all: this split alone.")] = None,
    grid: Annotated[
        str, typer.Option(help="native: as the file the subject came from; prepared: as the store has it.")
    ] = "native",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write subjects of STORE, their masks, or a run's maps of them as NIfTI, in the space they came from.

    Images and maps are sampled linearly, masks and labels by nearest neighbour; intensities are the prepared ones.
    With --all, subjects without what is asked for are passed over and named.
    """
    with Terminal(as_json) as terminal:
        from typing import cast

        from vesalius.infra import exporting, pipeline, tables
        from vesalius.platform import runs
        from vesalius.platform.errors import SettingError
        from vesalius.platform.scoring import ScoreStore
        from vesalius.platform.store import CohortStore, SubjectRecord

        if out is None:
            raise SettingError("say where to write with --out: a folder, or a file such as lesion.nii.gz")
        if bool(subjects) == all_subjects:
            raise SettingError("give ids of subjects or --all, as in `vesalius export STORE sub-01 --out DIR`")
        if split is not None and not all_subjects:
            raise SettingError("--split goes with --all: named subjects are exported whatever their split")
        wanted = what or ["map" if run else "image"]
        whats = [cast("exporting.What", one_of(name, list(exporting.WHATS), "volume")) for name in wanted]
        chosen_grid = cast("exporting.Grid", one_of(grid, ["native", "prepared"], "grid"))
        needs_run = sorted(set(whats) & exporting.OF_A_RUN)
        if needs_run and run is None:
            raise SettingError(f"--what {needs_run[0]} needs --run RUN: a {needs_run[0]} is what a run's model made")
        if run is not None and not needs_run:
            raise SettingError("--run goes with --what map, restoration or extras: the store's own volumes need none")

        cohort = CohortStore.open(place(store))
        ids = [record.subject_id for record in cohort.subjects(split)]
        if all_subjects and not ids:
            there = "" if split is None else f" in the split '{split}'"
            raise SettingError(f"{cohort.path} holds no subject{there}")
        chosen = ids if all_subjects else [one_of(name, ids, "subject") for name in subjects or []]
        opened: dict[str, ScoreStore] = {}

        def scores_of(record: SubjectRecord) -> ScoreStore:
            if record.split not in opened:
                folder = runs.find_run(home_folder(home), run or "")
                path = pipeline.scores_folder(folder, record.split, cohort)
                if not path.exists():
                    raise SettingError(
                        f"run '{run}' has no maps of the split '{record.split}': "
                        f"make them with `vesalius score {run} --split {record.split} --store {cohort.path}`"
                    )
                opened[record.split] = ScoreStore.open(path)
            return opened[record.split]

        with terminal.progress("exporting") as progress:
            report = exporting.export_volumes(
                cohort,
                chosen,
                whats,
                absolute(out),
                grid=chosen_grid,
                scores_of=scores_of if run else None,
                lenient=all_subjects,
                force=force,
                progress=progress,
            )
        for name, missing in report.without.items():
            terminal.say(f"without {name}: {', '.join(missing)}")
        document: dict[str, Any] = {
            "store": str(cohort.path),
            "run": run,
            "grid": grid,
            **report.model_dump(mode="json"),
        }
        terminal.result(document, tables.exported(document["files"], f"{grid} space"))
