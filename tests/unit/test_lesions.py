"""Synthetic lesions: masks exact, nothing else touched, recorded, a function of seed and subject alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vesalius.datasets.lesions import lesion_profile, plant_lesions
from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.platform.errors import CohortError, SettingError, StoreError, VolumeError
from vesalius.platform.geometry import as_matrix
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord

LAYOUT = {"train": 2, "validation": 3, "gate": 2, "test": 3}
PHANTOM = PhantomSettings(shape=(28, 32, 28), modalities=("T1w", "FLAIR"))


def _fill(path: Path, names: list[tuple[str, str]], shift: float = 0.0) -> CohortStore:
    store = CohortStore.create(path, recipe={"name": "phantom"}, channels=PHANTOM.modalities)
    with store.lock():
        records = []
        for split, subject_id in names:
            subject = make_phantom(int(subject_id[1:]), PHANTOM)
            records.append(
                store.write(
                    SubjectRecord(
                        subject_id=subject_id,
                        split=split,
                        channels=subject.channels,
                        shape=PHANTOM.shape,
                        spacing_mm=subject.spacing_mm,
                        affine=as_matrix(subject.affine),
                        structures=subject.structure_names,
                        labels={"site": "A"},
                        notes={"kept": 1},
                    ),
                    SubjectArrays(
                        image=subject.image - np.float32(shift),
                        brain=subject.brain,
                        head=subject.head,
                        structures=subject.structures,
                    ),
                )
            )
        store.commit(records)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    names = [(split, f"s{100 * row + n}") for row, (split, num) in enumerate(LAYOUT.items()) for n in range(num)]
    return _fill(tmp_path_factory.mktemp("cohort") / "store", names)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of masks as real ones come: LAS, 2 mm, a box smaller than the head; one is too small to use."""
    folder = tmp_path_factory.mktemp("masks")
    affine = np.array([[-2.0, 0, 0, 77.7], [0, 2, 0, -112.3], [0, 0, 2, -50.4], [0, 0, 0, 1]])
    i, j, k = np.meshgrid(*(np.arange(n) for n in (79, 95, 68)), indexing="ij")
    world = np.stack([77.7 - 2 * i, 2 * j - 112.3, 2 * k - 50.4])
    balls = {"a": ((-30, -20, 20), 17), "b": ((35, 20, 10), 21), "c": ((-45, -60, 5), 19), "tiny": ((0, 0, 0), 3)}
    for name, (center, radius) in balls.items():
        distance = np.linalg.norm(world - np.array(center)[:, None, None, None], axis=0)
        mask = (distance < radius) & (world[2] + 0.3 * world[0] < center[2] + 8)
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}.nii.gz")
    (folder / "LICENSE").write_text("not a mask")
    return folder


def _nearest(mask_file: Path, record: SubjectRecord) -> np.ndarray:
    """Look each voxel centre of the subject up in the mask's file, one by one."""
    image = nibabel.load(mask_file)
    mask = np.asarray(image.dataobj) > 0.5
    index = np.indices(record.shape).reshape(3, -1)
    to_mask = np.linalg.inv(image.affine) @ np.array(record.affine)
    # A hair off, so that a centre halfway between two of the mask's voxels falls to one side, whatever the rounding.
    there = np.rint(to_mask[:3, :3] @ index + to_mask[:3, 3:] - 1e-9).astype(int)
    inside = ((there >= 0) & (there < np.array(mask.shape)[:, None])).all(axis=0)
    i, j, k = np.where(inside, there, 0)
    found: np.ndarray = (mask[i, j, k] & inside).reshape(record.shape)
    return found


