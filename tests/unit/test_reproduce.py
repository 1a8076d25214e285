"""Papers as data, settings within a time, the data that a table is made on, and what a person reads of it."""

from __future__ import annotations

import io
import json
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

from vesalius.datasets import LAYOUTS
from vesalius.datasets.layouts.ct_findings import CT_FINDINGS
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings, PhantomSettings, phantom_cohort
from vesalius.datasets.recipes import RECIPES
from vesalius.infra import pipeline, tables
from vesalius.infra.cli.app import app
from vesalius.infra.console import Terminal
from vesalius.infra.footprint import made_up_cohort
from vesalius.infra.pipeline import ThresholdRule, estimating, method_type
from vesalius.infra.pipeline.estimating import Estimate, estimate
from vesalius.infra.reproduce import DataRequest, Protocol, load_protocol, protocol_names, reproduce
from vesalius.infra.reproduce.budget import choose, fit_epochs, paper_settings, parse_budget, scaled_settings
from vesalius.infra.reproduce.cohort import check_request, make_cohorts
from vesalius.infra.reproduce.levels import level_of
from vesalius.infra.reproduce.protocol import BASELINES, PreparedBy, Published, Row
from vesalius.infra.reproduce.running import slug
from vesalius.infra.reproduce.table import said_of_code
from vesalius.infra.tables.frames import as_time
from vesalius.infra.tables.reproduction import markdown
from vesalius.methods import METHODS
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings, tiny
from vesalius.methods.vae_restoration import VaeRestoration
from vesalius.methods.vae_restoration.settings import tiny as tiny_restoration
from vesalius.platform.config import flatten, override, validate
from vesalius.platform.errors import SettingError
from vesalius.platform.evaluation import FIGURE_KEYS
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore, SubjectArrays
from vesalius.platform.training import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vesalius.platform.contracts import MethodSettings

ONE_THREAD = TrainingSettings(threads=1)
SMALL = CohortSettings(
    num_train=3, num_validation=2, num_gate=0, num_test=3, phantom=PhantomSettings(shape=(12, 14, 12))
)
ROW = Row(label="IF", latent="8", method="implicit_field", published=Published(dice_mean=0.64), source="Table 1")


def protocol(*rows: Row, **changes: Any) -> Protocol:
    """Return the implicit-field paper's protocol with other rows: none of its own at test size."""
    return load_protocol("implicit_field_2021").model_copy(
        update={"name": "toy", "rows": rows, "trivial_rows": (), **changes}
    )


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# ---- papers as data


def test_the_papers_are_there() -> None:
    expected = ["anovaegan_2018", "f_anogan_3d_2020", "implicit_field_2021", "position_regression_2022"]
    assert protocol_names() == expected


@pytest.mark.parametrize(("paper", "num_rows"), [("implicit_field_2021", 6), ("anovaegan_2018", 8)])
def test_every_row_is_printed_by_the_paper_and_its_recipe_is_known(paper: str, num_rows: int) -> None:
    chosen = load_protocol(paper)
    assert chosen.name == paper
    assert len(chosen.rows) == num_rows
    assert chosen.recipe in RECIPES
    for row in chosen.rows:
        assert row.published is not None
        assert row.published.dice_mean is not None
        assert row.published.dice_std is not None
        assert row.source.startswith("Table 1")
        assert row.finer is None or row.finer.recipe in RECIPES
    assert {key for key in FIGURE_KEYS if key != "method"} <= set(Published.model_fields)


def test_published_figures_are_those_that_are_printed() -> None:
    implicit = {row.label: row.published for row in load_protocol("implicit_field_2021").rows}
    full = implicit["IF 3D*"]
    assert full is not None
    assert (full.best_dice, full.average_precision, full.fpr_at_95_recall) == (0.716, 0.771, 0.0386)
    baur = load_protocol("anovaegan_2018")
    assert [round(row.published.dice_mean or 0, 3) for row in baur.rows if row.published] == [
        0.128, 0.197, 0.586, 0.526, 0.166, 0.592, 0.605, 0.375,
    ]  # fmt: skip
    assert (baur.rule.policy, baur.rule.quantile, baur.rule.split, baur.rule.min_component) == (
        "quantile", 0.98, "train", 6,
    )  # fmt: skip


@pytest.mark.parametrize("paper", protocol_names())
def test_every_row_has_its_method_preset_and_settings(paper: str) -> None:
    for row in (*load_protocol(paper).rows, *load_protocol(paper).trivial()):
        assert row.method in METHODS, row.label
        paper_settings(row)
        scaled_settings(row)


def test_the_mean_head_is_shown_under_the_windows_of_every_row_scaled_or_not() -> None:
    keys = ("map.median_pool", "map.min_pool", "map.average_pool")

    def windows(settings: MethodSettings) -> tuple[Any, ...]:
        flat = flatten(settings)
        return tuple(flat[key] for key in keys)

    for paper in ("implicit_field_2021", "anovaegan_2018"):
        chosen = load_protocol(paper)
        for row in chosen.trivial_rows:
            # Whichever of the two a budget takes: its label names the windows.
            assert windows(paper_settings(row)) == windows(scaled_settings(row)), row.label
        shown = {windows(paper_settings(row)) for row in chosen.trivial_rows}
        assert shown == {windows(of(row)) for row in chosen.rows for of in (paper_settings, scaled_settings)}


