"""What layouts refuse, as the command line says it: one sentence, exit code 2, the other subjects taken in."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.datasets.confinement import confine
from vesalius.datasets.layouts.example import example_affine, example_blob, example_head, write_bids_example
from vesalius.datasets.layouts.example_ct import write_cq500_example, write_ct_ich_example, write_reads
from vesalius.datasets.layouts.example_mr import write_brats_example, write_ixi_example, write_oasis1_example
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.infra.cli.app import app
from vesalius.platform.geometry import write_nifti
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COARSE = ("--recipe", "centered", "--set", "recipe.spacing_mm=10")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(done: Any, *words: str) -> str:
    """Check for one sentence on stderr that holds ``words``, and return it."""
    assert done.exit_code == 2, (done.exit_code, done.stderr, done.exception)
    assert "Traceback" not in done.stderr
    said: list[str] = [line for line in done.stderr.splitlines() if line.startswith("error ")]
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in said[0], said[0]
    return said[0]


def ids(store: Path) -> list[str]:
    return [record.subject_id for record in CohortStore.open(store).subjects()]


def manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
    return path


def scans(folder: Path, num: int = 3) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index in range(num):
        write_nifti(folder / f"{index}.nii", example_head(index), example_affine())
        rows.append({"subject_id": f"case-{index}", "image": f"{index}.nii"})
    return rows


# ---- paths that lead out of the folder


@pytest.mark.parametrize("how", ["absolute", "dots", "link", "linked folder", "circle", "long"])
def test_a_manifest_does_not_reach_out_of_its_folder(how: str, tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "secret"
    rows = scans(home)
    write_nifti(outside / "x.nii", example_head(9), example_affine())
    if how == "link":
        (home / "inside.nii").symlink_to(outside / "x.nii")
    if how == "linked folder":
        (home / "folder").symlink_to(outside)
    if how == "circle":
        (home / "inside.nii").symlink_to(home / "inside.nii")
    rows[1]["image"] = {
        "absolute": str(outside / "x.nii"),
        "dots": "../secret/x.nii",
        "link": "inside.nii",
        "linked folder": "folder/x.nii",
        "circle": "inside.nii",
        "long": "x" * 5000 + ".nii",
    }[how]
    source = manifest(home / "cohort.csv", rows)
    store = tmp_path / "store"
    done = call("ingest", "manifest", source, store, *COARSE)
    said = refused(done, "1 of 3 subjects", "cohort.csv line 3", f"outside {home}" if how != "long" else "")
    assert ids(store) == ["case-0", "case-2"]
    if how in ("absolute", "dots", "link", "linked folder"):
        assert str(outside / "x.nii") in said
        assert "--within" in said
        assert call("ingest", "manifest", source, store, *COARSE, "--within", tmp_path).exit_code == 0
        assert ids(store) == ["case-0", "case-1", "case-2"]


def test_a_mask_is_held_to_the_folder_as_an_image_is(tmp_path: Path) -> None:
    rows = scans(tmp_path / "home")
    write_nifti(tmp_path / "lesion.nii", example_blob((11, 13, 10)), example_affine())
    rows[0]["lesion_mask"] = "../lesion.nii"
    done = call("ingest", "manifest", manifest(tmp_path / "home/c.csv", rows), tmp_path / "store", *COARSE)
    refused(done, "c.csv line 2", "lesion.nii", "outside")


def test_a_table_elsewhere_needs_to_be_told_where_the_scans_are(tmp_path: Path) -> None:
    """The common case of scans on a disk that may only be read: absolute paths, and one word on the command line."""
    rows = scans(tmp_path / "archive")
    for row in rows:
        row["image"] = str(tmp_path / "archive" / str(row["image"]))
    source = manifest(tmp_path / "home/cohort.csv", rows)
    refused(call("ingest", "manifest", source, tmp_path / "store", *COARSE), "3 of 3 subjects", "--within")
    assert not (tmp_path / "store").exists()
    done = call("ingest", "manifest", source, tmp_path / "store", *COARSE, "--within", tmp_path / "archive")
    assert done.exit_code == 0, done.stderr
    # Paths relative to that folder, not to the table: said, since they are what one might expect.
    bare = [{**row, "image": f"case{index}.nii"} for index, row in enumerate(rows)]
    relative = manifest(tmp_path / "home/relative.csv", bare)
    done = call("ingest", "manifest", relative, tmp_path / "c", *COARSE, "--within", tmp_path / "archive")
    refused(done, "relative.csv line 2", "they start at the table and not at that folder")
    # The same with the table beside the scans' folders and not above them: no path leads out, and none leads anywhere.
    inner = manifest(tmp_path / "archive/tables/relative.csv", rows[:1] + bare[1:])
    done = call("ingest", "manifest", inner, tmp_path / "d", *COARSE, "--within", tmp_path / "archive")
    lost = tmp_path / "archive/tables/case1.nii"
    where = f"relative.csv line 3: {lost}: there is no such file; where a table's paths are relative, they start at the"
    refused(done, "2 of 3 subjects", where, f"table and not at {tmp_path / 'archive'}")
    assert ids(tmp_path / "d") == ["case-0"]
    missing = call("ingest", "manifest", source, tmp_path / "b", *COARSE, "--within", tmp_path / "nowhere")
    refused(missing, "--within", "no such folder")


def test_links_within_the_folder_and_a_root_that_is_a_link_are_followed(tmp_path: Path) -> None:
    """As git-annex keeps data sets: every file a link into the tree's own store of contents."""
    root = write_bids_example(tmp_path / "real")
    (root / ".annex").mkdir()
    for number, path in enumerate(sorted(root.rglob("*.nii*"))):
        path.rename(root / ".annex" / f"{number}{''.join(path.suffixes)}")
        path.symlink_to(os.path.relpath(root / ".annex" / f"{number}{''.join(path.suffixes)}", path.parent))
    (tmp_path / "link").symlink_to(root)
    done = call("ingest", "bids", tmp_path / "link", tmp_path / "store", *COARSE)
    assert done.exit_code == 0, done.stderr
    assert len(ids(tmp_path / "store")) == 5


