"""Position regression: its network's table, its norms, its loss, and which voxels have a score."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from vesalius.methods.blocks import median_pool
from vesalius.methods.position_regression import PositionNetwork, PositionRegression
from vesalius.methods.position_regression.dense import between, error_map, reached
from vesalius.methods.position_regression.network import PATCH_SIZES, Last, halved, layers, multiply_adds
from vesalius.methods.position_regression.settings import tiny
from vesalius.methods.position_regression.spectral import SpectralConvolution
from vesalius.platform.config import flatten, override
from vesalius.platform.contracts import Batch, CohortFacts, Volume
from vesalius.platform.errors import CohortError, SettingError, VolumeError
from vesalius.platform.scoring.volumes import volume_of
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.testing.made_up import made_up_batch
from vesalius.platform.testing.methods import build, trained
from vesalius.platform.training import Alone, TrainingSettings, Updater
from vesalius.platform.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vesalius.platform.contracts import Collective

AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (24, 22, 26)

# What the decision record's table says of a patch after each layer; of 19, 27 and 35 one voxel is left without a last
# pooling.
EDGES = {
    19: [16, 8, 6, 4, 2, 1, 1, 1, 1, 1, 1],
    23: [20, 10, 8, 6, 4, 2, 2, 2, 2, 1, 1, 1],
    27: [24, 12, 10, 8, 6, 3, 1, 1, 1, 1, 1],
    31: [28, 14, 12, 10, 8, 4, 2, 2, 2, 1, 1, 1],
    35: [32, 16, 14, 12, 10, 5, 3, 1, 1, 1, 1],
    39: [36, 18, 16, 14, 12, 6, 4, 2, 2, 1, 1, 1],
}
PARAMETERS = {  # m = 1, 2, 4, ..., 64
    (19, 23): [460, 1_601, 5_935, 22_811, 89_395, 353_891, 1_408_195],
    (27, 31): [668, 2_433, 9_263, 36_123, 142_643, 566_883, 2_260_163],
    (35, 39): [1_084, 4_097, 15_919, 62_747, 249_139, 992_867, 3_964_099],
}


def facts(**changes: Any) -> CohortFacts:
    values: dict[str, Any] = {
        "subjects": ("a", "b"),
        "grid": GRID,
        "spacing_mm": (1.0, 1.0, 1.0),
        "affine": AFFINE,
        "channels": ("CT",),
        "digest": "0",
    }
    return CohortFacts(**{**values, **changes})


def volume(image: torch.Tensor, brain: torch.Tensor | None = None) -> Volume:
    everywhere = torch.ones(image.shape[1:], dtype=torch.bool)
    return Volume(
        subject_id="one",
        image=image,
        brain=everywhere if brain is None else brain,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=AFFINE,
    )


# ---- the network


@pytest.mark.parametrize("patch_size", PATCH_SIZES)
def test_a_patch_shrinks_to_one_voxel_as_the_table_says(patch_size: int) -> None:
    table = layers(patch_size, 16)
    assert [layer.edge for layer in table] == EDGES[patch_size]
    network = PositionNetwork(patch_size, 2, 1)
    seen: list[int] = []
    # Of the two poolings that halve the network has no module: the table's edges without them.
    for module in network.modules():
        if isinstance(module, SpectralConvolution | Last | nn.Conv3d):
            module.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    assert network(torch.rand(3, 1, *(patch_size,) * 3)).shape == (3, 3)
    halved = [row for row, layer in enumerate(table) if layer.kind == "pooling" and layer.block == "Downsample"]
    assert seen == [edge for row, edge in enumerate(EDGES[patch_size]) if row not in halved]
    # No pooling leaves a voxel out.
    before = [patch_size, *EDGES[patch_size]]
    assert all(before[row] % 2 == 0 for row in halved)


@pytest.mark.parametrize("patch_sizes", PARAMETERS)
def test_parameters_are_counted(patch_sizes: tuple[int, int]) -> None:
    for patch_size in patch_sizes:
        for exponent, expected in enumerate(PARAMETERS[patch_sizes]):
            network = PositionNetwork(patch_size, 2**exponent, 1)
            assert sum(p.numel() for p in network.parameters()) == expected
            assert sum(layer.parameters for layer in layers(patch_size, 2**exponent)) == expected
    two = PositionNetwork(patch_sizes[0], 4, 2)
    assert sum(p.numel() for p in two.parameters()) == PARAMETERS[patch_sizes][2] + 4 * 4**3


def test_multiply_adds_are_counted() -> None:
    # By hand for s_p = 19 and m = 1: stem, Downsample, Residual, Downsample, Residual, affine.
    patch = 64 * 16**3 + 27 * 2 * 6**3 + 27 * 4 * (4**3 + 2**3) + 8 + 2 * 16 + 32 + 24
    voxel = 64 + 27 * 2 + 27 * 4 * 2 + 8 + 2 * 16 + 32 + 24
    assert multiply_adds(layers(19, 1)) == (patch, voxel)
    of_patch, of_voxel = multiply_adds(layers(31, 16))
    assert round(of_patch / of_voxel) == 624


def test_a_patch_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="patches of 21 voxels: expected one of 19, 23"):
        PositionNetwork(21, 1, 1)
    with pytest.raises(SettingError, match="patch_size"):
        override(tiny(), {"network.patch_size": 30})


# ---- spectral normalisation


def test_the_norm_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer = SpectralConvolution(3, 8, 3)
    layer.iterate(200)
    expected = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2))
    assert float(layer.norm().detach()) == pytest.approx(expected, rel=1e-5)


def test_values_and_gradients_are_those_of_torchs_spectral_norm() -> None:
    torch.manual_seed(0)
    layer, plain = SpectralConvolution(2, 4, 3), nn.Conv3d(2, 4, 3)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        assert plain.bias is not None
        plain.bias.copy_(layer.bias)
    peer = spectral_norm(plain).eval()
    peer.parametrizations.weight[0]._u.copy_(layer.left)  # type: ignore[index, union-attr]  # torch's own
    peer.parametrizations.weight[0]._v.copy_(layer.right)  # type: ignore[index, union-attr]  # torch's own
    image = torch.randn(2, 2, 5, 6, 7)
    ours, theirs = layer(image), peer(image)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradient = peer.parametrizations.weight.original.grad  # type: ignore[union-attr]  # torch's own
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-4)


def test_a_forward_leaves_the_estimate_alone() -> None:
    layer = SpectralConvolution(1, 4, 3).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(2, 1, 4, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_estimate_follows_the_new_weights() -> None:
    """After a step the vectors are one power iteration on the weights that the step left."""
    torch.manual_seed(0)
    method = PositionRegression(override(tiny(), {"learning_rate": 0.1}), facts()).train()
    (stage,) = method.stages()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    update = Updater(stage, Alone(), TrainingSettings(precision="fp32"), torch.device("cpu"))
    stage.step(batch_of(torch.rand(6, 3)), update)
    stage.after_update()
    num_layers = 0
    for name, layer in method.named_modules():
        if isinstance(layer, SpectralConvolution):
            matrix = layer.weight.detach().flatten(1)
            right = functional.normalize(matrix.T @ before[f"{name}.left"], dim=0)
            torch.testing.assert_close(layer.right, right)
            torch.testing.assert_close(layer.left, functional.normalize(matrix @ right, dim=0))
            num_layers += 1
    assert num_layers == 7


def test_trained_convolutions_have_norm_one(phantom_store: CohortStore) -> None:
    method = trained(PositionRegression, override(tiny(), {"learning_rate": 1e-3}), phantom_store)
    for module in method.modules():
        if isinstance(module, SpectralConvolution):
            normalised = (module.weight / module.norm()).detach().flatten(1)
            # One iteration a step follows the weights, with a lag where two singular values are near to each other.
            assert float(torch.linalg.matrix_norm(normalised, ord=2)) == pytest.approx(1, abs=0.02)


# ---- training


def batch_of(position: torch.Tensor, patch_size: int = 19) -> Batch:
    image = torch.randn(len(position), 1, *(patch_size,) * 3)
    return made_up_batch(image, stage="regression", num_steps=1, position=position)


def test_the_loss_is_the_distance_and_not_its_square() -> None:
    method = PositionRegression(tiny(), facts())
    with torch.no_grad():
        for parameter in method.network.head[-1].parameters():
            parameter.fill_(0)  # every patch is said to lie at the first corner of the box
    position = torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.2, 1.0, -1.0]])
    total, count = method.loss(batch_of(position))
    assert count == 4
    assert float(total.detach()) == pytest.approx(0 + 1 + math.sqrt(3) + math.hypot(0.6, 1.0))


def heads_in_air(path: Path, shape: tuple[int, int, int] = (36, 30, 28)) -> CohortStore:
    """Two small heads in noisy air on an anisotropic grid, so that many patches hold no voxel of theirs."""
    rng = np.random.default_rng(0)
    recipe = {"scale": "histogram", "output_range": [0.25, 1.0]}
    store = CohortStore.create(path, recipe=recipe, channels=("CT",), name="small heads")
    for number in range(2):
        head = np.zeros(shape, dtype=bool)
        head[24:31, 20:27, 3 + number : 9] = True
        image = np.where(head, 1.0, 0.5) * rng.uniform(0.5, 1.0, shape)
        record = SubjectRecord(
            subject_id=f"s{number}",
            split="train",
            channels=("CT",),
            shape=shape,
            spacing_mm=(2.0, 3.0, 2.5),
            affine=((2, 0, 0, 0), (0, 3, 0, 0), (0, 0, 2.5, 0), (0, 0, 0, 1)),
        )
        arrays = SubjectArrays(image=image[None].astype(np.float32), brain=head, head=head)
        with store.lock():
            store.commit([store.write(record, arrays)])
    return store


def built(store: CohortStore, foreground: str) -> PositionRegression:
    method = build(PositionRegression, override(tiny(), {"patches.foreground": foreground}), store)
    assert isinstance(method, PositionRegression)
    return method


def drawn(method: PositionRegression, store: CohortStore, num_steps: int) -> Iterator[Batch]:
    plan = Plan(method, store, TrainingSettings(device="cpu", threads=1), Alone(), torch.device("cpu"))
    batches = plan.batches(0, 0)
    yield from itertools.islice(batches, num_steps)
    batches.close()  # type: ignore[attr-defined]  # a generator: its readers end with it


def centre_of(position: torch.Tensor, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the voxels (B, 3) at normalised positions of the cohort's own grid: (2 i + 1) / n - 1."""
    sizes = torch.tensor(shape)
    voxels = ((position + 1) * sizes - 1) / 2
    torch.testing.assert_close(voxels, voxels.round(), rtol=0, atol=1e-3)
    return [tuple(row) for row in voxels.round().int().tolist()]


