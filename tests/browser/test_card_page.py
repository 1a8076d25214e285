"""The page of a model card in a real browser: alone, narrow and wide, light and dark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from vesalius.infra.cards import CardSources, write_card
from vesalius.infra.pages import CARD, page_path, write_card_page
from vesalius.methods import METHODS
from vesalius.platform.evaluation import Figures, Threshold, VoxelSet
from vesalius.platform.models import ModelCard
from vesalius.platform.registry import Promotion, Verdict
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.long

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, phantom_store: CohortStore) -> Path:
    """Return the page of a card with everything on it."""
    kind = lookup(METHODS, "implicit_field", "method")
    settings = kind.presets()["tiny"]
    thresholds: Any = {
        name: Threshold(value=0.5, policy="best_dice", split="validation", voxel_set=name)
        for name in get_args(VoxelSet)
    }
    model = ModelCard(
        method="implicit_field",
        settings=settings.model_dump(mode="json"),
        cohort=phantom_store.facts(any_grid=True),
        recipe={"name": "phantom", "spacing_mm": 2.0, "note": EVIL},
        thresholds=thresholds,
        run_id="implicit-field-1",
        created="2026-11-01T10:00:00+00:00",
        vesalius_version="0.1.0",
        weights_sha256="0" * 64,
    )
    figures: dict[str, dict[VoxelSet, Figures]] = {
        split: {
            name: Figures(
                method="implicit_field", split=split, voxel_set=name, num_subjects=3, num_lesions=2, num_images=3,
                average_precision=0.61, auroc=0.97, best_dice=0.58, dice_mean=0.5, fpr_at_95_recall=0.2,
                image_auroc=1.0, seconds_per_volume=1.25,
                intervals={"average_precision": (0.4, 0.8), "auroc": (0.9, 0.99), "best_dice": (0.3, 0.7)},
            )
            for name in get_args(VoxelSet)
        }
        for split in ("validation", "gate", "test")
    }  # fmt: skip
    verdicts = (
        Verdict(gate="better", outcome="passed", figure=0.1, bound=0.02, limit=0.0, sentence="better by far"),
        Verdict(gate="false_positives", outcome="failed", figure=0.1, bound=0.2, limit=0.02, sentence=EVIL),
    )
    promotion = Promotion(
        promoted=False, passed=False, name="brain", version="4", champion_version="3", voxel_set="all",
        num_subjects=3, num_lesions=2, sentence="version 4 of 'brain' is kept back by 1 of 2 gates", verdicts=verdicts,
    )  # fmt: skip
    sources = CardSources(
        model=model,
        kind=kind,
        summary=METHODS["implicit_field"].summary,
        store=phantom_store,
        figures=figures,
        promotion=promotion,
        registered="brain, version 4",
    )
    path = page_path(tmp_path_factory.mktemp("card"), CARD)
    write_card_page(path, write_card(sources))
    return path


@pytest.mark.parametrize(("width", "height"), [(1300, 900), (400, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_is_read_in_both_schemes(
    browser: Chrome, page: Path, low_contrast: Callable[[], list[str]], scheme: str, width: int, height: int
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.set_window_size(width, height)
    browser.get(page.as_uri())
    assert low_contrast() == []
    # Tables scroll in their own frame; the page itself does not.
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    if folder := os.environ.get("VESALIUS_SCREENSHOTS"):
        browser.set_window_size(width, 4000)
        browser.save_screenshot(str(Path(folder) / f"card-{scheme}-{width}.png"))


def test_the_card_asks_nobody_and_runs_nothing(browser: Chrome, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return document.scripts.length") <= 1
    assert browser.execute_script("return document.images.length") == 0
    heads = browser.execute_script("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert heads[0] == "Model Details"
    assert heads[-1] == "Caveats and Recommendations"
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert all(browser.execute_script("return !!document.getElementById(arguments[0])", link) for link in links)