def test_half_of_an_analyze_pair_elsewhere(tmp_path: Path) -> None:
    root = write_oasis1_example(tmp_path / "oasis")
    image = next(root.glob("disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/*masked_gfc.img"))
    image.rename(tmp_path / "elsewhere.img")
    image.symlink_to(tmp_path / "elsewhere.img")
    done = call("ingest", "oasis1", root, tmp_path / "store", *COARSE)
    refused(done, "1 of 4 subjects", "OAS1_0001_MR1", "masked_gfc.img", "outside")


@pytest.mark.parametrize(("named", "linked"), [("x.hdr", "x.img"), ("x.img", "x.hdr"), ("X.HDR", "X.IMG")])
def test_either_half_of_an_analyze_pair_is_held_to_the_folder(named: str, linked: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / linked).write_bytes(b"secret")
    (tmp_path / "home" / named).write_bytes(b"")
    (tmp_path / "home" / linked).symlink_to(tmp_path / linked)
    raw = RawSubject(subject_id="a", images={"image": str(tmp_path / "home" / named)})
    (kept,) = confine([raw], tmp_path / "home")
    assert f"it leads to {tmp_path / linked}" in str(kept.problem)


def test_a_file_that_nobody_can_follow_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    bad = RawSubject(subject_id="a", images={"image": str(tmp_path / "x\0y.nii")}, origin="line 2")
    good = RawSubject(subject_id="b", images={"image": str(tmp_path / "b.nii")})
    first, second = confine([bad, good], tmp_path)
    assert "cannot be followed" in str(first.problem)
    assert second == good


# ---- tables


def reads_alone(root: Path) -> Path:
    """Write CQ500's table beside an empty scan: it is read before any series is."""
    (root / "CQ500-CT-1").mkdir(parents=True)
    write_reads(root / "reads.csv", {"CQ500-CT-1": (set(), {"ICH"}, set()), "CQ500-CT-2": (set(), set(), set())})
    return root


