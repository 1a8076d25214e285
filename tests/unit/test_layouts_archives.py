"""Layouts of the public data sets: names of every year, odd tables, and the archives' real tables."""

from __future__ import annotations

import csv
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.datasets.layouts.brats import BratsLayout
from vesalius.datasets.layouts.cq500 import FINDINGS, READERS, Cq500Layout, read_reads, with_contrast
from vesalius.datasets.layouts.ct_ich import (
    BLEEDS,
    CtIchLayout,
    read_demographics,
    read_slices,
    subject_labels,
)
from vesalius.datasets.layouts.example_ct import write_cq500_example, write_ct_ich_example, write_reads
from vesalius.datasets.layouts.example_mr import write_ixi_example, write_oasis1_example
from vesalius.datasets.layouts.hcp import HcpLayout
from vesalius.datasets.layouts.ixi import IxiLayout
from vesalius.datasets.layouts.oasis1 import Oasis1Layout
from vesalius.datasets.layouts.open_ms import OpenMsLayout
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.datasets.layouts.raw import RawSubject


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(layout: Any, root: Path) -> dict[str, RawSubject]:
    return {raw.subject_id: raw for raw in layout.discover(root, layout.modalities(root))}


# ---- HCP


def test_hcp_takes_the_brains_in_acpc_space(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz",
        "100307/T1w/T2w_acpc_dc_restore_brain.nii.gz",
        "100307/T1w/T1w_acpc_dc_restore.nii.gz",
        "100307/MNINonLinear/T1w_restore_brain.nii.gz",
        "100408/T1w/T1w_acpc_dc_restore_brain.nii.gz",
        "notes/T1w/readme.txt",
    )
    assert HcpLayout().modalities(tmp_path) == ("T1w", "T2w")
    both, one = HcpLayout().discover(tmp_path, ["T2w", "T1w"])
    assert list(both.images.items()) == [
        ("T2w", str(tmp_path / "100307/T1w/T2w_acpc_dc_restore_brain.nii.gz")),
        ("T1w", str(tmp_path / "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz")),
    ]
    assert (one.subject_id, list(one.images)) == ("100408", ["T1w"])
    assert both.labels == one.labels == {"anomalous": False}


# ---- BraTS


def scan(root: Path, place: str, names: list[str], sign: str = "_", suffix: str = ".nii.gz") -> None:
    stem = place.rsplit("/", 1)[-1]
    touch(root, *(f"{place}/{stem}{sign}{name}{suffix}" for name in names))


OLD = ["t1", "t1ce", "t2", "flair", "seg"]
NEW = ["t1n", "t1c", "t2w", "t2f", "seg"]


@pytest.mark.parametrize(
    ("place", "names", "sign", "suffix", "group", "person", "labels"),
    [
        ("HGG/Brats18_2013_11_1", OLD, "_", ".nii.gz", "HGG", None, (1, 2, 4)),
        ("LGG/Brats18_TCIA09_141_1", OLD, "_", ".nii.gz", "LGG", None, (1, 2, 4)),
        ("MICCAI_BraTS_2018/HGG/Brats18_CBICA_AAB_1", OLD, "_", ".nii.gz", "HGG", None, (1, 2, 4)),
        ("LGG/BraTS19_TMC_09043_1", OLD, "_", ".nii.gz", "LGG", None, (1, 2, 4)),
        ("BraTS20_Training_001", OLD, "_", ".nii", None, None, (1, 2, 4)),
        ("BraTS2021_00000", OLD, "_", ".nii.gz", None, None, (1, 2, 4)),
        ("BraTS-GLI-00001-000", NEW, "-", ".nii.gz", None, "BraTS-GLI-00001", (1, 2, 3)),
        ("2023/BraTS-MEN-00004-001", NEW, "-", ".nii.gz", None, "BraTS-MEN-00004", (1, 2, 3)),
    ],
)
def test_brats_names_of_every_year(
    place: str,
    names: list[str],
    sign: str,
    suffix: str,
    group: str | None,
    person: str | None,
    labels: tuple[int, ...],
    tmp_path: Path,
) -> None:
    scan(tmp_path, place, names, sign, suffix)
    assert BratsLayout().modalities(tmp_path) == ("FLAIR", "T1ce", "T1w", "T2w")
    (raw,) = BratsLayout().discover(tmp_path, ["T2w", "FLAIR", "T1w", "T1ce"])
    stem = place.rsplit("/", 1)[-1]
    expected = dict(zip(("T1w", "T1ce", "T2w", "FLAIR"), names[:4], strict=True))
    assert raw.images == {key: str(tmp_path / place / f"{stem}{sign}{name}{suffix}") for key, name in expected.items()}
    assert list(raw.images) == ["T2w", "FLAIR", "T1w", "T1ce"]
    assert raw.lesion_mask == str(tmp_path / place / f"{stem}{sign}seg{suffix}")
    assert (raw.subject_id, raw.group, raw.person, raw.lesion_labels) == (stem, group, person, labels)
    assert raw.labels == {"anomalous": True}
    assert raw.problem is None


