"""``vesalius score``: where volumes depart from healthy anatomy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import DeviceOption, HomeOption, JsonOption, absolute, home_folder, place
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.platform.store import Place


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, models:/NAME@champion, or a model's folder.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.nii.gz]...",
            help="One volume: a file for each channel. Or a folder of volumes, or a store with --split.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Score this split of a store, instead of a file.")] = None,
    store: Annotated[str | None, typer.Option(help="The store of --split (default: the run's own)")] = None,
    brain_mask: Annotated[Path | None, typer.Option(help="The file's brain mask, where there is one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for maps, restorations and pictures [default for a file: its name].")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray workers that score a folder or a split; 0 scores here [default].", metavar="N"),
    ] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score one volume, every volume of a folder, or every subject of a split, with a trained MODEL.

    Anomaly map, restoration and what else the method makes (a spread) are written as NIfTI in the input's own space
    and affine, beside a picture. The maps of a run's split stay with the run; with --out they are also written as
    files. Of a folder each volume has a folder of results and a row in scores.csv; what is done is not done again, and
    one that cannot be scored is a row with the reason (exit code 2).
    """
    with Terminal(as_json) as terminal:
        from vesalius.platform.errors import SettingError

        given, store = check_what(files, split, store, brain_mask)
        where = home_folder(home)
        folder = absolute(out) if out else None
        if not given:
            of_store = place(store) if store else None
            _score_split(terminal, where, model, split or "", of_store, folder, device, workers or 0)
            return
        paths = [absolute(Path(file)) for file in given]
        if _is_folder_of_volumes(paths, workers):
            if brain_mask:
                raise SettingError("--brain-mask goes with one file, and a folder of volumes is given: leave it out")
            _score_folder(terminal, where, model, paths[0], folder, device, workers or 0)
            return
        if workers is not None:
            raise SettingError("--workers goes with a folder of volumes or with --split: leave it out for one volume")
        mask = absolute(brain_mask) if brain_mask else None
        _score_files(terminal, where, model, paths, mask, folder or absolute(Path(stem_of(paths[0]))), device)


def _is_folder_of_volumes(paths: list[Path], workers: int | None) -> bool:
    """Say whether volumes of a folder are meant: one study's folder of DICOM files alone is a volume itself."""
    from vesalius.infra.folders import holds_nifti
    from vesalius.platform.errors import SettingError
    from vesalius.platform.store.manifest import NAME

    if len(paths) != 1 or not paths[0].is_dir():
        return False
    if (paths[0] / NAME).is_file() and (paths[0] / "zarr.json").is_file():
        raise SettingError(f"{paths[0]} is a cohort store: say which of its splits to score, as in --split test")
    return workers is not None or holds_nifti(paths[0])


def check_what(
    files: list[str] | None, split: str | None, store: str | None, brain_mask: Path | None
) -> tuple[list[str], str | None]:
    """Return the files and the store that are meant; with a split the one name that is given is a store's.

    Raises:
        SettingError: what is to be scored is not said, or said twice.
    """
    from vesalius.platform.errors import SettingError

    given = files or []
    if split is not None and len(given) == 1 and store is None:
        given, store = [], given[0]
    if bool(given) == (split is not None):
        raise SettingError("give either a NIfTI file or --split, as in `vesalius score RUN --split test`")
    if given and store:
        raise SettingError("--store goes with --split: leave it out, or score a split of that store")
    if split is not None and brain_mask:
        raise SettingError("--brain-mask goes with a file: a store holds its subjects' own masks; leave it out")
    return given, store


