"""DICOM series: what belongs together, what is no volume, and what an untrusted file may not do."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest

from vesalius.datasets.dicom import best_series, discovery, find_series, read_series, series_in
from vesalius.datasets.dicom.headers import SliceHeader, read_header
from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.dicom import DicomLayout
from vesalius.datasets.layouts.example_dicom import example_ct_head
from vesalius.datasets.recipes import centered
from vesalius.platform.errors import CohortError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PLACES = tuple(float(place) for place in range(-24, 25, 4))
SAGITTAL: dict[str, Any] = {"row": (0.0, 1.0, 0.0), "column": (0.0, 0.0, -1.0), "table": (-1.0, 0.0, 0.0)}
CORONAL: dict[str, Any] = {"row": (1.0, 0.0, 0.0), "column": (0.0, 0.0, -1.0), "table": (0.0, 1.0, 0.0)}


def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points[..., 0] + 2 * points[..., 1] - points[..., 2])


def plan(**changes: Any) -> SeriesPlan:
    return SeriesPlan(**{"places_mm": PLACES, "size": (12, 10), "thickness_mm": 4.0, **changes})


def change(path: Path, **tags: Any) -> None:
    """Write other tags into a file; None takes one away."""
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if keyword == "TransferSyntaxUID":
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(value)
            dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        elif value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def all_of(**tags: Any) -> Callable[[list[Path]], None]:
    def apply(files: list[Path]) -> None:
        for path in files:
            change(path, **tags)

    return apply


def fifth(**tags: Any) -> Callable[[list[Path]], None]:
    return lambda files: change(files[4], **tags)


def remove(*files: Path) -> None:
    for path in files:
        path.unlink()


def sideways(files: list[Path]) -> None:
    for index, path in enumerate(files):
        change(path, ImagePositionPatient=[index * 9, 0, index * 4])


def cut(files: list[Path], length: int) -> None:
    files[0].write_bytes(files[0].read_bytes()[:length])


BAD: dict[str, tuple[Callable[[list[Path]], Any], str]] = {
    "a slice missing": (
        lambda files: remove(files[4]),
        "missing between 003.dcm and 005.dcm: 8.00 mm apart where 4.00",
    ),
    "two missing": (
        lambda files: remove(files[2], files[9]),
        "missing between 001.dcm and 003.dcm: 8.00 mm apart where 4.00 mm were expected (the first of 2 such gaps)",
    ),
    "another image of one place": (
        lambda files: change(files[4], ImagePositionPatient=pydicom.dcmread(files[5]).ImagePositionPatient),
        "004.dcm and 005.dcm show different images of one place",
    ),
    "few slices": (lambda files: remove(*files[2:]), "it holds 2 images"),
    "a localiser": (all_of(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "it is a localiser"),
    "a topogram by name": (all_of(SeriesDescription="Topogram 0.6"), "it is a localiser"),
    "a phantom by body part": (all_of(BodyPartExamined="PHANTOM"), "shows a phantom"),
    "a phantom by study": (all_of(StudyDescription="Daily QA"), "shows a phantom"),
    "a phantom by ID": (
        all_of(PatientID="ACR PHANTOM 3"),
        "shows a phantom, by its description 'a phantom's patient ID'",
    ),
    "a dose report": (all_of(SeriesDescription="Dose Report"), "it is a dose report"),
    "a screenshot": (all_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary capture"),
    "a document": (all_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"), "encapsulated PDF"),
    "a structured report": (all_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67"), "dose report"),
    "an enhanced image": (all_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "enhanced multi-frame CT"),
    "a plan": (all_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5"), "RT Plan Storage"),
    "another modality": (all_of(Modality="PT"), "modality is 'PT'"),
    "several frames": (fifth(NumberOfFrames=3), "004.dcm holds 3 frames"),
    "mixed rows": (fifth(Rows=11), "mixed sizes: 000.dcm has 10 x 12 pixels and 004.dcm 11 x 12"),
    "mixed spacings": (fifth(PixelSpacing=[5, 5.1]), "mixed pixel spacings"),
    "a slice tilted otherwise": (
        fifth(ImageOrientationPatient=[1, 0, 0, 0, 0.98480775, 0.17364818]),
        "10.0 degrees apart",
    ),
    "a skewed orientation": (all_of(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]), "perpendicular unit vectors"),
    "an orientation of zeros": (all_of(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "perpendicular unit vectors"),
    "no orientation": (all_of(ImageOrientationPatient=None), "no usable ImageOrientationPatient"),
    "no position": (fifth(ImagePositionPatient=None), "004.dcm has no usable ImagePositionPatient"),
    "a position far away": (fifth(ImagePositionPatient=[0, 0, 1e9]), "004.dcm lies 1e+09 mm away"),
    "no pixel spacing": (all_of(PixelSpacing=None), "no usable PixelSpacing"),
    "a pixel spacing of zero": (all_of(PixelSpacing=[0, 0]), "no usable PixelSpacing"),
    "no rows": (fifth(Rows=None), "004.dcm None x 12"),
    "no slope": (fifth(RescaleSlope=None), "004.dcm has no usable RescaleSlope"),
    "a slope of zero": (fifth(RescaleSlope=0), "004.dcm has a RescaleSlope of 0"),
    "other units": (all_of(RescaleType="OD"), "scaled to OD"),
    "colour": (all_of(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "3 values a pixel, shown as RGB"),
    "odd bits": (all_of(BitsAllocated=12), "12 bits a pixel"),
    "no pixels": (fifth(PixelData=None), "004.dcm has no pixels"),
    "pixels cut off": (lambda files: cut(files, files[0].stat().st_size - 30), "000.dcm is truncated"),
    "lossy pixels": (
        all_of(TransferSyntaxUID="1.2.840.10008.1.2.4.50"),
        "compressed as JPEG Baseline (Process 1), which loses what was measured",
    ),
    "an encoding without a decoder": (
        all_of(TransferSyntaxUID="1.2.840.10008.1.2.4.201"),
        "which cannot be decoded here: decompress them first",
    ),
    "values in high bits": (all_of(BitsStored=12, HighBit=15), "keeps its values in bits 4 to 15"),
    "no stored bits": (fifth(BitsStored=None), "004.dcm says that None of 16 bits are its values'"),
    "more stored bits than there are": (fifth(BitsStored=17, HighBit=16), "004.dcm says that 17 of 16 bits"),
    "an unknown encoding": (all_of(TransferSyntaxUID="1.2.3.4"), "compressed as an unknown encoding"),
    "two patients": (fifth(PatientID="somebody else"), "are of different patients"),
    "no series": (all_of(SeriesInstanceUID=None), "no SeriesInstanceUID"),
    "a tilt that the orientation does not have": (all_of(GantryDetectorTilt=18.5), "tilted by 18.5 degrees by its tag"),
    "a table that runs sideways": (
        lambda files: sideways(files),
        "drift sideways by 66.0 degrees",
    ),
    "a damaged neighbour": (lambda files: cut(files, 140), "000.dcm beside it cannot be read"),
    "no DICOM mark": (lambda files: files[0].write_bytes(b"x" * 4000), "000.dcm beside it cannot be read"),
    "too large": (lambda files: os.truncate(files[0], 300 << 20), "000.dcm beside it cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_volume_is_named_and_left_out(tmp_path: Path, case: str) -> None:
    damage, words = BAD[case]
    files = write_series(tmp_path, plan(), values)
    assert [series.problem for series in find_series(tmp_path)] == [None]
    damage(files)
    found = find_series(tmp_path)
    problems = [series.problem for series in found if series.problem is not None]
    assert len(problems) == len(found)
    assert any(words in problem for problem in problems), problems
    for series in found:
        assert series.problem is not None
        assert "\n" not in series.problem
        assert str(tmp_path) in series.problem
        # Reading them all the same is refused as well, if the files themselves are at fault.
        if "beside it" in series.problem:
            continue
        with pytest.raises(VolumeError):
            read_series(series.files)


def test_an_exact_copy_is_left_out_by_name(tmp_path: Path) -> None:
    files = write_series(tmp_path, plan(), values)
    shutil.copyfile(files[4], tmp_path / "copy of 4.dcm")
    (series,) = find_series(tmp_path)
    assert series.problem is None
    assert len(series.files) == len(PLACES)
    (warning,) = series.warnings
    assert "copy of 4.dcm of 004.dcm" in warning or "004.dcm of copy of 4.dcm" in warning


def test_several_series_in_one_folder_and_folders_below(tmp_path: Path) -> None:
    write_series(tmp_path, plan(key="one", tags={"SeriesNumber": 7}), values, name="a{}".format)
    write_series(tmp_path, plan(key="two", tags={"SeriesNumber": 3}), values, name="b{}.ima".format)
    write_series(tmp_path / "deep/er", plan(key="three", tags={"SeriesNumber": None}), values)
    (tmp_path / "notes.txt").write_text("nothing")
    found = find_series(tmp_path)
    assert [(series.description, len(series.files), series.problem) for series in found] == [
        ("two", 13, None),
        ("one", 13, None),
        ("three", 13, None),
    ]


def test_a_series_of_three_stacks_is_taken_apart(tmp_path: Path) -> None:
    """As consoles export axial, coronal and sagittal reformats under one UID."""
    for name, axes in (("a", {}), ("s", SAGITTAL), ("c", CORONAL)):
        write_series(tmp_path, plan(**axes), values, name=(name + "{}.dcm").format)
    found = find_series(tmp_path)
    assert [(len(series.files), series.problem) for series in found] == [(13, None)] * 3
    assert len({series.uid for series in found}) == 1
    axial = best_series(found)
    assert {path.name[0] for path in axial.files} == {"a"}


def test_a_scout_under_the_same_uid_is_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path, plan(), values)
    scout = plan(**{**SAGITTAL, "places_mm": (0.0,)})
    scout = SeriesPlan(**{**vars(scout), "tags": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}})
    write_series(tmp_path, scout, values, name="scout{}.dcm".format)
    problems = {len(series.files): series.problem for series in find_series(tmp_path)}
    assert problems[13] is None
    assert problems[1] is not None
    assert "localiser" in problems[1]


def test_acquisitions_of_one_place_are_taken_apart_and_blocks_of_one_head_are_not(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(
            tmp_path / "twice",
            plan(tags={"AcquisitionNumber": number}),
            lambda points, number=number: values(points) + number,  # type: ignore[misc]  # mypy cannot infer the default
            name=(f"{number}-" + "{}.dcm").format,
        )
    assert [(len(series.files), series.problem) for series in find_series(tmp_path / "twice")] == [(13, None)] * 2
    files = write_series(tmp_path / "blocks", plan(), values)
    for index, path in enumerate(files):
        kind = ["ORIGINAL", "PRIMARY", "AXIAL", *(["ADD"] if index < 6 else [])]
        change(path, AcquisitionNumber=index // 2, ImageType=kind)
    assert [(len(series.files), series.problem) for series in find_series(tmp_path / "blocks")] == [(13, None)]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"tags": {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}}),
        ({}, SAGITTAL),
        ({}, {"tags": {"ContrastBolusAgent": "Iohexol"}}),
        ({"tags": {"SeriesDescription": "CT PRE CONTRAST 5MM"}}, {"tags": {"SeriesDescription": "POST CONTRAST"}}),
        ({"tags": {"ConvolutionKernel": "STANDARD"}}, {"tags": {"ConvolutionKernel": "BONEPLUS"}}),
        ({"tags": {"ConvolutionKernel": "H31s"}}, {"tags": {"ConvolutionKernel": "H60s"}}),
        ({}, {"places_mm": PLACES[:8]}),
        ({"tags": {"SeriesNumber": 2}}, {"tags": {"SeriesNumber": 5}}),
    ],
)
def test_the_better_series_is_taken(tmp_path: Path, better: dict[str, Any], worse: dict[str, Any]) -> None:
    for order in ((better, worse), (worse, better)):
        folder = tmp_path / str(order is not None and order[0] is better)
        for index, changes in enumerate(order):
            write_series(folder, plan(key=f"k{index}", **changes), values, name=(f"{index}-" + "{}").format)
        found = find_series(folder)
        assert all(series.problem is None for series in found)
        assert {path.name[0] for path in best_series(found).files} == {str(order.index(better))}


def test_the_one_series_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="there is no DICOM file"):
        series_in(tmp_path)
    root = DicomLayout().write_example(tmp_path / "raw")
    taken = series_in(root / "patient-2")
    assert taken.description == "AXIAL"
    assert sum("'BONE' (19 files) was not taken" in text for text in taken.warnings) == 1
    assert sum("'Dose Report' (1 file) is left out" in text for text in taken.warnings) == 1
    with pytest.raises(VolumeError, match="several studies"):
        series_in(root / "patient-3")


# The layout -------------------------------------------------------------------------------------------------------


def test_a_folder_of_files_is_one_subject_and_a_folder_of_folders_many(tmp_path: Path) -> None:
    root = DicomLayout().write_example(tmp_path / "raw")
    ids = [raw.subject_id for raw in DicomLayout().discover(root, ["CT"])]
    assert ids == ["patient-1", "patient-2", "patient-3_study-01", "patient-3_study-02", "patient-4"]
    (one,) = DicomLayout().discover(root / "patient-2", ["CT"])
    assert one.subject_id == "patient-2"
    warnings = " ".join(one.warnings)
    assert "'BONE' (19 files) was not taken" in warnings
    assert "'Dose Report' (1 file) is left out: it is a secondary capture" in warnings
    assert "IM90004 of IM00004" in warnings


def test_an_ingests_questions_read_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = DicomLayout().write_example(tmp_path / "raw")
    expected = DicomLayout().discover(root, ["CT"])
    read: list[Path] = []

    def counted(path: Path) -> SliceHeader:
        read.append(path)
        return read_header(path)

    monkeypatch.setattr(discovery, "read_header", counted)
    layout = DicomLayout()
    assert layout.modalities(root) == ("CT",)
    assert layout.discover(root, ["CT"]) == expected
    assert len(read) == len(set(read)) == len([path for path in root.rglob("*") if path.is_file()]) - 1  # a README
    # What changes is looked at anew, and nothing else is.
    read.clear()
    (gone,) = (raw for raw in expected if raw.subject_id == "patient-4")
    Path(gone.series["CT"][3]).unlink()
    again = {raw.subject_id: raw for raw in layout.discover(root, ["CT"])}
    assert "a slice is missing" in str(again["patient-4"].problem)
    assert {path.relative_to(root).parts[0] for path in read} == {"patient-4"}
    assert [raw for raw in expected if raw is not gone] == [again[r.subject_id] for r in expected if r is not gone]


def test_what_a_disc_and_a_mac_leave_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    """An index at the root does not make one subject of all folders, nor a file's shadow a damaged neighbour."""
    for patient in ("a", "b"):
        for path in write_series(tmp_path / patient, plan(study=patient), values):
            path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = DicomLayout().discover(tmp_path, ["CT"])
    assert [(raw.subject_id, raw.problem, len(raw.series["CT"])) for raw in found] == [("a", None, 13), ("b", None, 13)]


