"""Findings of head CT in phantoms: each where it should be, as large and as bright as said, nothing else changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.ct_findings import CT_FINDINGS
from vesalius.datasets.layouts.phantom import PhantomLayout, write_cohort
from vesalius.datasets.phantom import (
    CohortSettings,
    FindingSettings,
    LesionSettings,
    PhantomSettings,
    PhantomSubject,
    VariabilitySettings,
    make_phantom,
    phantom_cohort,
)
from vesalius.datasets.phantom.anatomy import HEAD, draw_anatomy
from vesalius.datasets.phantom.cohort import FINDING_LABELS, LABELS_OF
from vesalius.datasets.phantom.contrast import INTENSITIES, NOISE, TISSUES
from vesalius.datasets.phantom.settings import Finding
from vesalius.datasets.phantom.subject import _axes
from vesalius.platform.config import digest
from vesalius.platform.errors import SettingError
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from pathlib import Path

KINDS: tuple[Finding, ...] = get_args(Finding)
PLACED = ("intraparenchymal", "subdural", "epidural", "fracture", "hydrocephalus", "craniectomy", "shunt")
PLAIN = VariabilitySettings(noise=0, contrast_spread=0)
HEADS = PhantomSettings(shape=(48, 48, 48), modalities=("CT",), skull_stripped=False, variability=PLAIN)
BRAINS = HEADS.model_copy(update={"skull_stripped": True})


def made(kind: Finding, settings: PhantomSettings = HEADS, seed: int = 5, **changes: object) -> PhantomSubject:
    return make_phantom(seed, settings, finding=FindingSettings.model_validate({"kind": kind, **changes}))


def depth_in_skull(subject: PhantomSubject) -> np.ndarray:
    anatomy = draw_anatomy(subject.seed, subject.settings.variability)
    return HEAD.read(anatomy.head["cavity"], _axes(subject.settings))


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_changes_its_place_and_nothing_else(kind: Finding) -> None:
    healthy, subject, again = make_phantom(5, HEADS), made(kind), made(kind)
    assert np.array_equal(subject.image, again.image)
    changed = np.abs(subject.image[0] - healthy.image[0]) > 0.1
    assert changed.any()
    if kind not in PLACED:
        assert not subject.lesion.any()
        return
    assert subject.lesion.any()
    # What is not within one blurred voxel of the mask is as it was.
    from scipy.ndimage import distance_transform_edt

    away = distance_transform_edt(~subject.lesion, sampling=HEADS.spacing_mm)
    # A horn thinner than a voxel widens without a voxel of its own.
    share = 90 if kind == "hydrocephalus" else 100
    assert np.percentile(away[changed], share) < 3 * max(HEADS.spacing_mm)
    assert changed[subject.lesion].mean() > 0.9


@pytest.mark.parametrize("kind", [kind for kind in PLACED if kind != "fracture"])
def test_of_a_stripped_head_nothing_is_outlined_where_the_image_is_air(kind: Finding) -> None:
    for seed in (5, 6):
        subject = made(kind, BRAINS, seed=seed)
        assert subject.lesion.any()
        assert not (subject.lesion & ~subject.brain).any()
        assert subject.image[0][subject.lesion].min() > INTENSITIES["CT"]["air"] + 100


@pytest.mark.parametrize("kind", ["intraparenchymal", "subdural", "epidural"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bleed_is_blood_on_its_side_within_the_skull(kind: Finding, side: str) -> None:
    subject = made(kind, hemisphere=side, severity=0.7)
    blood, depth = INTENSITIES["CT"]["blood"], depth_in_skull(subject)
    # Nearer to the skull a voxel holds bone as well.
    free = subject.lesion & (depth > 5)
    assert np.percentile(subject.image[0][free], 80) == pytest.approx(blood, abs=1)
    assert subject.image[0][free].min() > (blood + INTENSITIES["CT"]["csf"]) / 2 - 0.1
    x = subject.affine[0, 0] * np.arange(48) + subject.affine[0, 3]
    where = np.broadcast_to(x[:, None, None], subject.lesion.shape)[subject.lesion]
    assert (where < 0).all() if side == "left" else (where > 0).all()
    assert depth[subject.lesion].min() > -1
    # Along the skull, outside of what the brain was, or within it; a stripped head keeps either.
    brain = make_phantom(5, HEADS).brain
    if kind == "intraparenchymal":
        assert brain[subject.lesion].all()
    else:
        assert depth[subject.lesion].min() < 1
        assert (subject.lesion & ~brain).sum() > 20
    assert subject.brain[subject.lesion].all()
    stripped = made(kind, BRAINS, hemisphere=side, severity=0.7)
    assert np.array_equal(stripped.lesion, subject.lesion)
    np.testing.assert_allclose(stripped.image[0][free], subject.image[0][free], atol=0.1)


def test_a_subdural_bleed_is_a_crescent_and_an_epidural_one_a_lens() -> None:
    def thickness_and_width(kind: Finding) -> tuple[float, float]:
        subject = made(kind, severity=0.5)
        points = np.argwhere(subject.lesion) * np.array(HEADS.spacing_mm)
        spread = np.ptp(points, axis=0)
        return float(depth_in_skull(subject)[subject.lesion].max()), float(spread.max())

    (thin, wide), (thick, narrow) = thickness_and_width("subdural"), thickness_and_width("epidural")
    assert thin == pytest.approx(14.5, abs=3)
    assert thick == pytest.approx(17.5, abs=4)
    assert wide > 110 > 80 > narrow


@pytest.mark.parametrize("kind", ["intraparenchymal", "subdural", "epidural", "hydrocephalus", "craniectomy"])
def test_severity_is_size(kind: Finding) -> None:
    sizes = [int(made(kind, severity=severity).lesion.sum()) for severity in (0.0, 0.5, 1.0)]
    assert sizes[0] * 1.2 < sizes[1] < sizes[2] / 1.2


def test_a_fracture_is_a_gap_in_bone_and_needs_a_skull() -> None:
    subject, healthy = made("fracture", severity=1.0), make_phantom(5, HEADS)
    assert healthy.image[0][subject.lesion].min() > 300
    loss = (healthy.image[0] - subject.image[0])[subject.lesion]
    assert loss.min() >= 0
    assert loss.mean() > 150
    assert not subject.brain[subject.lesion].any()
    with pytest.raises(SettingError, match="a fracture lies in the skull: set skull_stripped to false"):
        made("fracture", BRAINS)
    with pytest.raises(ValueError, match="a fracture lies in the skull"):
        CohortSettings(findings=("subdural", "fracture"))
    assert CohortSettings(findings=("fracture",), phantom=HEADS).findings == ("fracture",)


def test_wide_ventricles_hold_fluid_where_brain_was() -> None:
    subject, healthy = made("hydrocephalus", severity=1.0), make_phantom(5, HEADS)
    assert np.median(subject.image[0][subject.lesion]) == pytest.approx(INTENSITIES["CT"]["csf"], abs=1)
    assert np.median(healthy.image[0][subject.lesion]) > 25
    assert np.array_equal(subject.brain, healthy.brain)


def test_a_missing_piece_of_skull_is_filled_by_brain() -> None:
    subject, healthy = made("craniectomy"), make_phantom(5, HEADS)
    bone = healthy.image[0] > 300
    assert (bone & subject.lesion).sum() > 50
    assert subject.image[0][subject.lesion].max() < 500
    assert np.median(subject.image[0][subject.lesion]) == pytest.approx(INTENSITIES["CT"]["grey"], abs=1)
    # What stripping leaves bulges out through the hole.
    assert (subject.brain & ~healthy.brain).sum() > 50
    stripped = made("craniectomy", BRAINS)
    assert np.median(stripped.image[0][stripped.lesion]) == pytest.approx(INTENSITIES["CT"]["grey"], abs=1)


def test_metal_streaks_cross_their_slices_alone_and_end_at_the_head() -> None:
    healthy, subject = make_phantom(5, HEADS), made("metal", severity=0.5)
    change = np.abs(subject.image[0] - healthy.image[0])
    assert change.max() > 2_000
    by_slice = change.mean(axis=(0, 1))
    assert by_slice.max() > 20 * np.median(by_slice)
    metal = subject.image[0] > 2_000
    assert (change[~healthy.head & ~metal] == 0).all()


def test_noise_has_the_deviation_that_is_said() -> None:
    healthy, subject = make_phantom(5, HEADS), made("noise", severity=1.0)
    assert (subject.image - healthy.image).std() == pytest.approx(0.2 * NOISE["CT"], rel=0.02)


@pytest.mark.parametrize("kind", ["motion", "wrong_orientation", "wrong_registration"])
def test_masks_go_where_the_image_goes(kind: Finding) -> None:
    for seed in range(4):
        healthy, subject = make_phantom(seed, BRAINS), made(kind, BRAINS, seed=seed)
        air = INTENSITIES["CT"]["air"]
        assert subject.brain.dtype == np.bool_
        assert subject.structures.dtype == np.uint8
        # Linear for the image, the nearest for masks: they part by half a voxel at the rim.
        inside = subject.image[0] > air / 2
        assert 2 * (inside & subject.brain).sum() / (inside.sum() + subject.brain.sum()) > 0.97
        both = healthy.brain.sum() + subject.brain.sum()
        overlap = 2 * (healthy.brain & subject.brain).sum() / both
        assert overlap < 0.985
        assert np.array_equal(subject.affine, healthy.affine)


def test_a_wrong_orientation_is_a_turn_that_keeps_every_voxel_on_a_cubic_grid() -> None:
    center = (0.0, 0.0, 0.0)
    cube = BRAINS.model_copy(update={"center_mm": center, "box_mm": (260.0, 260.0, 260.0)})
    turned = set()
    for seed in range(8):
        healthy, subject = make_phantom(seed, cube), made("wrong_orientation", cube, seed=seed)
        options = {
            "upside down": healthy.image[0][:, :, ::-1],
            "front to back": healthy.image[0][:, ::-1],
            "on the back": np.rot90(healthy.image[0], 1, (1, 2)),
            "on the face": np.rot90(healthy.image[0], -1, (1, 2)),
            "to the left": np.rot90(healthy.image[0], 1, (0, 1)),
            "to the right": np.rot90(healthy.image[0], -1, (0, 1)),
        }
        same = [name for name, image in options.items() if np.array_equal(image, subject.image[0])]
        assert len(same) == 1
        turned.add(same[0])
    assert len(turned) > 1


@pytest.mark.parametrize("kind", PLACED)
def test_the_same_finding_on_every_grid(kind: Finding) -> None:
    volumes = []
    for edge in (40, 64):
        settings = HEADS.model_copy(update={"shape": (edge, edge, edge)})
        subject = made(kind, settings, severity=0.8)
        volumes.append(subject.lesion.sum() * np.prod(settings.spacing_mm) / 1000)
    if kind in ("fracture", "shunt"):  # thinner than a voxel, which they mark whole
        assert min(volumes) > 0
    else:
        assert volumes[0] == pytest.approx(volumes[1], rel=0.12)


# ---- a cohort


def test_kinds_take_turns_and_labels_say_which() -> None:
    kinds: tuple[Finding, ...] = ("subdural", "fracture", "wrong_orientation")
    cases = list(phantom_cohort(3, 0, 0, 9, HEADS, seed=2, findings=kinds))
    test = [case for case in cases if case.split == "test"]
    assert [case.group for case in test] == [
        "subdural", "fracture", "healthy", "wrong_orientation", "subdural", "healthy",
        "fracture", "wrong_orientation", "healthy",
    ]  # fmt: skip
    for case in cases:
        assert set(case.labels) == {"lesion_left", "lesion_right", "lesion_type", "finding", *FINDING_LABELS}
        assert case.anomalous == (case.group != "healthy") == (case.labels["finding"] != "none")
        assert case.labels["ich"] == case.labels["sdh"] == (case.group == "subdural")
        assert (case.labels["bleed_left"] != case.labels["bleed_right"]) == (case.group == "subdural")
        assert case.labels["fracture"] == (case.group == "fracture")
        assert not case.lesions
    bleed = test[0].make()
    x = np.argwhere(bleed.lesion)[:, 0].mean() * bleed.affine[0, 0] + bleed.affine[0, 3]
    assert (x < 0) == test[0].labels["bleed_left"]
    larger = {case.subject_id: case for case in phantom_cohort(4, 1, 1, 12, HEADS, seed=2, findings=kinds)}
    assert all(larger[case.subject_id] == case for case in cases)


def test_every_kind_has_labels_that_data_sets_share() -> None:
    assert set(LABELS_OF) == set(KINDS)
    assert set(FINDING_LABELS) <= set(CT_FINDINGS)


def test_a_cohort_without_findings_is_what_it_was(tmp_path: Path) -> None:
    # Tissues that only some heads have stand last, so that nobody else's intensities are drawn anew.
    names = [name for name, *_ in TISSUES]
    assert names.index("air") == 12
    assert names[13:] == ["blood", "catheter", "calcium", "venous_blood"]
    settings = CohortSettings(num_train=1, num_validation=2, num_gate=0, num_test=0)
    found = PhantomLayout().discover(write_cohort(tmp_path / "raw", settings), ("T1w",))
    assert all(set(raw.parameters) == {"seed", "settings", "lesions"} for raw in found)
    assert set(found[0].labels) == {"anomalous", "lesion_left", "lesion_right", "lesion_type"}
    # Of the version before findings; its parameters decide a generated subject's digest.
    assert digest(found[1].parameters) == "fe0448f817e475bf8dc44847cc6a3e6fba547cc01a9c239544704a538d5ec320"


def test_findings_reach_the_store(tmp_path: Path) -> None:
    kinds: tuple[Finding, ...] = ("wrong_orientation", "epidural")
    heads = HEADS.model_copy(update={"shape": (20, 22, 18)})
    cohort = CohortSettings(num_train=1, num_validation=0, num_gate=0, num_test=3, phantom=heads, findings=kinds)
    report = ingest("phantom", write_cohort(tmp_path / "raw", cohort), tmp_path / "store")
    assert not report.failed
    store = CohortStore.open(tmp_path / "store")
    for case in phantom_cohort(1, 0, 0, 3, heads, findings=kinds):
        subject, record = case.make(), store.record(case.subject_id)
        assert np.array_equal(store.image(case.subject_id), subject.image)
        assert record.has_lesion == case.anomalous
        assert record.labels == {**case.labels, "anomalous": case.anomalous}
        assert np.array_equal(store.brain(case.subject_id), subject.brain)
        mask = store.mask(case.subject_id, "lesion")
        assert (mask is not None and bool(mask.any())) == (case.group == "epidural")


def test_lesions_and_a_finding_go_together() -> None:
    lesion = LesionSettings(size_mm=20, center_mm=(-40.0, -20.0, 20.0))
    both = make_phantom(5, HEADS, lesions=[lesion], finding=FindingSettings(kind="epidural", hemisphere="right"))
    one, other = make_phantom(5, HEADS, lesions=[lesion]), made("epidural", hemisphere="right")
    assert np.array_equal(both.lesion, one.lesion | other.lesion)
