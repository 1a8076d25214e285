"""``vesalius study``: what a study has found, while it runs or afterwards; its best over other seeds, or promoted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, absolute, home_folder
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.platform.registry import Promotion
    from vesalius.tuning import StudyFolder


def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Its name.")],
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page of all that it found: a file that ends in .html, or a folder.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Train the best trial and the start again with this many other seeds, and say how they differ.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        bool,
        typer.Option(
            "--test",
            help="Compare the two on the test split, as --seeds trained them: once, when the study has all its trials.",
        ),
    ] = False,
    promote: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let the best trial challenge the champion of NAME on the gate split, as `vesalius promote` does.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study's trials, the best or the front of several objectives, and which settings matter.

    The trial marked `start` has the settings that the study started from. The best of many noisy trials is not the
    best: --seeds trains both again and gives the difference on validation with its interval over seeds; --test gives
    it on held-out subjects, which nothing was chosen on.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import pipeline
        from vesalius.platform.errors import NotPromotedError
        from vesalius.tuning import find_study

        folder = home_folder(home)
        found = find_study(folder, name)
        page = _page(html)
        if test:  # what is refused is refused before anything is trained
            pipeline.check_held_out(found, folder)
        if seeds is not None:
            terminal.resume_hint = f"vesalius study {name} --seeds {seeds}"
            with terminal.progress("seeds") as progress:
                pipeline.repeat_best(found, seeds, home=folder, progress=progress)
        if test:
            terminal.resume_hint = f"vesalius study {name} --test"
            with terminal.progress("test") as progress:
                pipeline.judge_held_out(found, home=folder, device=pipeline.device_name("auto"), progress=progress)
        more: dict[str, Any] = {}
        if page is not None:
            _write(terminal, found, page, folder if home is not None else None)
            more["html"] = str(page)
        promotion = None if promote is None else _promote(terminal, found, promote, folder)
        show_study(terminal, found, promotion=promotion, **more)
        if promotion is not None:
            if not promotion.promoted:
                raise NotPromotedError(promotion.sentence)
            terminal.say(promotion.sentence)


def show_study(terminal: Terminal, found: "StudyFolder", promotion: "Promotion | None" = None, **more: Any) -> None:
    """Write a study as it stands; ``more`` joins the JSON document."""
    from vesalius.infra import tables
    from vesalius.tuning import analyse, compare_seeds, held_out

    analysis = analyse(found)
    seeds = compare_seeds(found, analysis)
    test = held_out(found, seeds)
    document = {
        **analysis.model_dump(mode="json"),
        "seeds": None if seeds is None else seeds.model_dump(mode="json"),
        "test": None if test is None else test.model_dump(mode="json"),
        "folder": str(found.path),
        **more,
    }
    shown: list[Any] = [tables.trials(document)]
    if any(document["importance"].values()):
        shown.append(tables.importance(document))
    best = document["best"]
    if best is not None:
        shown.append(_beside_the_start(document))
    if seeds is not None:
        shown += [tables.seeds(document["seeds"]), seeds.sentence]
    if test is not None:
        shown += [tables.seeds(document["test"]), test.sentence]
    if promotion is not None:
        document["promotion"] = promotion.model_dump(mode="json")
        shown.append(tables.promotion(document["promotion"]))
    terminal.result(document, *shown)


def _beside_the_start(document: dict[str, Any]) -> str:
    (name,) = document["objectives"]
    rows = {row["number"]: row for row in document["trials"]}
    best = rows[document["best"]]
    said = f"best: trial {best['number']}, {name} {best['figures'][name]:.4g} (run {best['run']})"
    if document["start"] is None:
        return said
    return f"{said}; the settings it started from: {rows[document['start']]['figures'][name]:.4g}"


def _page(html: Path | None) -> Path | None:
    """Return the page's file; asked for before anything is done, so that a slip costs nothing."""
    if html is None:
        return None
    from vesalius.infra.pages import STUDY, page_path

    return page_path(absolute(html), STUDY)


def _write(terminal: Terminal, found: "StudyFolder", page: Path, home: Path | None) -> None:
    from vesalius.infra import pipeline
    from vesalius.infra.pages import write_study_page
    from vesalius.platform.config import flatten
    from vesalius.tuning import analyse, compare_seeds, held_out

    analysis = analyse(found)
    start = flatten(pipeline.base_of(found.spec))
    seeds = compare_seeds(found, analysis)
    num_bytes = write_study_page(
        page,
        analysis,
        found.spec,
        start,
        seeds=seeds,
        test=held_out(found, seeds),
        home="" if home is None else str(home),
    )
    terminal.say(f"wrote {page} ({num_bytes / 1e3:.0f} kB)")


def _promote(terminal: Terminal, found: "StudyFolder", name: str, home: Path) -> "Promotion":
    """Let the best trial's run pass the gate, as ``vesalius promote`` does with a run.

    Raises:
        StudyError: there is no single best trial.
    """
    from vesalius.infra import pipeline
    from vesalius.platform.errors import StudyError
    from vesalius.platform.runs import find_run
    from vesalius.tuning import analyse

    analysis = analyse(found)
    best = next((row for row in analysis.trials if row.number == analysis.best), None)
    if best is None:
        front = [row.run for row in analysis.trials if row.number in analysis.front]
        hint = (
            f"promote one of its front with `vesalius promote`: {', '.join(front)}" if front else "no trial is complete"
        )
        raise StudyError(f"study '{analysis.study}' has no single best trial: {hint}")
    with terminal.progress("gate") as progress:
        return pipeline.promote_run(
            find_run(home, best.run), name, home=home, device=pipeline.device_name("auto"), progress=progress
        )