def test_scans_of_one_person_stay_together(tmp_path: Path) -> None:
    """By the folder, and by the patient's ID where two folders carry one; words for a removed ID say nothing."""
    for folder, patient in (("a", "P1"), ("b", "P2"), ("c", "P1"), ("d", "ANONYMIZED"), ("e", "ANONYMIZED")):
        write_series(tmp_path / folder, plan(study=folder, tags={"PatientID": patient}), values)
    people = {raw.subject_id: raw.person for raw in DicomLayout().discover(tmp_path, ["CT"])}
    assert people == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}


def test_a_folder_with_two_patients_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("P1", "P2"):
        write_series(tmp_path / "mixed" / name, plan(study=name, tags={"PatientID": name}), values)
    for raw in DicomLayout().discover(tmp_path, ["CT"]):
        assert raw.problem is not None
        assert "images of 2 patients" in raw.problem


def test_a_folder_without_a_volume_says_why(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(CohortError, match="holds no DICOM file"):
        DicomLayout().modalities(tmp_path / "raw")
    write_series(tmp_path / "raw/a", plan(tags={"BodyPartExamined": "PHANTOM"}), values)
    with pytest.raises(CohortError, match=r"holds no series that makes a volume: .*phantom"):
        DicomLayout().modalities(tmp_path / "raw")
    write_series(tmp_path / "raw/b", plan(study="b"), values)
    assert DicomLayout().modalities(tmp_path / "raw") == ("CT",)
    bad, good = DicomLayout().discover(tmp_path / "raw", ["CT"])
    assert good.problem is None
    assert bad.problem is not None
    assert "phantom" in bad.problem


def test_what_was_resampled_and_left_out_stands_in_the_record_and_nobodys_name_does(tmp_path: Path) -> None:
    root = DicomLayout().write_example(tmp_path / "raw")
    report = ingest("dicom", root, tmp_path / "store", recipe=centered(10.0))
    assert not report.failed
    told = " ".join(report.warnings["patient-1"])
    assert "tilted by 18.5 degrees" in told
    assert "20 slices lie unevenly" in told
    assert "'SCOUT' (1 file) is left out" in told
    from vesalius.platform.store import CohortStore

    record = next(r for r in CohortStore.open(tmp_path / "store").subjects() if r.subject_id == "patient-1")
    assert record.notes["dicom"]["CT"]["num_slices"] == 20
    assert record.source is not None
    assert record.source.files == {"CT": "ser2 (20 files)"}
    kept = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    for private in (b"Doe", b"Jane", b"19500101", b"example-1", b"example-3", b"1.2.826"):
        assert private not in kept


def test_left_and_right_survive_to_the_store(tmp_path: Path) -> None:
    """The bleed lies 35 mm to the right in the world, in a coronal series stored from front to back."""
    root = DicomLayout().write_example(tmp_path / "raw")
    second = next(raw for raw in DicomLayout().discover(root, ["CT"]) if raw.subject_id == "patient-3_study-02")
    volume = read_series([type(root)(path) for path in second.series["CT"]])
    index = np.argwhere(np.abs(volume.array - 70) < 0.5)
    center = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]).mean(axis=0)
    np.testing.assert_allclose(center, (35.0, -10.0, 20.0), atol=1.5)
    assert example_ct_head(3, bleed=True)(np.array([[35.0, -10.0, 20.0]])) == 70.0