def test_brats_355_has_its_mask_under_another_name(tmp_path: Path) -> None:
    scan(tmp_path, "BraTS20_Training_355", OLD[:4], suffix=".nii")
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    (raw,) = BratsLayout().discover(tmp_path, ["FLAIR"])
    assert raw.lesion_mask == str(tmp_path / "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    assert raw.problem is None


def test_brats_a_mask_is_missing_only_where_others_have_one(tmp_path: Path) -> None:
    scan(tmp_path, "BraTS2021_00001", OLD[:4])
    (alone,) = BratsLayout().discover(tmp_path, ["FLAIR"])
    assert (alone.problem, alone.lesion_mask, alone.labels) == (None, None, {"anomalous": True})
    assert "cannot be evaluated voxel by voxel" in alone.warnings[0]
    scan(tmp_path, "BraTS2021_00000", OLD)
    first, second = BratsLayout().discover(tmp_path, ["FLAIR"])
    assert (first.problem, first.warnings) == (None, ())
    assert second.problem is not None
    assert "expected BraTS2021_00001_seg.nii.gz" in second.problem


def test_brats_tables_of_2020(tmp_path: Path) -> None:
    for number in ("001", "002"):
        scan(tmp_path, f"MICCAI_BraTS2020_TrainingData/BraTS20_Training_{number}", OLD, suffix=".nii")
    (tmp_path / "MICCAI_BraTS2020_TrainingData/name_mapping.csv").write_text(
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID\nLGG,NA,BraTS20_Training_002\n"
    )
    (tmp_path / "MICCAI_BraTS2020_TrainingData/survival_info.csv").write_text(
        "Brats20ID,Age,Survival_days,Extent_of_Resection\n"
        "BraTS20_Training_001,60.463,289,GTR\nBraTS20_Training_002,52,ALIVE (361 days later),\n"
    )
    one, two = BratsLayout().discover(tmp_path, ["FLAIR"])
    assert (one.group, two.group) == (None, "LGG")
    assert one.demographics == {"age": 60.463, "survival_days": 289, "extent_of_resection": "GTR"}
    assert two.demographics == {"age": 52, "survival_days": "ALIVE (361 days later)", "extent_of_resection": None}


# ---- open_ms


def test_open_ms_as_it_really_is(real_data: Path) -> None:
    layout = OpenMsLayout()
    for root in (real_data / "open_ms_data", real_data / "open_ms_data/cross_sectional/MNI"):
        assert layout.modalities(root) == ("FLAIR", "T1ce", "T1w", "T2w")
        (raw,) = layout.discover(root, ["FLAIR", "T1w", "T1ce"])
        assert (raw.subject_id, raw.problem) == ("patient07", None)
        names = [path.rsplit("/", 1)[1].split("_N4")[0] for path in raw.images.values()]
        assert names == ["FLAIR", "T1", "T1POST"]
        assert raw.lesion_mask is not None
        assert "GOLD_STANDARD" in raw.lesion_mask


def test_open_ms_without_its_mask(tmp_path: Path) -> None:
    touch(tmp_path, "MNI/patient01/FLAIR_N4_noneck_regtoMNI.nii.gz")
    (raw,) = OpenMsLayout().discover(tmp_path, ["FLAIR"])
    assert raw.problem is not None
    assert "patient01 has no mask" in raw.problem


# ---- IXI


def test_ixi_sites_and_a_table_that_contradicts_itself(tmp_path: Path) -> None:
    root = write_ixi_example(tmp_path)
    touch(root, "IXI-T1/IXI100-Guys-0747-T1.nii.gz", "IXI-T1/readme.nii.txt")
    people = found(IxiLayout(), root)
    assert {name: raw.group for name, raw in people.items()} == {
        "IXI002": "Guys", "IXI012": "HH", "IXI035": "IOP", "IXI100": "Guys",
    }  # fmt: skip
    assert people["IXI002"].demographics == {
        "height": 164, "weight": 58, "ethnic_id": 1, "age": 35.80013689, "sex": "f",
    }  # fmt: skip
    assert people["IXI012"].demographics == {
        "height": 175, "weight": None, "ethnic_id": 1, "age": 38.7816564, "sex": "m",
    }  # fmt: skip
    assert people["IXI035"].demographics["age"] is None
    assert people["IXI100"].demographics == {}
    assert list(people["IXI100"].images) == ["T1w"]
    assert IxiLayout().modalities(root) == ("T1w", "T2w")


def test_ixi_one_contrast_twice(tmp_path: Path) -> None:
    touch(tmp_path, "a/IXI002-Guys-0828-T1.nii.gz", "b/IXI002-Guys-0828-T1.nii.gz")
    (raw,) = IxiLayout().discover(tmp_path, ["T1w"])
    assert raw.problem is not None
    assert "twice" in raw.problem


# ---- OASIS-1


def test_oasis1_sessions_ratings_and_discs(tmp_path: Path) -> None:
    sessions = found(Oasis1Layout(), write_oasis1_example(tmp_path))
    assert {name: raw.person for name, raw in sessions.items()} == {
        "OAS1_0001_MR1": "OAS1_0001", "OAS1_0061_MR1": "OAS1_0061",
        "OAS1_0061_MR2": "OAS1_0061", "OAS1_0308_MR1": "OAS1_0308",
    }  # fmt: skip
    assert sessions["OAS1_0001_MR1"].labels == {"anomalous": False, "dementia": False, "cdr": 0}
    assert sessions["OAS1_0061_MR1"].labels == {"anomalous": False}  # young, not rated
    assert sessions["OAS1_0308_MR1"].labels == {"anomalous": True, "dementia": True, "cdr": 2}
    assert sessions["OAS1_0308_MR1"].group == "dementia"
    assert sessions["OAS1_0061_MR2"].demographics["Delay"] == 26
    assert sessions["OAS1_0001_MR1"].demographics["Delay"] is None
    image = sessions["OAS1_0061_MR2"].images["T1w"]
    assert image.endswith("T88_111/OAS1_0061_MR2_mpr_n3_anon_111_t88_masked_gfc.hdr")
    assert all(raw.problem is None for raw in sessions.values())


def test_oasis1_without_its_table(tmp_path: Path) -> None:
    root = write_oasis1_example(tmp_path)
    table = root / "oasis_cross-sectional.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if "0308" not in line))
    problem = found(Oasis1Layout(), root)["OAS1_0308_MR1"].problem
    assert problem is not None
    assert "no row for OAS1_0308_MR1" in problem
    table.unlink()
    with pytest.raises(CohortError, match=r"oasis_cross-sectional\.csv is missing"):
        found(Oasis1Layout(), root)


# ---- CQ500


def test_cq500_the_real_readers(real_data: Path) -> None:
    """205 bleeds and 39 fractures by majority, as the data set's own paper counts them (Chilamkurthy et al. 2018)."""
    path = real_data / "layout_facts/CQ500_reads.csv"
    reads = read_reads(path)
    assert reads.votes.shape == (491, 3, 14)
    counts = dict(zip(reads.findings, reads.majority().sum(axis=0).tolist(), strict=True))
    assert (counts["ich"], counts["fracture"]) == (205, 39)
    # The votes themselves, against the file read another way.
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert reads.names == tuple(row["name"] for row in rows)
    for number, reader in enumerate(READERS):
        for place, finding in enumerate(FINDINGS):
            assert reads.votes[:, number, place].tolist() == [row[f"{reader}:{finding}"] == "1" for row in rows]
    two_of_three = [sum(row[f"{reader}:BleedLocation-Left"] == "1" for reader in READERS) > 1 for row in rows]
    assert reads.majority()[:, reads.findings.index("bleed_left")].tolist() == two_of_three


def test_cq500_series_that_somebody_chose_by_eye_are_without_contrast(real_data: Path) -> None:
    """A public list of one usable series a scan: our words call all but the two of them plain that say contrast."""
    lines = (real_data / "layout_facts/CQ500_GoodDicomFolderList.txt").read_text().splitlines()
    chosen = Counter(line.strip().rsplit("/", 1)[1] for line in lines if line.strip())
    assert sum(chosen.values()) >= 488
    assert {name for name in chosen if with_contrast(name)} == {"CT C-2", "CT CECT THIN"}


@pytest.mark.parametrize(
    "name",
    ["CT POST CONTRAST", "CT C THIN", "CT 4cc sec 150cc D3D on", "CT ORAL IV-2", "CT CECT", "CT 5mm POST CONTRAST"],
)
def test_cq500_words_of_contrast(name: str) -> None:
    assert with_contrast(name)


def test_cq500_series_reads_and_folders(tmp_path: Path) -> None:
    root = write_cq500_example(tmp_path)
    scans = found(Cq500Layout(), root)
    assert sorted(scans) == ["CQ500-CT-11", "CQ500-CT-181", "CQ500-CT-20", "CQ500-CT-30", "CQ500-CT-427"]
    taken = {name: raw.series["CT"][0].split("/")[-2] for name, raw in scans.items()}
    assert taken == {
        "CQ500-CT-11": "CT 55mm Plain",  # the other lacks a slice
        "CQ500-CT-181": "CT PRE CONTRAST 5MM STD",
        "CQ500-CT-20": "CT 0.625mm-2",  # series.csv says so, against more slices
        "CQ500-CT-30": "CT BRAIN PLAIN",
        "CQ500-CT-427": "CT PLAIN THIN",  # not the contrast series with more slices
    }
    assert any("CT 55mm Plain-2" in warning for warning in scans["CQ500-CT-11"].warnings)
    labels = {name: {key for key, seen in raw.labels.items() if seen} for name, raw in scans.items()}
    assert labels == {
        "CQ500-CT-427": {"anomalous", "ich", "iph", "bleed_right"},
        "CQ500-CT-11": set(),
        "CQ500-CT-181": {"anomalous", "ich", "bleed_left"},
        "CQ500-CT-20": {"mass_effect"},
        "CQ500-CT-30": {"anomalous", "fracture", "calvarial_fracture"},
    }
    assert all(set(FINDINGS.values()) <= set(raw.labels) for raw in scans.values())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("CQ500CT20,CT 5mm\n", r"series\.csv line 2 names 'CQ500CT20': expected a name as reads\.csv has it"),
        ("CQ500-CT-20,CT 5mm\nCQ500-CT-20,CT C\n", r"series\.csv line 3 names CQ500-CT-20 a second time"),
    ],
)
def test_cq500_a_choice_that_would_choose_nothing(rows: str, words: str, tmp_path: Path) -> None:
    root = write_cq500_example(tmp_path)
    (root / "series.csv").write_text(f"name,series\n{rows}")
    with pytest.raises(CohortError, match=words):
        found(Cq500Layout(), root)


