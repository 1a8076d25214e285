"""The study page without a browser: what it escapes, what it draws, what it says of little."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.pages import STUDY, page_path, write_study_page
from vesalius.infra.pages.charts import Canvas, Scale, as_text, filled_contours
from vesalius.infra.pages.studies import StudyView, contour, course, learning, parallel, schedules
from vesalius.infra.pages.study import render_study
from vesalius.platform.errors import SettingError
from vesalius.tuning import Analysis, SeedComparison, TrialRow
from vesalius.tuning.analysis import pareto_front
from vesalius.tuning.seeds import SeedRow
from vesalius.tuning.spec import Population, Record, Start
from vesalius.tuning.testing import CRITERION, toy_spec, worth

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.tuning import StudySpec

EVIL = "</script></title><svg onload=alert(1)>\"'&{{ 7 * 7 }}"
START = {"method.x": 0.5, "method.k": 3, "method.kind": "a"}


def trial(number: int, **changes: Any) -> TrialRow:
    values = {"method.x": (0.37 * number) % 1.0, "method.k": 1 + number % 8, "method.kind": "ab"[number % 2]}
    told: dict[str, Any] = {
        "number": number,
        "state": "complete",
        "is_start": number == 0,
        "values": dict(START) if number == 0 else values,
        "curve": ((25, 0.1), (50, 0.2)),
        "percent": 100.0,
        "run": f"toy-{number:04d}",
        "seconds": 3.0,
        **changes,
    }
    if told["state"] == "complete" and "figures" not in changes:
        told["figures"] = {"average_precision": worth(told["values"]), "seconds_per_volume": 1.0 + number % 3}
    return TrialRow(**told)


def analysis(rows: list[TrialRow], **changes: Any) -> Analysis:
    complete = [row for row in rows if row.state == "complete"]
    objectives = changes.pop("objectives", {"average_precision": "maximize"})
    front = pareto_front(complete, list(objectives))
    told: dict[str, Any] = {
        "study": "toy",
        "method": "toy",
        "store": "store",
        "objectives": objectives,
        "criterion": CRITERION,
        "wanted": len(rows),
        "counts": {state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "failed")},
        "trials": tuple(rows),
        "best": front[0] if front and len(objectives) == 1 else None,
        "start": 0 if complete and complete[0].is_start else None,
        "importance": {name: {"method.x": 0.7, "method.k": 0.3} for name in objectives},
        "front": tuple(front),
        **changes,
    }
    return Analysis(**told)


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return toy_spec(tmp_path)


class Reader(HTMLParser):
    """Counts elements and attributes, and keeps what is said."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.said = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.said += data


def test_what_was_learnt_and_what_is_run_again_is_said(spec: StudySpec) -> None:
    rows = [trial(0), trial(1, source="old/7"), trial(2)]
    said = " ".join(Reader(render_study(analysis(rows, learnt={"old": 1, "older": 24}), spec, START)).said.split())
    assert "1 trial of old, 24 trials of older" in said
    assert "of 3 complete trials and those that were learnt from" in said
    assert "complete from old/7" in said
    assert "trial 1 (from old/7), complete" in said
    plain = Reader(render_study(analysis([trial(0), trial(1)]), spec, START)).said
    assert "earnt from" not in plain


def test_all_that_comes_from_elsewhere_is_escaped(spec: StudySpec) -> None:
    """A database that a team shares can hold anything."""
    evil = {"method.x": EVIL, "method.k": EVIL, EVIL: EVIL}
    rows = [
        trial(0),
        trial(1),
        trial(2, values=evil, run=EVIL, source=EVIL, figures={"average_precision": 0.1}),
        trial(3, state="failed", reason=EVIL, run=EVIL),
    ]
    record = Record(number=1, ending="failed", reason=EVIL, run_id=EVIL)
    seeds = SeedComparison(
        objective="average_precision", best=1, start=0, rows=(SeedRow(seed=1, best=record),), means=None,
        differences=(), mean=None, interval=None, sentence=EVIL,
    )  # fmt: skip
    found = analysis(rows, study=EVIL, method=EVIL, learnt={EVIL: 3}, importance={"average_precision": {EVIL: 1.0}})
    hostile = spec.model_copy(update={"name": EVIL, "store": EVIL, "preset": EVIL, "sampler": EVIL})
    page = render_study(found, hostile, {**START, "method.kind": EVIL}, seeds=seeds, home=EVIL)
    plain = Reader(render_study(analysis([trial(0)]), spec, START))
    read = Reader(page)
    assert read.tags.count("script") == plain.tags.count("script") == 1
    assert "onload" not in {name for name, _ in read.attributes}
    whole = Reader(render_study(analysis([trial(number) for number in range(9)]), spec, START))
    assert set(read.tags) <= set(whole.tags)
    assert EVIL in read.said, "and it is there to be read"
    assert "&amp;{{ 7 * 7 }}" in page, "data is no template"


