"""The 2D implicit field: a code per slice, the volume's network, and slices put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.classes import mode_pool
from vesalius.methods.implicit_field.restoration import Field, Target, cross_entropy
from vesalius.methods.implicit_field.settings import tiny
from vesalius.methods.implicit_field_2d import ImplicitField2D, ImplicitField2DSettings
from vesalius.methods.implicit_field_2d.settings import tiny_2d
from vesalius.platform.config import override
from vesalius.platform.contracts import Batch, CohortFacts, Points, Slices, Volume, generator, grid_positions
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.testing import methods as contract
from vesalius.platform.training import train

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID, SPACING = (10, 9, 13), (2.0, 2.0, 2.0)
BOX = (20.0, 18.0, 26.0)


def facts(num: int = 3, grid: tuple[int, int, int] = GRID, channels: tuple[str, ...] = ("T1w",)) -> CohortFacts:
    subjects = tuple(f"s{number}" for number in range(num))
    return CohortFacts(subjects=subjects, grid=grid, spacing_mm=SPACING, affine=EYE, channels=channels, digest="0")


def small(**changes: Any) -> ImplicitField2DSettings:
    return override(tiny_2d(), {"restoration.precision": "float32", **changes})


def built(cohort: CohortFacts | None = None, /, **changes: Any) -> ImplicitField2D:
    torch.manual_seed(0)
    method = ImplicitField2D(small(**changes), cohort or facts())
    method.centres.copy_(torch.linspace(0.1, 0.9, method.settings.num_classes))
    return method.eval()


def volume_of(image: Tensor) -> Volume:
    return Volume(subject_id="new", image=image, brain=image[0] > 0.1, spacing_mm=SPACING, affine=EYE)


def noise(grid: tuple[int, int, int] = GRID, number: int = 0) -> Tensor:
    return torch.rand((1, *grid), generator=generator("noise", number))


def batch_of(store: CohortStore, method: ImplicitField2D, step: int = 0) -> Batch:
    stage = method.stages()[1]
    return load_batch(VolumeCache(store, method.cohort.subjects, 2**24), stage, method.cohort, seed=0, step=step)


# ------------------------------------------------------------------------------------------ codes, points, network


def test_the_papers_slices_codes_and_network() -> None:
    settings = ImplicitField2DSettings()
    assert (settings.slices.axis, settings.slices.every, settings.slices.scored) == (2, 4, "replicated")
    assert (settings.points, settings.batch_volumes, settings.latent_dim) == (16_200, 6, 256)
    method = ImplicitField2D(settings, facts(2, (160, 160, 160)))
    assert method.codes.weight.shape == (2 * 40, 256)
    # The volume's network: two coordinates in the plane and that of the slice.
    assert sum(parameter.numel() for parameter in method.decoder.parameters()) == 1_847_698
    classes, decoder = method.stages()
    assert isinstance(classes.view, Points)
    assert decoder.view == Slices(axis=2, every=4)
    assert decoder.batch_size == 6


def test_each_slice_of_each_subject_has_a_code_of_its_own(toy_store: CohortStore) -> None:
    method = built(toy_store.facts(), **{"slices.every": 3, "epochs": 1, "batch_volumes": 5})
    num_slices = len(range(0, 8, 3))
    assert method.codes.weight.shape[0] == 6 * num_slices
    rows = []
    for step in range(4):
        batch = batch_of(toy_store, method, step)
        place = np.rint((batch.position[:, 0].numpy() + 1) * 8 / 2 - 0.5).astype(int)
        expected = batch.subjects.numpy() * num_slices + place // 3
        np.testing.assert_array_equal(method.code_rows(batch).numpy(), expected)
        rows += expected.tolist()
    assert sorted(rows) == list(range(6 * num_slices))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("points", [20, 10_000])
def test_points_are_the_slices_voxels_at_their_place(toy_store: CohortStore, axis: int, points: int) -> None:
    method = built(
        toy_store.facts(), **{"slices.axis": axis, "slices.every": 2, "points": points, "mode_pool_training": 1}
    )
    batch = batch_of(toy_store, method)
    labels, position = method.observed(batch)
    grid = np.array(toy_store.facts().grid)
    plane = np.delete(grid, axis).prod()
    assert labels.shape == (len(batch), min(points, plane))
    index = (position.numpy() + 1) * grid / 2 - 0.5
    np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
    index = np.rint(index).astype(int)
    centres = method.centres.numpy()
    for row, subject in enumerate(batch.subjects.tolist()):
        i, j, k = index[row].T
        image = toy_store.image(toy_store.facts().subjects[subject])[0]
        np.testing.assert_array_equal(labels[row], np.abs(image[i, j, k, None] - centres).argmin(-1))
        assert len(set(index[row][:, axis])) == 1
        if points > plane:  # each voxel of the plane once
            assert len({tuple(voxel) for voxel in index[row].tolist()}) == plane


def test_points_belong_to_the_item_and_not_to_the_batch(toy_store: CohortStore) -> None:
    method = built(toy_store.facts(), **{"points": 20, "batch_volumes": 6})
    batch = batch_of(toy_store, method)
    labels, position = method.observed(batch)
    part_labels, part_position = method.observed(batch.select(2, 5))
    assert torch.equal(position[2:5], part_position)
    assert torch.equal(labels[2:5], part_labels)
    assert not torch.equal(position[0, :, :2], position[1, :, :2])
    _, later = method.observed(batch_of(toy_store, method, 1))
    assert not torch.equal(position[..., :2], later[: len(position), :, :2])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_mode_pooling_of_slices_sees_each_slice_alone(size: int) -> None:
    labels = torch.randint(4, (5, 8, 7), generator=generator("labels", size)).to(torch.uint8)
    low, high = (size - 1) // 2, size // 2
    padded = np.pad(labels.numpy(), ((0, 0), (low, high), (low, high)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (1, size, size)).reshape(5, 8, 7, -1)
    np.testing.assert_array_equal(mode_pool(labels, size, 4, planar=True).numpy(), stats.mode(windows, axis=-1).mode)


def test_the_loss_is_the_volumes_with_a_slices_code(toy_store: CohortStore) -> None:
    """The 2D field of slices that all have one code is a 3D field: same network, same classes, same positions."""
    method = built(toy_store.facts(), **{"points": 10_000, "mode_pool_training": 1, "prior": "none"})
    with torch.no_grad():
        method.codes.weight.copy_(method.codes.weight[:1].expand_as(method.codes.weight))
        batch = batch_of(toy_store, method)
        total, count = method.loss(batch)
        field = Field.of(method.decoder, torch.float32)
        expected = 0.0
        for subject, place in zip(batch.subjects.tolist(), batch.position[:, 0].tolist(), strict=True):
            image = torch.from_numpy(toy_store.image(toy_store.facts().subjects[subject]))
            labels = (image[0, ..., None] - method.centres).abs().argmin(-1).to(torch.uint8)
            axes = method.axes(toy_store.facts().grid, toy_store.facts().spacing_mm)
            whole = Target(labels=labels, axes=axes, generator=generator("unused"))
            evidence, _ = cross_entropy(field, method.codes.weight[0], whole, method.centres, expectation=False)
            expected += float(evidence[..., round((place + 1) * 4 - 0.5)].sum())
    assert count == len(batch) * 12 * 10
    assert float(total) == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("scored", ["replicated", "all"])
def test_a_volume_is_its_slices_put_together(axis: int, scored: str) -> None:
    """With no step taken from one start, the map is the volume's cross-entropy, replicated between scored slices."""
    method = built(**{"slices.axis": axis, "slices.scored": scored, "code_init_std": 0.0, "mode_pool_scoring": 1})
    method.optimise = lambda field, targets, start, phases: start  # type: ignore[method-assign]  # codes stay at zero
    volume = volume_of(noise())
    field = Field.of(method.decoder, torch.float32)
    labels = (volume.image[0, ..., None] - method.centres).abs().argmin(-1).to(torch.uint8)
    whole = Target(labels=labels, axes=method.axes(GRID, SPACING), generator=generator("unused"))
    with torch.no_grad():
        ((evidence, restored),) = method.evidence([volume])
        expected, image = cross_entropy(field, torch.zeros(8), whole, method.centres, expectation=False)
    num = GRID[axis]
    taken = np.arange(num) if scored == "all" else np.arange(0, num, 4)
    nearest = torch.from_numpy(taken[np.abs(np.arange(num)[:, None] - taken).argmin(1)])
    torch.testing.assert_close(evidence, expected.index_select(axis, nearest), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(restored, image.index_select(axis, nearest))


def test_outside_the_extent_nothing_is_said_and_nothing_changed() -> None:
    method = built(**{"slices.first": 0.3, "slices.last": 0.8, "slices.every": 1})
    volume = volume_of(noise())
    with torch.no_grad():
        ((evidence, restored),) = method.evidence([volume], effort="quick")
    inside = torch.zeros(13, dtype=torch.bool)
    inside[4:10] = True
    assert (evidence[..., ~inside] == 0).all()
    assert (evidence[..., inside] > 0).all()
    assert torch.equal(restored[..., ~inside], volume.image[0][..., ~inside])


def test_slices_are_restored_apart_and_the_company_does_not_matter() -> None:
    method = built(**{"slices.every": 3})
    first, other = volume_of(noise(number=1)), volume_of(noise((8, 9, 7), number=2))
    with torch.no_grad():
        ((alone, _),) = method.evidence([first])
        ((among, _),) = method.evidence([other, first])[1:]
        changed = first.image.clone()
        changed[..., 0] = 0.0
        ((twin, _),) = method.evidence([volume_of(changed)])
    torch.testing.assert_close(alone, among, rtol=1e-3, atol=1e-3)
    parts = built(**{"slices.every": 3, "slices.together": 2})
    with torch.no_grad():
        ((in_parts, _),) = parts.evidence([first])
    torch.testing.assert_close(alone, in_parts, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone[..., 0], twin[..., 0])


def test_a_small_plane_is_drawn_from_no_oftener_than_it_has_voxels() -> None:
    method = built(**{"restoration.points": [500], "slices.every": 6})
    seen: list[tuple[int, list[tuple[int, int]]]] = []

    def watched(field: Field, targets: list[Target], start: Tensor, phases: list[tuple[int, int]]) -> Tensor:
        seen.append((len(targets), phases))
        return start

    method.optimise = watched  # type: ignore[method-assign, assignment]  # only what it is asked for matters here
    volumes = [volume_of(noise()), volume_of(noise((30, 30, 13))), volume_of(noise(number=3))]
    with torch.no_grad():
        method.evidence(volumes)
    assert seen == [(6, [(30, 90)]), (3, [(30, 500)])]


def test_several_restorations_of_slices_keep_their_order() -> None:
    method, one = built(**{"restoration.restorations": 3}), built()
    volume = volume_of(noise())
    with torch.no_grad():
        (several,) = method.restorations([volume])
        ((alone,),) = one.restorations([volume])
        (score,) = method.score([volume])
    assert len(several) == 3
    torch.testing.assert_close(several[0][0], alone[0], rtol=1e-3, atol=1e-3)
    assert all(not torch.equal(several[0][0], other) for other, _ in several[1:])
    maps = torch.stack([evidence for evidence, _ in several])
    torch.testing.assert_close(score.extras["spread"], maps.std(0, correction=0), rtol=1e-4, atol=1e-6)


def test_a_mean_start_is_that_of_the_slices_place() -> None:
    method = built(**{"restoration.start": "mean"})
    with torch.no_grad():
        start = method.starts(volume_of(noise()))
    table = method.codes.weight.detach().view(3, 4, 8)  # slices 0, 4, 8, 12 of 13
    torch.testing.assert_close(start, table.mean(0))


def test_an_encoder_of_slices_is_trained_and_asked(toy_store: CohortStore, tmp_path: Path) -> None:
    settings = small(
        epochs=3, **{"encoder.epochs": 3, "encoder.cells": 8, "encoder.width": 2, "restoration.start": "encoder"}
    )
    torch.manual_seed(0)
    method = ImplicitField2D(settings, toy_store.facts())
    assert [stage.name for stage in method.stages()] == ["intensity_classes", "decoder", "encoder"]
    before = method.encoder
    assert before is not None
    untrained = before.output.weight.clone()
    train(method, toy_store, contract.training_settings(), tmp_path / "run")
    assert not torch.equal(before.output.weight, untrained)
    volume = volume_of(torch.from_numpy(toy_store.image("validation-00")))
    with torch.no_grad():
        start = method.starts(volume)
        (score,) = method.score([volume])
    assert start.shape == (2, 8)
    assert not torch.allclose(start[0], start[1])
    assert torch.isfinite(score.map).all()


def test_an_anomaly_stands_out(tmp_path_factory: pytest.TempPathFactory, toy_store: CohortStore) -> None:
    torch.manual_seed(0)
    method = ImplicitField2D(
        small(epochs=120, num_classes=4, prior_sigma=1.0, **{"slices.every": 1, "restoration.steps": [60]}),
        toy_store.facts(),
    )
    settings = contract.training_settings(checkpoint_every=10_000, validate_every=10_000)
    train(method, toy_store, settings, tmp_path_factory.mktemp("run"))
    volume = volume_of(torch.from_numpy(toy_store.image("validation-00")))
    lesion = torch.from_numpy(toy_store.mask("validation-00", "lesion"))
    with torch.no_grad():
        ((evidence, _),) = method.evidence([volume])
    assert evidence[lesion].mean() > 3 * evidence[~lesion].mean()


# ------------------------------------------------------------------------------------------------------ settings


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(SettingError, match="implicit_field_2d models one modality but the cohort holds T1w and T2w"):
        ImplicitField2D(small(), facts(channels=("T1w", "T2w")))
    with pytest.raises(VolumeError, match="new: the volume has 2 channels"), torch.no_grad():
        built().score([volume_of(noise().repeat(2, 1, 1, 1))])
    with pytest.raises(SettingError, match=r"did you mean 'slices\.every'"):
        override(ImplicitField2DSettings(), {"slices.evry": 2})


def test_presets_are_the_volumes_with_fewer_points_of_more_slices() -> None:
    presets = ImplicitField2D.presets()
    assert set(presets) == {"paper", "demo", "tiny"}
    assert presets["paper"] == ImplicitField2DSettings()
    kept = {"latent_dim", "width", "num_classes", "prior_sigma", "decoder_lr", "map", "encoder"}
    for name in ("demo", "tiny"):
        mine, volumes = presets[name].model_dump(), ImplicitField.presets()[name].model_dump()
        assert {key: mine[key] for key in kept} == {key: volumes[key] for key in kept}
        assert mine["points"] * mine["batch_volumes"] == volumes["points"] * volumes["batch_volumes"]
        assert mine["restoration"]["steps"] == volumes["restoration"]["steps"]
    assert tiny().restoration.points == (256,)


def test_positions_of_a_slice_are_those_of_its_voxels() -> None:
    method = built()
    targets = method.targets(volume_of(noise()))
    assert [tuple(target.labels.shape) for target in targets] == [(10, 9, 1)] * 4
    everywhere = grid_positions(GRID, SPACING, BOX)
    for place, target in zip(range(0, 13, 4), targets, strict=True):
        here = torch.stack(torch.meshgrid(*target.axes, indexing="ij"), dim=-1)
        torch.testing.assert_close(here, everywhere[:, :, place : place + 1])