@pytest.mark.parametrize(
    ("layout", "make", "table", "column"),
    [
        ("cq500", reads_alone, "reads.csv", "R2:BleedLocation-Left"),
        ("ct_ich", write_ct_ich_example, "hemorrhage_diagnosis_raw_ct.csv", "Subarachnoid"),
        ("ixi", write_ixi_example, "IXI.csv", "AGE"),
        ("oasis1", write_oasis1_example, "oasis_cross-sectional.csv", "CDR"),
        ("brats", write_brats_example, "name_mapping.csv", "Grade"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "doubled", "not text", "empty"])
def test_a_table_with_a_column_missing_or_doubled(
    layout: str, make: Callable[[Path], Path], table: str, column: str, how: str, tmp_path: Path
) -> None:
    root = make(tmp_path / "raw")
    path = root / table
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header, *rows = list(csv.reader(stream))
    place = header.index(column)
    if how == "missing":
        changed = [[cell for index, cell in enumerate(row) if index != place] for row in (header, *rows)]
    else:
        changed = [[*row, row[place]] for row in (header, *rows)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(changed)
    if how == "not text":
        path.write_bytes(b"\xff\xfe\x00\x01")
    if how == "empty":
        path.write_bytes(b"")
    words = {
        "missing": f"has no column {column}",
        "doubled": f"names the column '{column}' twice",
        "not text": "is not UTF-8 text",
        "empty": "is empty: expected a header line",
    }
    modality = "CT" if layout in ("cq500", "ct_ich") else "T1w"
    done = call("ingest", layout, root, tmp_path / "store", *COARSE, "--modality", modality)
    refused(done, str(path), words[how])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("cell", "words"),
    [("2", "R1:ICH is '2': expected 0 or 1"), ("", "R1:ICH is '': expected 0 or 1"), ("yes", "R1:ICH is 'yes'")],
)
def test_a_vote_that_is_none(cell: str, words: str, tmp_path: Path) -> None:
    root = reads_alone(tmp_path / "raw")
    lines = (root / "reads.csv").read_text().splitlines()
    name, category, _, *rest = lines[2].split(",")
    lines[2] = ",".join([name, category, cell, *rest])
    (root / "reads.csv").write_text("\n".join(lines))
    refused(call("ingest", "cq500", root, tmp_path / "store"), "reads.csv line 3", words)


def test_a_scan_read_twice(tmp_path: Path) -> None:
    root = reads_alone(tmp_path / "raw")
    lines = (root / "reads.csv").read_text().splitlines()
    (root / "reads.csv").write_text("\n".join([*lines, lines[1]]))
    refused(call("ingest", "cq500", root, tmp_path / "store"), "reads.csv line 4 names CQ500-CT-1 a second time")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    root = write_cq500_example(tmp_path / "raw")
    for table in ("reads.csv", "series.csv"):
        content = (root / table).read_bytes().replace(b"\r\n", b"\n")
        (root / table).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    done = call("ingest", "cq500", root, tmp_path / "store", "--recipe", "as_is")
    assert done.exit_code == 0, done.stderr
    assert len(ids(tmp_path / "store")) == 5


# ---- masks


def broken_brats(tmp_path: Path, value: int | None) -> Path:
    """Write BraTS' example with one scan's mask changed: another label in it, or (None) gone."""
    import nibabel

    root = write_brats_example(tmp_path / "raw")
    path = root / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    if value is None:
        path.unlink()
    else:
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[labels == 4] = value
        write_nifti(path, labels, image.affine)
    return root


def test_a_mask_with_a_label_of_another_year(tmp_path: Path) -> None:
    done = call("ingest", "brats", broken_brats(tmp_path, 3), tmp_path / "store", *COARSE, "--modality", "FLAIR")
    refused(done, "1 of 7 subjects", "BraTS2021_00000_seg.nii.gz holds the value 3: expected 0 and the labels 1, 2, 4")
    assert "BraTS2021_00000" not in ids(tmp_path / "store")


def test_a_subject_without_its_mask(tmp_path: Path) -> None:
    done = call("ingest", "brats", broken_brats(tmp_path, None), tmp_path / "store", *COARSE, "--modality", "FLAIR")
    refused(done, "1 of 7 subjects", "BraTS2021_00000 has no mask: expected BraTS2021_00000_seg.nii.gz")
    assert "BraTS2021_00000" not in ids(tmp_path / "store")


def test_a_manifest_says_which_labels_mark_lesion(tmp_path: Path) -> None:
    rows = scans(tmp_path)
    for row, value in zip(rows, (4, 3, 0), strict=True):
        name = f"mask-{row['subject_id']}.nii"
        write_nifti(tmp_path / name, example_blob((11, 13, 10)) * np.uint8(value), example_affine())
        row.update(lesion_mask=name, lesion_labels="1 2 4", split="test")
    done = call("ingest", "manifest", manifest(tmp_path / "c.csv", rows), tmp_path / "store", *COARSE)
    refused(done, "1 of 3 subjects", "mask-case-1.nii holds the value 3")
    rows[0]["lesion_labels"] = "one"
    done = call("ingest", "manifest", manifest(tmp_path / "c.csv", rows), tmp_path / "other", *COARSE)
    refused(done, "c.csv line 2: lesion_labels is 'one': expected whole numbers above 0, such as 1 2 4")


@pytest.mark.parametrize("axis", [0, 1])
def test_a_brain_mask_that_is_mirrored(axis: int, tmp_path: Path) -> None:
    rows = scans(tmp_path)
    head = example_head(7)
    head[:9, :13] = 0
    write_nifti(tmp_path / "1.nii", head, example_affine(flipped=True))
    write_nifti(tmp_path / "mask.nii", np.flip(head > 0, axis), example_affine(flipped=True))
    rows[1]["brain_mask"] = "mask.nii"
    done = call("ingest", "manifest", manifest(tmp_path / "c.csv", rows), tmp_path / "store", *COARSE)
    refused(done, "mask.nii looks mirrored", ("left to right", "front to back")[axis], "1.nii")
    assert ids(tmp_path / "store") == ["case-0", "case-2"]


def test_an_image_given_for_a_mask(tmp_path: Path) -> None:
    rows = scans(tmp_path)
    rows[1]["lesion_mask"] = "2.nii"
    done = call("ingest", "manifest", manifest(tmp_path / "c.csv", rows), tmp_path / "store", *COARSE)
    refused(done, "2.nii holds the values", "is it an image?")