def test_the_3d_f_anogan_is_judged_by_its_images() -> None:
    chosen = load_protocol("f_anogan_3d_2020")
    assert chosen.judged == "images"
    assert chosen.recipe in RECIPES
    model = chosen.rows[0].published
    assert model is not None
    assert model.figures == {
        "auroc": 0.75, "own_accuracy": 0.7075, "own_sensitivity": 0.5407, "own_specificity": 0.8666,
    }  # fmt: skip
    level = level_of(chosen)
    assert level is not None
    columns = {key for section in level.sections() for key, _, _ in section.columns}
    # Whatever the paper prints has a column.
    assert all(set(row.published.figures) <= columns for row in chosen.rows if row.published)
    assert {*chosen.lesion_labels, *chosen.quality_labels} <= set(CT_FINDINGS)
    # Each label has images in the phantoms' test split, and there are healthy ones.
    heads = chosen.phantom
    cases = list(phantom_cohort(0, 0, 0, heads.num_test, heads.phantom, heads.seed, heads.findings))
    for label in (*chosen.lesion_labels, *chosen.quality_labels):
        assert sum(case.labels[label] is True for case in cases) >= 4, label
    assert sum(not case.anomalous for case in cases) * 3 == len(cases)
    # Nothing that the phantoms have is without a column.
    shown = (*chosen.lesion_labels, *chosen.quality_labels)
    assert all(any(case.labels[label] for label in shown) for case in cases if case.anomalous)


def test_position_regression_is_judged_by_structures() -> None:
    chosen = load_protocol("position_regression_2022")
    assert chosen.judged == "structures"
    rows = {row.label: row for row in chosen.rows}
    widths, sizes = (1, 2, 4, 8, 16, 32, 64), (19, 23, 27, 31, 35, 39)
    kinds = ("PPR", "AE erosion", "AE median")
    assert list(rows) == [
        *(f"PPR m={m}" for m in widths),
        *(f"PPR s_p={size}" for size in sizes),
        "PPR m=8 calibrated",
        "PPR m=16 calibrated",
        *(f"{kind} m={m}" for kind in kinds[1:] for m in widths),
    ]
    # The paper's settings, and what stands for them where they are scaled down: the same width, the same patch.
    for kind in kinds:
        for m in widths:
            for settings in (paper_settings(rows[f"{kind} m={m}"]), scaled_settings(rows[f"{kind} m={m}"])):
                assert flatten(settings)["network.width"] == m
    for size in sizes:
        paper, scaled = (flatten(f(rows[f"PPR s_p={size}"])) for f in (paper_settings, scaled_settings))
        assert (paper["network.patch_size"], paper["network.width"], scaled["network.patch_size"]) == (size, 16, size)
    ours = rows["PPR m=8 calibrated"]
    assert ours.published is None
    assert all(flatten(settings)["scoring.calibrate"] for settings in (paper_settings(ours), scaled_settings(ours)))
    for settings in (paper_settings(rows["AE median m=16"]), scaled_settings(rows["AE median m=16"])):
        flat = flatten(settings)
        assert flat["map.median_pool"] > 1 == flat["map.min_pool"]
    level = level_of(chosen)
    assert level is not None
    columns = {key for section in level.sections() for key, _, _ in section.columns}
    printed = rows["PPR m=16"].published
    assert printed is not None
    assert printed.figures == {"structure/ICH": 0.81}
    # The other number that the paper prints is of another model: it is told, and not set beside this one's.
    assert "0.79, is of a smaller model" in rows["PPR m=16"].differs[0]
    assert set(printed.figures) <= columns
    # The skull lies outside the brain, so that no map may end there.
    every = (*chosen.rows, *chosen.trivial())
    assert all(flatten(f(row))["map.voxels"] == "all" for row in every for f in (paper_settings, scaled_settings))
    assert {structure.label for task in chosen.tasks for structure in task.structures} <= set(CT_FINDINGS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": []}, "tasks go with judged = structures"),
        ({"judged": "images"}, "tasks go with judged = structures"),
        ({"surface": "nose"}, "no task is about 'nose'"),
    ],
)
def test_a_protocol_of_structures_asks_of_them(changes: dict[str, Any], words: str) -> None:
    plain = load_protocol("position_regression_2022").model_dump(mode="json")
    with pytest.raises(SettingError, match=words):
        validate(Protocol, {**plain, **changes}, "protocol")


def test_scaled_rows_keep_the_order_of_their_codes() -> None:
    import torch

    rows = load_protocol("anovaegan_2018").rows
    sizes: dict[str, list[int]] = {"paper": [], "scaled": []}
    for row in rows:
        kind = method_type(row.method)
        for name, settings, edge in (("paper", paper_settings(row), 256), ("scaled", scaled_settings(row), 64)):
            with torch.device("meta"):
                shape = kind(settings, made_up_cohort((edge, edge, 20), 2)).code_shape()
            assert shape is not None
            if name == "paper":
                assert said_of_code(shape) == row.latent
            else:
                assert len(shape) == row.latent.count("x") + 1  # a dense code stays dense
            sizes[name].append(math.prod(shape))
    assert sizes["paper"] == [512, 4_096, 16_384, 16_384, 512, 16_384, 16_384, 64]
    assert sizes["scaled"] == [32, 256, 1_024, 1_024, 32, 1_024, 1_024, 16]
    ranks = [[sorted(set(found)).index(size) for size in found] for found in sizes.values()]
    assert ranks[0] == ranks[1]