def test_it_needs_no_network_and_runs_its_own_script_alone(spec: StudySpec) -> None:
    page = render_study(analysis([trial(number) for number in range(6)]), spec, START)
    read = Reader(page)
    assert not [value for name, value in read.attributes if name in ("src", "srcset", "style", "onclick", "action")]
    assert all(value.startswith("#") for name, value in read.attributes if name == "href")
    assert not re.search(r"https?://|url\(|@import", page)
    (policy,) = [value for name, value in read.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_start_and_best_are_marked_in_every_chart(spec: StudySpec) -> None:
    rows = [trial(number) for number in range(9)] + [trial(9, state="pruned", percent=30.0), trial(10, state="failed")]
    view = StudyView(analysis(rows), spec.searched, START)
    chart = course(view, "average_precision")
    kinds = [mark.kind for mark in chart.marks]
    assert kinds.count("best") == kinds.count("start") == kinds.count("stopped") == kinds.count("failed") == 1
    assert chart.marks[-1].kind == "best", "on top"
    assert {mark.number for mark in chart.marks} == set(range(11))
    heights = {mark.number: mark.y for mark in chart.marks}
    assert heights[view.found.best or 0] == min(heights.values()), "the best stands highest"
    lines = parallel(view, "average_precision").lines
    assert len(lines) == 9
    assert [line.kind for line in lines[-2:]] == ["start", "best"]
    drawn = contour(view, "average_precision")
    assert drawn is not None
    assert len(drawn[0].areas) >= 4


def test_a_start_outside_of_the_spaces_is_drawn_where_it_lies(tmp_path: Path) -> None:
    narrow = toy_spec(tmp_path, space={"k": "5..8", "x": "0..0.4"})
    rows = [trial(0, values={}), *(trial(n, values={"method.k": 5 + n % 4, "method.x": 0.1 * n}) for n in range(1, 5))]
    view = StudyView(analysis(rows), narrow.searched, START)
    chart = course(view, "average_precision")
    assert any(mark.kind == "start" for mark in chart.marks)
    drawn = contour(view, "average_precision")
    assert drawn is not None
    (mark,) = [mark for mark in drawn[0].marks if mark.kind == "start"]
    frame = drawn[0].frame
    assert frame["left"] <= mark.x <= frame["right"]
    assert frame["top"] <= mark.y <= frame["bottom"]


def test_several_objectives_show_their_front(spec: StudySpec) -> None:
    objectives = {"average_precision": "maximize", "seconds_per_volume": "minimize"}
    two = spec.model_copy(update={"objectives": tuple(objectives)})
    found = analysis([trial(number) for number in range(9)], objectives=objectives)
    page = render_study(found, two, START)
    assert "The front" in page
    assert page.count('class="mark front"') > len(found.front)
    assert "--seeds" not in page
    assert "--promote" not in page
    assert all(f"toy-{number:04d}" in page for number in found.front)


@pytest.mark.parametrize("rows", [[], [trial(0, state="running")], [trial(0, state="failed", reason="")], [trial(0)]])
def test_little_is_said_of_little(spec: StudySpec, rows: list[TrialRow]) -> None:
    page = render_study(analysis(rows, importance={}), spec, START)
    assert "Too few complete trials" in page
    assert "vesalius tune --resume toy" in page


def test_a_long_study_stays_a_small_page(spec: StudySpec) -> None:
    found = analysis([trial(number) for number in range(1000)])
    assert len(render_study(found, spec, START)) < 4e6


def test_seeds_and_the_runs_to_compare_are_named(spec: StudySpec) -> None:
    found = analysis([trial(number) for number in range(9)])
    assert "vesalius study toy --seeds 3" in render_study(found, spec, START)
    scored = Start(run="first", stages=("one",), weights_sha256="a" * 64, trains=False, has_passes=False)
    assert "--seeds" not in render_study(found, spec.model_copy(update={"start": scored}), START), "they are refused"
    figures = {"average_precision": 0.5}
    row = SeedRow(
        seed=4,
        best=Record(number=2, ending="complete", run_id="toy-0002-seed4", figures=figures),
        start=Record(number=0, ending="complete", run_id="toy-0000-seed4", figures=figures),
    )
    seeds = SeedComparison(
        objective="average_precision", best=2, start=0, rows=(row,), means=(0.5, 0.5), differences=(0.0,), mean=0.0,
        interval=None, sentence="over 1 other seed nothing differs",
    )  # fmt: skip
    over = found.model_copy(update={"counts": {"complete": spec.trials}})
    under_way = found.model_copy(update={"counts": {"complete": spec.trials - 1}})
    page = render_study(over, spec, START, seeds=seeds, home="/a home")
    assert "Over 1 other seed nothing differs." in page
    assert "toy-0002-seed4" in page
    assert "vesalius study toy --test --home &#39;/a home&#39;" in page
    assert "vesalius study toy --test" not in render_study(under_way, spec, START, seeds=seeds), "trials are to come"
    test = seeds.model_copy(update={"split": "test", "sentence": "over 1 other seed on test nothing differs"})
    page = render_study(over, spec, START, seeds=seeds, test=test)
    assert "Over 1 other seed on test nothing differs." in page
    assert "vesalius study toy --test" not in page, "once"


def test_a_page_replaces_only_a_page_of_its_kind(tmp_path: Path, spec: StudySpec) -> None:
    path = page_path(tmp_path / "study.html", STUDY)
    assert write_study_page(path, analysis([trial(0)]), spec, START) == path.stat().st_size
    assert page_path(path, STUDY) == path
    with pytest.raises(SettingError, match="is not a page of this kind"):
        page_path(path)


# ---- charts


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(low=0, high=1), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Scale(low=-3, high=17), ["0", "5", "10", "15"]),
        (Scale(low=1e-3, high=1, is_log=True), ["0.001", "0.01", "0.1", "1"]),
        (Scale(low=0.02, high=0.3, is_log=True), ["0.02", "0.05", "0.1", "0.2"]),
        (Scale(low=3.1, high=3.4, is_log=True), ["3.1", "3.2", "3.3", "3.4"]),
        (Scale(names=("a", "64")), ["a", "64"]),
        (
            Scale(low=12345.61, high=12345.69),
            ["12345.62", "12345.64", "12345.66", "12345.68"],
        ),
        (Scale(low=0, high=1e-13), ["0", "2e-14", "4e-14", "6e-14", "8e-14", "1e-13"]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[str]) -> None:
    found = scale.ticks()
    assert [text for _, text in found] == ticks
    assert all(0 <= place <= 1 for place, _ in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12346"),
        (9999.9, "10000"),
        (123.456, "123.5"),
        (-45678.0, "-45678"),
        (1e20, "1e+20"),
        (7, "7"),
    ],
)
def test_large_values_are_shown_as_one_writes_them(value: float, text: str) -> None:
    assert as_text(value) == text


