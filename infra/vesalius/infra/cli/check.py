"""``vesalius check``: re-read a cohort store against its checksums."""

from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import JsonOption, StoreArgument, place
from vesalius.infra.console import Terminal


def check(
    store: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged subjects, so that the same ingest takes them in again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Re-read every array of a cohort store and compare it with its checksum.

    Each problem is a sentence; the exit code is 2 where there is one.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.platform.errors import StoreError
        from vesalius.platform.store import CohortStore, check_store

        path = place(store)
        dropped: list[str] = []
        if repair:
            dropped = list(CohortStore.open(path).repair())
        with terminal.progress("checking") as progress:
            problems = check_store(path, progress)
        document: dict[str, Any] = {"store": str(path), "problems": problems, "dropped": dropped}
        rows: list[tuple[str, object]] = [("store", path)]
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
        if repair:
            rows.append(("dropped", ", ".join(dropped) or "none"))
        rows.append(("problems", len(problems) or "none: every array equals its checksum"))
        terminal.result(document, tables.key_values(rows))
        if problems:
            said = problems[0] if len(problems) == 1 else f"{len(problems)} problems: " + "; ".join(problems)
            raise StoreError(said)