def test_a_step_sees_one_volume_and_leaves_background_out(tmp_path: Path) -> None:
    """Of uniformly drawn patches exactly those are kept that hold a voxel of the head, recounted from its mask."""
    store = heads_in_air(tmp_path / "store")
    method = built(store, "head")
    names = store.facts().subjects
    num_kept = 0
    for batch in drawn(method, store, 6):
        assert batch.global_size == 24
        (subject,) = set(batch.subjects.tolist())
        head = store.mask(names[subject], "head")
        assert head is not None
        padded = np.pad(head, 9)
        for i, j, k in centre_of(batch.position, head.shape):
            assert padded[i : i + 19, j : j + 19, k : k + 19].any()
        num_kept += len(batch)
    assert 24 < num_kept < 6 * 24
    # Everything that touches it would be drawn in the end: as many as its share of the grid.
    share = float(reached(torch.from_numpy(store.mask("s0", "head")), 19).float().mean())
    assert num_kept == pytest.approx(6 * 24 * share, abs=4 * math.sqrt(6 * 24 * share * (1 - share)))


@pytest.mark.parametrize("foreground", ["head", "brain"])
def test_a_score_is_the_loss_of_the_patch_around_the_voxel(tmp_path: Path, foreground: str) -> None:
    """Training's own patches and places against the map: no flip, no half voxel, no other background or scale."""
    store = heads_in_air(tmp_path / "store")
    assert store.facts().background == 0.25
    method = built(store, foreground)
    maps = {record.subject_id: scored(method, volume_of(store, record)).map for record in store.subjects("train")}
    names = store.facts().subjects
    beyond = 0
    for batch in drawn(method, store, 4):
        with torch.no_grad():
            places = method.network(method.centred(batch.image))
        expected = torch.linalg.vector_norm(places - (batch.position + 1) / 2, dim=1)
        score_map = maps[names[int(batch.subjects[0])]]
        centres = centre_of(batch.position, score_map.shape)
        found = torch.stack([score_map[centre] for centre in centres])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        beyond += sum(min(centre) < 9 for centre in centres)
    assert beyond > 0  # some of them reach beyond the volume's faces


