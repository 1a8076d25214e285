"""Augmentation against SciPy and closed forms; the same bits whoever computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import affine_transform, map_coordinates
from torch import nn

from vesalius.platform.config import digest
from vesalius.platform.contracts import (
    Augmentation,
    Batch,
    CohortFacts,
    Collective,
    Effort,
    Method,
    MethodSettings,
    Metrics,
    Patches,
    Points,
    Score,
    Slices,
    Stage,
    Update,
    View,
    Volume,
    WholeVolumes,
    vae_baselines_2021,
)
from vesalius.platform.errors import SettingError
from vesalius.platform.loading import VolumeCache, augmented, draw, load_batch
from vesalius.platform.loading.augmentation import positions
from vesalius.platform.testing import methods as contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Drawn
    from vesalius.platform.store import CohortStore

GRID = (20, 24, 16)
FACTS = CohortFacts(
    subjects=("a", "b", "c"),
    grid=GRID,
    spacing_mm=(2.0, 1.5, 3.0),
    affine=((2, 0, 0, 0), (0, 1.5, 0, 0), (0, 0, 3, 0), (0, 0, 0, 1)),
    channels=("T1w", "T2w"),
    digest="",
)
EVERYTHING = Augmentation(
    rotation_degrees=12,
    scale=(-0.1, 0.2),
    elastic_mm=3,
    elastic_spacing_mm=12,
    contrast=0.3,
    brightness=0.2,
    centre=0.5,
)


class Smooth:
    """Smooth volumes with an ellipsoid for a brain."""

    chunk_edge = None

    def stored(self, subject_id: str, role: str, box: Any = None) -> NDArray[Any]:
        i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID), indexing="ij")
        if role == "brain":
            return i**2 + (j / 0.8) ** 2 + (k / 0.9) ** 2 < 0.7
        phase = ord(subject_id)
        return np.stack([np.sin(3 * i + phase) * np.cos(2 * j - k), np.cos(4 * j * k + i)]).astype(np.float32)


def _stage(view: View, augmentation: Augmentation | None, **changes: Any) -> Stage:
    values = {"name": "s", "batch_size": 6, "epochs": 9, "step": lambda b, u: {}, **changes}
    return Stage(view=view, augmentation=augmentation, **values)


def _batch(view: View, augmentation: Augmentation | None, **changes: Any) -> Batch:
    given = {"seed": 3, "step": 1, **changes}
    return load_batch(VolumeCache(Smooth(), FACTS.subjects, 2**30), _stage(view, augmentation), FACTS, **given)


VIEWS: list[View] = [Slices(axis=0), Slices(axis=2, every=2), WholeVolumes()]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize(
    "nothing",
    [Augmentation(), EVERYTHING.model_copy(update={"probability": 0.0}), Augmentation(centre=3.0)],
    ids=["default", "never", "a centre alone"],
)
def test_magnitudes_of_zero_change_no_bit(view: View, nothing: Augmentation) -> None:
    plain, same = _batch(view, None), augmented(_batch(view, nothing))
    assert torch.equal(plain.image, same.image)
    assert torch.equal(plain.brain, same.brain)
    # Nor do they where they go the whole way.
    drawn = draw(nothing, view, FACTS, seed=3, stage="s", step=1, items=range(6))
    again = augmented(replace(plain, drawn=drawn))
    assert torch.equal(plain.image, again.image)
    assert torch.equal(plain.brain, again.brain)


def _turned(
    image: NDArray[Any], inverse_mm: NDArray[Any], spacing: Sequence[float], order: Literal[0, 1]
) -> NDArray[Any]:
    """Resample about the grid's centre, by SciPy: the matrix maps where to whence, in millimetres."""
    scale = np.diag(spacing)
    matrix = np.linalg.inv(scale) @ inverse_mm @ scale
    centre = (np.array(image.shape) - 1) / 2
    mode: Literal["nearest", "grid-constant"] = "nearest" if order else "grid-constant"
    out: NDArray[Any] = affine_transform(image, matrix, centre - matrix @ centre, order=order, mode=mode)
    return out


