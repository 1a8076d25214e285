"""The error of healthy heads place by place: mean and deviation against NumPy, and what a score makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from vesalius.methods.position_regression import PositionRegression
from vesalius.methods.position_regression.calibration import FLOOR, Calibration
from vesalius.methods.position_regression.settings import tiny
from vesalius.platform.config import override
from vesalius.platform.contracts import CohortFacts, Volume, axis_positions
from vesalius.platform.errors import CohortError
from vesalius.platform.scoring.volumes import score_volume, volume_of
from vesalius.platform.testing.methods import trained
from vesalius.platform.training import Alone

if TYPE_CHECKING:
    from vesalius.platform.store import CohortStore

AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = (9, 8, 12)


def facts(num: int = 3) -> CohortFacts:
    return CohortFacts(
        subjects=tuple(f"s{number}" for number in range(num)),
        grid=GRID,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=AFFINE,
        channels=("CT",),
        digest="0",
    )


def volume(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(
        subject_id="v",
        image=torch.zeros(1, *shape),
        brain=torch.ones(shape, dtype=torch.bool),
        spacing_mm=spacing_mm,
        affine=AFFINE,
    )


class Twice:
    """Two ranks that have added the same."""

    rank, world_size = 0, 2

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        return [value, value]


def test_mean_and_deviation_are_numpys() -> None:
    errors = torch.rand(3, *GRID)
    calibration = Calibration(facts(), stride=1)
    calibration.begin()
    for one in errors:
        calibration.add(one)
    calibration.solve(Alone())
    mean, deviation = errors.numpy().mean(axis=0), errors.numpy().std(axis=0, ddof=1)
    deviation = np.maximum(deviation, FLOOR * deviation.mean())
    new = torch.rand(GRID)
    expected = np.maximum((new.numpy() - mean) / deviation, 0)
    np.testing.assert_allclose(calibration.apply_to(new, volume(GRID)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_air_around_the_head_does_not_lower_the_floor() -> None:
    heads = torch.rand(3, 4, 8, 12)
    found = []
    for air in (torch.zeros(3, 0, 8, 12), torch.full((3, 5, 8, 12), 0.37), torch.full((3, 50, 8, 12), 0.37)):
        grid = (4 + air.shape[1], 8, 12)
        calibration = Calibration(facts().model_copy(update={"grid": grid}), stride=1)
        calibration.begin()
        for one in torch.cat([heads, air], dim=1):
            calibration.add(one)
        calibration.solve(Alone())
        found.append(calibration.deviation)
    for deviation in found[1:]:
        torch.testing.assert_close(deviation[:4], found[0])
        torch.testing.assert_close(deviation[4:], found[0].min().expand_as(deviation[4:]))


def test_ranks_are_summed() -> None:
    half, whole = Calibration(facts(4), stride=2), Calibration(facts(4), stride=2)
    errors = torch.rand(2, *GRID)
    for calibration, times in ((half, 1), (whole, 2)):
        calibration.begin()
        for one in errors.repeat(times, 1, 1, 1):
            calibration.add(one)
    half.solve(Twice())
    whole.solve(Alone())
    torch.testing.assert_close(half.mean, whole.mean)
    torch.testing.assert_close(half.deviation, whole.deviation)


def test_between_lattice_points_and_on_another_grid_the_mean_is_read_where_a_voxel_lies() -> None:
    """A mean that rises along the first axis: on a grid of half the spacing it is the same ramp."""
    calibration = Calibration(facts(), stride=4)
    ramp = (axis_positions(9, 1.0, 9.0) + 1) / 2
    calibration.mean.copy_(ramp[::4, None, None].expand_as(calibration.mean))
    errors = torch.ones(GRID)
    own = calibration.apply_to(errors, volume(GRID))
    torch.testing.assert_close(own, 1 - ramp[:, None, None].expand(GRID), rtol=0, atol=1e-6)
    fine = volume((18, 16, 24), (0.5, 0.5, 0.5))
    found = calibration.apply_to(torch.ones(fine.shape), fine)[1:-1]  # outermost voxels keep the border's value
    expected = 1 - (axis_positions(18, 0.5, 9.0)[1:-1] + 1) / 2
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found), rtol=0, atol=1e-5)


def test_a_trained_method_scores_by_departures_from_healthy_errors(phantom_store: CohortStore) -> None:
    settings = override(tiny(), {"scoring.calibrate": True, "scoring.quick_stride": 1, "epochs": 1})
    method = trained(PositionRegression, settings, phantom_store)
    assert isinstance(method, PositionRegression)
    plain = PositionRegression(override(settings, {"scoring.calibrate": False}), phantom_store.facts())
    plain.network.load_state_dict(method.network.state_dict())
    everywhere = []
    for name in phantom_store.facts().subjects:
        seen = volume_of(phantom_store, phantom_store.record(name))
        # All voxels: a healthy head's own mask must not cut what it says of a place.
        whole = Volume(
            subject_id=name,
            image=seen.image,
            brain=torch.ones(seen.shape, dtype=torch.bool),
            spacing_mm=seen.spacing_mm,
            affine=seen.affine,
        )
        everywhere.append(score_volume(plain, whole)[0].map.numpy())
    mean, deviation = np.mean(everywhere, axis=0), np.std(everywhere, axis=0, ddof=1)
    # Where no head ever is, all are alike.
    assert 0.05 < (deviation > 1e-6).mean() < 1
    deviation = np.maximum(deviation, FLOOR * deviation[deviation > 1e-6].mean())
    record = phantom_store.subjects("test")[0]
    new = volume_of(phantom_store, record)
    error = score_volume(plain, new)[0].map.numpy()
    expected = np.where(error == 0, 0, np.maximum((error - mean) / deviation, 0))
    found = score_volume(method, new)[0]
    np.testing.assert_allclose(found.map.numpy(), expected, rtol=2e-3, atol=2e-3)
    assert found.image_score == pytest.approx(float(found.map[new.brain].max()))
    assert [stage.name for stage in method.stages()] == ["regression", "calibration"]
    assert [stage.name for stage in plain.stages()] == ["regression"]


def test_until_it_is_solved_errors_are_as_they_are() -> None:
    errors = torch.rand(GRID)
    torch.testing.assert_close(Calibration(facts(), stride=4).apply_to(errors, volume(GRID)), errors)


def test_a_single_subject_has_no_deviation() -> None:
    with pytest.raises(CohortError, match="needs two healthy training subjects"):
        PositionRegression(override(tiny(), {"scoring.calibrate": True}), facts(1))
