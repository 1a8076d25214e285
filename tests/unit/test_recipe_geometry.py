"""Whole recipes on volumes whose answer is known: a window on a ramp, a slab of a whole, a bleed on the left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.layouts.phantom import PhantomLayout, write_cohort
from vesalius.datasets.phantom import STRUCTURES, CohortSettings, PhantomSettings, make_phantom
from vesalius.datasets.prepare import prepare, prepare_file
from vesalius.datasets.recipes import recipe_named
from vesalius.datasets.registration import Registration, Target
from vesalius.datasets.steps import world_points
from vesalius.platform.config import override
from vesalius.platform.geometry import grid_affine, to_native, write_nifti

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_f_anogan_is_the_papers_formula_on_a_ramp(tmp_path: Path) -> None:
    """HU = 40 + x / 2 in a box of 120 x 150 x 100 mm off the centre: cropped, windowed and scaled by hand."""
    affine = grid_affine((100, 110, 90), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    x, y, z = (affine[axis, 3] + 2.0 * np.arange(size) for axis, size in enumerate((100, 110, 90)))
    inside = (
        ((x > -50) & (x < 70))[:, None, None] & ((y > -90) & (y < 60))[:, None] & ((z > -40) & (z < 60))
    )  # voxel centres are odd millimetres: 60, 75 and 50 voxels
    image = np.where(inside, 40 + x[:, None, None] / 2, -1000).astype(np.float32)
    write_nifti(tmp_path / "ct.nii.gz", image, affine)
    write_nifti(tmp_path / "mask.nii.gz", inside, affine)
    recipe = override(recipe_named("f_anogan_3d_2020"), {"registration": "none", "antialias": False})
    record, arrays = prepare_file(tmp_path / "ct.nii.gz", recipe, tmp_path / "mask.nii.gz")
    assert record.shape == (64, 64, 64)
    assert arrays.brain.all()  # no black border is left
    at = -50 + 120 * (np.arange(64) + 0.5) / 64
    expected = 2 * (40 + at / 2 + 20) / 120 - 1
    # At the very border a voxel centre may lie beyond the last source centre, where the image is constant.
    np.testing.assert_allclose(arrays.image[0][1:-1, 30, 30], expected[1:-1], atol=1e-4)
    assert np.ptp(arrays.image[0][1:-1, 1:-1, 1:-1], axis=(1, 2)).max() < 1e-4
    assert record.source is not None
    there = np.broadcast_to(at[:, None, None].astype(np.float32), (64, 64, 64))
    back = to_native(there, record.affine, record.source)
    truth = np.broadcast_to(x[:, None, None], inside.shape)
    np.testing.assert_allclose(back[inside], truth[inside], atol=1.0)  # clamped to the outermost stored centre
    core = inside & (np.abs(truth - 10) < 55)
    np.testing.assert_allclose(back[core], truth[core], atol=1e-3)
    assert not back[~inside].any()


def test_nothing_of_the_outside_is_smeared_into_the_brain(tmp_path: Path) -> None:
    """A brain of -20 HU within a scalp of 60 is the low end of the window, to the last voxel of its rim."""
    affine = grid_affine((60, 70, 60), (3.0, 3.0, 3.0), (0.0, -17.0, 5.0))
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in (60, 70, 60)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    image = np.where(radius < 0.7, -20, np.where(radius < 0.9, 60, -1000)).astype(np.float32)
    write_nifti(tmp_path / "ct.nii.gz", image, affine)
    write_nifti(tmp_path / "mask.nii.gz", radius < 0.7, affine)
    changes = {"registration": "none", "crop": "none", "smoothing_mm": 4}
    recipe = override(recipe_named("f_anogan_3d_2020"), changes)
    _, arrays = prepare_file(tmp_path / "ct.nii.gz", recipe, tmp_path / "mask.nii.gz")
    assert 0 < arrays.brain.sum() < arrays.brain.size
    assert (arrays.image == -1).all()


def test_anovaegans_slab_is_part_of_the_whole(tmp_path: Path) -> None:
    """Denoised as if every slice of the brain were there, and 256 x 256 x 20 voxels of 1 mm around the middle."""
    subject = make_phantom(2, PhantomSettings(shape=(48, 58, 48), box_mm=(160, 193, 160)))
    write_nifti(tmp_path / "t1.nii.gz", subject.image[0], subject.affine)
    write_nifti(tmp_path / "brain.nii.gz", subject.brain, subject.affine)
    changes = {"registration": "none", "center_mm": [0, -17, 5], "scale": "none"}
    slab = override(recipe_named("anovaegan_2018"), {**changes, "grid": [170, 200, 20]})
    record, part = prepare_file(tmp_path / "t1.nii.gz", slab, tmp_path / "brain.nii.gz")
    _, whole = prepare_file(tmp_path / "t1.nii.gz", override(slab, {"grid": [170, 200, 60]}), tmp_path / "brain.nii.gz")
    np.testing.assert_array_equal(part.image, whole.image[..., 20:40])
    np.testing.assert_array_equal(part.brain, whole.brain[..., 20:40])
    assert record.affine[2][3] == -4.5
    assert "warnings" not in record.notes  # that a slab leaves brain out is its purpose
    plain = prepare_file(tmp_path / "t1.nii.gz", override(slab, {"denoise": "none"}), tmp_path / "brain.nii.gz")[1]
    assert plain.image.std() > part.image.std()
    full = recipe_named("anovaegan_2018")
    assert full.target_grid() == (256, 256, 20)


def test_a_bleed_on_the_left_stays_on_the_left(tmp_path: Path) -> None:
    """A moved CT stored from right to left: the bleed is bright, lies in the left hemisphere, and the skull is bone."""
    settings = PhantomSettings(
        shape=(64, 77, 73), box_mm=(192, 231, 219), center_mm=(0, -18, 0), modalities=("CT",), skull_stripped=False
    )
    subject = make_phantom(4, settings)
    i, j, k = np.indices(subject.brain.shape)
    x, y, z = (subject.affine[axis, axis] * index + subject.affine[axis, 3] for axis, index in enumerate((i, j, k)))
    bleed = (x + 40) ** 2 + (y + 20) ** 2 + (z - 25) ** 2 < 12**2
    image = np.where(bleed, 75, subject.image[0]).astype(np.float32)
    angle = np.deg2rad(12)
    moved: Any = np.eye(4)
    moved[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moved[:3, 3] = (25.0, -30.0, 60.0)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    affine = moved @ subject.affine @ flip
    for name, array in (("ct", image), ("brain", subject.brain), ("bleed", bleed)):
        write_nifti(tmp_path / f"{name}.nii.gz", array[::-1], affine)
    recipe = override(recipe_named("position_regression_2022"), {"spacing_mm": 3, "grid": 86})
    record, arrays = prepare_file(tmp_path / "ct.nii.gz", recipe, tmp_path / "brain.nii.gz")
    labels, names = arrays.structures, record.structures
    assert labels is not None
    assert arrays.head is not None
    assert record.source is not None
    to_stored = np.linalg.inv(np.array(record.source.to_source) @ np.array(record.affine))
    index = np.rint((to_stored @ moved @ [-40.0, -20.0, 25.0, 1.0])[:3]).astype(int)
    assert labels[tuple(index)] == names["left_hemisphere"]
    mirrored = np.rint((to_stored @ moved @ [40.0, -20.0, 25.0, 1.0])[:3]).astype(int)
    assert labels[tuple(mirrored)] == names["right_hemisphere"]
    assert arrays.image[0][tuple(index)] > arrays.image[0][tuple(mirrored)] + 0.05
    assert (labels == names["skull"]).sum() * 27 > 200_000  # a fifth of a litre of bone at least
    # Equalised over the head: its intensities are spread evenly, and air is the darkest there is.
    inside = arrays.image[0][arrays.head]
    assert abs(np.median(inside) - 0.5) < 0.03
    assert arrays.image[0][~arrays.head].mean() < 0.05


def test_a_head_is_registered_to_a_reference_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bieder et al. choose a volume of their own: a known rigid move of it is found again, and left stays left."""
    settings = PhantomSettings(
        shape=(48, 58, 55), box_mm=(192, 232, 220), center_mm=(0, -18, 0), modalities=("CT",), skull_stripped=False
    )
    subject = make_phantom(5, settings)
    # The reference lies off the world's origin, as a scanner's does: its midline is not at x = 0.
    away = np.eye(4)
    away[:3, 3] = (40.0, 15.0, -25.0)
    angle = np.deg2rad(-9)
    moved = np.eye(4)
    moved[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moved[:3, 3] = (-12.0, 20.0, 35.0)
    write_nifti(tmp_path / "reference.nii.gz", subject.image[0], away @ subject.affine)
    write_nifti(tmp_path / "scan.nii.gz", subject.image[0], moved @ subject.affine)
    write_nifti(tmp_path / "brain.nii.gz", subject.brain, moved @ subject.affine)

    def by_centres(image: Any, affine: Any, mask: Any, name: str, target: Target, kind: str) -> Registration:
        """Stand in for the registrations to MNI152, which are tested where they are."""
        theirs = target.level(6.0)
        to_source = np.eye(4)
        to_source[:3, 3] = world_points(mask, affine).mean(axis=0) - world_points(theirs.mask, theirs.affine).mean(
            axis=0
        )
        return Registration(to_source=to_source, mutual_information=1.0, dice=1.0, share=1.0)

    monkeypatch.setattr("vesalius.datasets.foreground.stripping.register", by_centres)
    monkeypatch.setattr("vesalius.datasets.reference.register", by_centres)
    changes = {"reference": str(tmp_path / "reference.nii.gz"), "registration_of": "head", "spacing_mm": 4, "grid": 64}
    recipe = override(recipe_named("position_regression_2022"), changes)
    record, arrays = prepare_file(tmp_path / "scan.nii.gz", recipe, tmp_path / "brain.nii.gz")
    assert record.source is not None
    assert record.notes["registration"]["template"] == "reference.nii.gz"
    assert record.notes["registration"]["of"] == "head"
    truth = moved @ np.linalg.inv(away)
    corners = np.array([[x, y, z, 1.0] for x in (-60, 60) for y in (-90, 60) for z in (-50, 70)]) @ away.T
    apart = np.linalg.norm(corners @ (np.array(record.source.to_source) - truth)[:3].T, axis=1)
    assert apart.max() < 2.0
    labels, names = arrays.structures, record.structures
    assert labels is not None
    for side, x in (("left", -35.0), ("right", 35.0)):
        index = np.linalg.inv(np.array(record.affine)) @ away @ [x, -20.0, 25.0, 1.0]
        assert labels[tuple(np.rint(index[:3]).astype(int))] == names[f"{side}_hemisphere"]


def test_a_bias_field_is_taken_out_before_scaling(tmp_path: Path) -> None:
    subject = make_phantom(6, PhantomSettings(shape=(40, 48, 40)))
    x = np.linspace(-1, 1, 40)[:, None, None]
    shaded = subject.image[0] * np.exp(0.3 * x).astype(np.float32)
    write_nifti(tmp_path / "shaded.nii.gz", shaded.astype(np.float32), subject.affine)

    def slope(bias: str) -> float:
        changes = {"scale": "percentile", "bias": bias, "bias_shrink": 2}
        _, arrays = prepare_file(tmp_path / "shaded.nii.gz", override(recipe_named("as_is"), changes))
        inside = arrays.brain
        return float(np.polyfit(np.broadcast_to(x, inside.shape)[inside], arrays.image[0][inside], 1)[0])

    assert slope("none") > 0.12
    assert abs(slope("n4")) < 0.4 * slope("none")


def test_phantoms_have_the_structures_that_the_paper_judges(tmp_path: Path) -> None:
    """In MNI space without a registration: the midline is x = 0, whatever labels come with the data."""
    settings = PhantomSettings(shape=(40, 40, 40), modalities=("CT",), skull_stripped=False)
    write_cohort(
        tmp_path / "raw", CohortSettings(num_train=1, num_validation=0, num_gate=0, num_test=0, phantom=settings)
    )
    raw = PhantomLayout().discover(tmp_path / "raw", ("CT",))[0]
    changes = {"registration": "none", "spacing_mm": None, "grid": None}
    recipe = override(recipe_named("position_regression_2022"), changes)
    record, arrays = prepare(raw, recipe, ("CT",))
    labels, names = arrays.structures, record.structures
    assert labels is not None
    assert names == {"skull": 1, "left_hemisphere": 2, "right_hemisphere": 3}
    x = settings.center_mm[0] + settings.spacing_mm[0] * (np.arange(40) - 19.5)
    left = np.broadcast_to((x < 0)[:, None, None], arrays.brain.shape)
    np.testing.assert_array_equal(labels == names["left_hemisphere"], arrays.brain & left)
    np.testing.assert_array_equal(labels == names["right_hemisphere"], arrays.brain & ~left)
    # The skull lies around the brain, some 6.5 mm thick, within the head.
    skull = labels == names["skull"]
    assert 0.3 < skull.sum() * np.prod(settings.spacing_mm) / 1e6 < 1.2  # litres
    assert arrays.head is not None
    assert not (skull & ~arrays.head).any()
    given = prepare(raw, override(recipe, {"structures": "given"}), ("CT",))
    assert given[0].structures == STRUCTURES
