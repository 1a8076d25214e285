"""Real archives through the command line: one command a folder, a checked store, lesions where experts drew them."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import SubjectRecord


def call(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def world_centre(mask: Any, affine: Any) -> Any:
    return np.asarray(affine)[:3, :3] @ np.argwhere(mask).mean(axis=0) + np.asarray(affine)[:3, 3]


def check_lesion(store: CohortStore, record: SubjectRecord, mask: Path) -> None:
    """Compare volume and centre of the stored lesion with the expert's file, in the file's own millimetres."""
    image = nibabel.load(mask)
    drawn = np.asarray(image.dataobj) > 0.5
    stored = store.mask(record.subject_id, "lesion")
    assert stored is not None
    assert record.has_lesion
    drawn_mm3 = drawn.sum() * abs(np.linalg.det(image.affine[:3, :3]))
    stored_mm3 = stored.sum() * float(np.prod(record.spacing_mm))
    assert stored_mm3 == pytest.approx(drawn_mm3, rel=0.1)
    assert record.source is not None
    to_source = np.asarray(record.source.to_source) @ np.asarray(record.affine)
    apart = world_centre(stored, to_source) - world_centre(drawn, image.affine)
    assert np.linalg.norm(apart) < max(record.spacing_mm)


def test_open_ms(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "open_ms_data"
    report = call("ingest", "open_ms", root, tmp_path / "store", "--modality", "FLAIR")
    assert report["added"] == ["patient07"]
    assert report["warnings"] == {}
    store = CohortStore.open(tmp_path / "store")
    assert store.check() == []
    (record,) = store.subjects()
    assert store.recipe["clip_minimum"] == 0.0  # the default recipe takes the ringing off
    check_lesion(store, record, next(root.rglob("GOLD_STANDARD*")))
    image, lesion = store.image("patient07")[0], store.mask("patient07", "lesion")
    # Lesions are bright on FLAIR: a mask that lay elsewhere would not be.
    assert np.median(image[lesion]) > np.median(image[store.brain("patient07")]) + 0.1


def test_brats2015_by_a_manifest(real_data: Path, tmp_path: Path) -> None:
    """One plain table, kept apart from the archive; the archive's background is a negative number and not 0."""
    archive = real_data / "brats2015"
    names = {
        "FLAIR": "Flair_subtrMeanDivStd.nii.gz",
        "brain_mask": "brainmask.nii.gz",
        "lesion_mask": "OTMultiClass.nii.gz",
    }
    patient = "brats_2013_pat0004_1"
    row = {"subject_id": patient, **{key: str(archive / patient / name) for key, name in names.items()}}
    with (tmp_path / "brats2015.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, [*row, "lesion_labels", "split"])
        table.writeheader()
        table.writerow({**row, "lesion_labels": "1 2 3 4", "split": "test"})
    store_path = tmp_path / "store"
    report = call(
        "ingest", "manifest", tmp_path / "brats2015.csv", store_path, "--within", archive, "--recipe", "centered"
    )
    assert report["added"] == [patient]
    store = CohortStore.open(store_path)
    assert store.check() == []
    (record,) = store.subjects("test")
    check_lesion(store, record, archive / patient / names["lesion_mask"])
    image, brain = store.image(patient)[0], store.brain(patient)
    assert (image[~brain] == 0).all()
    assert np.ptp(image[brain]) == pytest.approx(1.0)
    given = nibabel.load(archive / patient / names["brain_mask"])
    given_mm3 = (np.asarray(given.dataobj) > 0.5).sum() * abs(np.linalg.det(given.affine[:3, :3]))
    assert brain.sum() * float(np.prod(record.spacing_mm)) == pytest.approx(given_mm3, rel=0.02)
