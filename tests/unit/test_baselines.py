from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from vesalius.methods import METHODS
from vesalius.methods.healthy_atlas import HealthyAtlas, HealthyAtlasSettings
from vesalius.methods.intensity_threshold import IntensityThreshold, IntensityThresholdSettings
from vesalius.platform.config import override
from vesalius.platform.contracts import Batch, CohortFacts, Method, Volume, WholeVolumes, generator
from vesalius.platform.errors import CohortError, VolumeError
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GRID = (8, 9, 10)
EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
PLAIN = {"smoothing": 1, "map.voxels": "all", "map.average_pool": 1, "map.min_pool": 1}

BASELINES: tuple[type[Method], ...] = (HealthyAtlas, IntensityThreshold)


def facts(num: int, channels: tuple[str, ...] = ("T1w",), grid: tuple[int, int, int] = GRID) -> CohortFacts:
    subjects = tuple(f"s{number}" for number in range(num))
    return CohortFacts(
        subjects=subjects, grid=grid, spacing_mm=(2.0, 2.0, 2.0), affine=EYE, channels=channels, digest="0"
    )


def subject(number: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    draw = generator("subject", number)
    place = torch.linspace(0.2, 0.8, GRID[2]).expand(channels, *GRID)
    image = place + 0.1 * torch.randn((channels, *GRID), generator=draw) * (
        1 + torch.arange(channels).view(-1, 1, 1, 1)
    )
    brain = torch.zeros(GRID, dtype=torch.bool)
    brain[1:-1, 2:-1, 1:-2] = True
    return image, brain


def volume_of(image: Tensor, brain: Tensor, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Volume:
    return Volume(subject_id="new", image=image, brain=brain, spacing_mm=spacing_mm, affine=EYE)


class Ranks:
    """One process that stands for as many ranks as there are parts of the subjects."""

    rank, world_size = 0, 1

    def __init__(self, others: Sequence[Method] = ()) -> None:
        self.others = others
        self.observed: Mapping[str, float] = {}

    def sum(self, value: Tensor) -> Tensor:
        return value.clone()

    def gather(self, value: Tensor) -> list[Tensor]:
        return [value]

    def __call__(self, optimizer: str, loss: Any, batch: Batch) -> float:
        raise AssertionError("a baseline has no optimiser")


def fit(method: Method, subjects: Sequence[tuple[Tensor, Tensor]]) -> Method:
    (stage,) = method.stages()
    assert isinstance(stage.view, WholeVolumes)
    assert not stage.optimizers
    stage.begin()
    for step, (image, brain) in enumerate(subjects):
        batch = Batch(
            stage=stage.name,
            step=step,
            num_steps=len(subjects),
            seed=0,
            items=torch.tensor([0]),
            global_size=1,
            subjects=torch.tensor([step]),
            image=image[None],
            brain=brain[None],
            position=torch.zeros(1, 0),
        )
        stage.step(batch, Ranks())
    stage.finish(Ranks())
    return method.eval()


@pytest.mark.parametrize("channels", [1, 2])
def test_threshold_is_the_deviation_from_the_training_brains(channels: int) -> None:
    subjects = [subject(number, channels) for number in range(4)]
    names = ("T1w", "T2w")[:channels]
    method = fit(IntensityThreshold(override(IntensityThresholdSettings(), PLAIN), facts(4, names)), subjects)
    inside = np.concatenate([image[:, brain].double().numpy() for image, brain in subjects], axis=1)
    image, brain = subject(9, channels)
    (score,) = method.score([volume_of(image, brain)])
    deviations = (image.double().numpy() - inside.mean(1)[:, None, None, None]) / inside.std(1)[:, None, None, None]
    np.testing.assert_allclose(score.map.numpy(), np.abs(deviations).max(0), rtol=1e-4, atol=1e-5)
    assert score.restoration is None


def test_threshold_knows_sides() -> None:
    subjects = [subject(number) for number in range(4)]
    image, brain = subject(9)
    maps = {}
    for direction in ("both", "high", "low"):
        settings = override(IntensityThresholdSettings(), {**PLAIN, "direction": direction})
        (score,) = fit(IntensityThreshold(settings, facts(4)), subjects).score([volume_of(image, brain)])
        maps[direction] = score.map
    torch.testing.assert_close(maps["high"] + maps["low"], maps["both"])
    assert (maps["high"] * maps["low"] == 0).all()
    assert maps["high"].max() > 1
    assert maps["low"].max() > 1


def smoothed_inside(values: np.ndarray[Any, Any], brain: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """SciPy's mean over the brain voxels of each window; zero outside the brain."""
    total = ndimage.convolve(np.where(brain, values, 0.0), np.ones((size,) * 3), mode="constant")
    count = ndimage.convolve(brain.astype(int), np.ones((size,) * 3, dtype=int), mode="constant")
    return np.where(brain, total / np.maximum(count, 1), 0.0)


@pytest.mark.parametrize("kind", BASELINES)
def test_deviation_is_smoothed_with_its_sign_inside_the_brain(kind: type[Method]) -> None:
    changes = {"smoothing": 3, "map.average_pool": 1, "map.outside": "left_out"}
    method = fit(kind(override(kind.settings_type(), changes), facts(6)), [subject(number) for number in range(6)])
    assert isinstance(method, HealthyAtlas | IntensityThreshold)
    image, brain = subject(9)
    (score,) = method.score([volume_of(image, brain)])
    signed = ((image[0] - method.mean[0]) / method.deviation[0]).numpy().astype(float)
    expected = np.abs(smoothed_inside(signed, brain.numpy(), 3))
    np.testing.assert_allclose(score.map.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BASELINES)
def test_by_default_the_map_is_zero_outside_the_brain(kind: type[Method]) -> None:
    method = fit(kind(kind.settings_type(), facts(6)), [subject(number) for number in range(6)])
    image, brain = subject(9)
    (score,) = method.score([volume_of(image + 5, brain)])
    assert not score.map[~brain].any()
    assert score.map[brain].all()


@pytest.mark.parametrize("kind", BASELINES)
def test_the_rim_of_the_brain_is_not_dimmed_where_the_outside_is_left_out(kind: type[Method]) -> None:
    subjects = [subject(number) for number in range(6)]
    changes = {"map.average_pool": 3, "map.min_pool": 3, "map.outside": "left_out"}
    settings = override(kind.settings_type(), changes)
    method = fit(kind(settings, facts(6)), subjects)
    image, brain = subject(9)
    # Far above the healthy mean throughout the brain: then the rim must score like its middle.
    (score,) = method.score([volume_of(image * 0 + 50, brain)])
    assert score.map[brain].min() > 0.2 * score.map[brain].max()
    (empty,) = method.score([volume_of(image, torch.zeros_like(brain))])
    assert not empty.map.any()
    assert empty.image_score == 0


def test_atlas_is_numpys_mean_and_deviation() -> None:
    subjects = [subject(number, 2) for number in range(6)]
    settings = override(HealthyAtlasSettings(), {**PLAIN, "deviation_smoothing": 1, "deviation_floor": 1e-6})
    method = fit(HealthyAtlas(settings, facts(6, ("T1w", "T2w"))), subjects)
    stack = np.stack([image.double().numpy() for image, _ in subjects])
    image, brain = subject(9, 2)
    (score,) = method.score([volume_of(image, brain)])
    expected = np.abs(image.double().numpy() - stack.mean(0)) / stack.std(0, ddof=1)
    np.testing.assert_allclose(score.map.numpy(), expected.max(0), rtol=1e-4)
    assert score.restoration is not None
    np.testing.assert_allclose(score.restoration.numpy(), stack.mean(0), rtol=1e-5)


def test_atlas_smooths_and_floors_the_deviation() -> None:
    subjects = [subject(number) for number in range(6)]
    settings = override(HealthyAtlasSettings(), {"deviation_smoothing": 3, "deviation_floor": 0.9})
    method = fit(HealthyAtlas(settings, facts(6)), subjects)
    assert isinstance(method, HealthyAtlas)
    variance = np.stack([image[0].double().numpy() for image, _ in subjects]).var(0, ddof=1)
    smooth = ndimage.uniform_filter(variance, 3, mode="constant") / ndimage.uniform_filter(
        np.ones(GRID), 3, mode="constant"
    )
    floor = 0.9 * np.sqrt(smooth[subjects[0][1].numpy()].mean())
    expected = np.maximum(np.sqrt(smooth), floor)
    np.testing.assert_allclose(method.deviation[0].numpy(), expected, rtol=1e-5)
    assert (method.deviation[0].numpy() == np.float32(floor)).any()


def test_order_of_subjects_does_not_show() -> None:
    subjects = [subject(number) for number in range(7)]
    for kind in BASELINES:
        first, second = (fit(kind(kind.settings_type(), facts(7)), order) for order in (subjects, subjects[::-1]))
        for name, value in first.state_dict().items():
            torch.testing.assert_close(value, second.state_dict()[name], rtol=1e-6, atol=0)


def test_atlas_meets_a_volume_of_another_grid_at_its_physical_places() -> None:
    # The training images rise along the last axis only; so must the atlas, whatever grid it is asked on.
    subjects = [subject(number) for number in range(6)]
    method = HealthyAtlas(HealthyAtlasSettings(), facts(6))
    ramp = [(0.1 * torch.arange(GRID[2], dtype=torch.float32).expand(1, *GRID), brain) for _, brain in subjects]
    fit(method, ramp)
    fine = (16, 9, 20)
    image = torch.zeros(1, *fine)
    (score,) = method.score([volume_of(image, torch.ones(fine, dtype=torch.bool), spacing_mm=(1.0, 2.0, 1.0))])
    assert score.restoration is not None
    # Voxel centres of half the spacing lie at -0.25, 0.25, 0.75, ... of the coarse voxels; beyond the ends they repeat.
    expected = 0.1 * np.clip(np.arange(20) / 2 - 0.25, 0, 9)
    np.testing.assert_allclose(score.restoration[0].numpy(), np.broadcast_to(expected, fine), atol=1e-5)


def test_own_grid_through_sampling_is_the_atlas_itself() -> None:
    subjects = [subject(number) for number in range(4)]
    method = HealthyAtlas(HealthyAtlasSettings(), facts(4))
    fit(method, subjects)
    odd = volume_of(*subject(9), spacing_mm=(2.0, 2.0, 2.0 + 1e-9))
    mean, deviation = method._on_grid_of(odd)
    torch.testing.assert_close(mean, method.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, method.deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_lesion_scores_higher_than_its_surroundings(kind: type[Method]) -> None:
    # The grid is small beside the default window.
    settings = override(kind.settings_type(), {"map.average_pool": 1})
    method = fit(kind(settings, facts(8)), [subject(number) for number in range(8)])
    image, brain = subject(20)
    lesion = torch.zeros(GRID, dtype=torch.bool)
    lesion[3:6, 3:6, 3:6] = True
    (healthy,) = method.score([volume_of(image, brain)])
    (score,) = method.score([volume_of(image + 0.8 * lesion, brain)])
    assert score.map[lesion].mean() > 2 * score.map[brain & ~lesion].mean()
    assert score.image_score > healthy.image_score


def test_begin_forgets_a_broken_off_pass() -> None:
    subjects = [subject(number) for number in range(4)]
    for kind in BASELINES:
        once = fit(kind(kind.settings_type(), facts(4)), subjects)
        twice = kind(kind.settings_type(), facts(4))
        (stage,) = twice.stages()
        stage.begin()
        broken = [(image + 5, brain) for image, brain in subjects]
        fit(twice, broken)
        fit(twice, subjects)
        for name, value in once.state_dict().items():
            assert torch.equal(value, twice.state_dict()[name])


def test_cohorts_that_cannot_serve_are_refused() -> None:
    with pytest.raises(CohortError, match="healthy_atlas needs two healthy training subjects"):
        HealthyAtlas(HealthyAtlasSettings(), facts(1))
    image, brain = subject(0)
    with pytest.raises(CohortError, match="brain masks are empty"):
        fit(IntensityThreshold(IntensityThresholdSettings(), facts(1)), [(image, torch.zeros_like(brain))])
    with pytest.raises(CohortError, match=r"every brain voxel .* has the same intensity"):
        fit(IntensityThreshold(IntensityThresholdSettings(), facts(1)), [(torch.ones_like(image), brain)])


def test_identical_training_subjects_give_finite_maps() -> None:
    image, brain = subject(0)
    method = fit(HealthyAtlas(HealthyAtlasSettings(), facts(3)), [(image, brain)] * 3)
    (score,) = method.score([volume_of(image + 0.3 * brain, brain)])
    assert 0 < score.map.max() < torch.finfo(torch.float16).max


@pytest.mark.parametrize("name", ["healthy_atlas", "intensity_threshold"])
def test_other_channels_are_refused(name: str) -> None:
    kind = lookup(METHODS, name, "method")
    method = kind(kind.settings_type(), facts(2)).eval()
    with pytest.raises(VolumeError, match="new: the volume has 2 channels"):
        method.score([volume_of(*subject(0, 2))])


def test_every_line_of_the_table_is_a_method_with_presets() -> None:
    for name in METHODS:
        kind = lookup(METHODS, name, "method")
        assert issubclass(kind, Method)
        presets = kind.presets()
        assert {"paper", "demo", "tiny"} <= set(presets)
        assert presets["paper"] == kind.settings_type()
