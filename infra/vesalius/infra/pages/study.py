"""The study page: what was found, how far to believe it, every trial, and how to go on; one file without a network."""

from __future__ import annotations

import datetime
import shlex
from typing import TYPE_CHECKING, Any

from vesalius.infra.pages import studies
from vesalius.infra.pages.charts import as_text
from vesalius.infra.pages.document import STUDY, render_page, write_page
from vesalius.infra.pages.studies import StudyView, short
from vesalius.infra.tables import as_time
from vesalius.tuning import COUNTED, OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.tuning import Analysis, SeedComparison, StudySpec, TrialRow

_FURTHER = ("training_seconds", "seconds_per_volume", "peak_memory")


def write_study_page(
    path: Path,
    found: Analysis,
    spec: StudySpec,
    start: Mapping[str, Any],
    *,
    seeds: SeedComparison | None = None,
    test: SeedComparison | None = None,
    home: str = "",
) -> int:
    """Write the page, complete or absent, and return its size in bytes.

    Args:
        path: see :func:`page_path`.
        found: the study as it stands.
        spec: of the study.
        start: the settings that it started from, by dotted key.
        seeds: best and start over other seeds, where they were trained.
        test: the same on the test split, where that was asked for.
        home: of the study, for the commands; empty where it is the usual one.

    Raises:
        DiskSpaceError: there is no room.
    """
    return write_page(path, render_study(found, spec, start, seeds=seeds, test=test, home=home))


def render_study(
    found: Analysis,
    spec: StudySpec,
    start: Mapping[str, Any],
    *,
    seeds: SeedComparison | None = None,
    test: SeedComparison | None = None,
    home: str = "",
) -> str:
    """Return the page's HTML; see :func:`write_study_page`."""
    view = StudyView(found, spec.searched, start)
    rows = {row.number: row for row in found.trials}
    best = None if found.best is None else rows[found.best]
    starts = [row for row in found.trials if row.is_start]  # several where the first ones failed, or of a population
    first = next((row for row in starts if row.number == found.start), starts[0] if starts else None)
    names = list(found.objectives)
    keys = [one.key for one in spec.searched]
    by_settings = bool(view.complete) and spec.population is None
    further = [
        name
        for name in (*_at_pause(spec), *_FURTHER)
        if name not in names and any(name in row.figures for row in found.trials)
    ]
    return render_page(
        "study",
        STUDY,
        styles=("page", "study"),
        filters={"text": as_text, "short": short},
        found=found,
        spec=spec,
        objectives=[(name, OBJECTIVES[name]) for name in names],
        spaces=[(short(one.key), one.text()) for one in spec.searched],
        best=best,
        first=first,
        beside=[] if best is None or first is None else _beside(view, best, first),
        seeds=seeds,
        test=test,
        counts=[(state, number) for state, number in found.counts.items() if number],
        courses=[studies.course(view, name) for name in names] if view.complete else [],
        importance=_importance(found),
        # Of a population a trial's settings are those of its own generation, and not what its figure came from.
        schedules=[] if spec.population is None else studies.schedules(view, spec.population.generations),
        slices=[(name, studies.slices(view, name)) for name in names] if by_settings else [],
        contours=[one for one in (studies.contour(view, name) for name in names) if one] if by_settings else [],
        parallel=studies.parallel(view, names[0]) if by_settings else None,
        learning=studies.learning(view),
        fronts=studies.fronts(view) if view.complete else [],
        heads=[*names, *further],
        keys=keys,
        table=[_table_row(view, row, [*names, *further], keys) for row in found.trials],
        failures=[row for row in found.trials if row.state == "failed"],
        front=[rows[number] for number in found.front],
        steps=_steps(found, spec, seeds, test, home),
        written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _at_pause(spec: StudySpec) -> tuple[str, ...]:
    return () if spec.population is None or spec.criterion is None else (spec.criterion,)


def _beside(view: StudyView, best: TrialRow, first: TrialRow) -> list[dict[str, Any]]:
    """Return the settings and figures of the best beside those of the start."""
    own, other = view.values(best), view.values(first)
    found = [
        {
            "name": short(one.key),
            "best": as_text(own.get(one.key)) or "-",
            "start": as_text(other.get(one.key)) or "-",
            "differs": own.get(one.key) != other.get(one.key),
        }
        for one in view.searched
    ]
    shared = [name for name in best.figures if name in first.figures]
    found += [
        {"name": name, "best": as_text(best.figures[name]), "start": as_text(first.figures[name]), "differs": False}
        for name in shared
    ]
    return found


def _importance(found: Analysis) -> list[dict[str, Any]]:
    return [
        {"name": name, "bars": [{"key": short(key), "share": share} for key, share in shares.items()]}
        for name, shares in found.importance.items()
        if shares
    ]


def _table_row(view: StudyView, row: TrialRow, heads: list[str], keys: list[str]) -> dict[str, Any]:
    """Return a trial's cells: a text, and what it is sorted by."""
    values = view.values(row)
    cells: list[Any] = [row.figures.get(name) for name in heads] + [values.get(key) for key in keys]
    return {
        "row": row,
        "kind": view.kind(row),
        "cells": [{"text": as_text(value), "sort": "" if value is None else str(value)} for value in cells],
        "percent": None if row.percent is None else round(row.percent),
        "time": "" if row.seconds is None else as_time(row.seconds),
    }


def _steps(
    found: Analysis, spec: StudySpec, seeds: SeedComparison | None, test: SeedComparison | None, home: str
) -> list[tuple[str, str]]:
    """Return what may be done next: a sentence and the command."""
    at = f" --home {shlex.quote(home)}" if home else ""
    ended = sum(found.counts.get(state, 0) for state in COUNTED)
    steps = []
    if ended < spec.trials:
        steps.append(("Go on where it was broken off.", f"vesalius tune --resume {spec.name}{at}"))
    elif spec.population is None:
        more = f"vesalius tune --resume {spec.name} --trials {spec.trials + 20}{at}"
        steps.append(("Try twenty more; they learn from all there are.", more))
    best = next((row for row in found.trials if row.number == found.best), None)
    first = next((row for row in found.trials if row.number == found.start), None)
    if best is not None and best is not first and first is not None and spec.can_be_repeated:
        said = "Train the best and the start again with other seeds, before the best is believed."
        if seeds is not None:
            said = "Train the best and the start with more seeds: the interval grows narrower."
        number = 3 if seeds is None else len(seeds.rows) + 3
        steps.append((said, f"vesalius study {spec.name} --seeds {number}{at}"))
    said = "Compare them on subjects that had no part in the choice; do it once, at the end."
    if seeds is not None and test is None and ended >= spec.trials:
        steps.append((said, f"vesalius study {spec.name} --test{at}"))
    front = [row.run for row in found.trials if row.number in found.front]
    if found.best is None and front:
        steps.append((said, f"vesalius evaluate {' '.join(map(shlex.quote, front))} --split test{at}"))
    if best is not None:
        said = "Let the best challenge a registered model on the gate split."
        steps.append((said, f"vesalius study {spec.name} --promote NAME{at}"))
    return steps