def test_the_2021_codes_are_the_tables() -> None:
    import torch

    for row in load_protocol("implicit_field_2021").rows:
        with torch.device("meta"):
            shape = method_type(row.method)(paper_settings(row), made_up_cohort((160, 160, 160), 2)).code_shape()
        assert shape is not None
        assert said_of_code(shape) == row.latent


def test_a_row_says_what_scaling_down_changes() -> None:
    for row in load_protocol("implicit_field_2021").rows:
        paper: Any = paper_settings(row)
        small: Any = scaled_settings(row)
        stated, _, scaled = row.source.partition("; where the settings are scaled down, ")
        assert (small.map.min_pool, small.map.average_pool) == (1, 7)
        assert "windows without a minimum and with a mean over 7^3 voxels" in scaled
        if row.method.startswith("implicit_field"):
            assert str(paper.latent_dim) == row.latent
            assert f"{small.latent_dim} latent dimensions, {small.restoration.steps[0]} restoration steps" in scaled
        else:
            assert f"every {paper.slices.every}th slice" in stated
            assert f"every {small.slices.every}nd slice" in scaled
    rows = {row.label: row for row in load_protocol("implicit_field_2021").rows}
    for label in ("VAE", "VAE restoration"):
        for settings in (paper_settings(rows[label]), scaled_settings(rows[label])):
            assert flatten(settings)["latent_dim"] == int(rows[label].latent)
    assert flatten(scaled_settings(rows["VAE restoration"]))["restoration.steps"] == 100
    assert flatten(scaled_settings(rows["VQ-VAE"]))["resampling.restorations"] == 4


def test_rows_are_chosen_by_label_whatever_the_case() -> None:
    baur = load_protocol("anovaegan_2018")
    assert [row.label for row in baur.choose(["anovaegan", "dAE"])] == ["dAE", "AnoVAEGAN"]
    assert baur.choose([]) == baur.rows
    with pytest.raises(SettingError, match=r"has no row 'AnoVEGAN': did you mean 'AnoVAEGAN'\?"):
        baur.choose(["AnoVEGAN"])
    with pytest.raises(SettingError, match=r"unknown paper 'anovaegan': did you mean 'anovaegan_2018'\?"):
        load_protocol("anovaegan")
    rows = [row for name in protocol_names() for row in load_protocol(name).rows]
    assert len({slug(row.label) for row in rows}) == len({row.label for row in rows})


# ---- time


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5 h", 5400), ("2d", 172800), ("5min", 300)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-3m", "0s", "20x", "1h 30", "nan s", "ten minutes"])
def test_what_is_no_time_is_said(text: str) -> None:
    with pytest.raises(SettingError, match="expected a time, such as 90s, 20m"):
        parse_budget(text)


def test_times_are_said_as_a_person_says_them() -> None:
    assert [as_time(s) for s in (3.2, 600, 3 * 3600, 5 * 86400)] == ["4 s", "10 min", "3.0 h", "5.0 days"]


def test_an_estimate_adds_up(measured: Callable[..., Estimate]) -> None:
    found = measured()
    assert found.training_seconds == pytest.approx(10 * 0.1 + 100 * 0.5)
    assert found.fixed_seconds == pytest.approx(10 * 0.1)
    assert found.learning_steps == 100
    assert found.scoring_seconds == pytest.approx(8 * 1.0 + 8 * 0.25)
    assert found.total_seconds == pytest.approx(61)


@pytest.mark.parametrize("class_seconds", [0.1, 1.5])
def test_training_and_scoring_come_to_the_budget(measured: Callable[..., Estimate], class_seconds: float) -> None:
    start, paper = override(tiny(), {"epochs": 20}), ImplicitFieldSettings()
    found = measured(step_seconds={"classes": class_seconds, "decoder": 0.5})
    for budget in (45.0, 60.0, 600.0):
        settings: Any = fit_epochs(start, paper, found, budget, 10**9)
        # The decoder's 100 steps are of 20 epochs; the classes take their 10 steps whatever the epochs.
        taken = found.model_copy(update={"steps": {"classes": 10, "decoder": 100 * settings.epochs / 20}})
        assert 0.97 * 0.85 * budget < taken.total_seconds <= 0.85 * budget
        assert settings.model_copy(update={"epochs": 20.0}) == start


def test_epochs_and_steps_never_pass_the_papers(measured: Callable[..., Estimate]) -> None:
    start, paper = override(tiny(), {"epochs": 20}), ImplicitFieldSettings()
    longest: Any = fit_epochs(start, paper, measured(), 1e9, 10**9)
    assert longest.epochs == paper.epochs
    # The paper's decoder has 1,000 steps and ours 100 in 20 epochs.
    as_many_steps: Any = fit_epochs(start, paper, measured(), 1e9, 1000)
    assert as_many_steps.epochs == 200.0


