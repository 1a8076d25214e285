"""``vesalius check``: re-read a cohort store against its checksums, and look at what it holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.options import JsonOption, StoreArgument, absolute, place
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.quality import CohortQuality
    from vesalius.platform.store import CohortStore


def check(
    store: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged subjects, so that the same ingest takes them in again.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Also look for outliers (turned, misplaced, cut off, doubled, of another kind) and write a page of "
            "every subject: a file that ends in .html, or a folder.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Re-read every array of a cohort store and compare it with its checksum; with --html, look at the subjects.

    Each problem is a sentence; the exit code is 2 where there is one. What stands out to --html is for a person to
    look at and changes no exit code.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.platform.errors import StoreError
        from vesalius.platform.store import CohortStore, check_store

        path = place(store)
        page = _page(html)
        dropped: list[str] = []
        if repair:
            dropped = list(CohortStore.open(path).repair())
        with terminal.progress("checking") as progress:
            problems = check_store(path, progress)
        document: dict[str, Any] = {"store": str(path), "problems": problems, "dropped": dropped}
        rows: list[tuple[str, object]] = [("store", path)]
        outliers: list[dict[str, str]] = []
        try:
            cohort = CohortStore.open(path)
        except StoreError:
            if len(problems) == 1:
                raise
        else:
            splits: dict[str, int] = {}
            for record in cohort.subjects():
                splits[record.split] = splits.get(record.split, 0) + 1
            num_subjects = sum(splits.values())
            document.update(
                digest=cohort.digest, num_subjects=num_subjects, channels=list(cohort.channels), splits=splits
            )
            counts = ", ".join(f"{count} {split}" for split, count in splits.items())
            rows += [
                ("digest", cohort.digest),
                ("subjects", f"{num_subjects} ({counts})" if counts else "none"),
                ("channels", ", ".join(cohort.channels)),
            ]
            if page is not None:
                quality = _look(terminal, cohort, page, problems)
                document.update(html=str(page), quality=quality.model_dump(mode="json"))
                outliers = [
                    {"subject_id": one.subject_id, "severity": finding.severity, "sentence": finding.sentence}
                    for one in quality.outliers
                    for finding in one.findings
                ]
                rows += [
                    ("stand out", len(quality.outliers) or "nobody"),
                    ("page", page),
                ]
        if repair:
            rows.append(("dropped", ", ".join(dropped) or "none"))
        rows.append(("problems", len(problems) or "none: every array equals its checksum"))
        terminal.result(document, tables.key_values(rows), *([tables.findings(outliers)] if outliers else []))
        if problems:
            said = problems[0] if len(problems) == 1 else f"{len(problems)} problems: " + "; ".join(problems)
            raise StoreError(said)


def _page(html: Path | None) -> Path | None:
    """Return the page's file; asked for before anything is read, so that a slip costs nothing."""
    if html is None:
        return None
    from vesalius.infra.pages import page_path

    return page_path(absolute(html))


def _look(terminal: Terminal, cohort: "CohortStore", page: Path, problems: "Sequence[str]") -> "CohortQuality":
    from vesalius.datasets.quality import survey
    from vesalius.infra.pages import Album, write_quality_page

    album = Album(len(cohort.subjects()))
    with terminal.progress("looking") as progress:
        quality = survey(cohort, see=album.add, progress=progress)
    num_bytes = write_quality_page(
        page, cohort, quality, album.slices, common_outline=album.common_outline(), problems=problems
    )
    terminal.say(f"wrote {page} ({num_bytes / 1e6:.1f} MB)")
    return quality
