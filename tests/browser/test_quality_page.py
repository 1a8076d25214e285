"""The quality page in a real browser: from a file, without a network, by keyboard, in the dark, on a telephone.

Debian's chromium and chromedriver, from one source package and so always of one version, driven by Selenium; ``make
browser`` installs them. Screenshots go to ``$VESALIUS_SCREENSHOTS`` where that is set.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.datasets.quality import survey
from vesalius.infra.pages import Album, write_quality_page
from vesalius.platform.store import CohortStore, SubjectArrays

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.long

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
UPSIDE_DOWN = "phantom-train-002"


@pytest.fixture(scope="module")
def page(phantom_store: CohortStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of phantoms: one upside down, one with demographics that try to be HTML."""
    folder = tmp_path_factory.mktemp("page")
    store = CohortStore.create(folder / "store", recipe=phantom_store.recipe, channels=phantom_store.channels)
    with store.lock():
        for record in phantom_store.subjects():
            image = phantom_store.image(record.subject_id)
            brain = phantom_store.brain(record.subject_id)
            lesion = phantom_store.mask(record.subject_id, "lesion")
            if record.subject_id == UPSIDE_DOWN:
                image, brain = np.ascontiguousarray(image[..., ::-1]), np.ascontiguousarray(brain[..., ::-1])
            number = int(record.subject_id[-3:])
            update: dict[str, Any] = {"arrays": {}, "demographics": {"age": 30 + number, "sex": "FM"[number % 2]}}
            if record.subject_id == "phantom-test-000":
                update |= {"group": EVIL, "demographics": {EVIL: EVIL}, "notes": {"warnings": [EVIL]}}
            arrays = SubjectArrays(image=image, brain=brain, lesion=lesion)
            store.commit([store.write(record.model_copy(update=update), arrays)])
    store = CohortStore.open(store.path)
    album = Album(len(store.subjects()))
    quality = survey(store, see=album.add)
    write_quality_page(
        folder / "page" / "index.html", store, quality, album.slices, common_outline=album.common_outline()
    )
    # The page has to stand alone: what it was made from is taken away.
    shutil.rmtree(store.path)
    return folder / "page" / "index.html"


def opened(browser: Chrome, page: Path, width: int = 1400, height: int = 900, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def shown(browser: Chrome) -> list[str]:
    found: list[str] = ask(browser, "[...document.querySelectorAll('.card:not([hidden])')].map(c => c.dataset.id)")
    return found


def choose(browser: Chrome, control: str, value: str) -> None:
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}))",
        control,
        value,
    )


def photograph(browser: Chrome, name: str) -> None:
    folder = os.environ.get("VESALIUS_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_it_opens_from_a_file_without_a_word_in_the_console_or_a_request(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    photograph(browser, "light")
    assert "stand out" in ask(browser, "document.body.innerText").lower()
    assert browser.get_log("browser") == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert all('"url":"file:' in message or '"url":"data:' in message for message in sent)
    assert ask(browser, "[...document.images].every(i => i.src.startsWith('data:') && i.alt.length > 20)")


def test_what_stands_out_is_first_and_every_picture_can_be_decoded(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert shown(browser)[0] == UPSIDE_DOWN
    assert "upside down" in ask(browser, "document.querySelector('.card').innerText").lower()
    browser.execute_script("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    decoded = browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth))).then(done, () => done([]))"
    )
    assert len(decoded) == 15
    assert min(decoded) > 200


def test_data_stays_data(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert EVIL in ask(browser, "document.getElementById('s-phantom-test-000').querySelector('.tags').textContent")
    assert ask(browser, "document.querySelectorAll('script').length") == 1
    assert ask(browser, "document.querySelectorAll('img[onerror]').length") == 0
    # And were it not escaped, the page's policy would still refuse to run it.
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.ran=1\">')")
    assert ask(browser, "window.ran === undefined")


def test_filters_and_order(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    everyone = shown(browser)
    assert len(everyone) == 15
    choose(browser, "split", "gate")
    assert shown(browser) == [f"phantom-gate-00{number}" for number in range(3)]
    assert ask(browser, "document.getElementById('count').textContent") == "3 of 15 subjects"
    choose(browser, "split", "")
    choose(browser, "find", "train-00 sex f")
    assert set(shown(browser)) == {"phantom-train-000", "phantom-train-002", "phantom-train-004"}
    choose(browser, "find", "no such subject")
    assert shown(browser) == []
    assert ask(browser, "!document.getElementById('none').hidden")
    choose(browser, "find", "")
    choose(browser, "level", "fine")
    assert UPSIDE_DOWN not in shown(browser)
    choose(browser, "level", "out")
    assert UPSIDE_DOWN in shown(browser)
    assert len(shown(browser)) == 2
    choose(browser, "level", "")
    choose(browser, "order", "similarity")
    values = ask(browser, "[...document.querySelectorAll('#others .card')].map(c => Number(c.dataset.similarity))")
    assert values == sorted(values)
    choose(browser, "order", "id")
    assert shown(browser) == everyone


def test_it_is_used_with_the_keyboard_alone(browser: Chrome, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    body = browser.switch_to.active_element
    body.send_keys("/")
    assert ask(browser, "document.activeElement.id") == "find"
    browser.switch_to.active_element.send_keys("train")
    assert len(shown(browser)) == 6
    ask(browser, "document.querySelector('.card:not([hidden]) .open').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert ask(browser, "document.getElementById('large').open")
    assert ask(browser, "document.getElementById('large-title').textContent") == UPSIDE_DOWN
    photograph(browser, "large")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert ask(browser, "document.getElementById('large-title').textContent") == "phantom-train-000"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not ask(browser, "document.getElementById('large').open")
    # Where the dialog was opened from is where the keyboard is again.
    assert ask(browser, "document.activeElement.className") == "open"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(
    browser: Chrome, page: Path, scheme: str, low_contrast: Callable[[], list[str]]
) -> None:
    """WCAG 2.1, 1.4.3: text of 4.5 to 1 against what lies behind it, everywhere."""
    opened(browser, page, scheme=scheme)
    photograph(browser, scheme)
    assert low_contrast() == []
    paper = ask(browser, "getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in paper.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 150) == (scheme == "dark")


@pytest.mark.parametrize("width", [420, 760, 1400])
def test_nothing_runs_out_of_the_page(browser: Chrome, page: Path, width: int) -> None:
    opened(browser, page, width=width, height=900)
    photograph(browser, f"width-{width}")
    assert ask(browser, "document.documentElement.scrollWidth") <= width
