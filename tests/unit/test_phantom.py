"""The phantom: one subject whatever the grid, lesions of the stated volume and change, variation as measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import PhantomLayout, write_cohort
from vesalius.datasets.phantom import (
    STRUCTURES,
    CohortSettings,
    LesionSettings,
    PhantomSettings,
    VariabilitySettings,
    make_phantom,
    phantom_cohort,
)
from vesalius.datasets.phantom.anatomy import draw_anatomy
from vesalius.datasets.phantom.contrast import LESION_RESPONSE, NOISE
from vesalius.datasets.phantom.lattice import Lattice, smooth_noise, stream
from vesalius.datasets.phantom.tissues import read_tissues
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.store import CohortStore

SMALL = PhantomSettings(shape=(32, 32, 32))
CLEAN = PhantomSettings(shape=(48, 48, 48), variability=VariabilitySettings(noise=0))
ALL = ("T1w", "T2w", "FLAIR", "CT")


# ---- determinism, grids


def test_same_seed_same_subject_and_another_seed_another() -> None:
    one, again, other = (make_phantom(seed, SMALL) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.structures, again.structures)
    assert (one.brain & ~other.brain).sum() + (other.brain & ~one.brain).sum() > 100
    inside = one.brain & other.brain
    assert np.corrcoef(one.image[0][inside], other.image[0][inside])[0, 1] < 0.95


def test_a_coarser_grid_samples_the_same_brain() -> None:
    # 63 voxels of 3 mm and 21 of 9 mm share the centres 1, 4, 7, ...
    fine, coarse = (make_phantom(7, PhantomSettings(shape=(n, n, n), box_mm=(189.0, 189.0, 189.0))) for n in (63, 21))
    assert np.array_equal(fine.brain[1::3, 1::3, 1::3], coarse.brain)
    assert np.array_equal(fine.head[1::3, 1::3, 1::3], coarse.head)


def test_averaging_a_fine_grid_gives_the_coarse_image() -> None:
    clean = VariabilitySettings(noise=0)
    fine = make_phantom(1, PhantomSettings(shape=(96, 96, 96), variability=clean)).image[0]
    coarse = make_phantom(1, PhantomSettings(shape=(48, 48, 48), variability=clean))
    pooled = fine.reshape(48, 2, 48, 2, 48, 2).mean(axis=(1, 3, 5))
    from scipy import ndimage

    deep = ndimage.binary_erosion(coarse.brain, iterations=2)
    assert np.corrcoef(pooled[deep], coarse.image[0][deep])[0, 1] > 0.98
    assert np.abs(pooled - coarse.image[0])[deep].mean() < 0.03


def test_any_size_shows_the_whole_head() -> None:
    for shape in ((5, 40, 9), (17, 1, 23), (64, 64, 20)):
        subject = make_phantom(2, PhantomSettings(shape=shape))
        assert subject.image.shape == (1, *shape)
        assert subject.image.dtype == np.float32
        ends = np.array([[-0.5, -0.5, -0.5, 1], [*(np.array(shape) - 0.5), 1]])
        box = (subject.affine @ ends.T)[:3]
        assert np.allclose(box[:, 1] - box[:, 0], 192)
        assert np.allclose(box.mean(axis=1), subject.settings.center_mm)
    # The brain fills the same share of the box, however the box is cut.
    shapes = ((24, 24, 24), (64, 64, 64), (60, 64, 20))
    assert np.ptp([make_phantom(2, PhantomSettings(shape=shape)).brain.mean() for shape in shapes]) < 0.005


def test_the_default_grid_holds_the_brain() -> None:
    # The brain in a box that is far too large, and how much of it the default box cuts off.
    box = PhantomSettings().box_mm
    larger = PhantomSettings(shape=(40, 40, 40), box_mm=(box[0] * 1.25, box[1] * 1.25, box[2] * 1.25))
    for seed in range(5):
        brain = make_phantom(seed, larger).brain
        assert brain[4:-4, 4:-4, 4:-4].sum() > 0.998 * brain.sum()


# ---- anatomy


def test_shares_add_up_to_one() -> None:
    anatomy = draw_anatomy(0, VariabilitySettings())
    axes = Lattice(low_mm=(-100, -120, -100), high_mm=(100, 100, 110), spacing_mm=7).axes
    for skull_stripped in (True, False):
        tissues = read_tissues(anatomy, axes, (7.0, 7.0, 7.0), skull_stripped=skull_stripped)
        shares = np.stack(list(tissues.shares.values()))
        assert shares.min() > -1e-5
        np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)


def test_structures_lie_on_their_side_inside_the_brain() -> None:
    subject = make_phantom(0)
    x = subject.affine[0, 0] * np.arange(64) + subject.affine[0, 3]
    x = np.broadcast_to(x[:, None, None], subject.brain.shape)
    assert ((subject.structures > 0) == subject.brain).all()
    for name, label in STRUCTURES.items():
        where = subject.structures == label
        assert where.sum() >= 10, name
        if name.startswith("left_"):
            assert x[where].max() < 0, name
        if name.startswith("right_"):
            assert x[where].min() >= 0, name
    left = {name.removeprefix("left_") for name in STRUCTURES if name.startswith("left_")}
    assert left == {name.removeprefix("right_") for name in STRUCTURES if name.startswith("right_")}


def test_contrasts_order_the_tissues_as_they_should() -> None:
    settings = PhantomSettings(modalities=ALL)
    subject = make_phantom(1, settings)
    labels = {"fluid": (5, 6), "cortex": (1, 2), "white": (3, 4)}
    means = {
        name: {
            modality: float(np.median(subject.channel(modality)[np.isin(subject.structures, numbers)]))
            for modality in ALL
        }
        for name, numbers in labels.items()
    }
    fluid, cortex, white = means["fluid"], means["cortex"], means["white"]
    assert fluid["T1w"] < cortex["T1w"] < white["T1w"]
    assert fluid["T2w"] > cortex["T2w"] > white["T2w"]
    assert fluid["FLAIR"] < 0.6 * min(white["FLAIR"], cortex["FLAIR"])
    assert 0 < fluid["CT"] < white["CT"] < cortex["CT"] < 45


def test_a_channel_is_the_same_whichever_others_are_made() -> None:
    both = make_phantom(5, SMALL.model_copy(update={"modalities": ("CT", "T1w")}))
    assert np.array_equal(both.channel("T1w"), make_phantom(5, SMALL).image[0])


def test_skull_stripping_leaves_air_around_the_brain_and_nothing_else_changes() -> None:
    stripped = make_phantom(6, PhantomSettings(modalities=("T1w", "CT")))
    whole = make_phantom(6, PhantomSettings(modalities=("T1w", "CT"), skull_stripped=False))
    assert np.array_equal(stripped.brain, whole.brain)
    assert np.array_equal(stripped.head, whole.head)
    assert (whole.head | ~whole.brain).all()
    assert (stripped.image[0][~stripped.brain] == 0).all()
    assert (stripped.image[1][~stripped.brain] == -1000).all()
    assert (stripped.image[0][stripped.brain] > 0).all()
    bone = whole.image[1] > 600
    assert bone.sum() > 500
    assert not (bone & whole.brain).any()


def test_noise_is_rician() -> None:
    settings = PhantomSettings(skull_stripped=False, variability=VariabilitySettings(noise=0.05))
    subject = make_phantom(0, settings)
    corner = subject.image[0][:6, -8:, -6:]  # air above the face, beyond the reach of any tissue
    sigma = 0.05 * NOISE["T1w"]
    # Rayleigh, the Rician of signal 0: mean sqrt(pi / 2) sigma, variance (2 - pi / 2) sigma^2.
    assert corner.mean() == pytest.approx(np.sqrt(np.pi / 2) * sigma, rel=0.1)
    assert corner.std() == pytest.approx(np.sqrt(2 - np.pi / 2) * sigma, rel=0.15)


def test_lattice_reads_are_exact_where_they_must_be() -> None:
    lattice = Lattice(low_mm=(0, 0, 0), high_mm=(30, 40, 50), spacing_mm=5)
    values = stream(0, "test").standard_normal(lattice.shape, dtype=np.float32)
    np.testing.assert_allclose(lattice.read(values, lattice.axes), values, atol=1e-6)
    x, y, z = np.meshgrid(*lattice.axes, indexing="ij")
    line = (2 * x - y + 0.5 * z + 1).astype(np.float32)
    # Keys' kernel reproduces straight lines where it does not meet the edge.
    at = tuple(np.linspace(7, 23, 9, dtype=np.float32) for _ in range(3))
    a, b, c = np.meshgrid(*at, indexing="ij")
    np.testing.assert_allclose(lattice.read(line, at), 2 * a - b + 0.5 * c + 1, rtol=1e-5, atol=1e-4)  # type: ignore[arg-type]  # an array for three floats


def test_smooth_noise_has_unit_deviation() -> None:
    lattice = Lattice(low_mm=(0, 0, 0), high_mm=(200, 200, 200), spacing_mm=5)
    draws = [smooth_noise(stream(seed, "noise"), lattice, 12).std() for seed in range(4)]
    assert np.mean(draws) == pytest.approx(1, abs=0.03)


# ---- lesions


@pytest.mark.parametrize("size_mm", [12.0, 20.0, 40.0])
def test_a_lesion_has_the_volume_of_the_ball_asked_for(size_mm: float) -> None:
    fine = PhantomSettings(shape=(80, 80, 80), box_mm=(120.0, 140.0, 120.0))
    lesion = LesionSettings(size_mm=size_mm, center_mm=(30.0, -25.0, 28.0))
    for seed in (1, 2):
        (planted,) = make_phantom(seed, fine, lesions=[lesion]).planted
        assert planted.volume_mm3 == pytest.approx(np.pi / 6 * size_mm**3, rel=0.06)
        assert planted.hemisphere == "right"


def test_a_hard_lesion_changes_its_mask_by_its_contrast_and_nothing_else() -> None:
    lesion = LesionSettings(size_mm=30, contrast=-0.25, softness_mm=0, texture=0)
    settings = CLEAN.model_copy(update={"modalities": ALL})
    healthy, ill = make_phantom(3, settings), make_phantom(3, settings, lesions=[lesion])
    assert ill.lesion.sum() > 100
    assert not (ill.lesion & ~ill.brain).any()
    assert not healthy.lesion.any()
    for modality in ("T1w", "T2w", "FLAIR"):
        before, after = healthy.channel(modality), ill.channel(modality)
        ratio = 1 - 0.25 * LESION_RESPONSE[modality]
        np.testing.assert_allclose(after[ill.lesion], ratio * before[ill.lesion], rtol=1e-5)
        assert np.array_equal(after[~ill.lesion], before[~ill.lesion])
    difference = ill.channel("CT") - healthy.channel("CT")
    np.testing.assert_allclose(difference[ill.lesion], -0.25 * LESION_RESPONSE["CT"], atol=1e-3)
    assert (difference[~ill.lesion] == 0).all()


def test_the_mask_is_where_the_change_is_at_least_half() -> None:
    lesion = LesionSettings(size_mm=36, contrast=-0.4, softness_mm=14, texture=0)
    healthy, ill = make_phantom(4, CLEAN), make_phantom(4, CLEAN, lesions=[lesion])
    inside = healthy.brain
    change = 1 - ill.image[0][inside] / healthy.image[0][inside]
    clear = np.abs(change - 0.2) > 1e-4  # away from rounding at the surface itself
    assert np.array_equal((change > 0.2)[clear], ill.lesion[inside][clear])
    assert ((change > 0.01) & (change < 0.19)).sum() > 50  # the border is soft
    assert change.max() <= 0.4 + 1e-4


def test_anatomy_and_noise_are_the_same_with_and_without_a_lesion() -> None:
    healthy = make_phantom(8, SMALL)
    ill = make_phantom(8, SMALL, lesions=[LesionSettings(size_mm=30), LesionSettings(size_mm=16, contrast=0.2)])
    assert np.array_equal(healthy.structures, ill.structures)
    assert np.array_equal(healthy.brain, ill.brain)
    assert len(ill.planted) == 2
    changed = healthy.image[0] != ill.image[0]
    assert changed.any()
    assert changed.mean() < 0.03


def test_the_same_lesion_on_every_grid() -> None:
    lesion = LesionSettings(size_mm=30, softness_mm=2)
    fine, coarse = (
        make_phantom(9, PhantomSettings(shape=(n, n, n), box_mm=(189.0, 189.0, 189.0)), lesions=[lesion])
        for n in (63, 21)
    )
    assert fine.planted[0].center_mm == coarse.planted[0].center_mm
    assert np.array_equal(fine.lesion[1::3, 1::3, 1::3], coarse.lesion)


def test_lesions_keep_out_of_the_ventricles() -> None:
    lesion = LesionSettings(size_mm=50, center_mm=(-16.0, -10.0, 16.0), softness_mm=0)
    subject = make_phantom(2, PhantomSettings(), lesions=[lesion])
    fluid = np.isin(subject.structures, [STRUCTURES["left_lateral_ventricle"]])
    assert fluid.sum() > 30
    assert (subject.lesion & fluid).sum() <= 0.1 * fluid.sum()  # those that the ventricle only grazes
    assert subject.planted[0].volume_mm3 == pytest.approx(np.pi / 6 * 50**3, rel=0.06)


def test_a_lesion_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SettingError, match="20 mm does not fit into the brain"):
        make_phantom(0, SMALL, lesions=[LesionSettings(center_mm=(0.0, 140.0, 0.0))])


def test_lesion_intensities_overlap_healthy_ones() -> None:
    shares = []
    for case in phantom_cohort(0, 0, 0, 12, PhantomSettings(shape=(40, 40, 40)), seed=2):
        if not case.lesions:
            continue
        subject = case.make()
        low, high = np.percentile(subject.image[0][subject.brain & ~subject.lesion], [1, 99])
        values = subject.image[0][subject.lesion]
        shares.append(((values > low) & (values < high)).mean())
    assert np.mean(shares) > 0.75


# ---- cohort and layout


def test_cohort_splits_groups_and_labels() -> None:
    cases = list(phantom_cohort(4, 3, 3, 6, SMALL, seed=1))
    assert [sum(case.split == split for case in cases) for split in ("train", "validation", "gate", "test")] == [
        4,
        3,
        3,
        6,
    ]
    assert not any(case.lesions for case in cases if case.split == "train")
    for split in ("validation", "gate", "test"):
        ours = [case for case in cases if case.split == split]
        assert sum(bool(case.lesions) for case in ours) * 3 == 2 * len(ours)
    for case in cases:
        assert (case.group == "healthy") == (not case.lesions) == (case.labels["lesion_type"] == "none")
        assert [case.labels["lesion_left"], case.labels["lesion_right"]].count(True) == len(case.lesions)
        if case.lesions:
            assert (case.lesions[0].contrast < 0) == (case.group == "hypointense")
            side = "left" if case.labels["lesion_left"] else "right"
            assert case.make().planted[0].hemisphere == side
    assert len({case.seed for case in cases}) == len(cases)


def test_a_larger_cohort_contains_the_smaller() -> None:
    small = {case.subject_id: case for case in phantom_cohort(2, 1, 1, 2, SMALL, seed=1)}
    large = {case.subject_id: case for case in phantom_cohort(5, 3, 2, 4, SMALL, seed=1)}
    assert all(large[name] == case for name, case in small.items())


def test_layout_ingests_what_the_generator_makes(tmp_path: Path) -> None:
    phantom = PhantomSettings(shape=(20, 22, 18), modalities=("T1w", "CT"))
    cohort = CohortSettings(num_train=2, num_validation=1, num_gate=0, num_test=1, seed=3, phantom=phantom)
    root = write_cohort(tmp_path / "raw", cohort)
    report = ingest("phantom", root, tmp_path / "store", modalities=("CT", "T1w"))
    assert not report.failed
    store = CohortStore.open(tmp_path / "store")
    assert store.channels == ("CT", "T1w")
    for case in phantom_cohort(2, 1, 0, 1, phantom, seed=3):
        subject, record = case.make(), store.record(case.subject_id)
        assert np.array_equal(store.image(case.subject_id), subject.image[::-1])
        assert np.array_equal(store.brain(case.subject_id), subject.brain)
        assert np.array_equal(np.asarray(store.structures(case.subject_id)), subject.structures)
        assert (record.split, record.group) == (case.split, case.group)
        assert record.has_lesion == bool(case.lesions)
        assert record.structures == STRUCTURES
        np.testing.assert_allclose(record.affine, subject.affine)
        if case.lesions:
            assert np.array_equal(np.asarray(store.mask(case.subject_id, "lesion")), subject.lesion)
            assert record.notes["planted"][0]["size_mm"] == case.lesions[0].size_mm


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, CohortError, "phantom.json is missing"),
        ("{", CohortError, "is not a JSON file"),
        ("[1]", CohortError, "holds list"),
        ('{"num_trian": 3}', SettingError, "num_trian"),
        ('{"phantom": {"shape": [0, 8, 8]}}', SettingError, r"phantom.shape.0"),
        ('{"num_train": 0, "num_validation": 0, "num_gate": 0, "num_test": 0}', CohortError, "without subjects"),
    ],
)
def test_layout_says_what_is_wrong(tmp_path: Path, text: str | None, error: type[Exception], says: str) -> None:
    if text is not None:
        (tmp_path / "phantom.json").write_text(text)
    with pytest.raises(error, match=says):
        PhantomLayout().discover(tmp_path, ("T1w",))


def test_an_empty_object_takes_every_default(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text("{}")
    found = PhantomLayout().discover(tmp_path / "phantom.json", PhantomLayout().modalities(tmp_path))
    assert len(found) == 16 + 6 + 6 + 9
    assert found == sorted(found, key=lambda subject: subject.subject_id)
    json.dumps([subject.model_dump(mode="json") for subject in found])


# ---- the variation that was measured

REAL = {
    "voxel deviation / mean, lower quartile": 0.178,
    "voxel deviation / mean, median": 0.219,
    "voxel deviation / mean, upper quartile": 0.269,
    "the same after smoothing by 4 mm, median": 0.128,
    "the same after smoothing by 8 mm, median": 0.095,
    "overlap of brain outlines (Dice)": 0.929,
    "overlap of csf (Dice)": 0.421,
    "overlap of grey matter (Dice)": 0.532,
    "overlap of white matter (Dice)": 0.690,
    "deviation within a brain": 0.222,
    "correlation with the mean of the others": 0.774,
}
"""Forty real brains, docs/decisions/0003-phantom.md: whoever changes the phantom must measure it again."""


def _figures(num: int) -> dict[str, float]:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "phantom_realism.py"
    spec = importlib.util.spec_from_file_location("phantom_realism", path)
    assert spec is not None
    assert spec.loader is not None
    realism = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(realism)
    figures: dict[str, float] = realism.measure(realism.phantoms(num, PhantomSettings(), first_seed=500), 3.0)
    return {name: figures[name] for name in REAL}


def test_variation_is_near_that_of_real_brains() -> None:
    # Few subjects scatter, and quartiles of a deviation depend on how many there are.
    figures = _figures(8)
    for name in (
        "voxel deviation / mean, median",
        "overlap of brain outlines (Dice)",
        "overlap of white matter (Dice)",
    ):
        assert figures[name] == pytest.approx(REAL[name], rel=0.15)


@pytest.mark.long
def test_variation_of_forty_phantoms_is_that_of_forty_real_brains() -> None:
    assert _figures(40) == pytest.approx(REAL, rel=0.12)
