"""The study page in a real browser: alone, sorted, read in both schemes, with names that try to be HTML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.infra.pages import write_study_page
from vesalius.tuning import Analysis, SeedComparison, TrialRow
from vesalius.tuning.seeds import SeedRow
from vesalius.tuning.spec import Record
from vesalius.tuning.testing import CRITERION, toy_spec, worth

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.long

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
START = {"method.x": 0.5, "method.k": 3, "method.kind": "a"}
AP, SECONDS = "average_precision", "seconds_per_volume"


def row(number: int) -> TrialRow:
    state = "failed" if number == 5 else "pruned" if number % 3 == 2 else "complete"
    values = {"method.x": (0.37 * number) % 1.0, "method.k": 1 + (5 * number) % 8, "method.kind": "ab"[number % 2]}
    values = dict(START) if number == 0 else values
    return TrialRow(
        number=number,
        state=state,
        is_start=number == 0,
        values=values,
        figures={AP: worth(values), SECONDS: 1.0 + number % 4} if state == "complete" else {},
        curve=tuple((25 * step, worth(values) * (1 - 0.5**step)) for step in range(1, 5 if state == "complete" else 3)),
        percent=100 if state == "complete" else 50,
        reason=EVIL if state == "failed" else "",
        run=f"{EVIL}-{number}" if number == 4 else f"toy-{number:04d}",
        seconds=61.0 * (number % 5 + 1),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a study of two objectives' figures judged by one, with seeds, a failure and hostile names."""
    folder = tmp_path_factory.mktemp("study")
    rows = tuple(row(number) for number in range(24))
    complete = [one for one in rows if one.state == "complete"]
    best = max(complete, key=lambda one: one.figures[AP]).number
    counts = {state: sum(one.state == state for one in rows) for state in ("complete", "pruned", "failed")}
    found = Analysis(
        study="toy", method="implicit_field", store="s", objectives={AP: "maximize"}, criterion=CRITERION, wanted=24,
        counts=counts, trials=rows, best=best, start=0, front=(best,),
        importance={AP: {"method.x": 0.6, "method.kind": 0.3, "method.k": 0.1}},
    )  # fmt: skip

    def record(number: int, seed: int) -> Record:
        return Record(
            number=number, ending="complete", run_id=f"toy-{number:04d}-seed{seed}", figures={AP: 0.8 + 0.01 * seed}
        )

    seeds = SeedComparison(
        objective=AP, best=best, start=0,
        rows=tuple(SeedRow(seed=seed, best=record(best, seed), start=record(0, seed)) for seed in (1, 2, 3)),
        means=(0.82, 0.82), differences=(0.0, 0.0, 0.0), mean=0.0, interval=(-0.01, 0.01),
        sentence="over 3 other seeds they cannot be told apart",
    )  # fmt: skip
    spec = toy_spec(folder, store=EVIL)
    write_study_page(folder / "study.html", found, spec, START, seeds=seeds)
    return folder / "study.html"


def opened(browser: Chrome, page: Path, width: int = 1400, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    folder = os.environ.get("VESALIUS_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"study-{width}-{scheme}.png"))


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def test_it_opens_from_a_file_without_a_word_in_the_console_or_a_request(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert "cannot be told apart" in ask(browser, "document.body.innerText")
    assert browser.get_log("browser") == []
    sent = [one["message"] for one in browser.get_log("performance") if '"Network.requestWillBeSent"' in one["message"]]
    assert all('"url":"file:' in message or '"url":"data:' in message for message in sent)
    assert ask(browser, "document.querySelectorAll('svg.chart').length") == 7
    assert ask(browser, "[...document.querySelectorAll('svg.chart')].every(c => c.getBoundingClientRect().width > 200)")


def test_data_stays_data(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert EVIL in ask(browser, "document.getElementById('t-4').innerText")
    assert EVIL in ask(browser, "document.querySelector('.findings').innerText")
    assert ask(browser, "document.querySelectorAll('script').length") == 1
    assert ask(browser, "document.querySelectorAll('img').length") == 0
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.ran=1\">')")
    assert ask(browser, "window.ran === undefined")


def test_the_table_is_sorted_by_any_column(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    heads: list[str] = ask(browser, "[...document.querySelectorAll('.trials thead th')].map(h => h.innerText.trim())")
    column = heads.index(AP)
    values = f"[...document.querySelectorAll('.trials tbody tr')].map(r => r.cells[{column}].dataset.sort)"
    click = f"document.querySelectorAll('.trials thead button')[{column}].click()"
    browser.execute_script(click)
    rising = ask(browser, values)
    numbers = [float(value) for value in rising if value]
    assert numbers == sorted(numbers)
    assert rising[len(numbers) :] == [""] * (24 - len(numbers)), "what has no figure comes last"
    browser.execute_script(click)
    falling = ask(browser, values)
    assert [float(value) for value in falling if value] == numbers[::-1]
    assert falling[-1] == ""
    assert ask(browser, "document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert ask(browser, "document.querySelector('.trials tbody tr').className") == "best"
    # Words too, and equal ones in the order of their numbers.
    browser.execute_script("document.querySelectorAll('.trials thead button')[1].click()")
    found = ask(browser, "[...document.querySelectorAll('.trials tbody tr')].map(r => [r.cells[1].dataset.sort, r.id])")
    assert found == sorted(found, key=lambda one: (one[0], int(one[1][2:])))


def test_a_mark_says_its_trial_and_leads_to_its_row(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert "trial 0 (start), complete" in ask(browser, "document.querySelector('a:has(> .mark.start)').textContent")
    browser.execute_script("location.hash = document.querySelector('a:has(> .mark.best)').getAttribute('href')")
    assert ask(browser, "document.querySelector('tr:target').className") == "best"
    # A line is no area: only marks and contours are filled.
    fills = "new Set([...document.querySelectorAll('.line')].map(l => getComputedStyle(l).fill))"
    assert ask(browser, f"[...{fills}]") == ["none"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(
    browser: Chrome, page: Path, scheme: str, low_contrast: Callable[[], list[str]]
) -> None:
    opened(browser, page, scheme=scheme)
    assert low_contrast() == []


@pytest.mark.parametrize("width", [420, 760, 1400])
def test_nothing_runs_out_of_the_page_or_over_its_neighbour(browser: Chrome, page: Path, width: int) -> None:
    opened(browser, page, width=width)
    assert ask(browser, "document.documentElement.scrollWidth") <= width
    # Texts along a chart's foot keep clear of each other.
    over = """(() => { const over = [];
      for (const chart of document.querySelectorAll('svg.chart')) {
        const ticks = [...chart.querySelectorAll('.tick[text-anchor=middle]')].map(t => t.getBoundingClientRect());
        ticks.slice(1).forEach((t, i) => { if (t.left < ticks[i].right) over.push(chart.getAttribute('aria-label')); });
      } return over; })()"""
    assert ask(browser, over) == []
