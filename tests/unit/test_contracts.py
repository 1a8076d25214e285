"""Coordinates, keyed noise and search spaces of the contract."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vesalius.platform.config import Settings
from vesalius.platform.contracts import (
    SCORING,
    Batch,
    Choice,
    MethodSettings,
    Range,
    Volume,
    axis_positions,
    generator,
    grid_positions,
    read_after,
    read_since,
    setting,
    spaces,
)

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@given(st.integers(1, 300), st.floats(0.2, 8))
def test_positions_are_voxel_centres(num: int, spacing: float) -> None:
    positions = axis_positions(num, spacing, num * spacing).double()
    assert torch.allclose(positions, (2 * torch.arange(num).double() + 1) / num - 1, atol=1e-6)
    assert torch.allclose(positions, -positions.flip(0), atol=1e-6), "symmetric about the box's centre"


@given(st.integers(2, 40), st.sampled_from([2, 3, 5]))
def test_another_resolution_lands_on_the_same_millimetres(num: int, factor: int) -> None:
    coarse = axis_positions(num, 2.0, num * 2.0)
    fine = axis_positions(num * factor, 2.0 / factor, num * 2.0)
    assert torch.allclose(fine.reshape(num, factor).mean(dim=1), coarse, atol=1e-5)


def test_a_larger_extent_reaches_beyond_the_box() -> None:
    assert axis_positions(12, 1.0, 10.0).tolist() == pytest.approx([(2 * i + 1 - 12) / 10 for i in range(12)])


def test_grid_positions_are_indexed_by_voxel() -> None:
    grid = grid_positions((2, 3, 4), (1.0, 1.0, 1.0), (2.0, 3.0, 4.0))
    assert grid.shape == (2, 3, 4, 3)
    assert grid[1, 0, 2].tolist() == pytest.approx([0.5, -2 / 3, 0.25])


def _batch(items: list[int], step: int = 0) -> Batch:
    num = len(items)
    return Batch(
        stage="s",
        step=step,
        num_steps=9,
        seed=1,
        items=torch.tensor(items, dtype=torch.int64),
        global_size=8,
        subjects=torch.zeros(num, dtype=torch.int64),
        image=torch.zeros(num, 1),
        brain=torch.ones(num, 1, dtype=torch.bool),
        position=torch.zeros(num, 1),
    )


def test_noise_belongs_to_the_item() -> None:
    whole = _batch([0, 1, 2, 3]).normal("z", (5,))
    assert torch.equal(_batch([2, 3]).normal("z", (5,)), whole[2:])
    assert torch.equal(_batch([0, 1, 2, 3]).select(1, 3).normal("z", (5,)), whole[1:3])
    assert not torch.equal(_batch([0, 1, 2, 3]).normal("other", (5,)), whole)
    assert not torch.equal(_batch([0, 1, 2, 3], step=1).normal("z", (5,)), whole)
    assert _batch([]).normal("z", (5,)).shape == (0, 5)


def test_noise_is_standard_normal_and_uniform() -> None:
    normal = _batch(list(range(8))).normal("z", (20_000,))
    assert abs(float(normal.mean())) < 5 / 400
    assert float(normal.std()) == pytest.approx(1, abs=0.01)
    uniform = _batch(list(range(8))).uniform("u", (20_000,))
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)


def test_volume_noise_is_keyed_by_content_and_not_by_name() -> None:
    def volume(name: str, value: float) -> Volume:
        image = torch.full((1, 2, 2, 2), value)
        brain = torch.ones(2, 2, 2, dtype=torch.bool)
        return Volume(subject_id=name, image=image, brain=brain, spacing_mm=(1.0, 1.0, 1.0), affine=EYE)

    def draw(v: Volume) -> torch.Tensor:
        return torch.rand(4, generator=v.generator("points"))

    assert torch.equal(draw(volume("a", 1.0)), draw(volume("b", 1.0)))
    assert not torch.equal(draw(volume("a", 1.0)), draw(volume("a", 2.0)))


def test_generator_keys_do_not_run_together() -> None:
    seeds = {generator(*key).initial_seed() for key in [("a", "b"), ("ab",), ("a", "b", ""), ("a", 1), ("a", "1")]}
    assert len(seeds) == 5


def test_search_spaces_are_read_from_the_settings() -> None:
    class Some(MethodSettings):
        plain: int = 3
        width: int = setting(
            512, "hidden units", space=Range(low=64, high=1024, log=True), source="2021, section 3", gt=0
        )
        prior: str = setting("gaussian", "code prior", space=Choice(values=("gaussian", "official")))

    assert spaces(Some) == {
        "width": Range(low=64, high=1024, log=True),
        "prior": Choice(values=("gaussian", "official")),
    }
    with pytest.raises(ValueError, match="greater than 0"):
        Some(width=0)


def test_settings_say_from_which_stage_on_they_are_read() -> None:
    class MapSettings(Settings):
        since: ClassVar[str | None] = SCORING
        window: int = setting(3, "a window", inference_space=Choice(values=(1, 3)))
        size: int = setting(3, "of a network that a later stage trains", since="second")

    class Some(MethodSettings):
        width: int = setting(8, "hidden units")
        rate: float = setting(0.1, "a rate", since="second", space=Range(low=0.1, high=1))
        map: MapSettings = MapSettings()

    assert read_since(Some) == {"width": None, "rate": "second", "map.window": SCORING, "map.size": "second"}
    assert read_after(Some, ["first"]) == {"rate", "map.window", "map.size"}
    assert read_after(Some, ["first", "second"]) == {"map.window"}
    assert set(spaces(Some)) == {"rate"}, "what is for studies of a finished run is for them alone"
    assert set(spaces(Some, inference=True)) == {"rate", "map.window"}