def test_places_of_values() -> None:
    assert Scale(low=1, high=100, is_log=True).place(10) == pytest.approx(0.5)
    assert Scale(low=1, high=100, is_log=True).place(0) is None
    assert Scale(low=0, high=4).place("a") is None
    assert Scale(low=0, high=4).place(True) is None
    assert Scale(names=("True", "64")).place(64) == 0.75
    one = Scale.over([3.0])
    assert one.low < 3 < one.high
    assert Scale.over([]) == Scale()


def test_contours_of_a_plane_are_its_levels() -> None:
    canvas = Canvas(x=Scale(), y=Scale(), width=172.0, height=152.0)  # 100 x 100 pixels inside
    corners = [(x, y, x) for x in (0.0, 1.0) for y in (0.0, 1.0)]
    areas, scale = filled_contours(canvas, corners)
    assert (scale.low, scale.high) == (0, 1)
    assert len(areas) == 8
    for index, (path, strength) in enumerate(areas):
        across = [float(point.split()[0]) - 58 for point in re.findall(r"[\d.]+ [\d.]+", path)]
        assert min(across) == pytest.approx(100 * index / 8, abs=0.2)
        assert max(across) == pytest.approx(100 * (index + 1) / 8, abs=0.2)
        assert strength == pytest.approx((index + 0.5) / 8)