@pytest.mark.parametrize(("budget", "class_seconds"), [(10.0, 0.1), (60.0, 4.5)])
def test_a_budget_for_less_than_a_step_is_refused(
    measured: Callable[..., Estimate], budget: float, class_seconds: float
) -> None:
    found = measured(step_seconds={"classes": class_seconds, "decoder": 0.5})
    words = (
        rf"--budget {budget:.0f} s is too small here: scoring 8 volumes takes 10 s, the stages that learn without "
        rf"gradients {10 * class_seconds:.0f} s and one step of each other stage 1 s"
    )
    with pytest.raises(SettingError, match=words):
        fit_epochs(tiny(), ImplicitFieldSettings(), found, budget, 100)


def test_a_probe_counts_what_training_will_do(toy_store: CohortStore) -> None:
    found = estimate("implicit_field", tiny(), ONE_THREAD, toy_store, ["validation", "test"], 1e9)
    assert found.complete
    # 6 subjects: one epoch of classes in batches of 4, 20 epochs of the decoder.
    assert found.steps == {"intensity_classes": 2, "decoder": 30}
    assert found.num_volumes == 8
    assert found.passes == 4 * 4
    assert min(*found.step_seconds.values(), found.quick_seconds, found.volume_seconds) > 0


class NoneHealthy:
    """A store, every validation subject of which is ill."""

    def __init__(self, store: CohortStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def subjects(self, split: str | None = None, healthy: bool | None = None) -> Any:
        if split == "validation" and healthy:
            return []
        return self.store.subjects(split, healthy=healthy)


def test_a_stage_without_a_subject_takes_no_time(toy_store: CohortStore) -> None:
    store: Any = NoneHealthy(toy_store)
    found = estimate("vae_restoration", tiny_restoration(), ONE_THREAD, store, ["test"], 1e9)
    assert found.complete
    assert (found.steps["rho"], found.step_seconds["rho"]) == (0, 0.0)
    assert found.fixed == ("moments", "rho")
    assert found.step_seconds["vae"] > 0


def test_a_choice_on_validation_is_probed_after_the_quick_scoring_and_for_one_step(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = override(tiny_restoration(), {"slices.together": 1, "restoration.rho_every": 1})
    done: list[str] = []
    choose_rho, scored = VaeRestoration._try_rhos, estimating._score_seconds

    def count_choice(*given: Any) -> Any:
        done.append("rho")
        return choose_rho(*given)

    def count_score(*given: Any, quick: bool) -> float:
        done.append("quick" if quick else "full")
        return scored(*given, quick=quick)

    monkeypatch.setattr(VaeRestoration, "_try_rhos", count_choice)
    monkeypatch.setattr(estimating, "_score_seconds", count_score)
    monkeypatch.setattr(estimating, "_ENOUGH_SECONDS", 0.0)
    found = estimate("vae_restoration", settings, ONE_THREAD, toy_store, ["test"], 1e9)
    assert found.steps["rho"] > 1
    assert done == ["quick", "rho", "full"]
    # Where the scoring alone shows that there is not time enough, the choice is not begun.
    done.clear()
    monkeypatch.setattr(estimating, "_score_seconds", lambda *_, quick: 1e6)
    found = estimate("vae_restoration", settings, ONE_THREAD, toy_store, ["test"], 1e5)
    assert (done, found.complete, list(found.step_seconds)) == ([], False, ["moments", "vae"])
    assert found.total_seconds > 1e5


def test_a_probe_holds_back_what_its_few_steps_would_say(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def speak(*given: Any, quick: bool) -> float:
        logging.getLogger("vesalius.methods").warning("after a few steps")
        return 0.0

    monkeypatch.setattr(estimating, "_score_seconds", speak)
    estimate("implicit_field", tiny(), ONE_THREAD, toy_store, ["test"], 1e9)
    assert not caplog.records
    speak(quick=True)
    assert len(caplog.records) == 1


def test_a_hopeless_probe_stops_early_and_disturbs_nothing(toy_store: CohortStore) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = estimate("implicit_field", tiny(), ONE_THREAD, toy_store, ["test"], 1e-6)
    assert torch.equal(torch.rand(3), expected)
    assert not found.complete
    assert list(found.step_seconds) == ["intensity_classes"]
    assert found.total_seconds > 1e-6


def test_a_choice_says_what_was_scaled(toy_store: CohortStore) -> None:
    splits = ["validation", "test"]
    whole = choose(ROW, ONE_THREAD, toy_store, splits, None)
    assert (whole.scaled, whole.preset, whole.fraction, whole.steps) == (False, "paper", 1.0, 2001)
    fits = choose(ROW.model_copy(update={"preset": "tiny"}), ONE_THREAD, toy_store, splits, 1e6)
    assert (fits.scaled, fits.preset, fits.steps) == (False, "tiny", 32)
    # A paper of cheap steps and very many of them: 6 subjects in batches of 4, and two steps of classes.
    long = ROW.model_copy(update={"preset": "tiny", "settings": {"epochs": 100_000}})
    scaled = choose(long, ONE_THREAD, toy_store, splits, 40.0, small="tiny")
    assert (scaled.scaled, scaled.preset, scaled.paper_steps) == (True, "tiny", 150_002)
    assert 0 < scaled.settings["epochs"] <= 100_000
    assert scaled.fraction == pytest.approx(scaled.steps / 150_002)
    assert f"preset tiny, {scaled.steps:,} steps; the paper's settings are 150,002 steps" in scaled.said
    kept = choose(long, ONE_THREAD, toy_store, splits, 40.0, small=None)
    assert kept.said.startswith("scaled to 40 s: the paper's networks, ")
    assert kept.preset == "tiny"  # the row's own, whatever was done to its epochs
    assert {**kept.settings, "epochs": 0} == {**paper_settings(long).model_dump(mode="json"), "epochs": 0}
    atlas = choose(BASELINES[1], ONE_THREAD, toy_store, splits, 40.0)
    assert (atlas.scaled, atlas.said) == (False, f"its defaults (preset paper), {atlas.steps} steps")


def test_a_row_whose_scoring_alone_is_too_long_takes_the_demo_preset(
    toy_store: CohortStore, measured: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(name: str, settings: Any, *_: Any, num_volumes: int | None, **limits: float) -> Estimate:
        assert (name, num_volumes) == ("implicit_field", 4)
        long = settings == paper_settings(ROW)
        return measured(
            steps={"decoder": 2000},
            step_seconds={"decoder": 0.01},
            quick_seconds=0.1,
            volume_seconds=100.0 if long else 1.0,
            num_volumes=4,
            passes=4,
            fixed=(),
        )

    monkeypatch.setattr("vesalius.infra.reproduce.budget.estimate", made_up)
    within = choose(ROW, ONE_THREAD, toy_store, ["test"], 60.0, num_volumes=4, small=None)
    assert (within.preset, within.scaled) == ("demo", True)
    assert within.said.endswith(
        "; --scale epochs was set aside: with the paper's networks scoring, or what cannot be cut, takes longer"
    )
    with pytest.raises(SettingError, match="--budget 3 s is too small here"):
        choose(ROW, ONE_THREAD, toy_store, ["test"], 3.0, num_volumes=4, small=None)


def test_a_row_without_memory_enough_is_scaled_within_a_budget(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = ROW.model_copy(update={"preset": "tiny", "settings": {"width": 2_000_000}})
    within = choose(huge, ONE_THREAD, toy_store, ["test"], 40.0, small="tiny")
    assert (within.preset, within.scaled, within.steps, within.paper_steps) == ("tiny", True, within.paper_steps, 32)
    assert within.said.endswith("the paper's settings are 32 steps and do not fit this machine's memory")
    # The networks are to be kept and cannot be: what stands for "demo" here is quick.
    kind = method_type(huge.method)
    monkeypatch.setattr(kind, "presets", classmethod(lambda cls: {"tiny": tiny(), "demo": tiny()}))
    kept = choose(huge, ONE_THREAD, toy_store, ["test"], 40.0, small=None)
    assert (kept.preset, kept.scaled) == ("demo", True)
    assert kept.said.endswith("--scale epochs was set aside: the paper's networks do not fit this machine's memory")
    # Nothing is smaller than what is too large already.
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        choose(huge.model_copy(update={"scaled": {"width": 2_000_000}}), ONE_THREAD, toy_store, ["test"], 40.0)


def test_kept_networks_are_not_scored_in_full_where_the_reduced_scoring_is_too_long(
    toy_store: CohortStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full: list[int] = []
    true = estimating._score_seconds

    def slow_at_first(method: Any, *given: Any, quick: bool) -> float:
        if method.settings.width == 40:
            full.append(1) if not quick else None
            return 1e6
        return true(method, *given, quick=quick)

    monkeypatch.setattr(estimating, "_score_seconds", slow_at_first)
    row = ROW.model_copy(update={"preset": "tiny", "settings": {"width": 40}})
    monkeypatch.setattr(method_type(row.method), "presets", classmethod(lambda cls: {"tiny": tiny(), "demo": tiny()}))
    within = choose(row, ONE_THREAD, toy_store, ["test"], 40.0, small=None)
    assert (within.preset, full) == ("demo", [])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_steps_are_counted_without_the_networks(name: str, toy_store: CohortStore) -> None:
    import torch

    from vesalius.infra.reproduce import budget
    from vesalius.platform.training import Alone
    from vesalius.platform.training.plan import Plan

    row = Row(label=name, method=name, preset="tiny", source="none")
    kind = method_type(name)
    if "tiny" not in kind.presets():
        row = row.model_copy(update={"preset": next(iter(kind.presets()))})
    settings = paper_settings(row)
    method = kind(settings, toy_store.facts())
    true = Plan(method, toy_store, ONE_THREAD, Alone(), torch.device("cpu"))
    counted = budget._plan(row, settings, toy_store, ONE_THREAD)
    assert (counted.names, counted.steps) == (true.names, true.steps)


@pytest.mark.parametrize(("scale", "small"), [("preset", "demo"), ("epochs", None)])
def test_scale_says_what_a_budget_does(
    scale: str, small: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vesalius.infra.reproduce as module

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "reproduce", lambda *_, **options: given.append(options))
    done = call("reproduce", "anovaegan_2018", "--scale", scale, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert given[0]["small"] == small


# ---- data


def test_phantoms_are_prepared_by_the_protocols_recipe_and_older_ones_are_not_taken(tmp_path: Path) -> None:
    def made(chosen: Protocol) -> CohortStore:
        with Terminal(False) as terminal:
            return make_cohorts(terminal, chosen, tmp_path, DataRequest(), finer=None, phantom=SMALL).reference

    baur = load_protocol("anovaegan_2018")
    scaled, plain = made(baur), made(baur.model_copy(update={"phantom_recipe": PreparedBy(name="as_is")}))
    assert scaled.path != plain.path
    assert made(baur).digest == scaled.digest
    assert (scaled.facts().background, scaled.facts().ceiling, plain.facts().ceiling) == (0, 1, None)
    for record in scaled.subjects():
        image, brain = scaled.image(record.subject_id), scaled.brain(record.subject_id)
        assert image.shape == plain.image(record.subject_id).shape
        assert (image.min(), image.max()) == (0, 1)
        assert not image[:, ~brain].any()
        # Two voxels in a hundred are clipped, and no more: the others keep their contrast.
        assert 0.01 < (image[:, brain] == 1).mean() < 0.04
    assert max(plain.image(record.subject_id).max() for record in plain.subjects()) > 1.2


def test_a_recipe_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match=r"did you mean 'as_is'\?"):
        PreparedBy(name="as_iz").recipe()
    with pytest.raises(SettingError, match="scale"):
        PreparedBy(name="as_is", settings={"scales": "none"}).recipe()


def test_data_are_told_apart(toy_store: CohortStore, tmp_path: Path) -> None:
    assert check_request(DataRequest()) == "phantom"
    assert check_request(DataRequest(data=toy_store.path)) == "store"
    assert check_request(DataRequest(data=tmp_path, layout="bids")) == "raw"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["anovaegan"], "unknown paper 'anovaegan': did you mean 'anovaegan_2018'?"),
        (["anovaegan_2018", "--row", "sVEA"], "did you mean 'sVAE'?"),
        (["anovaegan_2018", "--budget", "soon"], "--budget is 'soon': expected a time"),
        (["anovaegan_2018", "--data", "NOWHERE"], "there is no such store or folder"),
        (["anovaegan_2018", "--data", "FOLDER"], "say how it is laid out with --layout (bids"),
        (["anovaegan_2018", "--data", "FOLDER", "--layout", "bidz"], "did you mean 'bids'?"),
        (["anovaegan_2018", "--data", "STORE", "--layout", "bids"], "is prepared already: leave out --layout"),
        (["anovaegan_2018", "--masks", "FOLDER"], "--masks need --data DIR"),
        (["anovaegan_2018", "--device", "gpu"], "--device is 'gpu'"),
    ],
)
def test_a_slip_is_one_sentence_and_nothing_is_written(
    arguments: list[str], words: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    named = {"NOWHERE": tmp_path / "nowhere", "FOLDER": tmp_path / "folder", "STORE": toy_store.path}
    out = tmp_path / "out"
    done = call("reproduce", *(named.get(argument, argument) for argument in arguments), "--out", out)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not out.exists()


def play(out: Path, *rows: Row, request: DataRequest, **options: Any) -> tuple[dict[str, Any], int]:
    """Reproduce a protocol of these rows and return its document and the exit code."""
    import typer

    code = 0
    chosen = protocol(*rows, **options.pop("changes", {}))
    try:
        with Terminal(False) as terminal:
            reproduce(terminal, chosen, out, request, threads=1, small="tiny", **options)
    except typer.Exit as error:
        code = error.exit_code
    path = out / "toy.json"
    return (json.loads(path.read_text()) if path.exists() else {}), code


def test_a_threshold_within_a_budget_is_of_some_training_subjects(toy_store: CohortStore) -> None:
    every = toy_store.subjects("train")
    assert ThresholdRule(split="train").chosen(toy_store) == every
    some = ThresholdRule(split="train", subjects=3).chosen(toy_store)
    assert [record.subject_id for record in some] == [every[index * len(every) // 3].subject_id for index in range(3)]
    assert ThresholdRule(split="train", subjects=len(every) + 1).chosen(toy_store) == every
    with pytest.raises(ValueError, match="validation subjects are all taken"):
        ThresholdRule(split="validation", subjects=3)


def test_a_threshold_of_some_subjects_does_not_hang_on_what_else_was_scored(
    phantom_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    run = pipeline.start_run("healthy_atlas", phantom_store.path, home=tmp_path, num_workers=0, name="atlas")
    pipeline.train(run)
    some = ThresholdRule(policy="quantile", split="train", subjects=1)
    first = pipeline.fit_thresholds(run, rule=some, device="cpu").thresholds
    scored = ScoreStore.open(run.scores("train"))
    assert [record.subject_id for record in scored.records] == [some.chosen(phantom_store)[0].subject_id]
    pipeline.score_run(run, "train", device="cpu")
    assert len(ScoreStore.open(run.scores("train")).records) == len(phantom_store.subjects("train"))
    assert pipeline.fit_thresholds(run, rule=some, device="cpu").thresholds == first
    every = ThresholdRule(policy="quantile", split="train")
    assert pipeline.fit_thresholds(run, rule=every, device="cpu").thresholds != first


def test_at_once_and_workers_are_not_given_together(toy_store: CohortStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("reproduce", "anovaegan_2018", "--data", toy_store.path, "--at-once", 2, "--workers", 1, "--out", out)
    assert done.exit_code == 2
    assert "--at-once shares this machine out by rows" in " ".join(done.stderr.split())
    assert not out.exists()


def test_a_cohort_without_lesions_says_what_it_lacks(
    toy_store: CohortStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = CohortStore.create(tmp_path / "healthy", recipe=toy_store.recipe, channels=toy_store.channels)
    with healthy.lock():
        records = []
        for record in (r for r in toy_store.subjects() if not r.has_lesion):
            arrays = SubjectArrays(image=toy_store.image(record.subject_id), brain=toy_store.brain(record.subject_id))
            records.append(healthy.write(record.model_copy(update={"arrays": {}}), arrays))
        healthy.commit(records)
    document, code = play(tmp_path / "out", ROW, request=DataRequest(data=healthy.path))
    assert (document, code) == ({}, 2)
    assert "holds no outlined lesion in its test split: set some in with --masks DIR" in capsys.readouterr().err
    masks = tmp_path / "masks"
    masks.mkdir()
    _, code = play(tmp_path / "out", ROW, request=DataRequest(data=toy_store.path, masks=masks))
    assert code == 2
    assert "holds outlined lesions of its own: leave out --masks" in capsys.readouterr().err


def test_a_raw_folder_is_prepared_by_the_papers_recipe(tmp_path: Path) -> None:
    assert "phantom" in LAYOUTS
    root = write_cohort(tmp_path / "raw", SMALL)
    request = DataRequest(data=root if root.is_dir() else root.parent, layout="phantom")
    document, code = play(tmp_path / "out", request=request, changes={"rows": (BASELINES[1],), "recipe": "as_is"})
    assert code == 0
    assert document["data"]["ours"].endswith("T1w, 12 x 14 x 12 voxels of 16 x 13.7 x 16 mm")
    assert document["data"]["reference_grid"]["ours"] == "12 x 14 x 12 voxels of 16 x 13.7 x 16 mm"
    assert document["data"]["reference_grid"]["paper"].startswith("the grid of the recipe, 160 x 160 x 160")
    assert [row["label"] for row in document["rows"]] == ["healthy atlas", "intensity threshold", "healthy atlas"]


# ---- a table


def test_rows_are_reproduced_reused_and_one_failure_stays_its_own(
    toy_store: CohortStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ROW.model_copy(update={"preset": "tiny", "settings": {"epochs": 2}})
    broken = ROW.model_copy(update={"label": "broken", "settings": {"width": 1e9}, "differs": ("all of it",)})
    absent = ROW.model_copy(update={"label": "absent", "method": "no_such_method"})
    request = DataRequest(data=toy_store.path)
    document, code = play(tmp_path / "out", quick, broken, absent, request=request)
    assert code == 1
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == ["IF", "broken", "absent", "intensity threshold", "healthy atlas"]
    assert rows["absent"]["error"].startswith("unknown method 'no_such_method'")
    assert rows["broken"]["figures"] is None
    assert "has not memory enough" in rows["broken"]["error"]
    for label in ("IF", "intensity threshold", "healthy atlas"):
        assert rows[label]["error"] is None
        assert set(rows[label]["figures"]) == {"all", "brain"}
        assert rows[label]["figures"]["all"]["threshold"]["policy"] == "best_dice"
        assert rows[label]["training_minutes"] > 0
    assert imread(document["picture"]).shape[1] > 800
    assert "| IF | 8 | paper |  | 0.640 |" in (tmp_path / "out" / "toy.md").read_text()
    said = capsys.readouterr()
    assert "2 of 5 rows failed: broken:" in said.err
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("weights.safetensors")}
    assert len(kept) >= 3
    again, code = play(tmp_path / "out", quick, request=request)
    assert code == 0
    assert again["rows"][0]["run"] == rows["IF"]["run"]
    assert again["rows"][0]["figures"] == rows["IF"]["figures"]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("weights.safetensors")}
    assert after == kept


def test_rows_of_the_same_settings_are_one_run(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ROW.model_copy(update={"preset": "tiny", "settings": {"epochs": 2}})
    same = quick.model_copy(update={"label": "same", "published": None})
    # Trained alike, but what is kept of the training hangs on the map.
    other = quick.model_copy(update={"label": "other map", "settings": {"epochs": 2, "map.average_pool": 5}})
    trained: list[str] = []
    true = pipeline.train

    def noted(run: Any, **options: Any) -> Any:
        if run.state == "created":
            trained.append(run.run_id)
        return true(run, **options)

    monkeypatch.setattr(pipeline, "train", noted)
    out, request = tmp_path / "out", DataRequest(data=toy_store.path)
    play(out, quick, same, other, request=request, labels=["same"])
    document, code = play(out, quick, same, other, request=request)
    assert code == 0
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == ["IF", "same", "other map", "intensity threshold", "healthy atlas"]
    # Whichever was the first to be trained, the other takes it up.
    assert rows["IF"]["run"] == rows["same"]["run"]
    assert rows["IF"]["run"].startswith("same-")
    assert rows["other map"]["run"] not in {rows["IF"]["run"], None}
    assert len(trained) == len(set(trained)) == 4
    assert {label: row["same_run_as"] for label, row in rows.items() if row["same_run_as"]} == {"same": "IF"}
    for key in ("figures", "training_minutes"):
        assert rows["IF"][key] is not None
        assert rows["IF"][key] == rows["same"][key]
    assert rows["IF"]["settings"] == rows["same"]["settings"] != rows["other map"]["settings"]
    assert "- same: one run with IF, trained once: the settings are the same; " in (out / "toy.md").read_text()


def test_stopped_between_rows_it_goes_on(
    toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vesalius.infra import pipeline

    true = pipeline.train

    def stop_at_the_atlas(run: Any, **options: Any) -> Any:
        if run.spec.method == "healthy_atlas":
            raise KeyboardInterrupt
        return true(run, **options)

    monkeypatch.setattr(pipeline, "train", stop_at_the_atlas)
    request = DataRequest(data=toy_store.path)
    document, code = play(tmp_path / "out", BASELINES[0].model_copy(update={"label": "first"}), request=request)
    assert code == 130
    assert [row["figures"] is not None for row in document["rows"]] == [True, True, False]
    monkeypatch.undo()
    document, code = play(tmp_path / "out", BASELINES[0].model_copy(update={"label": "first"}), request=request)
    assert code == 0
    assert all(row["figures"] is not None for row in document["rows"])


def test_a_finer_row_is_judged_on_the_grid_of_the_others(tmp_path: Path) -> None:
    from vesalius.infra.reproduce.protocol import Finer
    from vesalius.platform.scoring import ScoreStore

    finer = BASELINES[1].model_copy(
        update={"label": "finer", "finer": Finer(recipe="as_is", phantom_shape=(1, 1, 1)), "preset": "paper"}
    )
    document, code = play(tmp_path / "out", finer, request=DataRequest(), phantom=SMALL)
    assert code == 0
    rows = {row["label"]: row for row in document["rows"]}
    assert rows["finer"]["run"] != rows["healthy atlas"]["run"]
    home = tmp_path / "out" / "home" / "runs"
    scored = ScoreStore.open(home / rows["finer"]["run"] / "scores" / "test").records[0]
    assert scored.shape == (18, 21, 18)
    assert ScoreStore.open(home / rows["healthy atlas"]["run"] / "scores" / "test").records[0].shape == (12, 14, 12)
    assert rows["finer"]["figures"]["all"]["num_subjects"] == rows["healthy atlas"]["figures"]["all"]["num_subjects"]


def test_a_person_reads_the_papers_figures_beside_ours() -> None:
    figures = {
        "best_dice": 0.5, "dice_mean": 0.4, "dice_std": 0.1, "average_precision": 0.45, "auroc": 0.9,
        "fpr_at_95_recall": 0.125, "seconds_per_volume": 1.5, "intervals": {"best_dice": [0.25, 0.75]},
    }  # fmt: skip
    plain: dict[str, Any] = {
        "latent": {"paper": "64", "ours": "8 x 8 x 16"},
        "method": "m",
        "source": "Table 1",
        "run": "r",
        "same_run_as": None,
        "error": None,
        "differs": ["the data"],
    }
    rows: list[dict[str, Any]] = [
        {
            **plain,
            "label": "one",
            "published": Published(dice_mean=0.605, dice_std=0.19277, seconds_per_slice=0.0154).model_dump(),
            "same_run_as": "nought",
            "scale": {"said": "scaled to 20 min: preset demo"},
            "training_minutes": 2.0,
            "figures": {"all": figures},
        },
        {
            **plain,
            "label": "two",
            "published": None,
            "scale": None,
            "training_minutes": None,
            "figures": None,
            "error": "no",
        },
    ]
    stream = io.StringIO()
    Console(file=stream, width=160).print(tables.PaperTable(rows, "Table 1", "all"))
    text = stream.getvalue()
    for words in ("0.605 ± 0.193", "0.0154/slice", "0.25..0.75", "failed", "8 x 8 x 16"):
        assert words in text
    paper, ours = (next(n for n, line in enumerate(text.splitlines()) if word in line) for word in ("64", "8 x 8 x 16"))
    assert paper < ours
    document = {
        "paper": {"title": "Paper", "table": "Table 1"},
        "data": {"paper": "49 people", "ours": "phantoms"},
        "evaluation": {"said": "the best Dice"},
        "rows": rows,
    }
    lines = markdown(document).splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
    assert "- two: failed: no; the data" in lines
    once = "one run with nought, trained once: the settings are the same"
    assert f"- one: {once}; scaled to 20 min: preset demo; the data" in lines
    assert lines[4].startswith("| one | 64 | paper |")
    assert lines[5].startswith("|  | 8 x 8 x 16 | ours |")
    assert "s: seconds a volume, its map's median and other windows included" in lines[0]
