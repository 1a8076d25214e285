"""Small raw trees of the MR data sets, each with the names, tables and headers of the real archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.layouts.example import example_affine, example_blob, example_head
from vesalius.platform.geometry import write_nifti

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_CONTRASTS = {"t1": 1.0, "t1ce": 0.9, "t2": 0.6, "flair": 0.7}
_NEW_NAMES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
_TUMOUR = (14, 13, 10)


def write_hcp_example(root: Path) -> Path:
    """Write an HCP tree; see :class:`vesalius.datasets.layouts.hcp.HcpLayout`."""
    for index, number in enumerate(("100307", "100408", "996782")):
        place = root / number / "T1w"
        for name, contrast in (("T1w", 1.0), ("T2w", 0.6)):
            # The release's images are LAS with real, not whole, values.
            head = example_head(100 + index, contrast) * np.float32(1.37)
            write_nifti(place / f"{name}_acpc_dc_restore_brain.nii.gz", head, example_affine(flipped=True))
        write_nifti(place / "T1w_acpc_dc_restore.nii.gz", example_head(200 + index) + 5, example_affine(flipped=True))
    (root / "996782/MNINonLinear").mkdir()
    (root / "release-notes").mkdir()
    (root / "release-notes/Structural_preproc.txt").write_text("not a subject\n")
    return root


def write_brats_example(root: Path) -> Path:
    """Write scans of four years of BraTS; see :class:`vesalius.datasets.layouts.brats.BratsLayout`."""
    old = ((12, 13, 10, 1), (14, 13, 10, 2), (16, 13, 10, 4))
    _write_scan(root / "HGG/Brats18_2013_11_1", 300, old)
    _write_scan(root / "LGG/Brats18_TCIA09_141_1", 301, old)
    _write_scan(root / "BraTS20_Training_001", 302, old, suffix=".nii")
    _write_scan(root / "BraTS20_Training_355", 303, old, suffix=".nii", mask="W39_1998.09.19_Segm.nii")
    _write_scan(root / "BraTS2021_00000", 304, old)
    new = ((12, 13, 10, 1), (14, 13, 10, 2), (16, 13, 10, 3))
    for scan, seed in (("000", 305), ("001", 306)):
        _write_scan(root / f"BraTS-GLI-00001-{scan}", seed, new, new_names=True)
    lines = [
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID",
        "HGG,NA,NA,NA,NA,BraTS20_Training_001",
        "LGG,NA,NA,NA,NA,BraTS20_Training_355",
    ]
    (root / "name_mapping.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    survival = ["Brats20ID,Age,Survival_days,Extent_of_Resection", "BraTS20_Training_001,60.4630137,289,GTR", ""]
    (root / "survival_info.csv").write_text("\n".join(survival))
    return root


def _write_scan(
    folder: Path,
    seed: int,
    parts: tuple[tuple[int, int, int, int], ...],
    *,
    suffix: str = ".nii.gz",
    mask: str = "",
    new_names: bool = False,
) -> None:
    # BraTS keeps the atlas's LPS orientation: both horizontal axes run against RAS.
    affine = example_affine(flipped=True)
    affine[1] *= -1
    sign, names = ("-", _NEW_NAMES) if new_names else ("_", {name: name for name in _NEW_NAMES})
    labels = np.zeros(example_blob(_TUMOUR).shape, np.uint8)
    for i, j, k, value in parts:
        labels[example_blob((i, j, k), 1) > 0] = value
    for contrast, strength in _CONTRASTS.items():
        head = example_head(seed, strength)
        head[labels > 0] += 30
        name = f"{folder.name}{sign}{names[contrast]}{suffix}"
        write_nifti(folder / name, np.rint(head).astype(np.int16), affine)
    write_nifti(folder / (mask or f"{folder.name}{sign}{names['seg']}{suffix}"), labels, affine)


def write_ixi_example(root: Path) -> Path:
    """Write an IXI folder; see :class:`vesalius.datasets.layouts.ixi.IxiLayout`."""
    people = (("IXI002", "Guys", "0828"), ("IXI012", "HH", "1211"), ("IXI035", "IOP", "0873"))
    for index, (person, site, number) in enumerate(people):
        stem = f"{person}-{site}-{number}"
        write_nifti(root / f"IXI-T1/{stem}-T1.nii.gz", example_head(400 + index), example_affine(degrees=8))
        # The T2 has a grid of its own: every second plane.
        affine = example_affine(degrees=8)
        affine[:3, 2] *= 2
        write_nifti(root / f"IXI-T2/{stem}-T2.nii.gz", example_head(400 + index, 0.6)[:, :, ::2].copy(), affine)
        write_nifti(root / f"IXI-DTI/{stem}-DTI-00.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))
    lines = [
        'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,WEIGHT,ETHNIC_ID,AGE',
        "2,2,164,58,1,35.80013689",
        "12,1,175,70,1,38.78165640",
        # Somebody's two rows agree on the sex and not on the weight; the next has no scan; the last no age.
        "12,1,175,71,1,38.78165640",
        "13,1,182,70,1,46.71047228",
        "35,2,0,0,0,",
    ]
    (root / "IXI.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    return root


def write_open_ms_example(root: Path) -> Path:
    """Write the MNI part of the MS database; see :class:`vesalius.datasets.layouts.open_ms.OpenMsLayout`."""
    affine = example_affine(flipped=True)
    ending = "N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
    for index, patient in enumerate(("patient07", "patient19")):
        place = root / "cross_sectional/MNI" / patient
        for name, contrast in (("FLAIR", 0.7), ("T1", 1.0), ("T1POST", 0.95), ("T2", 0.6)):
            head = example_head(500 + index, contrast)
            # A spline's undershoot beside the brain's edge.
            edge = (np.roll(head, 1, axis=0) > 0) & (head == 0)
            head[edge] = -0.4
            write_nifti(place / f"{name}_{ending}", head, affine)
        mask = example_blob(_TUMOUR)
        write_nifti(place / "GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz", mask, affine)
    beside = root / "cross_sectional/coregistered/patient07"
    beside.mkdir(parents=True)
    (beside / "T1W_to_FLAIR.txt").write_text("a registration's parameters\n")
    (root / "cross_sectional/LICENSE.txt").write_text("CC BY\n")
    return root


def write_oasis1_example(root: Path) -> Path:
    """Write discs of OASIS-1; see :class:`vesalius.datasets.layouts.oasis1.Oasis1Layout`."""
    sessions = (
        ("disc1", "OAS1_0001_MR1", 4),
        ("disc1", "OAS1_0061_MR1", 4),
        ("disc2", "OAS1_0061_MR2", 3),
        ("disc2", "OAS1_0308_MR1", 4),
    )
    for index, (disc, session, number) in enumerate(sessions):
        head = np.rint(example_head(600 + index) * 10).astype(np.int16)
        stem = f"{session}_mpr_n{number}_anon_111_t88"
        place = root / disc / session / "PROCESSED/MPRAGE/T88_111"
        write_analyze(place / f"{stem}_masked_gfc.hdr", head, 8.0)
        write_analyze(place / f"{stem}_gfc.hdr", head + np.int16(7), 8.0)
        classes = np.select([head > 800, head > 580, head > 0], [3, 2, 1], 0).astype(np.uint8)
        write_analyze(root / disc / session / "FSL_SEG" / f"{stem}_masked_gfc_fseg.hdr", classes, 8.0)
    lines = [
        "ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay",
        "OAS1_0001_MR1,F,R,74,2,3,29,0,1344,0.743,1.306,N/A",
        "OAS1_0061_MR1,F,R,20,,,,,1456,0.868,1.205,N/A",
        "OAS1_0308_MR1,F,R,78,3,3,15,2,1401,0.703,1.253,N/A",
        "OAS1_0061_MR2,F,R,20,,,,,1458,0.864,1.204,26",
    ]
    (root / "oasis_cross-sectional.csv").write_text("\n".join([*lines, ""]))
    return root


def write_analyze(
    path: Path, array: NDArray[np.generic], spacing_mm: float, fields: Mapping[str, object] | None = None
) -> None:
    """Write a big-endian Analyze pair of four dimensions with one frame, as OASIS-1 has them.

    Args:
        path: of the header; the image stands beside it.
        array: (D, H, W) whole numbers.
        spacing_mm: along every axis.
        fields: further header fields, such as ``orient``.
    """
    from nibabel.analyze import AnalyzeHeader

    header = AnalyzeHeader(endianness=">")
    header.set_data_dtype(array.dtype)
    header.set_data_shape((*array.shape, 1))
    header.set_zooms((spacing_mm, spacing_mm, spacing_mm, 0.0))
    for name, value in (fields or {}).items():
        header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.binaryblock)
    path.with_suffix(".img").write_bytes(array.astype(array.dtype.newbyteorder(">")).tobytes(order="F"))
