"""What is bright in a healthy head's CT: where it belongs, the same on every grid, and in no head that did not ask."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vesalius.datasets.phantom import STRUCTURES, FindingSettings, PhantomSettings, VariabilitySettings, make_phantom
from vesalius.datasets.phantom.anatomy import BRAIN, HEAD, draw_anatomy
from vesalius.datasets.phantom.contrast import INTENSITIES
from vesalius.datasets.phantom.hyperdense import FREQUENCY, _calcifications, with_hyperdense
from vesalius.datasets.phantom.subject import _axes
from vesalius.datasets.phantom.tissues import read_tissues

PLAIN = VariabilitySettings(noise=0, contrast_spread=0)
BRAINS = PhantomSettings(shape=(64, 64, 64), modalities=("CT",), hyperdense=True, variability=PLAIN)
WITHOUT = BRAINS.model_copy(update={"hyperdense": False})
BLOOD = INTENSITIES["CT"]["blood"]


def shares_of(seed: int, settings: PhantomSettings) -> dict[str, np.ndarray]:
    anatomy, axes = draw_anatomy(seed, settings.variability), _axes(settings)
    tissues = read_tissues(anatomy, axes, settings.spacing_mm, skull_stripped=settings.skull_stripped)
    return dict(with_hyperdense(seed, anatomy, tissues, axes, settings.spacing_mm).shares)


def test_who_does_not_ask_has_none_and_keeps_the_digest() -> None:
    assert "hyperdense" not in PhantomSettings().model_dump(mode="json")
    assert PhantomSettings.model_validate(BRAINS.model_dump(mode="json")) == BRAINS
    assert make_phantom(3, WITHOUT).image.max() < BLOOD


@pytest.mark.parametrize("seed", [3, 4])
def test_a_healthy_head_is_brighter_than_blood_in_few_voxels_and_elsewhere_as_it_was(seed: int) -> None:
    with_it, without = make_phantom(seed, BRAINS), make_phantom(seed, WITHOUT)
    assert not with_it.lesion.any()
    inside = with_it.image[0][with_it.brain]
    assert inside.max() > BLOOD + 50
    assert 0.001 < (inside > BLOOD).mean() < 0.03
    both = with_it.brain & without.brain
    same = np.abs(with_it.image - without.image)[0][both] < 1e-3
    assert 0.9 < same.mean() < 0.998
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
    # Both transverse sinuses lie behind, about the tentorium.
    aside = venous & (np.abs(x) > 20)
    assert {-1.0, 1.0} == set(np.sign(x[aside]).tolist())
    assert y[aside].max() < -35
    tentorium = -12 - 0.32 * np.abs(x) - 0.2 * (y + 55)
    assert np.abs(z - tentorium)[aside].max() < 4.5
    # Ridges of bone rise into the base alone.
    bone = make_phantom(7, WITHOUT).brain & ~make_phantom(7, BRAINS).brain
    assert z[bone].max() < -10


def test_calcifications_are_as_frequent_as_said_and_lie_in_their_structures() -> None:
    anatomy = draw_anatomy(8, PLAIN)
    settings = BRAINS.model_copy(update={"shape": (96, 96, 96)})
    axes = _axes(settings)
    cavity = HEAD.read(anatomy.head["cavity"], axes)
    at = tuple(np.meshgrid(*axes, indexing="ij", sparse=True))
    structures = make_phantom(8, settings.model_copy(update={"hyperdense": False})).structures
    found: Counter[str] = Counter()
    num = 60
    for seed in range(num):
        names = set()
        for depth, thick, density in _calcifications(seed, anatomy, at, axes, cavity):  # type: ignore[arg-type]  # three axes
            assert 0.3 <= density <= 1
            assert 1 < thick < 12
            voxels = depth > 0
            if not voxels.any():  # thinner than this grid
                continue
            labels = Counter(structures[voxels].tolist())
            x = np.array([axes[0][i] for i in np.argwhere(voxels)[:, 0]])
            if np.abs(x).min() < 10:
                names.add("middle")
                continue
            side = "left" if x[0] < 0 else "right"
            where = {STRUCTURES[f"{side}_lateral_ventricle"]: "choroid", STRUCTURES[f"{side}_lentiform"]: "pallidum"}
            names.add(where[labels.most_common(1)[0][0]])
        found.update(names)
    for name in ("choroid", "pallidum"):
        expected = FREQUENCY[name]
        assert found[name] / num == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / num))
    neither = (1 - FREQUENCY["pineal"]) * (1 - FREQUENCY["falx"])
    assert found["middle"] / num == pytest.approx(1 - neither, abs=3 * np.sqrt(neither * (1 - neither) / num))


def test_a_bleed_replaces_what_was_there_and_a_threshold_no_longer_knows_it() -> None:
    finding = FindingSettings(kind="intraparenchymal", severity=0.3)
    bled, healthy = make_phantom(9, BRAINS, finding=finding), make_phantom(9, BRAINS)
    assert np.percentile(bled.image[0][bled.lesion], 50) == pytest.approx(BLOOD, abs=2)
    # The brightest voxels are not those of the bleed.
    assert healthy.image[0][healthy.brain].max() > bled.image[0][bled.lesion].max()