@pytest.mark.parametrize(
    "points",
    [[], [(0.1, 0.1, 1.0)] * 9, [(n / 9, n / 9, float(n)) for n in range(9)], [(0, 0, 1), (1, 0, 2), (0, 1, 3)]],
)
def test_nothing_is_interpolated_between_too_few_points_or_on_a_line(points: list[tuple[float, float, float]]) -> None:
    assert filled_contours(Canvas(x=Scale(), y=Scale()), points)[0] == []


# ---- populations


def of_a_population() -> Analysis:
    """Two members, three generations: the second takes the start's checkpoint in the last one, and is the best."""
    parents = (None, None, 0, 1, 2, 2)
    values = [START, {**START, "method.x": 0.9}, START, {**START, "method.x": 0.9}, START, {**START, "method.x": 0.4}]
    rows = [
        trial(
            number,
            state="complete" if number > 3 else "paused",
            figures={"average_precision": 0.1 * number} if number > 3 else {CRITERION: 0.01 * number},
            values=values[number],
            is_start=not number % 2,
            generation=number // 2,
            parent=parent,
            parent_sha256="" if parent is None else f"{parent}" * 64,
            percent=100 * (number // 2 + 1) / 3,
            curve=((33 * (number // 2 + 1), 0.01 * number),),
        )
        for number, parent in enumerate(parents)
    ]
    return analysis(rows, counts={"paused": 4, "complete": 2}, start=4, importance={})


def test_a_population_shows_who_went_on_from_whom(spec: StudySpec) -> None:
    found = of_a_population()
    spec = spec.model_copy(update={"population": Population(size=2, generations=3), "trials": 6})
    page = render_study(found, spec, START)
    said = " ".join(Reader(page).said.split())
    assert "number 5, has average_precision 0.5; the settings that the study started from have 0.4." in said
    assert "Settings over the generations" in said
    assert "Which settings matter" not in said, "a trial's own settings are not what its figure came from"
    assert "setting by setting" not in said
    assert "--seeds" not in said
    assert "--trials" not in said
    assert '<td class="number" data-sort="2"><a href="#t-2" title="its weights: SHA-256 ' + "2" * 64 in page
    assert "2 members, 3 generations" in said


def test_a_populations_settings_are_levels_joined_to_their_parents(spec: StudySpec) -> None:
    view = StudyView(of_a_population(), spec.searched, START)
    chart = schedules(view, 3)[0]
    assert chart.title == "x over the generations"
    assert [line.kind for line in chart.lines] == ["plain", "plain", "start", "best", "best", "best"]
    points = [[float(x) for x in re.findall(r"[ML]([0-9.]+) ", line.path)] for line in chart.lines]
    heights = [[float(y) for y in re.findall(r" ([0-9.]+)", line.path)] for line in chart.lines]
    assert [len(one) for one in points] == [2, 3, 3, 2, 3, 3]
    last, before = heights[-1], heights[-2]
    assert last[0] == before[-1], "it begins at its parent's value"
    assert last[1] == last[2] > last[0], "a smaller value lies lower"
    assert points[-1][0] == points[-1][1] == points[-2][-1], "and where its parent paused"
    (curve,) = [line.path for line in learning(view).lines if line.label.startswith("trial 5,")]  # type: ignore[union-attr]
    assert len(re.findall("[ML]", curve)) == 2, "from its parent's pause to its own end"
