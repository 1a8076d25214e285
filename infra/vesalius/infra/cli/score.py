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
        list[Path] | None,
        typer.Argument(metavar="[FILE.nii.gz]...", help="One volume: a file for each channel.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Score this split of a store, instead of a file.")] = None,
    store: Annotated[str | None, typer.Option(help="The store of --split (default: the run's own)")] = None,
    brain_mask: Annotated[Path | None, typer.Option(help="The file's brain mask, where there is one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for maps, restorations and pictures [default for a file: its name].")
    ] = None,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score one volume, or every subject of a split, with a trained MODEL.

    Anomaly map, restoration and what else the method makes (a spread) are written as NIfTI in the input's own space
    and affine, beside a picture. The maps of a run's split stay with the run; with --out they are also written as
    files.
    """
    with Terminal(as_json) as terminal:
        from vesalius.platform.errors import SettingError

        if bool(files) == (split is not None):
            raise SettingError("give either a NIfTI file or --split, as in `vesalius score RUN --split test`")
        if files and store:
            raise SettingError("--store goes with --split: leave it out, or score a split of that store")
        if split is not None and brain_mask:
            raise SettingError("--brain-mask goes with a file: a store holds its subjects' own masks; leave it out")
        where = home_folder(home)
        if files:
            mask = absolute(brain_mask) if brain_mask else None
            folder = absolute(out or Path(stem_of(files[0])))
            _score_files(terminal, where, model, [absolute(file) for file in files], mask, folder, device)
        else:
            of_store = place(store) if store else None
            _score_split(terminal, where, model, split or "", of_store, absolute(out) if out else None, device)


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


def _score_split(
    terminal: Terminal, home: Path, model: str, split: str, store: "Place | None", out: Path | None, device: str
) -> None:
    from vesalius.infra import application, pipeline, tables

    with terminal.progress("scoring") as progress:
        cohort, scores, card = pipeline.score_reference(
            model, split, home=home, store=store, out=out, device=device, progress=progress
        )
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
