"""The VAE restoration: total variation, the ascent and its limits, the choice of rho, the score."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from vesalius.methods.vae_restoration import VaeRestoration, VaeRestorationSettings
from vesalius.methods.vae_restoration.restoration import restore, total_variation
from vesalius.methods.vae_restoration.settings import RestorationSettings, demo, tiny
from vesalius.platform.config import override
from vesalius.platform.contracts import Batch, CohortFacts, Slices, Stage, Volume, generator
from vesalius.platform.errors import SettingError
from vesalius.platform.testing import methods as contract
from vesalius.platform.testing.made_up import made_up_batch
from vesalius.platform.training import train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.platform.store import CohortStore

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (10, 13, 9)
PLAIN = {"map.min_pool": 1, "map.average_pool": 1, "slices.every": 1}


def facts(channels: tuple[str, ...] = ("T1w",)) -> CohortFacts:
    return CohortFacts(
        subjects=("a", "b"), grid=GRID, spacing_mm=(2.0, 2.0, 2.0), affine=EYE, channels=channels, digest="0"
    )


def volume(number: int, channels: int = 1) -> Volume:
    draw = generator("volume", number)
    brain = torch.zeros(GRID, dtype=torch.bool)
    brain[1:-1, 2:-1, 1:-2] = True
    image = (0.4 + 0.1 * torch.randn((channels, *GRID), generator=draw)) * brain
    return Volume(subject_id=f"v{number}", image=image, brain=brain, spacing_mm=(2.0, 2.0, 2.0), affine=EYE)


def method_of(*channels: str, **changes: Any) -> VaeRestoration:
    torch.manual_seed(0)
    method = VaeRestoration(override(tiny(), changes), facts(channels or ("T1w",))).eval()
    method.vae.mean.fill_(0.4)
    method.vae.deviation.fill_(0.1)
    return method


class Ranks:
    """As many ranks as there are methods; this one sums what all of them counted."""

    rank, world_size = 0, 1

    def __init__(self, *others: VaeRestoration) -> None:
        self.others = others

    def sum(self, value: Tensor) -> Tensor:
        return value + sum(other._changes for other in self.others)

    def gather(self, value: Tensor) -> list[Tensor]:
        raise AssertionError("nothing is gathered")


def batch_of(volumes: Sequence[Volume], first: int = 0) -> Batch:
    image = torch.cat([one.image.movedim(-1, 0) for one in volumes])
    brain = torch.cat([one.brain.movedim(-1, 0) for one in volumes])
    return made_up_batch(image, stage="rho", num_steps=1, items=torch.arange(first, first + len(image)), brain=brain)


def quadratic(target: Tensor) -> Any:
    return lambda image, noise: (image - target).square().flatten(1).sum(1) / 2


def test_total_variation_and_its_gradient_are_numpys() -> None:
    image = torch.randn(3, 2, 6, 7, generator=generator("image"), dtype=torch.float64).requires_grad_()
    values = image.detach().numpy()
    down, across = np.diff(values, axis=2), np.diff(values, axis=3)
    expected = np.abs(down).sum((1, 2, 3)) + np.abs(across).sum((1, 2, 3))
    np.testing.assert_allclose(total_variation(image).detach().numpy(), expected)
    gradient = np.zeros_like(values)
    gradient[:, :, 1:] += np.sign(down)
    gradient[:, :, :-1] -= np.sign(down)
    gradient[..., 1:] += np.sign(across)
    gradient[..., :-1] -= np.sign(across)
    np.testing.assert_array_equal(torch.autograd.grad(total_variation(image).sum(), image)[0].numpy(), gradient)


def test_the_gradient_is_zero_at_the_image_plus_a_constant() -> None:
    image = torch.rand(2, 1, 8, 9, generator=generator("image"))
    for constant in (0.0, 0.5, -2.0):  # differences of constants that floats hold exactly
        current = (image.mul(256).round() / 256 + constant).requires_grad_()
        start = image.mul(256).round() / 256
        (gradient,) = torch.autograd.grad(total_variation(start - current).sum(), current)
        assert not gradient.any()


def test_ascent_on_a_paraboloid_is_closed_form_and_leaves_what_is_outside_the_brain() -> None:
    image, target = (torch.randn(2, 1, 6, 7, generator=generator(name)) for name in ("image", "target"))
    brain = torch.rand(2, 6, 7, generator=generator("brain")) > 0.3
    sizes = [0.3] * 2 + [0.1] * 3
    noise = torch.zeros(5, 2, 1)
    restored = restore(quadratic(target), image, brain, noise, rho=0, step_sizes=sizes, clip=50)
    shrunk = 0.7**2 * 0.9**3
    expected = torch.where(brain[:, None], target + shrunk * (image - target), image)
    torch.testing.assert_close(restored, expected)


def test_gradients_are_clipped_voxel_by_voxel() -> None:
    image, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 100.0], [-100.0, 0.5]]]])
    brain = torch.ones(1, 2, 2, dtype=torch.bool)
    restored = restore(quadratic(target), image, brain, torch.zeros(1, 1, 1), rho=0, step_sizes=[0.1], clip=50)
    torch.testing.assert_close(restored[0, 0], torch.tensor([[0.1, 5.0], [-5.0, 0.05]]))


def test_rho_zero_is_plain_ascent_on_the_elbo_with_noise_drawn_anew() -> None:
    method = method_of()
    settings, network = method.settings, method.vae.network
    image = torch.randn(3, 1, 12, 16, generator=generator("image"))
    brain = torch.ones(3, 12, 16, dtype=torch.bool)
    noise = torch.randn(4, 3, settings.latent_dim, generator=generator("noise"))
    restored = method._restore(image, brain, noise, 0.0, [0.01, 0.01, 0.002, 0.002])
    expected = image.clone()
    for size, drawn in zip([0.01, 0.01, 0.002, 0.002], noise, strict=True):
        current = expected.clone().requires_grad_()
        mean, log_variance = network.encode(current)
        decoded = network.decode(mean + (log_variance / 2).exp() * drawn)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        elbo = -((current - decoded) ** 2).sum() - divergence
        (gradient,) = torch.autograd.grad(elbo, current)
        expected = expected + size * gradient
    torch.testing.assert_close(restored, expected, rtol=1e-4, atol=1e-5)
    other = method._restore(image, brain, noise.flip(0), 0.0, [0.01, 0.01, 0.002, 0.002])
    assert not torch.allclose(other, restored, rtol=1e-4, atol=1e-5)


def test_the_total_variation_of_the_change_falls_with_rho_over_the_papers_range() -> None:
    rhos = RestorationSettings().rhos()
    assert rhos == pytest.approx(np.arange(20) / 5)
    # The image lacks a block of 5 and has noise: the largest rho smooths the noise and leaves most of the block.
    image = torch.zeros(1, 1, 16, 16)
    target = 0.3 * torch.randn(1, 1, 16, 16, generator=generator("noise"))
    target[..., 4:12, 4:12] += 5
    brain = torch.ones(1, 16, 16, dtype=torch.bool)
    # Steps that go to zero: the ascent ends where the objective has its maximum.
    sizes = [0.05 / (1 + step / 10) for step in range(600)]
    variations = []
    for rho in rhos:
        restored = restore(quadratic(target), image, brain, torch.zeros(600, 1, 1), rho=rho, step_sizes=sizes, clip=50)
        variations.append(float(total_variation(image - restored)))
    assert all(after < before for before, after in itertools.pairwise(variations))
    assert variations[-1] > 50


def test_with_the_papers_steps_the_total_variation_falls_until_the_subgradients_shake() -> None:
    given = RestorationSettings()
    image = torch.zeros(1, 1, 16, 16)
    target = 0.3 * torch.randn(1, 1, 16, 16, generator=generator("noise"))
    brain = torch.ones(1, 16, 16, dtype=torch.bool)
    changes = []
    for rho in (0.0, 0.2, 2.0, 3.8):
        sizes = given.step_sizes(500)
        restored = restore(quadratic(target), image, brain, torch.zeros(500, 1, 1), rho=rho, step_sizes=sizes, clip=50)
        changes.append(float(restored.abs().mean()))
    assert changes[0] > changes[1] > changes[2]
    # Nothing is left to smooth: what remains is the step times rho, and so grows. Least change has a least rho.
    assert changes[2] < changes[3] < 4 * 3.8 * 2e-3


def test_step_sizes_are_the_papers() -> None:
    sizes = RestorationSettings().step_sizes(500)
    assert sizes == [5e-3] * 100 + [2e-3] * 400
    assert RestorationSettings().step_sizes(10) == [5e-3] * 2 + [2e-3] * 8
    assert RestorationSettings().clip == 50
    assert VaeRestorationSettings().latent_dim == 128


def choice_stage(method: VaeRestoration) -> Stage:
    (stage,) = [one for one in method.stages() if one.name == "rho"]
    return stage


def _refuse(*_: Any) -> float:
    raise AssertionError("this stage has no optimiser")


no_update: Any = _refuse


def test_rho_is_the_one_that_changes_healthy_brains_least_over_all_ranks() -> None:
    changes = {"restoration.rho_spacing": 0.95, "restoration.rho_steps": 10}
    methods = [method_of(**changes) for _ in range(2)]
    scans = [volume(0), volume(1)]
    for rank, method in enumerate(methods):
        stage = choice_stage(method)
        assert (stage.split, stage.healthy_only, stage.optional) == ("validation", True, True)
        assert isinstance(stage.view, Slices)
        assert stage.view.every == 8  # every 4th for training, every 2nd of those here
        stage.begin()
        stage.step(batch_of([scans[rank]], first=rank * GRID[2]), no_update)
    rhos = methods[0].settings.restoration.rhos()
    means = []
    for rho in rhos:
        total, voxels = 0.0, 0
        for rank, scan in enumerate(scans):
            batch = batch_of([scan], first=rank * GRID[2])
            image = methods[0].vae.standardised(batch.image)
            noise = batch.normal("latent", (10, 4)).movedim(1, 0)
            brain = torch.nn.functional.pad(batch.brain, (1, 2, 1, 1))
            sizes = methods[0].settings.restoration.step_sizes(10)
            restored = methods[0]._restore(image, brain, noise, rho, sizes)
            total += float(np.abs((image - restored).numpy()[:, 0])[brain.numpy()].sum())
            voxels += int(brain.sum())
        means.append(total / voxels)
    choice_stage(methods[0]).finish(Ranks(methods[1]))
    assert float(methods[0].rho) == pytest.approx(rhos[int(np.argmin(means))])
    assert len(set(means)) == len(rhos)


@pytest.mark.parametrize(("lowest", "warned"), [(1.0, 0), (3.8, 1)])
def test_a_choice_at_the_end_of_the_range_is_said(
    lowest: float, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method = method_of(**{"restoration.rho_spacing": 0.2})
    sentence = "rho is 3.8, the largest tried, and a larger one may be better: raise restoration.rho_last"

    def changing(image: Tensor, brain: Tensor, noise: Tensor, rho: float, sizes: Sequence[float]) -> Tensor:
        return image + abs(rho - lowest) + 0.1

    monkeypatch.setattr(method, "_restore", changing)
    stage = choice_stage(method)
    stage.begin()
    stage.step(batch_of([volume(0)]), no_update)
    stage.finish(Ranks())
    assert float(method.rho) == pytest.approx(lowest)
    assert [record.message for record in caplog.records] == [sentence] * warned


def test_a_given_rho_is_taken_and_nothing_is_chosen() -> None:
    method = method_of(**{"restoration.rho": 1.4})
    assert float(method.rho) == pytest.approx(1.4)
    assert [stage.name for stage in method.stages()] == ["moments", "vae"]


def test_without_healthy_validation_subjects_rho_is_the_papers(toy_store: CohortStore, tmp_path: Path) -> None:
    class NoneHealthy:
        """The toy cohort, every validation subject of which is ill."""

        def __getattr__(self, name: str) -> Any:
            return getattr(toy_store, name)

        def subjects(self, split: str | None = None, healthy: bool | None = None) -> Any:
            if split == "validation" and healthy:
                return []
            return toy_store.subjects(split, healthy=healthy)

    settings = override(tiny(), {"epochs": 1, "restoration.rho_spacing": 1.9, "restoration.rho_every": 1})
    method = contract.build(VaeRestoration, settings, toy_store)
    assert isinstance(method, VaeRestoration)
    result = train(method, NoneHealthy(), contract.training_settings(), tmp_path, device=torch.device("cpu"))  # type: ignore[arg-type]  # stands in for a store
    assert result.state.finished_stages == ("moments", "vae", "rho")
    assert float(method.rho) == pytest.approx(2.2)
    chosen = contract.trained(VaeRestoration, settings, toy_store)
    assert float(chosen.get_buffer("rho")) in (0.0, pytest.approx(1.9), pytest.approx(3.8))


@pytest.mark.parametrize("channels", [("T1w",), ("T1w", "FLAIR")])
def test_the_map_is_the_change_and_none_is_outside_the_brain(channels: tuple[str, ...]) -> None:
    method = method_of(*channels, **PLAIN)
    scan = volume(0, len(channels))
    with torch.no_grad():
        (score,) = method.score([scan])
    assert score.restoration is not None
    assert torch.equal(score.map > 0, (score.map > 0) & scan.brain)
    assert bool((score.map[scan.brain] > 0).float().mean() > 0.9)
    gap = ((scan.image - score.restoration) / 0.1).abs().mean(0)
    torch.testing.assert_close(gap, score.map, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("effort", "steps"), [("full", 10), ("quick", 5)])
def test_the_score_restores_with_the_rho_and_the_noise_of_the_volume(
    effort: Literal["full", "quick"], steps: int
) -> None:
    method = method_of(**PLAIN)
    method.rho.fill_(1.7)
    given, network = method.settings.restoration, method.vae.network
    scan = volume(0)
    with torch.no_grad():
        (score,) = method.score([scan], effort=effort)
    image = method.vae.standardised(scan.image.movedim(-1, 0))
    brain = torch.nn.functional.pad(scan.brain.movedim(-1, 0), (1, 2, 1, 1))[:, None]
    noise = torch.randn(steps, GRID[2], method.settings.latent_dim, generator=scan.generator("latent"))
    # A fifth of the steps are large ones.
    sizes = [given.first_step_size] * (steps // 5) + [given.step_size] * (steps - steps // 5)

    def restored(rho: float, noise: Tensor) -> Tensor:
        found = image.clone()
        for size, drawn in zip(sizes, noise, strict=True):
            current = found.clone().requires_grad_()
            mean, log_variance = network.encode(current)
            decoded = network.decode(mean + (log_variance / 2).exp() * drawn)
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
            change = image - current
            variation = change.diff(dim=2).abs().sum() + change.diff(dim=3).abs().sum()
            objective = -((current - decoded) ** 2).sum() - divergence - rho * variation
            (gradient,) = torch.autograd.grad(objective, current)
            found = found + size * gradient.clamp(-50, 50) * brain
        return (image - found).abs()[:, 0, 1:11, 1:14].movedim(0, -1)

    torch.testing.assert_close(score.map, restored(1.7, noise), rtol=1e-3, atol=1e-4)
    # The map does depend on both, by more than that.
    for other in (restored(0.0, noise), restored(1.7, torch.zeros_like(noise))):
        assert float((score.map - other).abs().max()) > 1e-2


def test_the_defaults_are_the_papers_and_the_references() -> None:
    paper = VaeRestorationSettings()
    given = paper.restoration
    assert (given.steps, given.quick_steps, given.rho_steps, given.rho_every) == (500, 100, 500, 1)
    assert (given.rho, given.rho_default, given.rho_last, given.rho_spacing) == ("chosen", 2.2, 3.8, 0.2)
    assert (paper.reconstruction, paper.epochs, paper.learning_rate, paper.slices.every) == ("l2", 600, 1e-4, 4)
    assert (paper.map.min_pool, paper.map.average_pool) == (3, 15)
    # A rho is chosen for the restoration that scores.
    small = demo().restoration
    assert small.rho_steps == small.steps


def test_a_volume_among_others_is_the_volume_alone() -> None:
    method = method_of(**PLAIN, **{"slices.together": 5})
    scans = [volume(0), volume(1)]
    with torch.no_grad():
        together = method.score(scans)
        for scan, score in zip(scans, together, strict=True):
            (alone,) = method.score([scan])
            torch.testing.assert_close(alone.map, score.map, rtol=1e-3, atol=1e-4)
    assert method.capacity() == 4


def test_the_quick_effort_takes_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(**PLAIN)
    drawn: list[int] = []
    original = method._restore

    def counting(*given: Any) -> Tensor:
        drawn.append(len(given[2]))
        return original(*given)

    monkeypatch.setattr(method, "_restore", counting)
    with torch.no_grad():
        method.score([volume(0)])
        method.score([volume(0)], effort="quick")
    assert drawn == [10, 5]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"restoration.rho": -1}, "restoration.rho"),
        ({"restoration.rho": "best"}, "restoration.rho"),
        ({"restoration.rho_spacing": 4}, "there would be nothing but 0 to choose"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        override(tiny(), change)
