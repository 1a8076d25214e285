"""The upload page in a real browser: a file goes up, its slices and map are seen, moved through and downloaded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest

from vesalius.infra.serving.testing.server import make_model, served, write_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

    from vesalius.infra.serving.testing.server import Served

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

TOKEN = "a-token-of-tests-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    model = make_model(folder / "brain")
    with served(folder / "server", str(model), "--token-file", str(token)) as running:
        yield running


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def wait(browser: Chrome, script: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ask(browser, script)):
        assert time.monotonic() < deadline, (script, browser.page_source[-3000:])
        time.sleep(0.1)
    return found


def picture(browser: Chrome, name: str) -> None:
    if folder := os.environ.get("VESALIUS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"serving-{name}.png"))


def emulate(browser: Chrome, width: int, height: int, scheme: str = "light") -> None:
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


_LOOK = """
const c = document.getElementById('plane-' + arguments[0]);
const copy = new OffscreenCanvas(c.width, c.height), own = copy.getContext('2d', {willReadFrequently: true});
own.drawImage(c, 0, 0);
const data = own.getImageData(0, 0, c.width, c.height).data;
let coloured = 0, light = 0, hash = 0;
for (let i = 0; i < data.length; i += 4) {
  if (data[i] > data[i + 2] + 40) coloured += 1;
  light += data[i] + data[i + 1] + data[i + 2];
  hash = (hash * 31 + data[i] * 65536 + data[i + 1] * 256 + data[i + 2]) % 4294967291;
}
return [coloured, light, hash];
"""


def look(browser: Chrome, plane: int) -> tuple[int, int, int]:
    """Return how many pixels of a plane bear the map, how light it is, and a number that stands for the picture.

    Grey has three equal parts, and the map is more red than blue.
    """
    coloured, light, number = browser.execute_script(_LOOK, plane)
    return coloured, light, number


def coloured(browser: Chrome, plane: int) -> int:
    return look(browser, plane)[0]


def move(browser: Chrome, slider: str, value: int) -> None:
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))",
        slider,
        value,
    )


def test_a_volume_goes_up_and_its_map_is_seen(
    browser: Chrome, server: Served, low_contrast: Callable[[], list[str]], tmp_path: Path
) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    allowed = {"behavior": "allow", "downloadPath": str(downloads)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    emulate(browser, 1400, 1000)
    browser.get_log("browser")
    browser.get(server.address)
    wait(browser, "document.getElementById('model').textContent.includes('asks for a token')")
    assert ask(browser, "document.getElementById('send').disabled")
    picture(browser, "token")
    browser.find_element("id", "token").send_keys(TOKEN)
    browser.find_element("css selector", "#token-form button").click()
    said = wait(
        browser, "document.getElementById('files').children.length && document.getElementById('model').textContent"
    )
    assert "brain: intensity_threshold, learnt from 2 healthy subjects" in said
    assert low_contrast() == []
    picture(browser, "empty")

    bad = tmp_path / "<img src=x onerror=alert(1)>.nii.gz"
    bad.write_bytes(b"no volume")
    browser.find_element("css selector", "#files input").send_keys(str(bad))
    browser.find_element("id", "send").click()
    error = wait(browser, "document.querySelector('#errors li')?.textContent")
    assert "is of no type that is read here" in error
    picture(browser, "refused")

    file = write_head(tmp_path / "patient.nii.gz", 3)
    browser.find_element("css selector", "#files input").send_keys(str(file))
    browser.find_element("id", "send").click()
    wait(browser, "!document.getElementById('result').hidden")
    assert ask(browser, "document.querySelectorAll('#errors li').length") == 0
    assert ask(browser, "document.getElementById('name').textContent") == "patient.nii.gz"
    assert "Above threshold" in ask(browser, "document.getElementById('facts').textContent")
    time.sleep(0.3)
    picture(browser, "result")
    assert low_contrast() == []
    shown = [coloured(browser, plane) for plane in range(3)]
    assert min(shown) > 50, shown

    # Slices, window, map and opacity each change what is drawn.
    before = look(browser, 2)
    move(browser, "slice-2", 1)
    assert look(browser, 2)[2] != before[2]
    assert coloured(browser, 2) < shown[2]
    browser.find_element("id", "highest").click()
    assert look(browser, 2) == before
    move(browser, "opacity", 0)
    none, light, _ = look(browser, 2)
    assert none == 0
    move(browser, "high", 300)
    assert look(browser, 2)[1] > light
    move(browser, "opacity", 80)
    move(browser, "from", 1)
    assert coloured(browser, 2) > shown[2]
    place = ask(browser, "document.getElementById('slice-0').value")
    browser.execute_script(
        "const c = document.getElementById('plane-2'), b = c.getBoundingClientRect();"
        "c.dispatchEvent(new PointerEvent('pointerdown', {clientX: b.left + b.width * 0.3, clientY: b.top + 50}))"
    )
    assert ask(browser, "document.getElementById('slice-0').value") != place

    browser.find_element("id", "download").click()
    target = downloads / "patient_map.nii.gz"
    deadline = time.monotonic() + 30
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    image = nibabel.Nifti1Image.from_filename(target)
    assert image.shape == (20, 18, 16)
    assert float(np.asarray(image.dataobj).max()) > 2

    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [text for text in complaints if "401" not in text and "415" not in text] == []


def test_the_page_fits_a_telephone_in_the_dark(
    browser: Chrome, server: Served, low_contrast: Callable[[], list[str]], tmp_path: Path
) -> None:
    emulate(browser, 390, 844, "dark")
    browser.get(server.address)
    browser.find_element("id", "token").send_keys(TOKEN)
    browser.find_element("css selector", "#token-form button").click()
    wait(browser, "document.getElementById('files').children.length")
    file = write_head(tmp_path / "patient.nii.gz", 5)
    # As a drop does: the file is taken and goes up at once.
    browser.execute_script(
        "const input = document.createElement('input'); input.type = 'file'; input.id = 'dropped';"
        "document.body.append(input)"
    )
    browser.find_element("id", "dropped").send_keys(str(file))
    browser.execute_script(
        "const moved = new DataTransfer(); moved.items.add(document.getElementById('dropped').files[0]);"
        "document.getElementById('dropped').remove();"
        "dispatchEvent(Object.assign(new Event('drop', {cancelable: true}), {dataTransfer: moved}))"
    )
    wait(browser, "!document.getElementById('result').hidden")
    assert ask(browser, "document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert low_contrast() == []
    time.sleep(0.3)
    picture(browser, "telephone")
