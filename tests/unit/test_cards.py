"""Model cards by themselves: what is not known is said, and nothing from data becomes Markdown or HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from markupsafe import escape

from vesalius.infra.cards import CardDocument, CardSources, as_markdown, write_card
from vesalius.infra.cards.document import read_document
from vesalius.infra.pages.card import render_card, write_card_page
from vesalius.infra.pages.document import CARD, page_path
from vesalius.methods import METHODS
from vesalius.platform.errors import ModelError, SettingError
from vesalius.platform.evaluation import Figures, Threshold
from vesalius.platform.models import ModelCard
from vesalius.platform.registry import Promotion, Verdict
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

EVIL = 'a | b <script>alert(1)</script> "x" [y](javascript:z) # _h_'

THRESHOLD = Threshold(value=0.25, policy="quantile", quantile=0.98, split="validation", voxel_set="all")


def model(store: CohortStore, **changes: Any) -> ModelCard:
    kind = lookup(METHODS, "healthy_atlas", "method")
    values: dict[str, Any] = {
        "method": "healthy_atlas",
        "settings": kind.settings_type().model_dump(mode="json"),
        "cohort": store.facts(),
        "recipe": {"name": "toy", "step": {"size": 3}},
        "run_id": "run-1",
        "thresholds": {
            "all": Threshold(value=0.25, policy="quantile", quantile=0.98, split="validation", voxel_set="all")
        },
        **changes,
    }
    return ModelCard(**values)


def figures(split: str, **changes: Any) -> Figures:
    values: dict[str, Any] = {
        "method": "healthy_atlas",
        "split": split,
        "voxel_set": "all",
        "num_subjects": 4,
        "num_lesions": 2,
        "num_images": 4,
        "average_precision": 0.75,
        "intervals": {"average_precision": (0.5, 0.875)},
        **changes,
    }
    return Figures(**values)


def section(card: CardDocument, title: str) -> Any:
    return next(one for one in card.sections if one.title == title)


def test_a_card_of_a_model_alone_says_what_it_does_not_know(toy_store: CohortStore) -> None:
    card = write_card(CardSources(model=model(toy_store, thresholds={})))
    text = as_markdown(card)
    assert "cannot be read any more" in text
    assert "No figures on the test split are known." in text
    assert "Nothing was measured yet" in text
    assert "has no threshold" in text
    assert card.figures == {}
    assert CardDocument.model_validate_json(card.model_dump_json()) == card


def test_figures_stand_with_their_intervals(toy_store: CohortStore) -> None:
    verdict = Verdict(gate="seconds", outcome="passed", figure=1.5, limit=2, sentence="fast enough")
    promotion = Promotion(
        promoted=True, passed=True, name="brain", version="3", voxel_set="all", num_subjects=4, num_lesions=2,
        sentence="version 3 is the new champion", verdicts=(verdict,),
    )  # fmt: skip
    card = write_card(
        CardSources(
            model=model(toy_store),
            kind=lookup(METHODS, "healthy_atlas", "method"),
            store=toy_store,
            figures={"test": {"all": figures("test")}},
            promotion=promotion,
            registered="brain, version 3",
        )
    )
    found = section(card, "Quantitative Analyses")
    (row,) = found.tables[0].rows
    assert found.tables[0].title == "All subjects, all voxels"
    assert row[0] == "test"
    assert "0.750 (0.500 to 0.875)" in row
    assert found.tables[1].rows == (("seconds", "passed", "fast enough"),)
    thresholds = section(card, "Metrics").tables[0]
    assert thresholds.rows == (("all", "0.25", "quantile 0.98", "validation", "1"),)
    assert ("step.size", "3") in section(card, "Training Data").tables[0].rows
    split = {row[0]: row for row in section(card, "Evaluation Data").tables[0].rows}
    assert split["gate"][1:5] == ("4", "2", "2", "no")
    assert split["test"][4] == "yes"
    assert any(
        "test split holds 2 subjects with a lesion" in item
        for item in section(card, "Caveats and Recommendations").items
    )
    assert "does not state age or sex" in as_markdown(card)


def test_nothing_from_data_is_markup(toy_store: CohortStore, tmp_path: Path) -> None:
    card = write_card(CardSources(model=model(toy_store, run_id=EVIL, recipe={EVIL: EVIL}), registered=EVIL))
    text, page = as_markdown(card), render_card(card)
    assert "<script>" not in text
    assert r"a \| b" in text
    assert r"\[y\](javascript:z)" in text
    assert page.count("<script>") == page.count("</script>") == 0
    assert str(escape(EVIL)) in page
    path = page_path(tmp_path, CARD)
    assert write_card_page(path, card) == path.stat().st_size
    assert page_path(path, CARD) == path  # an earlier card may be replaced, another page may not
    path.write_text("<html>mine</html>")
    with pytest.raises(SettingError, match="is not a page of this kind"):
        page_path(path, CARD)


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"sections": 3}, {"more": 1}])
def test_a_damaged_card_is_refused_in_words(toy_store: CohortStore, change: dict[str, Any]) -> None:
    value = write_card(CardSources(model=model(toy_store))).model_dump(mode="json")
    assert read_document(value, "it").format == 1
    with pytest.raises(ModelError, match=r"the card is damaged|update Vesalius") as caught:
        read_document({**value, **change}, "the card")
    assert "\n" not in str(caught.value)
