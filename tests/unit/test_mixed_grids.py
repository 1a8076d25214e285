"""One store, subjects of several grids: facts, points and their places, what is refused, a field over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from vesalius.methods.healthy_atlas import HealthyAtlas
from vesalius.methods.implicit_field import ImplicitField
from vesalius.methods.implicit_field.settings import tiny
from vesalius.platform.config import override
from vesalius.platform.contracts import Points, Stage, WholeVolumes
from vesalius.platform.errors import CohortError
from vesalius.platform.geometry import as_matrix, grid_affine
from vesalius.platform.loading import VolumeCache, load_batch
from vesalius.platform.scoring import score_volumes, volume_of
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.testing.methods import training_settings
from vesalius.platform.training import train

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.contracts import View

COARSE, FINE, WIDE = (12, 10, 8), (18, 15, 12), (14, 10, 8)
CENTRE = (3.0, -2.0, 1.0)


def a_head(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], radius: float) -> np.ndarray:
    """A ball of ``radius`` mm with a rim, around the middle of the grid, whatever its resolution."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return np.where(distance < radius, 0.9, np.where(distance < radius + 3, 0.4, 0.0)).astype(np.float32)


def written(
    path: Path,
    grids: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]],
    *,
    places: bool = False,
) -> CohortStore:
    """Write one subject a grid; with ``places`` each voxel holds its first coordinate in mm from the middle."""
    store = CohortStore.create(path, recipe={"name": "grids"}, channels=("T1w",))
    records = []
    with store.lock():
        for number, (name, (shape, spacing_mm)) in enumerate(grids.items()):
            image = a_head(shape, spacing_mm, 4.0 + number / 2)
            if places:
                along = (np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing_mm[0]
                image = np.broadcast_to(along[:, None, None], shape).astype(np.float32)
            record = SubjectRecord(
                subject_id=name,
                split=name.split("-")[0],
                channels=("T1w",),
                shape=shape,
                spacing_mm=spacing_mm,
                affine=as_matrix(grid_affine(shape, spacing_mm, CENTRE)),
            )
            arrays = SubjectArrays(image=np.ascontiguousarray(image[None]), brain=np.ones(shape, bool))
            records.append(store.write(record, arrays))
        store.commit(records)
    return CohortStore.open(path)


TWO = (2.0, 2.0, 2.0)
THIRD = (4 / 3, 4 / 3, 4 / 3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    grids = {"train-0": (COARSE, TWO), "train-1": (FINE, THIRD), "train-2": (COARSE, TWO), "train-3": (FINE, THIRD)}
    return written(tmp_path_factory.mktemp("mixed") / "store", grids)


def a_stage(view: View) -> Stage:
    return Stage(name="s", view=view, batch_size=4, epochs=1, step=lambda batch, update: {})


def test_facts_of_several_grids_are_the_finest_voxels_over_the_largest_extent(tmp_path: Path) -> None:
    store = written(tmp_path / "s", {"train-0": (COARSE, TWO), "train-1": (FINE, THIRD), "train-2": (WIDE, TWO)})
    with pytest.raises(CohortError, match=r"train-0 .* and train-1 .* lie on different grids"):
        store.facts()
    facts = store.facts(any_grid=True)
    assert facts.subjects == ("train-0", "train-1", "train-2")
    assert facts.grid == (21, 15, 12)  # 14 voxels of 2 mm are 28 mm: 21 of 4/3 mm; the rest is the fine grid's own
    np.testing.assert_allclose(facts.spacing_mm, THIRD)
    np.testing.assert_allclose(facts.box_mm, (28.0, 20.0, 16.0))
    middle = np.array(facts.affine) @ [10.0, 7.0, 5.5, 1.0]
    np.testing.assert_allclose(middle[:3], CENTRE, atol=1e-9)


def test_facts_of_one_grid_do_not_depend_on_what_is_allowed(toy_store: CohortStore) -> None:
    assert toy_store.facts(any_grid=True) == toy_store.facts()


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_points_of_every_grid_lie_where_their_voxels_do(tmp_path: Path, neighbourhood: int) -> None:
    grids = {"train-0": (COARSE, TWO), "train-1": (FINE, THIRD), "train-2": (WIDE, TWO), "train-3": (COARSE, THIRD)}
    store = written(tmp_path / "s", grids, places=True)
    facts = store.facts(any_grid=True)
    records = store.subjects("train")
    cache = VolumeCache(store, facts.subjects, 2**20, spacing_mm=[record.spacing_mm for record in records])
    stage = a_stage(Points(per_volume=200, neighbourhood=neighbourhood))
    batch = load_batch(cache, stage, facts, seed=0, step=0)
    assert sorted(batch.subjects.tolist()) == [0, 1, 2, 3]
    in_mm = batch.position[..., 0] * facts.box_mm[0] / 2
    torch.testing.assert_close(batch.image[:, :, 0, neighbourhood**3 // 2], in_mm, rtol=0, atol=1e-4)
    for row, subject in enumerate(batch.subjects.tolist()):
        half = records[subject].shape[0] * records[subject].spacing_mm[0] / 2
        assert half - 3 < in_mm[row].abs().max() < half  # drawn over all of that subject's own extent


def test_whole_volumes_of_several_grids_are_refused_before_anything_is_trained(
    mixed: CohortStore, tmp_path: Path
) -> None:
    method = HealthyAtlas(HealthyAtlas.settings_type(), mixed.facts(any_grid=True))  # type: ignore[arg-type]  # its own settings
    with pytest.raises(CohortError, match=r"train-0 .* not on the cohort's grid .* stage 'atlas' takes WholeVolumes"):
        train(method, mixed, training_settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not HealthyAtlas.any_grid
    with pytest.raises(CohortError, match=r"shape .* one grid"):
        load_batch(
            VolumeCache(mixed, ("train-0",), 2**20),
            a_stage(WholeVolumes()),
            mixed.facts(any_grid=True),
            seed=0,
            step=0,
        )


def test_a_field_is_trained_on_and_scores_several_grids_at_once(mixed: CohortStore, tmp_path: Path) -> None:
    settings = override(tiny(), {"num_classes": 3, "epochs": 150, "mode_pool_training": 1, "mode_pool_scoring": 1})
    facts = mixed.facts(any_grid=True)
    torch.manual_seed(0)
    method = ImplicitField(settings, facts)
    assert ImplicitField.any_grid
    train(method, mixed, training_settings(), tmp_path / "run")
    volumes = [volume_of(mixed, record) for record in mixed.subjects("train")]
    together, _ = score_volumes(method, volumes)
    for volume, score in zip(volumes, together, strict=True):
        assert score.map.shape == volume.shape
        (alone,), _ = score_volumes(method, [volume])
        torch.testing.assert_close(alone.map, score.map, rtol=1e-3, atol=1e-3)
        # What was trained at both resolutions is explained at both: three classes by chance would cost 1.1.
        assert score.map.mean() < 0.3
        assert score.restoration is not None
        assert (score.restoration - volume.image).abs().mean() < 0.06


def test_a_run_that_cannot_be_on_several_grids_is_refused_before_it_is_made(mixed: CohortStore, tmp_path: Path) -> None:
    from vesalius.infra.pipeline import start_run

    with pytest.raises(CohortError, match=r"train-0 .* stage 'decoder' takes Slices: prepare all subjects with one"):
        start_run("implicit_field_2d", mixed.path, home=tmp_path / "home", preset="tiny")
    with pytest.raises(CohortError, match=r"lie on different grids"):
        start_run("healthy_atlas", mixed.path, home=tmp_path / "home")
    assert not (tmp_path / "home").exists()