def test_cq500_what_is_not_known_is_said(tmp_path: Path) -> None:
    root = write_cq500_example(tmp_path)
    (root / "series.csv").write_text("name,series\nCQ500-CT-20,CT Plain\n")
    write_reads(root / "reads.csv", {"CQ500-CT-20": (set(), set(), set())})
    scans = found(Cq500Layout(), root)
    assert scans["CQ500-CT-20"].problem is not None
    assert "series.csv chooses 'CT Plain'" in scans["CQ500-CT-20"].problem
    assert "CT 5mm" in scans["CQ500-CT-20"].problem
    assert "no row for CQ500-CT-30" in str(scans["CQ500-CT-30"].problem)
    (root / "reads.csv").unlink()
    with pytest.raises(CohortError, match=r"reads\.csv is missing"):
        found(Cq500Layout(), root)


# ---- CT-ICH


def test_ct_ich_real_tables_of_version_1_0(real_data: Path) -> None:
    """36 of 82 patients bleed, and 46 are men with a mean age of 27.8 years: the archive's own README says so."""
    facts = real_data / "layout_facts"
    slices = read_slices(facts / "CTICH_v1_0_hemorrhage_diagnosis.csv")
    assert len(slices) == 2501
    labels = subject_labels(slices)
    assert len(labels) == 82
    assert sum(given["ich"] for given in labels.values()) == 36
    people = read_demographics(facts / "CTICH_v1_0_patient_demographics.csv")
    assert set(people) == set(labels)
    assert sum(person["sex"] == "Male" for person in people.values()) == 46
    ages = [person["age_years"] for person in people.values()]
    assert sum(age for age in ages if isinstance(age, int | float)) / 82 == pytest.approx(27.8, abs=0.1)
    assert people["050"] == {"age_years": 0.583333333, "sex": "Female", "note": "Subdural HGE"}
    # Slice 14 of the first patient, as the file's 15th line has it.
    read = next(read for read in slices if (read.subject_id, read.number) == ("049", 14))
    assert {name for name, seen in read.findings.items() if seen} == {"edh", "fracture"}