def _rotation(axis: int, degrees: float) -> NDArray[Any]:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rotation = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    rotation[first, first] = rotation[second, second] = cosine
    rotation[first, second], rotation[second, first] = -sine, sine
    return rotation


def _shaped(matrix_mm: NDArray[Any], box_mm: Sequence[float], num: int) -> Drawn:
    """Return draws of one known matrix, where to whence in millimetres."""
    box = np.array(box_mm)
    drawn = draw(Augmentation(), _view_of(len(box)), FACTS, seed=0, stage="", step=0, items=range(num))
    matrix = torch.from_numpy(matrix_mm * box[None, :] / box[:, None]).float().expand(num, -1, -1)
    return replace(drawn, matrix=matrix, moved=torch.ones(num, dtype=torch.bool))


def _view_of(dimensions: int) -> View:
    return WholeVolumes() if dimensions == 3 else Slices(axis=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_known_angle_in_three_dimensions_is_scipys(axis: int) -> None:
    batch = _batch(WholeVolumes(), None)
    inverse = _rotation(axis, 17).T / 1.13
    out = augmented(replace(batch, drawn=_shaped(inverse, FACTS.box_mm, len(batch))))
    for item in range(2):
        for channel in range(2):
            expected = _turned(batch.image[item, channel].numpy(), inverse, FACTS.spacing_mm, order=1)
            np.testing.assert_allclose(out.image[item, channel].numpy(), expected, atol=2e-5)
        mask = _turned(batch.brain[item].numpy().astype(np.float32), inverse, FACTS.spacing_mm, order=0) > 0.5
        assert (out.brain[item].numpy() != mask).mean() < 1e-3, "but for voxels half-way between two"


def test_a_known_angle_in_a_slice_is_scipys() -> None:
    batch = _batch(Slices(axis=0), None)
    inverse = _rotation(0, -9)[1:, 1:].T / 0.9
    out = augmented(replace(batch, drawn=_shaped(inverse, FACTS.box_mm[1:], len(batch))))
    for item in range(len(batch)):
        expected = _turned(batch.image[item, 1].numpy(), inverse, FACTS.spacing_mm[1:], order=1)
        np.testing.assert_allclose(out.image[item, 1].numpy(), expected, atol=2e-5)


def test_what_is_drawn_is_the_inverse_of_a_rotation_and_a_scale_within_the_limits() -> None:
    asked = Augmentation(rotation_degrees=12, scale=(-0.1, 0.2))
    box = np.array(FACTS.box_mm)
    for view, sides in ((Slices(axis=1), [0, 2]), (WholeVolumes(), [0, 1, 2])):
        drawn = draw(asked, view, FACTS, seed=0, stage="s", step=0, items=range(300))
        here = box[sides]
        millimetres = drawn.matrix.double().numpy() * here[None, :, None] / here[None, None, :]
        forward = np.linalg.inv(millimetres)
        sizes = np.linalg.det(forward) ** (1 / len(sides))
        assert 0.9 - 1e-6 < sizes.min() < 0.92
        assert 1.18 < sizes.max() < 1.2 + 1e-6
        rotations = forward / sizes[:, None, None]
        np.testing.assert_allclose(
            rotations @ rotations.transpose(0, 2, 1), np.eye(len(sides))[None].repeat(300, 0), atol=1e-5
        )
        if len(sides) == 2:
            angles = np.rad2deg(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0]))
            assert -12 - 1e-4 < angles.min() < -11
            assert 11 < angles.max() < 12 + 1e-4


def test_a_larger_head_is_larger() -> None:
    batch = _batch(WholeVolumes(), Augmentation(scale=(0.25, 0.25)))
    grown = augmented(batch).brain.sum() / batch.brain.sum()
    assert float(grown) == pytest.approx(1.25**3, rel=0.05)