def stem_of(file: Path) -> str:
    """Return a NIfTI file's name without its endings."""
    name = file.name
    for ending in (".nii.gz", ".nii"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return file.stem


def _score_files(
    terminal: Terminal, home: Path, model: str, files: list[Path], mask: Path | None, out: Path, device: str
) -> None:
    from vesalius.infra import application, pipeline, tables

    folder = pipeline.model_folder(model, home)
    with terminal.progress("scoring") as progress:
        progress(0, 1, files[0].name)
        answer = application.score_files(folder, files, brain_mask=mask, device=pipeline.device_name(device))
        progress(1, 1, files[0].name)
    written = application.write_answer(answer, out, stem_of(files[0]))
    document: dict[str, Any] = {
        "model": model,
        "files": [str(file) for file in files],
        **application.describe_answer(answer),
        "written": written,
    }
    rows: list[tuple[str, object]] = [
        ("volume", files[0].name),
        ("method", answer.card.method),
        ("image score", f"{answer.score.image_score:.5g}"),
        ("seconds", f"{answer.seconds:.2f}"),
    ]
    if answer.threshold is not None:
        rows.append(("above threshold", f"{answer.anomalous_ml:.1f} ml (threshold {answer.threshold:.5g})"))
    terminal.result(document, tables.key_values([*rows, *written.items()]))


def _score_folder(
    terminal: Terminal, home: Path, model: str, folder: Path, out: Path | None, device: str, workers: int
) -> None:
    from vesalius.infra import pipeline, tables
    from vesalius.infra.folders import cases_in, score_folder
    from vesalius.platform.errors import PartialScoreError
    from vesalius.platform.models import read_card

    found = pipeline.model_folder(model, home)
    card = read_card(found)
    out = out or absolute(Path(f"{folder.name}-scores"))
    cases = cases_in(folder, card.cohort.channels, without=out)
    terminal.resume_hint = f"run the same again: what is whole in {out} is kept"
    with terminal.progress("scoring") as progress:
        device = pipeline.device_name(device, num_workers=workers)
        rows = score_folder(found, cases, out, num_workers=workers, device=device, progress=progress)
    failed = {row["name"]: row["error"] for row in rows if "error" in row}
    document = {
        "model": model,
        "method": card.method,
        "folder": str(folder),
        "out": str(out),
        "num_failed": len(failed),
        "volumes": rows,
    }
    done = [row for row in rows if "error" not in row]
    shown = [tables.scored_volumes(done, f"{card.method} on {folder.name}")] if done else []
    terminal.result(document, *shown, *([tables.pairs("not scored", failed)] if failed else []), f"results: {out}")
    if failed:
        raise PartialScoreError(
            f"{len(failed)} of {len(rows)} volumes could not be scored; the others are in {out}: run the same again "
            "once the cause is gone",
            failed,
        )


def _score_split(
    terminal: Terminal,
    home: Path,
    model: str,
    split: str,
    store: "Place | None",
    out: Path | None,
    device: str,
    workers: int,
) -> None:
    from vesalius.infra import application, pipeline, tables
    from vesalius.platform.errors import PartialScoreError

    try:
        with terminal.progress("scoring") as progress:
            cohort, scores, card = pipeline.score_reference(
                model, split, home=home, store=store, out=out, device=device, num_workers=workers, progress=progress
            )
    except PartialScoreError as error:
        failed = [{"subject_id": name, "error": said} for name, said in error.failed.items()]
        terminal.result({"model": model, "split": split, "failed": failed}, tables.pairs("not scored", error.failed))
        raise
    rows = [
        {
            "subject_id": record.subject_id,
            "image_score": record.image_score,
            "seconds": record.seconds,
            "has_lesion": record.has_lesion,
        }
        for record in scores.records
    ]
    if out is not None:
        with terminal.progress("writing") as progress:
            for done, row in enumerate(rows, 1):
                answer = application.stored_answer(cohort, scores, card, str(row["subject_id"]))
                row["written"] = application.write_answer(answer, out, str(row["subject_id"]))
                progress(done, len(rows), str(row["subject_id"]))
    document = {
        "model": model,
        "method": card.method,
        "store": str(cohort.path),
        "split": split,
        "scores": str(scores.path),
        "seconds_per_volume": scores.seconds_per_volume,
        "subjects": rows,
    }
    terminal.result(document, tables.image_scores(rows, f"{card.method} on {split}"), f"maps: {scores.path}")
