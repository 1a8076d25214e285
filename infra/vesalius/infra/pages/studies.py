"""The charts of a study: its course, which settings matter, where its trials lie, how they learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.infra.pages.charts import Canvas, Chart, Line, Mark, Scale, as_text, filled_contours
from vesalius.platform.contracts import Choice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vesalius.tuning import Analysis, Dimension, TrialRow

_ORDER = ("failed", "stopped", "plain", "front", "start", "best")
_WIDE = 900.0
_SO_FAR = "best validation pass so far over the training"


@dataclass(frozen=True)
class StudyView:
    """A study as charts want it.

    Attributes:
        found: its trials.
        searched: its spaces.
        start: the settings it started from, by key: they may lie outside of the spaces.
    """

    found: Analysis
    searched: Sequence[Dimension]
    start: Mapping[str, Any]

    @property
    def complete(self) -> list[TrialRow]:
        """Trials that came to their end with all objectives."""
        names = self.found.objectives
        return [row for row in self.found.trials if row.state == "complete" and set(names) <= set(row.figures)]

    def values(self, row: TrialRow) -> dict[str, Any]:
        """Return what a trial set; of a start outside of the spaces what it has."""
        return dict(row.values) or {one.key: self.start.get(one.key) for one in self.searched if row.is_start}

    def kind(self, row: TrialRow) -> str:
        """Return how a trial is marked."""
        if row.number == self.found.best:
            return "best"
        if row.is_start:
            return "start"
        if row.state in ("pruned", "failed"):
            return "stopped" if row.state == "pruned" else "failed"
        return "front" if row.number in self.found.front else "plain"

    def label(self, row: TrialRow) -> str:
        """Return what is said where one points at a trial."""
        origin = " (start)" if row.is_start else f" (from {row.source})" if row.source else ""
        said = [f"trial {row.number}{origin}, {row.state}"]
        said += [f"{name} {as_text(row.figures.get(name))}" for name in self.found.objectives if name in row.figures]
        said += [f"{short(key)} {as_text(value)}" for key, value in self.values(row).items()]
        return "; ".join(said)

    def scale(self, one: Dimension) -> Scale:
        """Return the scale of a setting: its space, widened to the start where that lies outside."""
        start = self.start.get(one.key)
        if isinstance(one.space, Choice):
            return Scale(names=tuple(dict.fromkeys(map(str, (*one.space.values, *([] if start is None else [start]))))))
        ends = [one.space.low, one.space.high]
        if isinstance(start, int | float) and not isinstance(start, bool) and (start > 0 or not one.space.log):
            ends.append(start)
        return Scale.over(ends, is_log=one.space.log)

    def strength(self, name: str) -> dict[int, float]:
        """Return by number how good a trial is among the complete ones, from 0 (worst) to 1."""
        rising = self.found.objectives[name] == "maximize"
        rows = sorted(self.complete, key=lambda row: row.figures[name], reverse=not rising)
        return {row.number: place / max(1, len(rows) - 1) for place, row in enumerate(rows)}


def _lineage(view: StudyView, row: TrialRow) -> list[TrialRow]:
    """Return a trial of a population and whom it goes back to, oldest first."""
    rows = {one.number: one for one in view.found.trials}
    found = [row]
    while (parent := rows.get(-1 if found[0].parent is None else found[0].parent)) is not None:
        found.insert(0, parent)
    return found


def schedules(view: StudyView, generations: int) -> list[Chart]:
    """Return each setting of a population over the training: a level a trial, joined to that of its parent.

    What leads to the best is drawn as the best, the start's as the start.
    """
    trials = view.found.trials
    best = next((row for row in trials if row.number == view.found.best), None)
    to_the_best = set() if best is None else {row.number for row in _lineage(view, best)}
    charts = []
    for one in view.searched:
        canvas = Canvas(x=Scale(low=-2.0, high=102.0), y=view.scale(one), width=_WIDE)
        lines = []
        for row in trials:
            if row.generation is None or one.key not in view.values(row):
                continue
            value = view.values(row)[one.key]
            ends = [100 * (row.generation + more) / generations for more in (0, 1)]
            points = [(ends[0], value), (ends[1], value)]
            parent = _lineage(view, row)[:-1]
            if parent and one.key in view.values(parent[-1]):
                points.insert(0, (ends[0], view.values(parent[-1])[one.key]))
            kind = "best" if row.number in to_the_best else view.kind(row)
            lines.append(Line(path=canvas.path(points), kind=kind, label=view.label(row), strength=0.5))
        lines.sort(key=lambda line: _ORDER.index(line.kind))
        charts.append(
            Chart(
                title=f"{short(one.key)} over the generations",
                width=canvas.width,
                height=canvas.height,
                across="hundredths of the training",
                up=short(one.key) + (" (log)" if canvas.y.is_log else ""),
                x=canvas.x,
                y=canvas.y,
                lines=tuple(lines),
            )
        )
    return charts


def short(key: str) -> str:
    """Return a setting's key without the word that all of a method's have."""
    return key.removeprefix("method.")


def course(view: StudyView, name: str) -> Chart:
    """Return an objective over the trials, with the best so far; below, the trials that were stopped or failed."""
    rows, trials = view.complete, view.found.trials
    x = Scale(low=-0.8, high=max((row.number for row in trials), default=0) + 0.8)
    y = Scale.over([row.figures[name] for row in rows], margin=0.12)
    canvas = Canvas(x=x, y=y, width=_WIDE)
    marks = [_mark(view, canvas.at(row.number, row.figures[name]), row) for row in rows]
    marks += [
        _mark(view, canvas.pixels(x.place(row.number) or 0.0, 0.03), row)
        for row in trials
        if row.state in ("pruned", "failed")
    ]
    rises = view.found.objectives[name] == "maximize"
    steps: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda one: one.number):
        so_far = [row.figures[name], *([steps[-1][1]] if steps else [])]
        record = max(so_far) if rises else min(so_far)
        steps += [(row.number, steps[-1][1]), (row.number, record)] if steps else [(row.number, record)]
    if steps:
        steps.append((x.high, steps[-1][1]))
    lines = (Line(path=canvas.path(steps), kind="record", label="best so far"),) if steps else ()
    title = f"{name} over the trials"
    return Chart(title=title, width=_WIDE, across="trial", up=name, x=x, y=y, lines=lines, marks=_on_top(marks))


def slices(view: StudyView, name: str) -> list[Chart]:
    """Return an objective over each setting."""
    y = Scale.over([row.figures[name] for row in view.complete], margin=0.08)
    charts = []
    for one in view.searched:
        canvas = Canvas(x=view.scale(one), y=y, width=320.0, height=230.0)
        marks = [
            _mark(view, canvas.at(view.values(row).get(one.key), row.figures[name]), row)
            for row in view.complete
            if one.key in view.values(row)
        ]
        charts.append(
            Chart(
                title=f"{name} over {short(one.key)}",
                width=canvas.width,
                height=canvas.height,
                across=short(one.key) + (" (log)" if canvas.x.is_log else ""),
                up=name,
                x=canvas.x,
                y=y,
                marks=_on_top(marks),
            )
        )
    return charts


def contour(view: StudyView, name: str) -> tuple[Chart, Scale] | None:
    """Return an objective over the two most important settings that are numbers, and its scale; None of fewer."""
    numeric = [one for one in view.searched if not isinstance(one.space, Choice)]
    shares = view.found.importance.get(name, {})
    first = sorted(numeric, key=lambda one: -shares.get(one.key, 0.0))[:2]
    if len(first) < 2:
        return None
    one, other = first
    canvas = Canvas(x=view.scale(one), y=view.scale(other), width=560.0, height=400.0)
    places = [(row, view.values(row)) for row in view.complete]
    points = [(v[one.key], v[other.key], row.figures[name]) for row, v in places if one.key in v and other.key in v]
    areas, scale = filled_contours(canvas, points)
    if view.found.objectives[name] == "minimize":
        areas = [(path, 1 - strength) for path, strength in areas]
    marks = [_mark(view, canvas.at(v.get(one.key), v.get(other.key)), row) for row, v in places]
    chart = Chart(
        title=f"{name} over {short(one.key)} and {short(other.key)}",
        width=canvas.width,
        height=canvas.height,
        across=short(one.key) + (" (log)" if canvas.x.is_log else ""),
        up=short(other.key) + (" (log)" if canvas.y.is_log else ""),
        x=canvas.x,
        y=canvas.y,
        areas=tuple(areas),
        marks=_on_top(marks),
    )
    return chart, scale


def parallel(view: StudyView, name: str) -> Chart:
    """Return each complete trial as a line over all settings and objectives; the better, the stronger."""
    scales = [(short(one.key), one.key, view.scale(one)) for one in view.searched]
    scales += [(one, one, Scale.over([row.figures[one] for row in view.complete])) for one in view.found.objectives]
    room = 0.05
    canvas = Canvas(x=Scale(low=-room * len(scales), high=(1 + room) * len(scales) - 1), y=Scale(), width=_WIDE)
    strength = view.strength(name)
    lines = []
    for row in sorted(view.complete, key=lambda one: (_ORDER.index(view.kind(one)), strength[one.number])):
        values = {**view.values(row), **row.figures}
        points = [
            (index, scale.place(values[key]) if key in values else None) for index, (_, key, scale) in enumerate(scales)
        ]
        lines.append(
            Line(
                path=canvas.path(points),
                kind=view.kind(row),
                label=view.label(row),
                strength=round(0.12 + 0.6 * strength[row.number] ** 2, 2),
            )
        )
    uprights = []
    for index, (text, _, scale) in enumerate(scales):
        ticks = [(canvas.pixels(0, place)[1], tick) for place, tick in scale.ticks()]
        x = canvas.pixels(canvas.x.place(index) or 0.0, 0)[0]
        uprights.append({"x": x, "name": text + (" (log)" if scale.is_log else ""), "ticks": ticks})
    return Chart(title="all settings at once", width=_WIDE, lines=tuple(lines), uprights=tuple(uprights))


def learning(view: StudyView) -> Chart | None:
    """Return the validation criterion over the training, a line a trial; None where no trial has any.

    A trial that goes on from another one begins where that one ends.
    """
    rows = [row for row in view.found.trials if row.curve]
    if not rows:
        return None
    y = Scale.over([value for row in rows for _, value in row.curve])
    canvas = Canvas(x=Scale(low=-2.0, high=103.0), y=y, width=_WIDE)
    rows.sort(key=lambda row: _ORDER.index(view.kind(row)))
    lines = tuple(
        Line(path=canvas.path(_with_parent(view, row)), kind=view.kind(row), label=view.label(row), strength=0.5)
        for row in rows
    )
    # A pass at a trial's end, and the only one of a trial that was stopped at its first.
    marks = [_mark(view, canvas.at(*row.curve[-1]), row) for row in rows]
    return Chart(
        title="validation passes over the training" if rows[0].generation is not None else _SO_FAR,
        width=_WIDE,
        across="hundredths of the training",
        up=(view.found.criterion or "").removeprefix("validation_"),
        x=canvas.x,
        y=y,
        lines=lines,
        marks=_on_top(marks),
    )


def _with_parent(view: StudyView, row: TrialRow) -> Sequence[tuple[float, float]]:
    before = [one.curve[-1] for one in _lineage(view, row)[:-1] if one.curve]
    return [*before[-1:], *row.curve]


def fronts(view: StudyView) -> list[Chart]:
    """Return each further objective against the first one, the front marked."""
    first, *others = view.found.objectives
    charts = []
    for name in others:
        x, y = (Scale.over([row.figures[one] for row in view.complete]) for one in (name, first))
        canvas = Canvas(x=x, y=y, width=560.0, height=360.0)
        marks = [_mark(view, canvas.at(row.figures[name], row.figures[first]), row) for row in view.complete]
        on_front = [row.figures for row in view.complete if row.number in view.found.front]
        line = canvas.path(sorted((figures[name], figures[first]) for figures in on_front))
        charts.append(
            Chart(
                title=f"{first} against {name}",
                width=canvas.width,
                height=canvas.height,
                across=name,
                up=first,
                x=x,
                y=y,
                # Between more than two objectives the front is no line.
                lines=(Line(path=line, kind="record", label="front"),) if len(others) == 1 else (),
                marks=_on_top(marks),
            )
        )
    return charts


def _mark(view: StudyView, at: tuple[float, float] | None, row: TrialRow) -> Mark | None:
    if at is None:
        return None
    return Mark(x=at[0], y=at[1], kind=view.kind(row), label=view.label(row), number=row.number)


def _on_top(marks: Iterable[Mark | None]) -> tuple[Mark, ...]:
    there = [mark for mark in marks if mark is not None]
    return tuple(sorted(there, key=lambda mark: _ORDER.index(mark.kind)))