@pytest.mark.parametrize("view", [Slices(axis=0), WholeVolumes()], ids=str)
def test_elastic_displacement_is_the_b_spline_of_its_control_points(view: View) -> None:
    asked = Augmentation(elastic_mm=3, elastic_spacing_mm=12)
    drawn = draw(asked, view, FACTS, seed=1, stage="s", step=0, items=[5])
    axes = [0, 1, 2] if isinstance(view, WholeVolumes) else [1, 2]
    shape = [GRID[axis] for axis in axes]
    box = np.array([FACTS.box_mm[axis] for axis in axes])
    field = positions(drawn, shape)[0].numpy()[..., ::-1]
    # By SciPy: the same control points on knots 12 mm apart, the first three below the box.
    bent = drawn.elastic[0].double().numpy()
    for along, num in enumerate(shape):
        place = (np.arange(num) + 0.5) / num * box[along]
        count = bent.shape[along + 1]
        spline = BSpline(12.0 * (np.arange(count + 4) - 3), np.moveaxis(bent, along + 1, 0), 3)
        bent = np.moveaxis(spline(place), 0, along + 1)
    rest = np.stack(np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(field, rest + np.moveaxis(bent, 0, -1), atol=1e-5)
    moved_mm = (field - rest) * box / 2
    assert 0.3 < moved_mm.std() < 3, "the spline smooths what its control points do"
    batch = _batch(view, None)
    one = batch.select(0, 1)
    out = augmented(replace(one, drawn=drawn))
    where = np.moveaxis((field + 1) * np.array(shape) / 2 - 0.5, -1, 0)
    expected = map_coordinates(one.image[0, 0].numpy(), where, order=1, mode="nearest")
    np.testing.assert_allclose(out.image[0, 0].numpy(), expected, atol=2e-4)


def test_intensities_change_inside_the_brain_alone_and_as_stated() -> None:
    asked = Augmentation(contrast=0.3, brightness=0.2, centre=0.5)
    batch = _batch(WholeVolumes(), asked)
    assert batch.drawn is not None
    out = augmented(batch)
    gain, shift = batch.drawn.gain, batch.drawn.shift
    assert float(gain.min()) >= 0.7
    assert float(gain.max()) <= 1.3
    for item in range(len(batch)):
        before, after, inside = batch.image[item], out.image[item], batch.brain[item]
        brightness = shift[item] - 0.5 * (1 - gain[item])
        assert abs(float(brightness)) <= 0.2 + 1e-6
        expected = (before[:, inside] - 0.5) * gain[item] + 0.5 + brightness
        torch.testing.assert_close(after[:, inside], expected)
        assert torch.equal(after[:, ~inside], before[:, ~inside])
    assert torch.equal(out.brain, batch.brain)
    assert len(set(gain.tolist())) == len(batch)


def test_the_baselines_intensities_are_those_of_images_mapped_to_the_unit_interval() -> None:
    asked = vae_baselines_2021()
    drawn = draw(asked, WholeVolumes(), FACTS, seed=0, stage="s", step=0, items=range(400))
    image = np.linspace(-2, 2, 9)
    for gain, shift in zip(drawn.gain.tolist()[:40], drawn.shift.tolist()[:40], strict=True):
        mapped = (image + 3) / 6
        brightness = (shift - (-3) * (1 - gain)) / 6
        assert abs(gain - 1) <= 0.15 + 1e-6
        assert abs(brightness) <= 0.15 + 1e-6
        np.testing.assert_allclose((mapped * gain + brightness) * 6 - 3, image * gain + shift, atol=1e-5)
    touched = (drawn.gain != 1).double().mean()
    assert 0.4 < float(touched) < 0.6, "each with a probability of a half"
    rescaled = vae_baselines_2021(mean=0.5, deviation=0.1)
    assert rescaled.centre == pytest.approx(0.2)
    assert rescaled.brightness == pytest.approx(0.09)


def test_changing_one_magnitude_leaves_the_other_draws_alone() -> None:
    keys: dict[str, Any] = {"seed": 0, "stage": "s", "step": 4, "items": range(5)}
    less = draw(EVERYTHING.model_copy(update={"elastic_mm": 0.0}), WholeVolumes(), FACTS, **keys)
    more = draw(EVERYTHING, WholeVolumes(), FACTS, **keys)
    assert torch.equal(less.matrix, more.matrix)
    assert torch.equal(less.gain, more.gain)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_an_item_comes_out_the_same_whoever_computes_it(view: View, world_size: int) -> None:
    whole = augmented(_batch(view, EVERYTHING))
    plain = _batch(view, None)
    assert not torch.equal(whole.image, plain.image)
    parts = [augmented(_batch(view, EVERYTHING, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert torch.equal(torch.cat([part.brain for part in parts]), whole.brain)
    again = augmented(_batch(view, EVERYTHING))
    assert torch.equal(again.image, whole.image)
    assert not torch.equal(augmented(_batch(view, EVERYTHING, step=2)).image, whole.image)
    assert torch.equal(_batch(view, EVERYTHING).image, plain.image), "what is cut is what the store holds"


@pytest.mark.parametrize("view", [Points(per_volume=3), Patches(size=3, per_volume=2)], ids=str)
def test_what_stands_for_its_place_is_not_moved(view: View) -> None:
    with pytest.raises(SettingError, match="stage 's' asks for augmentation of P"):
        _stage(view, EVERYTHING)


@pytest.mark.parametrize("scale", [(0.2, 0.1), (-1.0, 0.0)])
def test_a_scale_that_is_none_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected -1 < least <= largest"):
        Augmentation(scale=scale)


def test_settings_survive_json() -> None:
    again = Augmentation.model_validate_json(EVERYTHING.model_dump_json())
    assert again == EVERYTHING
    assert digest(again) == digest(EVERYTHING)


class _Settings(MethodSettings):
    augmentation: Augmentation = EVERYTHING


class _Blurred(Method):
    """A convolution that learns augmented slices."""

    settings_type = _Settings

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        assert isinstance(settings, _Settings)
        self.augmentation = settings.augmentation
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def stages(self) -> Sequence[Stage]:
        optimizers = {"o": torch.optim.Adam(self.parameters(), 0.02)}
        return [
            Stage(
                name="blur",
                view=Slices(axis=2),
                batch_size=8,
                epochs=1,
                trains=[self.layer],
                optimizers=optimizers,
                step=self._step,
                augmentation=self.augmentation,
            )
        ]

    def _step(self, batch: Batch, update: Update) -> Metrics:
        assert batch.drawn is None, "a step sees what was applied"
        return {
            "loss": update(
                "o", lambda part: (((self.layer(part.image) - 0.5) ** 2).mean((1, 2, 3)).sum(), len(part)), batch
            )
        }

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        return [Score(map=v.image[0], image_score=0.0) for v in volumes]


def test_a_resumed_run_is_augmented_as_an_unbroken_one(toy_store: CohortStore) -> None:
    contract.assert_exact_resume(_Blurred, _Settings(), toy_store, moments=2)


def test_training_sees_the_augmentation(toy_store: CohortStore) -> None:
    with_it = contract.trained(_Blurred, _Settings(), toy_store).state_dict()
    without = contract.trained(_Blurred, _Settings(augmentation=Augmentation()), toy_store).state_dict()
    assert not torch.equal(with_it["layer.weight"], without["layer.weight"])


class _AskedFor(_Blurred):
    """The same, its augmentation depending on what an earlier stage fitted."""

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.register_buffer("brightness", torch.zeros(()))

    def stages(self) -> Sequence[Stage]:
        first = Stage(name="level", view=WholeVolumes(), batch_size=1, epochs=1, step=lambda batch, update: {})
        (second,) = super().stages()
        return [
            replace(first, finish=self._fit),
            replace(second, augmentation=lambda: Augmentation(brightness=float(self.get_buffer("brightness")))),
        ]

    def _fit(self, collective: Collective) -> None:
        self.get_buffer("brightness").fill_(0.25)


def test_a_stage_asks_for_its_augmentation_once_earlier_stages_are_done(toy_store: CohortStore) -> None:
    asked = contract.trained(_AskedFor, _Settings(), toy_store).state_dict()
    given = contract.trained(_Blurred, _Settings(augmentation=Augmentation(brightness=0.25)), toy_store).state_dict()
    assert torch.equal(asked["layer.weight"], given["layer.weight"])
    contract.assert_exact_resume(_AskedFor, _Settings(), toy_store, moments=2)
