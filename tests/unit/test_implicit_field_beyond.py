"""The implicit field beyond the paper: an encoder to start from, several restorations, other resolutions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.methods.implicit_field import ImplicitField, ImplicitFieldSettings
from vesalius.methods.implicit_field.classes import assign_classes
from vesalius.methods.implicit_field.decoder import encode_positions
from vesalius.methods.implicit_field.encoder import CodeEncoder, cell_weights, draw_voxels, on_cells
from vesalius.methods.implicit_field.restoration import averaged
from vesalius.methods.implicit_field.settings import tiny
from vesalius.platform.config import override, validate
from vesalius.platform.contracts import Volume, generator, grid_positions
from vesalius.platform.errors import SettingError
from vesalius.platform.geometry import as_matrix, grid_affine
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.testing import methods as contract
from vesalius.platform.training import Checkpoints, train

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.contracts import Batch

GRID, SPACING = (18, 16, 14), (2.0, 2.0, 2.0)
FINE, FINE_SPACING = (27, 24, 21), (4 / 3, 4 / 3, 4 / 3)
BOX = (36.0, 32.0, 28.0)
NUM_TRAIN = 24


def head(number: int, grid: tuple[int, int, int] = GRID, spacing_mm: tuple[float, float, float] = SPACING) -> Tensor:
    """A ball with a darker core whose size and place differ between subjects, at any resolution: (1, D, H, W)."""
    draw = generator("head", number)
    shift = torch.tensor([0.7, 0.4, 0.0]) * (torch.rand(1, generator=draw) - 0.5)
    radius = 0.2 + 0.5 * torch.rand(1, generator=draw)
    position = grid_positions(grid, spacing_mm, BOX)
    distance = torch.linalg.vector_norm(position - shift, dim=-1)
    inside = torch.linalg.vector_norm(position, dim=-1) < 0.9
    image: Tensor = torch.where(distance < radius, 0.35, 0.8) * inside
    return image.unsqueeze(0)


def volume_of(image: Tensor, spacing_mm: tuple[float, float, float] = SPACING) -> Volume:
    d, h, w = image.shape[1:]
    affine = as_matrix(grid_affine((d, h, w), spacing_mm, (0.0, 0.0, 0.0)))
    return Volume(subject_id="new", image=image, brain=image[0] > 0.1, spacing_mm=spacing_mm, affine=affine)


def with_encoder(**changes: Any) -> ImplicitFieldSettings:
    return override(
        tiny(),
        {
            "num_classes": 3,
            "num_frequencies": 2,
            "mode_pool_training": 1,
            "mode_pool_scoring": 1,
            "prior_sigma": 1.0,
            "epochs": 80,
            "encoder.epochs": 60,
            "encoder.cells": 8,
            "encoder.width": 4,
            "restoration.precision": "float32",
            **changes,
        },
    )


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    store = CohortStore.create(tmp_path_factory.mktemp("heads") / "s", recipe={"name": "heads"}, channels=("T1w",))
    records = []
    with store.lock():
        for number in range(NUM_TRAIN):
            image = head(number).numpy()
            record = SubjectRecord(
                subject_id=f"train-{number:02}",
                split="train",
                channels=("T1w",),
                shape=GRID,
                spacing_mm=SPACING,
                affine=as_matrix(grid_affine(GRID, SPACING, (0.0, 0.0, 0.0))),
            )
            records.append(store.write(record, SubjectArrays(image=image, brain=image[0] > 0.1)))
        store.commit(records)
    return CohortStore.open(store.path)


@pytest.fixture(scope="module")
def trained(heads: CohortStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImplicitField, Path]:
    torch.manual_seed(0)
    method = ImplicitField(with_encoder(), heads.facts())
    folder = tmp_path_factory.mktemp("run")
    train(method, heads, contract.training_settings(checkpoint_every=1000), folder)
    return method.eval(), folder


def changed(method: ImplicitField, **changes: Any) -> ImplicitField:
    """The same trained field under other settings."""
    twin = ImplicitField(override(method.settings, changes), method.cohort).eval()
    twin.load_state_dict(method.state_dict())
    return twin


def whole_batch(store: CohortStore, method: ImplicitField) -> Batch:
    stage = method.stages()[-1]
    assert stage.name == "encoder"
    facts = method.cohort
    return load_batch(VolumeCache(store, facts.subjects, 2**24), stage, facts, seed=0, step=0)


# ------------------------------------------------------------------------------------------------- the encoder


def test_cells_are_means_of_what_lies_in_them() -> None:
    image = torch.rand((2, 16, 24, 8), generator=generator("image"))
    found = on_cells(image, (2.0, 1.0, 3.0), (32.0, 24.0, 24.0), 8, background=0.0)
    torch.testing.assert_close(found, F.adaptive_avg_pool3d(image, 8))
    plane = on_cells(image[..., 0], (2.0, 1.0), (32.0, 24.0), 4, background=7.0)
    torch.testing.assert_close(plane, F.adaptive_avg_pool2d(image[..., 0], 4))


def test_cells_do_not_depend_on_the_resolution() -> None:
    coarse, fine = head(3)[0][None], head(3, FINE, FINE_SPACING)[0][None]
    doubled = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    cells = on_cells(coarse, SPACING, BOX, 8, background=0.0)
    torch.testing.assert_close(cells, on_cells(doubled, (1.0, 1.0, 1.0), BOX, 8, background=0.0))
    assert (cells - on_cells(fine, FINE_SPACING, BOX, 8, background=0.0)).abs().mean() < 0.02


def test_beyond_a_smaller_image_lies_background() -> None:
    weights = cell_weights(4, 2.0, 16.0, 4)  # 8 mm in a box of 16: the middle two cells of 4 mm
    assert weights.sum(1).tolist() == [0, 1, 1, 0]
    seen = on_cells(torch.ones(1, 4, 4), (2.0, 2.0), (16.0, 16.0), 4, background=-3.0)
    assert seen[0].tolist() == [[-3, -3, -3, -3], [-3, 1, 1, -3], [-3, 1, 1, -3], [-3, -3, -3, -3]]


def test_encoder_has_the_layers_that_its_docstring_says() -> None:
    encoder = CodeEncoder(num_axes=3, num_position=0, cells=32, width=16, latent_dim=256)
    convolutions = (1 * 27 + 1) * 16 + (16 * 27 + 1) * 32 + (32 * 27 + 1) * 64
    linear = (64 * 4**3 + 1) * 256 + (256 + 1) * 256
    assert sum(parameter.numel() for parameter in encoder.parameters()) == convolutions + linear == 1_184_288
    slices = CodeEncoder(num_axes=2, num_position=1, cells=16, width=4, latent_dim=8)
    expected = (9 + 1) * 4 + (4 * 9 + 1) * 8 + (8 * 9 + 1) * 16 + (16 * 2**2 + 1 + 1) * 256 + 257 * 8
    assert sum(parameter.numel() for parameter in slices.parameters()) == expected
    assert torch.equal(encoder(torch.randn(2, 32, 32, 32), torch.empty(2, 0)), torch.zeros(2, 256))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_encoder_loss_is_the_decoders_and_the_codes_weighted(
    trained: tuple[ImplicitField, Path], heads: CohortStore, weight: float
) -> None:
    method = changed(trained[0], **{"encoder.code_weight": weight, "prior_sigma": 0.4})
    batch = whole_batch(heads, method)
    with torch.no_grad():
        total, count = method.warm_start().loss(batch)
        code, _, _ = method.warm_start().encoded(batch)
    num_points = method.settings.points
    assert count == len(batch) * num_points

    classes = assign_classes(batch.image[:, 0], method.centres)
    index = draw_voxels(batch, num_points, GRID)
    positions = grid_positions(GRID, SPACING, BOX)
    through_decoder, of_codes = 0.0, 0.0
    table = method.codes.weight.detach().double().numpy()
    for item in range(len(batch)):
        i, j, k = index[item].unbind(-1)
        labels = classes[item][i, j, k].long()
        with torch.no_grad():
            logits = method.decoder(code[item][None], encode_positions(positions[i, j, k], 2)[None])[0]
        through_decoder += float(F.cross_entropy(logits, labels, reduction="sum"))
        through_decoder += float(code[item].square().sum()) / 0.4**2
        known = table[int(batch.subjects[item])]
        variance = ((table - table.mean(0)) ** 2).mean()
        of_codes += num_points * float(np.mean((code[item].double().numpy() - known) ** 2)) / variance
    expected = (1 - weight) * through_decoder + weight * of_codes
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_regressing_codes_to_their_own_mean_costs_one(trained: tuple[ImplicitField, Path], heads: CohortStore) -> None:
    method = changed(trained[0], **{"encoder.code_weight": 1.0, "batch_volumes": NUM_TRAIN})
    assert method.encoder is not None
    with torch.no_grad():
        method.encoder.output.weight.zero_()
        method.warm_start()._begin()
        total, count = method.warm_start().loss(whole_batch(heads, method))
    assert float(total) / count == pytest.approx(1.0, rel=1e-5)


def test_the_encoder_stage_leaves_the_field_alone(trained: tuple[ImplicitField, Path]) -> None:
    method, folder = trained
    before = ImplicitField(method.settings, method.cohort)
    checkpoints = Checkpoints(folder)
    checkpoints.load_weights(checkpoints.end_of("decoder"), before)
    after = method.state_dict()
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert moved == {name for name in after if name.startswith("encoder.")}


def cross_entropy_after(method: ImplicitField, steps: int, start: str) -> float:
    phases = {"restoration.steps": [steps], "restoration.learning_rate": 3e-3, "restoration.prior": False}
    twin = changed(method, **{"restoration.start": start, **phases})
    volumes = [volume_of(head(number)) for number in range(100, 108)]
    with torch.no_grad():
        return float(np.mean([float(evidence.mean()) for evidence, _ in twin.evidence(volumes)]))


def test_restorations_from_the_encoder_are_ahead(trained: tuple[ImplicitField, Path]) -> None:
    """On heads that were not trained on, a few steps from the encoder explain as much as many from elsewhere."""
    method, _ = trained
    for steps in (1, 10):
        ahead = cross_entropy_after(method, steps, "encoder")
        assert ahead < 0.7 * cross_entropy_after(method, steps, "random")
        assert ahead < 0.7 * cross_entropy_after(method, steps, "mean")
    assert cross_entropy_after(method, 1, "encoder") < cross_entropy_after(method, 30, "random")


def test_an_encoder_starts_volumes_of_another_resolution(trained: tuple[ImplicitField, Path]) -> None:
    start = trained[0].warm_start()
    with torch.no_grad():
        coarse = start.codes_of(volume_of(head(101)))
        fine = start.codes_of(volume_of(head(101, FINE, FINE_SPACING), FINE_SPACING))
        other = start.codes_of(volume_of(head(102)))
    assert coarse.shape == (1, 8)
    assert (coarse - fine).norm() < 0.5 * (coarse - other).norm()


def test_without_an_encoder_nothing_is_there_and_older_models_load() -> None:
    old = json.loads(ImplicitFieldSettings().model_dump_json())
    del old["encoder"], old["restoration"]["restorations"]
    settings = validate(ImplicitFieldSettings, old, "model.json")
    assert settings == ImplicitFieldSettings()
    assert (settings.encoder.epochs, settings.restoration.restorations, settings.restoration.start) == (0, 1, "random")


def test_a_field_without_an_encoder_has_the_state_that_it_had(heads: CohortStore) -> None:
    method = ImplicitField(tiny(), heads.facts())
    assert [stage.name for stage in method.stages()] == ["intensity_classes", "decoder"]
    layers = {f"decoder.hidden.{n}.{part}" for n in range(8) for part in ("direction", "gain", "bias")}
    assert set(method.state_dict()) == layers | {
        "decoder.output.weight",
        "decoder.output.bias",
        "codes.weight",
        "centres",
    }


def test_an_encoder_resumes_exactly(toy_store: CohortStore) -> None:
    settings = with_encoder(epochs=2, **{"encoder.epochs": 3, "restoration.start": "encoder", "points": 64})
    contract.assert_exact_resume(ImplicitField, settings, toy_store, moments=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"restoration.start": "encoder"}, "none is trained: set encoder.epochs above 0"),
        ({"encoder.cells": 12}, "encoder.cells must be a multiple of 8"),
        ({"encoder.code_weight": 1.5}, "encoder.code_weight"),
        ({"restoration.restorations": 0}, "restoration.restorations"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        override(ImplicitFieldSettings(), changes)


# ---------------------------------------------------------------------------------------- several restorations


def test_several_restorations_are_averaged_and_their_deviation_kept(trained: tuple[ImplicitField, Path]) -> None:
    method = changed(trained[0], **{"restoration.restorations": 4, "restoration.volumes": 6})
    assert method.capacity() == 1
    assert trained[0].capacity() == 6
    volumes = [volume_of(head(110)), volume_of(head(111))]
    with torch.no_grad():
        by_volume = method.restorations(volumes)
        scores = method.score(volumes)
    for restorations, score, (evidence, restored) in zip(by_volume, scores, method.evidence(volumes), strict=True):
        maps = np.stack([one.numpy() for one, _ in restorations]).astype(np.float64)
        assert maps.shape == (4, *GRID)
        np.testing.assert_allclose(evidence.numpy(), maps.mean(0), atol=1e-5)
        np.testing.assert_allclose(score.extras["spread"].numpy(), maps.std(0), atol=1e-5)
        images = np.stack([image.numpy() for _, image in restorations])
        np.testing.assert_allclose(restored.numpy(), images.mean(0), atol=1e-5)
        # All of them near one optimum: they differ, and by less than what they say.
        assert 0 < maps.std(0).mean() < 0.5 * maps.mean()
        assert all(not torch.equal(restorations[0][0], other) for other, _ in restorations[1:])


def test_the_first_of_several_restorations_is_the_only_one_of_one(trained: tuple[ImplicitField, Path]) -> None:
    method = trained[0]
    volume = volume_of(head(112))
    with torch.no_grad():
        ((alone,),) = method.restorations([volume])
        (several,) = changed(method, **{"restoration.restorations": 3}).restorations([volume])
        (score,) = method.score([volume])
    assert len(several) == 3
    torch.testing.assert_close(several[0][0], alone[0], rtol=1e-3, atol=1e-3)
    assert dict(score.extras) == {}
    assert averaged([alone])[0] is alone[0]


# ------------------------------------------------------------------------------------------- other resolutions


def test_a_field_scores_the_same_head_at_one_and_a_half_times_the_resolution(
    trained: tuple[ImplicitField, Path],
) -> None:
    method = changed(trained[0], **{"restoration.steps": [100], "mode_pool_scoring": 1})
    coarse_image, fine_image = head(120), head(120, FINE, FINE_SPACING)
    # The same 8 mm cube on both grids.
    coarse_image[0, 10:14, 8:12, 4:8] = 0.0
    fine_lesion = torch.zeros(FINE, dtype=torch.bool)
    fine_lesion[15:21, 12:18, 6:12] = True
    fine_image[0][fine_lesion] = 0.0
    with torch.no_grad():
        (coarse, _), (again, _) = method.evidence([volume_of(coarse_image), volume_of(coarse_image.clone())])
        ((fine, _),) = method.evidence([volume_of(fine_image, FINE_SPACING)])
    assert fine.shape == FINE
    assert torch.equal(coarse, again)
    # Cells of 4 mm, two coarse and three fine voxels wide: where a voxel is cut by an edge the grids cannot agree.
    cells = [F.adaptive_avg_pool3d(evidence[None], (9, 8, 7)).flatten() for evidence in (coarse, fine)]
    assert float(torch.corrcoef(torch.stack(cells))[0, 1]) > 0.97
    in_lesion = float(coarse[10:14, 8:12, 4:8].mean())
    assert float(fine[fine_lesion].mean()) == pytest.approx(in_lesion, rel=0.1)
    assert float((cells[0] - cells[1]).abs().mean()) < 0.02 * in_lesion
    # A field that took voxel indices for places would miss the head.
    with torch.no_grad():
        ((misplaced, _),) = method.evidence([volume_of(fine_image)])
    assert misplaced[~fine_lesion].mean() > 10 * fine[~fine_lesion].mean()
