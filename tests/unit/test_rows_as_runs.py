"""A row's settings once they are chosen, and rows that come to the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.infra.pipeline import method_type
from vesalius.infra.reproduce import load_protocol, running
from vesalius.infra.reproduce.budget import choose
from vesalius.infra.reproduce.cohort import Cohorts
from vesalius.infra.reproduce.protocol import Finer, Row
from vesalius.platform.config import override

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from vesalius.infra.pipeline.estimating import Estimate
    from vesalius.platform.store import CohortStore

ROW = Row(label="IF", latent="8", method="implicit_field", preset="tiny", source="Table 1")


def conditions(store: CohortStore, out: Path, *rows: Row, **changes: Any) -> running.Conditions:
    """Return those of a protocol of these rows, on one thread of this process."""
    plain: dict[str, Any] = {
        "protocol": load_protocol("implicit_field_2021").model_copy(update={"name": "toy", "rows": rows}),
        "cohorts": Cohorts(reference=store, finer=None, level=None, said="toy"),
        "home": out / "home",
        "out": out,
        "budget_seconds": None,
        "num_workers": 0,
        "device": "cpu",
        "threads": 1,
        "small": "tiny",
    }
    return running.Conditions(**{**plain, **changes})


def test_a_choice_is_kept_for_as_long_as_what_it_was_made_from(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def counted(row: Row, *arguments: Any, **options: Any) -> Any:
        made.append(row)
        return choose(row, *arguments, **options)

    monkeypatch.setattr(running, "choose", counted)
    row = ROW
    for changes, num in (({}, 1), ({}, 1), ({"threads": 2}, 2), ({"num_workers": 2}, 3), ({}, 3)):
        running._choice(row, conditions(toy_store, tmp_path, row, **changes))
        assert len(made) == num, changes
    # Of kept networks the demo preset is taken where they cannot be kept.
    kept = conditions(toy_store, tmp_path, row, small=None)
    running._choice(row, kept)
    presets = method_type(row.method).presets()
    with monkeypatch.context() as changed:
        other = {**presets, "demo": override(presets["demo"], {"epochs": 3})}
        changed.setattr(method_type(row.method), "presets", classmethod(lambda cls: other))
        for num in (5, 5):
            running._choice(row, kept)
            assert len(made) == num
    # A later version's preset is another one, whatever it is called.
    kind = method_type(row.method)
    later = {name: override(preset, {"epochs": 3}) for name, preset in kind.presets().items()}
    monkeypatch.setattr(kind, "presets", classmethod(lambda cls: later))
    choice = running._choice(row, conditions(toy_store, tmp_path, row))
    assert (len(made), choice.settings["epochs"]) == (6, 3)


def test_rows_of_the_same_settings_on_other_data_are_two_runs(
    toy_store: CohortStore, phantom_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    coarse = ROW
    fine = coarse.model_copy(update={"label": "IF*", "finer": Finer(recipe="as_is", phantom_shape=(1, 1, 1))})

    for finer, alike in ((phantom_store, False), (None, True)):
        cohorts = Cohorts(reference=toy_store, finer=finer, level=None, said="toy")
        given = conditions(toy_store, tmp_path, coarse, fine, cohorts=cohorts, home=tmp_path / str(alike))
        runs = [running._find_or_start(row, running._choice(row, given), given) for row in (coarse, fine)]
        assert (runs[0].run_id == runs[1].run_id) == alike
        assert running.may_be_one_run(coarse, fine, given) == alike


def test_rows_that_are_scaled_to_the_same_settings_are_one_run(
    toy_store: CohortStore, tmp_path: Path, measured: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[float] = []

    def made_up(name: str, settings: Any, *_: Any, **limits: Any) -> Estimate:
        # No two probes agree, and the paper's networks are always too slow.
        probed.append(0.01 * 1.1 ** len(probed) * (1000 if settings.width > 50 else 1))
        return measured(steps={"decoder": 1000}, step_seconds={"decoder": probed[-1]}, fixed=())

    monkeypatch.setattr("vesalius.infra.reproduce.budget.estimate", made_up)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    first, second, wide, deeper = (
        ROW.model_copy(update={"label": label, "settings": settings, "scaled": scaled})
        for label, settings, scaled in (
            ("width=100", {"width": 100}, {}),
            ("latent=64", {"width": 150, "latent_dim": 64}, {}),
            ("width=200", {"width": 200}, {"width": 40}),
            ("pool=5", {"width": 100}, {"map.average_pool": 5}),
        )
    )
    rows = [first, second, wide, deeper]
    given = conditions(toy_store, tmp_path, *rows, budget_seconds=20.0)
    choices = [running._choice(row, given) for row in rows]
    # Three papers' networks, since the last row's are the first one's, and three that stand for them.
    assert len(probed) == 6
    assert all(choice.scaled for choice in choices)
    assert choices[0].settings == choices[1].settings
    runs = [running._find_or_start(row, choice, given).run_id for row, choice in zip(rows, choices, strict=True)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


def test_rows_wait_for_each_other_where_they_may_come_to_the_same_settings(
    toy_store: CohortStore, tmp_path: Path
) -> None:
    rows = [
        ROW.model_copy(update={"label": label, "settings": settings, "scaled": scaled})
        for label, settings, scaled in (
            ("a", {"width": 100}, {}),
            ("same paper", {"width": 100}, {"map.average_pool": 5}),
            ("same when scaled", {"width": 150, "latent_dim": 64}, {}),
            ("scaled to a's", {"width": 200}, {"width": 100}),
            ("other epochs", {"width": 100, "epochs": 7}, {"width": 40}),
            ("other map", {"width": 100, "map.average_pool": 7}, {"map.average_pool": 7}),
        )
    ]

    def waiting(**changes: Any) -> set[str]:
        given = conditions(toy_store, tmp_path, *rows, **changes)
        for one in rows[1:]:
            assert running.may_be_one_run(rows[0], one, given) == running.may_be_one_run(one, rows[0], given)
        return {one.label for one in rows[1:] if running.may_be_one_run(rows[0], one, given)}

    assert waiting() == {"same paper"}
    assert waiting(budget_seconds=20.0) == {"same paper", "same when scaled", "scaled to a's", "other epochs"}