def test_a_recipes_range_is_centred() -> None:
    method = PositionRegression(tiny(), facts(background=0.25, ceiling=1.0))
    torch.testing.assert_close(method.centred(torch.tensor([0.25, 0.625, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    as_it_is = PositionRegression(tiny(), facts())
    assert as_it_is.centred(torch.tensor([-1000.0, 40.0])).tolist() == [-1000.0, 40.0]


def test_the_papers_preset_is_the_papers() -> None:
    """Section 3: s_p = 31, 2,000 epochs, Adam at 1e-4, 256 patches of one volume, every voxel; figure 4: m = 16."""
    paper = flatten(PositionRegression.presets()["paper"])
    expected = {
        "network.patch_size": 31,
        "network.width": 16,
        "patches.per_step": 256,
        "patches.sampling": "discard",
        "patches.foreground": "head",
        "epochs": 2000,
        "learning_rate": 1e-4,
        "scoring.stride": 1,
        "map.image_score": "max",
        "map.voxels": "all",
    }
    assert {name: paper[name] for name in expected} == expected


def test_scoring_takes_its_stride_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, *GRID)
    told: list[int] = []

    def spy(*arguments: Any, tile_bytes: int, **named: Any) -> torch.Tensor:
        told.append(tile_bytes)
        return error_map(*arguments, tile_bytes=tile_bytes, **named)

    monkeypatch.setattr("vesalius.methods.position_regression.method.error_map", spy)
    method = PositionRegression(override(tiny(), {"scoring.tile_mib": 123}), facts())
    whole = scored(method, volume(image)).map
    assert told == [123 * 2**20]
    coarse = PositionRegression(override(tiny(), {"scoring.stride": 3}), facts())
    coarse.load_state_dict(method.state_dict())
    expected = between(whole[::3, ::3, ::3], 3, GRID)
    torch.testing.assert_close(scored(coarse, volume(image)).map, expected, rtol=0, atol=1e-5)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_means_of_cubes_are_torchs(channels: int, d: int, h: int, w: int) -> None:
    image = torch.rand(2, channels, 2 * d, 2 * h, 2 * w, dtype=torch.float64)
    torch.testing.assert_close(halved(image), functional.avg_pool3d(image, 2))
    torch.testing.assert_close(Last()(image), functional.avg_pool3d(image, 2, stride=1))


def test_places_stay_float32_where_the_rest_is_bfloat16() -> None:
    """Near 1/2 bfloat16 knows every 256th part of the box alone, while a new network's answers lie closer together."""
    torch.manual_seed(0)
    network = PositionNetwork(19, 4, 1).eval()
    patches = torch.rand(64, 1, 19, 19, 19)
    with torch.no_grad():
        expected = network(patches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            places = network(patches)
    assert places.dtype == torch.float32
    assert len(places.unique(dim=0)) == 64
    torch.testing.assert_close(places, expected, rtol=0, atol=2e-3)


def test_micro_batches_change_nothing() -> None:
    after = []
    for size in (None, 3):
        torch.manual_seed(0)
        method = PositionRegression(tiny(), facts())
        (stage,) = method.stages()
        update = Updater(stage, Alone(), TrainingSettings(micro_batch_size=size, precision="fp32"), torch.device("cpu"))
        method.train()
        batch = batch_of(torch.rand(10, 3) * 2 - 1)
        stage.step(batch, update)
        stage.after_update()
        after.append(method.state_dict())
    for name, value in after[0].items():
        torch.testing.assert_close(after[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


class OneOfTwo:
    """A rank of two that are threads of this process."""

    world_size = 2

    def __init__(self, rank: int, given: list[torch.Tensor], meeting: Barrier) -> None:
        self.rank, self._given, self._meeting = rank, given, meeting

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self._given[self.rank] = value
        self._meeting.wait(30)
        total = self._given[0] + self._given[1]
        self._meeting.wait(30)
        return total

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        self._given[self.rank] = value
        self._meeting.wait(30)
        every = list(self._given)
        self._meeting.wait(30)
        return every


def test_a_rank_whose_patches_were_all_left_out_stays_the_replica_of_the_other() -> None:
    """Weights and estimated singular vectors of both are those of one process that has all patches."""
    given, meeting = [torch.zeros(0)] * 2, Barrier(2)
    patches = batch_of(torch.rand(10, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1)
    nothing = patches.select(0, 0)
    settings = TrainingSettings(precision="fp32")

    def after(collective: Collective, batch: Batch, method: PositionRegression) -> dict[str, torch.Tensor]:
        (stage,) = method.stages()
        update = Updater(stage, collective, settings, torch.device("cpu"))
        for _ in range(3):
            stage.step(batch, update)
            stage.after_update()
        return method.state_dict()

    def new() -> PositionRegression:
        torch.manual_seed(0)
        return PositionRegression(tiny(), facts()).train()

    methods = [new(), new()]
    with ThreadPoolExecutor(2) as pool:
        shares = ((OneOfTwo(0, given, meeting), patches), (OneOfTwo(1, given, meeting), nothing))
        ends = [pool.submit(after, *share, method) for share, method in zip(shares, methods, strict=True)]
        first, second = (end.result() for end in ends)
    alone = after(Alone(), patches, new())
    start = new().state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, msg=name)
        assert not torch.equal(value, start[name]), name


def test_a_step_without_a_patch_changes_no_weight() -> None:
    method = PositionRegression(tiny(), facts())
    (stage,) = method.stages()
    update = Updater(stage, Alone(), TrainingSettings(precision="fp32"), torch.device("cpu"))
    before = {name: value.clone() for name, value in method.state_dict().items() if "weight" in name}
    assert stage.step(batch_of(torch.rand(0, 3)), update)["loss"] == 0
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())


# ---- scores


def scored(method: PositionRegression, one: Volume, effort: Any = "full") -> Any:
    with torch.no_grad():
        return method.eval().score([one], effort=effort)[0]


def test_patches_of_background_only_have_no_score() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 40, 36, 44)
    image[0, 15, 14, 16] = 1.0
    brain = torch.zeros(40, 36, 44, dtype=torch.bool)
    brain[15, 14, 17] = True
    for foreground, first in (("brain", 17), ("head", 16)):
        method = PositionRegression(
            override(tiny(), {"patches.foreground": foreground}), facts(grid=(40, 36, 44), background=0.0)
        )
        nonzero = torch.nonzero(scored(method, volume(image, brain)).map)
        assert nonzero.amin(0).tolist() == [15 - 9, 14 - 9, first - 9]
        assert nonzero.amax(0).tolist() == [15 + 9, 14 + 9, 17 + 9]


def test_a_heads_mask_says_what_is_background_where_the_air_is_noisy(phantom_store: CohortStore) -> None:
    """What is scored is what training keeps: patches that touch the mask, whatever values stand around it."""
    torch.manual_seed(0)
    image = torch.rand(1, 40, 36, 44)  # no voxel has the background's value
    head = torch.zeros(40, 36, 44, dtype=torch.bool)
    head[20, 18, 22] = True
    method = PositionRegression(override(tiny(), {"patches.foreground": "head"}), facts(grid=(40, 36, 44)))
    nonzero = torch.nonzero(scored(method, replace(volume(image), head=head)).map)
    assert nonzero.amin(0).tolist() == [20 - 9, 18 - 9, 22 - 9]
    assert nonzero.amax(0).tolist() == [20 + 9, 18 + 9, 22 + 9]
    # The store's mask comes with the volume, and a single file's with its answer.
    record = phantom_store.subjects("test")[0]
    kept = volume_of(phantom_store, record).head
    assert kept is not None
    expected = phantom_store.mask(record.subject_id, "head")
    assert expected is not None
    assert kept.numpy().tolist() == expected.tolist()


def test_a_map_inside_the_brain_is_that_part_of_the_whole() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, *GRID)
    brain = torch.zeros(GRID, dtype=torch.bool)
    brain[5:18, 3:15, 9:21] = torch.rand(13, 12, 12) < 0.5
    method = PositionRegression(tiny(), facts())
    whole = scored(method, volume(image, brain))
    kept = PositionRegression(override(tiny(), {"map.voxels": "brain"}), facts())
    kept.load_state_dict(method.state_dict())
    part = scored(kept, volume(image, brain))
    torch.testing.assert_close(part.map, whole.map.masked_fill(~brain, 0), rtol=0, atol=1e-6)
    assert part.image_score == pytest.approx(float(whole.map[brain].max()), abs=1e-6)
    median = PositionRegression(override(tiny(), {"map.voxels": "brain", "map.median_pool": 3}), facts())
    median.load_state_dict(method.state_dict())
    expected = median_pool(whole.map, 3).masked_fill(~brain, 0)
    torch.testing.assert_close(scored(median, volume(image, brain)).map, expected, rtol=0, atol=1e-6)


def test_a_volume_without_a_brain_scores_nothing() -> None:
    method = PositionRegression(tiny(), facts())
    score = scored(method, volume(torch.rand(1, *GRID), torch.zeros(GRID, dtype=torch.bool)))
    assert not score.map.any()
    assert score.image_score == 0


def test_quick_effort_takes_its_stride() -> None:
    torch.manual_seed(0)
    method = PositionRegression(tiny(), facts())
    one = volume(torch.rand(1, *GRID))
    full, quick = scored(method, one).map, scored(method, one, "quick").map
    torch.testing.assert_close(quick[::4, ::4, ::4], full[::4, ::4, ::4], rtol=0, atol=1e-6)
    assert not torch.equal(quick, full)


def test_other_channels_are_refused() -> None:
    method = PositionRegression(tiny(), facts(channels=("T1w", "T2w")))
    with pytest.raises(VolumeError, match="the volume has 1 channels"):
        scored(method, volume(torch.rand(1, *GRID)))


def test_a_cohort_without_heads_is_refused_where_they_are_the_foreground(toy_store: CohortStore) -> None:
    with pytest.raises(CohortError, match="head"):
        trained(PositionRegression, override(tiny(), {"patches.foreground": "head"}), toy_store)


@pytest.mark.parametrize("sampling", ["touching", "centre"])
def test_other_ways_of_drawing_patches_train(sampling: str, toy_store: CohortStore) -> None:
    changes = {"patches.sampling": sampling, "epochs": 1, "patches.per_step": 8}
    method = trained(PositionRegression, override(tiny(), changes), toy_store)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