def test_ct_ich_odd_headers_of_1_3_1(tmp_path: Path) -> None:
    root = write_ct_ich_example(tmp_path)
    text = (root / "Patient_demographics.csv").read_text()
    assert "Age\n(years)" in text
    assert "diagnosis ," in text
    assert (root / "hemorrhage_diagnosis_raw_ct.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    scans = found(CtIchLayout(), root)
    assert sorted(scans) == ["049", "050", "058", "066", "130"]
    assert scans["050"].demographics == {"age_years": 0.583333333, "sex": "Female", "note": None}
    assert scans["049"].demographics == {"age_years": 49, "sex": "Male", "note": None}
    labels = {name: {key for key, seen in raw.labels.items() if seen} for name, raw in scans.items()}
    assert labels == {
        "049": {"anomalous", "ich", "edh"}, "050": set(), "058": {"anomalous", "ich", "iph"},
        "066": {"anomalous", "fracture"}, "130": set(),
    }  # fmt: skip
    assert all(raw.lesion_mask == str(root / f"masks/{name}.nii") for name, raw in scans.items())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("49,1,0,0,0,0,1,1,0", "contradict each other"),
        ("49,1,0,0,0,0,0,0,0", "contradict each other"),
        ("49,1,0,0,2,0,0,1,0", "Subarachnoid is '2': expected 0 or 1"),
        ("x,1,0,0,0,0,0,1,0", "number is 'x'"),
        ("49,one,0,0,0,0,0,1,0", "SliceNumber 'one'"),
        ("49,1,0,0,0,0,0,1,0\n49,1,0,0,0,0,0,1,0", "line 3: SliceNumber '1' is no number, or there a second time"),
    ],
)
def test_ct_ich_slices_that_cannot_be_so(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "slices.csv"
    path.write_text(f"PatientNumber,SliceNumber,{','.join(BLEEDS)},No_Hemorrhage,Fracture_Yes_No\n{line}\n")
    with pytest.raises(CohortError, match=words) as caught:
        read_slices(path)
    assert str(path) in str(caught.value)


def test_ct_ich_a_scan_without_mask_or_row(tmp_path: Path) -> None:
    root = write_ct_ich_example(tmp_path)
    (root / "masks/050.nii").unlink()
    (root / "ct_scans/131.nii").write_bytes(b"")
    (root / "masks/131.nii").write_bytes(b"")
    scans = found(CtIchLayout(), root)
    assert "expected masks/050.nii" in str(scans["050"].problem)
    assert "no row for 131" in str(scans["131"].problem)
    (root / "hemorrhage_diagnosis_raw_ct.csv").unlink()
    with pytest.raises(CohortError, match=r"hemorrhage_diagnosis_raw_ct\.csv is missing"):
        found(CtIchLayout(), root)