def test_masks_are_exact_and_the_change_is_the_one_asked_for(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    report = plant_lesions(store, tmp_path / "out", masks, contrast=-0.4, softness_mm=0, texture=0, seed=1)
    out = CohortStore.open(tmp_path / "out")
    assert out.check() == []
    assert len(report.planted) >= 5
    for subject_id, mask_name in report.planted.items():
        record = out.record(subject_id)
        brain, lesion = out.brain(subject_id), out.mask(subject_id, "lesion")
        assert lesion is not None
        expected = _nearest(masks / mask_name, record) & brain
        assert np.array_equal(lesion, expected)
        assert lesion.sum() >= 50
        before, after = store.image(subject_id), out.image(subject_id)
        assert np.array_equal(after[:, ~lesion], before[:, ~lesion])
        np.testing.assert_allclose(after[:, lesion], np.float32(0.6) * before[:, lesion], rtol=1e-6)
        for read in ("brain", "structures"):
            assert np.array_equal(getattr(out, read)(subject_id), getattr(store, read)(subject_id))
        assert np.array_equal(np.asarray(out.mask(subject_id, "head")), np.asarray(store.mask(subject_id, "head")))


def test_everything_is_recorded(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    report = plant_lesions(store, tmp_path / "out", masks, contrast=-0.3, softness_mm=4, texture=0.1, seed=7)
    out = CohortStore.open(tmp_path / "out")
    for subject_id, mask_name in report.planted.items():
        record, lesion = out.record(subject_id), out.mask(subject_id, "lesion")
        assert lesion is not None
        assert record.has_lesion
        assert record.notes["kept"] == 1
        assert record.notes["planted_lesion"] == {
            "mask": mask_name,
            "mask_sha256": hashlib.sha256((masks / mask_name).read_bytes()).hexdigest(),
            "contrast": -0.3,
            "softness_mm": 4.0,
            "texture": 0.1,
            "seed": 7,
            "num_voxels": int(lesion.sum()),
            "volume_mm3": pytest.approx(lesion.sum() * np.prod(record.spacing_mm)),
        }
        x = record.affine[0][0] * np.nonzero(lesion)[0] + record.affine[0][3]
        assert record.labels == {
            "site": "A",
            "anomalous": True,
            "lesion_type": "synthetic",
            "lesion_left": bool((x < 0).any()),
            "lesion_right": bool((x >= 0).any()),
        }
    for subject_id in (*report.healthy, *report.copied):
        assert out.record(subject_id) == store.record(subject_id)
        assert np.array_equal(out.image(subject_id), store.image(subject_id))
        assert out.mask(subject_id, "lesion") is None


def test_training_stays_healthy_and_so_does_the_share_asked_for(
    store: CohortStore, masks: Path, tmp_path: Path
) -> None:
    report = plant_lesions(store, tmp_path / "third", masks, seed=1)
    out = CohortStore.open(tmp_path / "third")
    assert [record.subject_id for record in out.subjects()] == [record.subject_id for record in store.subjects()]
    for split, num in LAYOUT.items():
        assert len(out.subjects(split)) == num
        ill = len(out.subjects(split, healthy=False))
        assert ill == (0 if split == "train" else num - 1)
    assert set(report.copied) == {record.subject_id for record in store.subjects("train")}
    assert len(report.healthy) == 3
    everyone = plant_lesions(store, tmp_path / "all", masks, seed=1, healthy_fraction=0, splits=("test",))
    assert len(everyone.planted) == LAYOUT["test"]
    assert not everyone.healthy


def test_a_split_named_twice_counts_once(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    once = plant_lesions(store, tmp_path / "once", masks, seed=1, splits=("test",))
    twice = plant_lesions(store, tmp_path / "twice", masks, seed=1, splits=("test", "test"))
    assert (twice.planted, twice.healthy, twice.digest) == (once.planted, once.healthy, once.digest)


def test_a_store_without_held_out_subjects_is_refused(masks: Path, tmp_path: Path) -> None:
    learnt_from = _fill(tmp_path / "train", [("train", "s1")])
    with pytest.raises(CohortError, match="holds no healthy subject in the splits gate, test"):
        plant_lesions(learnt_from, tmp_path / "out", masks, splits=("gate", "test"))
    assert not (tmp_path / "out").exists()


def test_a_lesion_depends_on_seed_and_subject_alone(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    whole = plant_lesions(store, tmp_path / "whole", masks, seed=3, healthy_fraction=0)
    again = plant_lesions(store, tmp_path / "again", masks, seed=3, healthy_fraction=0)
    other = plant_lesions(store, tmp_path / "other", masks, seed=4, healthy_fraction=0)
    assert whole.digest == again.digest
    assert whole.digest != other.digest
    # The same two subjects in another order, in other splits, without the others.
    few = _fill(tmp_path / "few", [("gate", "s302"), ("test", "s100")])
    part = plant_lesions(few, tmp_path / "part", masks, seed=3, healthy_fraction=0)
    one, two = CohortStore.open(tmp_path / "whole"), CohortStore.open(tmp_path / "part")
    for subject_id in ("s302", "s100"):
        assert part.planted[subject_id] == whole.planted[subject_id]
        assert np.array_equal(one.image(subject_id), two.image(subject_id))


def test_a_second_run_completes_and_other_settings_are_refused(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    first = plant_lesions(store, tmp_path / "out", masks, seed=1)
    assert plant_lesions(store, tmp_path / "out", masks, seed=1) == first
    with pytest.raises(StoreError):
        plant_lesions(store, tmp_path / "out", masks, seed=1, contrast=-0.2)
    assert CohortStore.open(tmp_path / "out").digest == first.digest


def test_soft_border_and_texture(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    soft = plant_lesions(store, tmp_path / "soft", masks, seed=1, softness_mm=20, texture=0)
    rough = plant_lesions(store, tmp_path / "rough", masks, seed=1, softness_mm=20, texture=0.5)
    assert soft.planted == rough.planted
    one, two = CohortStore.open(tmp_path / "soft"), CohortStore.open(tmp_path / "rough")
    for subject_id in soft.planted:
        lesion, brain = one.mask(subject_id, "lesion"), one.brain(subject_id)
        assert lesion is not None
        assert np.array_equal(lesion, np.asarray(two.mask(subject_id, "lesion")))
        change = 1 - one.image(subject_id)[0][brain] / store.image(subject_id)[0][brain]
        inside = lesion[brain]
        assert change[inside].min() >= 0.2 - 1e-5  # at least half of 0.4 within the mask, less than half outside
        assert change[~inside].max() < 0.2
        assert ((change > 0.01) & ~inside).any()
        assert np.array_equal(one.image(subject_id)[:, ~brain], store.image(subject_id)[:, ~brain])
        uneven = 1 - two.image(subject_id)[0][brain] / store.image(subject_id)[0][brain]
        ratio = uneven[inside] / change[inside]
        assert 0.1 < ratio.std() < 1
        assert ratio.min() >= -1e-4
        assert ((uneven != 0) == (change != 0)).mean() > 0.97


def test_intensities_overlap_and_brighter_lesions_stay_within_the_range(
    store: CohortStore, masks: Path, tmp_path: Path
) -> None:
    dark = plant_lesions(store, tmp_path / "dark", masks, seed=1)
    bright = plant_lesions(store, tmp_path / "bright", masks, seed=1, contrast=0.8)
    for name, report in (("dark", dark), ("bright", bright)):
        out = CohortStore.open(tmp_path / name)
        for subject_id in report.planted:
            image, lesion, brain = out.image(subject_id)[0], out.mask(subject_id, "lesion"), out.brain(subject_id)
            assert lesion is not None
            healthy = image[brain & ~lesion]
            if name == "dark":
                low, high = np.percentile(healthy, [1, 99])
                assert ((image[lesion] > low) & (image[lesion] < high)).mean() > 0.5
            assert image.max() <= store.image(subject_id)[0].max()


@given(arrays(bool, (6, 7, 5)), st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 3.5)]), st.floats(0, 12))
@settings(max_examples=60)
def test_profile_is_at_least_half_exactly_on_the_mask(
    mask: np.ndarray, spacing: tuple[float, float, float], softness: float
) -> None:
    mask[0, 0, 0], mask[-1, -1, -1] = True, False
    profile = lesion_profile(mask, spacing, softness)
    assert np.array_equal(profile >= 0.5, mask)
    assert profile.min() >= 0
    assert profile.max() <= 1


def test_profile_rises_linearly_across_a_plane() -> None:
    mask = np.zeros((20, 5, 5), bool)
    mask[10:] = True
    profile = lesion_profile(mask, (1.0, 1.0, 1.0), 8.0)[:, 2, 2]
    position = np.arange(20) - 9.5  # mm from the surface, which lies between voxels 9 and 10
    np.testing.assert_allclose(profile, np.clip(0.5 + position / 8, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"masks": "nowhere"}, SettingError, "is not a folder"),
        ({"masks": "empty"}, SettingError, "holds no .nii"),
        ({"masks": "broken"}, VolumeError, "broken.nii.gz"),
        ({"masks": "far"}, CohortError, "none of the 1 masks has 50 voxels in the brain"),
        ({"splits": ("test", "validaton")}, SettingError, "splits.1: input should be 'validation', 'gate' or 'test'"),
        ({"splits": ("train",)}, SettingError, "splits.0: input should be 'validation', 'gate' or 'test'"),
        ({"splits": ()}, SettingError, "splits"),
        ({"contrast": float("nan")}, SettingError, "contrast"),
        ({"contrast": -1.5}, SettingError, "contrast"),
        ({"softness_mm": -1}, SettingError, "softness_mm"),
        ({"healthy_fraction": 1.0}, SettingError, "healthy_fraction"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    store: CohortStore, masks: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.nii.gz").write_bytes((masks / "a.nii.gz").read_bytes()[:300])
    (tmp_path / "far").mkdir()
    image = nibabel.load(masks / "a.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 500
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "far" / "far.nii.gz")
    arguments = {"masks": masks, **change}
    if isinstance(arguments["masks"], str):
        arguments["masks"] = tmp_path / arguments["masks"]
    with pytest.raises(error, match=says) as caught:
        plant_lesions(store, tmp_path / "out", **arguments)  # type: ignore[arg-type]  # arguments of several types by name
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_store_itself_and_negative_intensities_are_refused(store: CohortStore, masks: Path, tmp_path: Path) -> None:
    before = store.digest
    with pytest.raises(StoreError, match="is the store that the lesions are for"):
        plant_lesions(store, store.path, masks)
    assert CohortStore.open(store.path).digest == before
    scored = _fill(tmp_path / "scored", [("test", "s1")], shift=0.8)
    with pytest.raises(VolumeError, match="s1 has negative intensities"):
        plant_lesions(scored, tmp_path / "out", masks)


def test_real_lesion_shapes(store: CohortStore, tmp_path: Path) -> None:
    data = Path(os.environ.get("VESALIUS_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    folder = data / "stroke_lesion_masks"
    if not folder.is_dir():
        pytest.skip(f"no real lesion masks at {folder}: set VESALIUS_DATA to test with them")
    report = plant_lesions(store, tmp_path / "out", folder, seed=1)
    out = CohortStore.open(tmp_path / "out")
    for subject_id, mask_name in report.planted.items():
        lesion = out.mask(subject_id, "lesion")
        assert lesion is not None
        assert np.array_equal(lesion, _nearest(folder / mask_name, out.record(subject_id)) & out.brain(subject_id))
