"""What is bright in a healthy head's CT: where it belongs, the same on every grid, and in no head that did not ask."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vesalius.datasets.phantom import (
    STRUCTURES,
    FindingSettings,
    LesionSettings,
    PhantomSettings,
    VariabilitySettings,
    make_phantom,
)
from vesalius.datasets.phantom.anatomy import BRAIN, HEAD, draw_anatomy
from vesalius.datasets.phantom.contrast import INTENSITIES
from vesalius.datasets.phantom.hyperdense import (
    FREQUENCY,
    _falx,
    _nodules,
    _thinned,
    with_base,
    with_bright,
    with_ridges,
)
from vesalius.datasets.phantom.shapes import ellipsoid
from vesalius.datasets.phantom.subject import _axes
from vesalius.datasets.phantom.tissues import inside, read_tissues, seen_mm
from vesalius.platform.config import digest

if TYPE_CHECKING:
    from vesalius.datasets.phantom.settings import Finding

PLAIN = VariabilitySettings(noise=0, contrast_spread=0)
BRAINS = PhantomSettings(shape=(64, 64, 64), modalities=("CT",), hyperdense=True, variability=PLAIN)
WITHOUT = BRAINS.model_copy(update={"hyperdense": False})
BLOOD = INTENSITIES["CT"]["blood"]


def shares_of(seed: int, settings: PhantomSettings) -> dict[str, np.ndarray]:
    anatomy, axes = with_ridges(seed, draw_anatomy(seed, settings.variability)), _axes(settings)
    tissues = read_tissues(anatomy, axes, settings.spacing_mm, skull_stripped=settings.skull_stripped)
    tissues = with_bright(seed, anatomy, tissues, axes, settings.spacing_mm)
    return dict(with_base(anatomy, tissues, axes, settings.spacing_mm).shares)


def test_who_does_not_ask_has_none_and_keeps_the_digest() -> None:
    assert "hyperdense" not in PhantomSettings().model_dump(mode="json")
    assert PhantomSettings.model_validate(BRAINS.model_dump(mode="json")) == BRAINS
    assert digest(BRAINS.model_dump(mode="json")) != digest(WITHOUT.model_dump(mode="json"))
    assert make_phantom(3, WITHOUT).image.max() < BLOOD


@pytest.mark.parametrize("seed", [3, 4])
def test_a_healthy_head_is_brighter_than_blood_in_few_voxels_and_elsewhere_as_it_was(seed: int) -> None:
    # With noise and everybody's own intensities: what is drawn for these moves none of it.
    settings = BRAINS.model_copy(update={"variability": VariabilitySettings()})
    with_it, without = (
        make_phantom(seed, settings),
        make_phantom(seed, settings.model_copy(update={"hyperdense": False})),
    )
    assert not with_it.lesion.any()
    inside_it = with_it.image[0][with_it.brain]
    assert inside_it.max() > BLOOD + 50
    assert 0.001 < (inside_it > BLOOD + 10).mean() < 0.03
    shares = shares_of(seed, settings)
    untouched = with_it.brain & without.brain
    for name in ("calcium", "venous_blood", "bone"):
        untouched &= shares[name] == 0
    assert untouched.sum() > 0.95 * without.brain.sum()
    assert np.array_equal(with_it.image[0][untouched], without.image[0][untouched])
    # What is bone is no longer brain, and nothing that was none has become any.
    assert not (with_it.brain & ~without.brain).any()
    assert 0 < (without.brain & ~with_it.brain).sum() < 0.03 * without.brain.sum()
    assert not with_it.structures[~with_it.brain].any()


def test_shares_add_up_to_one_with_and_without_a_skull() -> None:
    for stripped in (True, False):
        shares = shares_of(5, BRAINS.model_copy(update={"skull_stripped": stripped}))
        np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-5)
        assert min(float(share.min()) for share in shares.values()) > -1e-5


def test_it_is_the_same_body_on_every_grid() -> None:
    for name in ("calcium", "venous_blood", "bone"):
        volumes = []
        for edge in (64, 96):
            settings = BRAINS.model_copy(update={"shape": (edge,) * 3})
            share = shares_of(6, settings)[name]
            volumes.append(float(share.sum() * np.prod(settings.spacing_mm)))
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1), name
        assert volumes[1] > 50, name


@pytest.mark.parametrize("radius", [1.5, 2.5, 4.0, 6.0])
@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0])
def test_a_nodule_has_its_volume_however_small_beside_a_voxel(radius: float, spacing: float) -> None:
    axis = (np.arange(round(48 / spacing)) * spacing - 24 + 0.3).astype(np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    width = seen_mm((spacing,) * 3)
    share = _thinned(radius, width) * inside(ellipsoid((x, y, z), (0.0, 0.0, 0.0), (radius,) * 3), width)
    assert share.max() <= 1
    assert share.sum() * spacing**3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)


def test_each_lies_where_it_belongs() -> None:
    anatomy, axes = draw_anatomy(7, PLAIN), _axes(BRAINS)
    x, y, z = np.meshgrid(*axes, indexing="ij")
    shares = shares_of(7, BRAINS.model_copy(update={"skull_stripped": False}))
    venous = shares["venous_blood"] > 0.5
    assert (shares["venous_blood"] > 0.01)[HEAD.read(anatomy.head["cavity"], axes) < -4].sum() == 0
    # The superior sagittal sinus keeps to the middle and to the inner table.
    above = venous & (z > 30)
    assert above.any()
    assert np.abs(BRAIN.read(anatomy.fields["x"], axes)[above]).max() < 6
    assert HEAD.read(anatomy.head["cavity"], axes)[above].max() < 10
    # The transverse sinuses lie on both sides behind, between cerebrum and cerebellum.
    aside = venous & (np.abs(x) > 20)
    assert {-1.0, 1.0} == set(np.sign(x[aside]).tolist())
    assert y[aside].max() < -35
    structures = make_phantom(7, WITHOUT).structures
    for side, right in (("left", False), ("right", True)):
        of_side = aside & ((x > 0) == right)
        cerebellum = (structures == STRUCTURES[f"{side}_cerebellum"]) & (y < -40)
        cortex = (structures == STRUCTURES[f"{side}_cerebral_cortex"]) & (y < -60)
        assert np.percentile(z[cerebellum], 10) < z[of_side].mean() < np.percentile(z[cortex], 50)
    # Ridges of bone rise into the base alone.
    bone = make_phantom(7, WITHOUT).brain & ~make_phantom(7, BRAINS).brain
    assert z[bone].max() < -10


def test_calcifications_are_as_frequent_as_said_and_lie_in_their_structures() -> None:
    anatomy = draw_anatomy(8, PLAIN)
    settings = BRAINS.model_copy(update={"shape": (96, 96, 96)})
    axes = _axes(settings)
    cavity, middle = HEAD.read(anatomy.head["cavity"], axes), np.abs(BRAIN.read(anatomy.fields["x"], axes))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    at = (x, y, z)
    structures = make_phantom(8, settings.model_copy(update={"hyperdense": False})).structures
    found: Counter[str] = Counter()
    num = 60
    for seed in range(num):
        plate = _falx(seed, at, middle, cavity)
        if plate is not None:
            found["falx"] += 1
            assert np.abs(np.argwhere(plate[0] > 0)[:, 0] - 47.5).max(initial=0) < 3
        names = set()
        for depth, radius, density in _nodules(seed, anatomy, at, axes):
            assert 0.3 <= density <= 1
            assert 1 < radius < 7
            i, j, k = np.unravel_index(int(np.argmax(depth)), depth.shape)
            if abs(axes[0][i]) < 5:
                assert -35 < axes[1][j] < -23
                names.add("pineal")
                continue
            side = "left" if axes[0][i] < 0 else "right"
            where = {STRUCTURES[f"{side}_lateral_ventricle"]: "choroid", STRUCTURES[f"{side}_lentiform"]: "pallidum"}
            names.add(where[int(structures[i, j, k])])
        found.update(names)
    for name, expected in FREQUENCY.items():
        assert found[name] / num == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / num)), name


def test_a_bleed_replaces_what_was_there_and_is_not_the_brightest() -> None:
    finding = FindingSettings(kind="intraparenchymal", severity=0.3)
    bled, healthy = make_phantom(9, BRAINS, finding=finding), make_phantom(9, BRAINS)
    assert np.percentile(bled.image[0][bled.lesion], 50) == pytest.approx(BLOOD, abs=2)
    assert healthy.image[0][healthy.brain].max() > bled.image[0][bled.lesion].max()


@pytest.mark.parametrize("kind", ["craniectomy", "epidural", "subdural", "fracture"])
def test_a_finding_lies_where_it_lies_without_and_leaves_the_base_alone(kind: Finding) -> None:
    for seed in range(200, 206):
        settings = BRAINS.model_copy(update={"skull_stripped": kind != "fracture"})
        finding = FindingSettings(kind=kind, hemisphere="right", severity=0.9)
        own = make_phantom(seed, settings, finding=finding)
        plain = make_phantom(seed, settings.model_copy(update={"hyperdense": False}), finding=finding)
        anatomy = with_ridges(seed, draw_anatomy(seed, PLAIN))
        bone = BRAIN.read(anatomy.fields["ridge"], _axes(BRAINS)) >= 0
        assert not (own.lesion & ~plain.lesion).any()
        assert not ((plain.lesion & ~own.lesion) & ~bone).any()
        assert not (own.brain & bone).any()


def test_a_lesion_beside_the_base_keeps_its_volume_outside_of_the_bone() -> None:
    lesion = LesionSettings(size_mm=15, contrast=1, softness_mm=2, center_mm=(37, -28, -37))
    settings = BRAINS.model_copy(update={"shape": (96, 96, 96)})
    (planted,) = make_phantom(5, settings, lesions=[lesion]).planted
    assert planted.volume_mm3 == pytest.approx(np.pi / 6 * 15**3, rel=0.15)
    # None is drawn within it: the least lesions, which would vanish there, are there.
    for seed in range(20):
        small = LesionSettings(size_mm=8, contrast=1, softness_mm=1)
        assert make_phantom(seed, BRAINS, lesions=[small]).lesion.any()