# Distrust ---------------------------------------------------------------------------------------------------------


def test_a_link_out_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    files = write_series(tmp_path / "elsewhere", plan(), values)
    (tmp_path / "root/in").mkdir(parents=True)
    for path in files:
        (tmp_path / "root/in" / path.name).symlink_to(path)
    (tmp_path / "root/folder").symlink_to(tmp_path / "elsewhere")
    found = find_series(tmp_path / "root")
    assert len(found) == len(files)
    assert all("a link to a place outside" in str(series.problem) for series in found)
    # Links within the tree serve, as version control of large files makes them.
    assert [series.problem for series in find_series(tmp_path / "root/in", root=tmp_path)] == [None]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dcm")
    os.mkfifo(tmp_path / "b")
    (series,) = find_series(tmp_path)
    assert "not a regular file" in str(series.problem)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path, *_) = write_series(tmp_path, plan(), values)
    change(path, TransferSyntaxUID="1.2.840.10008.1.2.1")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)

    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("it was inflated")

    monkeypatch.setattr(zlib, "decompress", explode)
    monkeypatch.setattr(zlib, "decompressobj", explode)
    with pytest.raises(VolumeError, match="deflated"):
        read_series([path])


def test_a_promise_of_many_pixels_allocates_none(tmp_path: Path) -> None:
    import tracemalloc

    files = write_series(tmp_path, plan(), values)
    for path in files:
        change(path, Rows=65535, Columns=65535, BitsAllocated=32)
    tracemalloc.start()
    try:
        (series,) = find_series(tmp_path)
        assert "more than 67,108,864" in str(series.problem)
        with pytest.raises(VolumeError):
            read_series(files)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_private_tags_and_pixels_are_not_read_in_discovery(tmp_path: Path) -> None:
    files = write_series(tmp_path, plan(), values)
    for path in files:
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", b"\xff" * 5000)
        dataset.save_as(path, enforce_file_format=True)
    (series,) = find_series(tmp_path)
    assert series.problem is None
    np.testing.assert_allclose(read_series(series.files).array.shape, (12, 10, 13))
