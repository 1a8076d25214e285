"""Small raw trees for the contract suite: two ellipsoids for a brain, and the quirks of real data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vesalius.platform.geometry import write_nifti

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_SHAPE = (22, 26, 20)
_SPACING_MM = 8.0


def example_head(seed: int, contrast: float = 1.0) -> NDArray[np.float32]:
    """Return (22, 26, 20) float32: white matter inside grey matter inside zeros, with noise, different by seed."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in _SHAPE), indexing="ij")
    stretch = rng.uniform(0.78, 0.86, size=3)
    radius = np.sqrt(sum((axis / size) ** 2 for axis, size in zip(axes, stretch, strict=True)))
    tissue = np.where(radius < 0.6, 100.0 * contrast, 60.0) + rng.normal(0, 3, _SHAPE)
    return np.where(radius < 1, np.maximum(tissue, 1), 0).astype(np.float32)


def example_affine(*, flipped: bool = False, degrees: float = 0.0) -> NDArray[np.float64]:
    """Return an affine of 8 mm voxels about the world's origin: RAS+, or LAS and nodding by some degrees."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-_SPACING_MM if flipped else _SPACING_MM, _SPACING_MM, _SPACING_MM])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(_SHAPE) - 1) / 2)
    return affine


def example_blob(center: tuple[int, int, int], radius: int = 2) -> NDArray[np.uint8]:
    """Return (22, 26, 20) uint8: a cube of ones about a voxel of :func:`example_head`."""
    mask = np.zeros(_SHAPE, np.uint8)
    mask[tuple(slice(c - radius, c + radius) for c in center)] = 1
    return mask


def write_bids_example(root: Path) -> Path:
    """Write a BIDS tree of five scans of four people; see :class:`vesalius.datasets.layouts.bids.BidsLayout`."""
    plain, oblique = example_affine(), example_affine(flipped=True, degrees=12)
    write_nifti(root / "sub-01/anat/sub-01_T1w.nii.gz", example_head(1), plain)
    write_nifti(root / "sub-02/anat/sub-02_T1w.nii", example_head(2), oblique)
    for session, seed in (("ses-a", 3), ("ses-b", 4)):
        name = f"sub-03/{session}/anat/sub-03_{session}_T1w.nii.gz"
        write_nifti(root / name, example_head(seed), plain)
    head = example_head(5)
    write_nifti(root / "sub-04/anat/sub-04_acq-iso_T1w.nii.gz", head[..., None], oblique)
    derived = root / "derivatives/masks/sub-04/anat"
    write_nifti(derived / "sub-04_desc-brain_mask.nii.gz", (head > 0).astype(np.uint8), oblique)
    write_nifti(derived / "sub-04_space-MNI152_desc-brain_mask.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))
    write_nifti(derived / "sub-04_label-lesion_mask.nii.gz", example_blob((11, 13, 10)), oblique)
    # Windows line ends, an unknown age, a decimal, a participant without a scan, and one without a row.
    rows = ["participant_id\tage\tsex\tgroup", "sub-01\t50\tm\tcontrol", "sub-02\tn/a\tf\tpatient", "sub-04\t33.5\tf\t"]
    (root / "participants.tsv").write_bytes("\r\n".join([*rows, "sub-99\t20\tm\tcontrol", ""]).encode())
    (root / "dataset_description.json").write_text('{"Name": "example", "BIDSVersion": "1.8.0"}\n')
    return root


def write_manifest_example(root: Path) -> Path:
    """Write a manifest of four subjects; see :class:`vesalius.datasets.layouts.manifest.ManifestLayout`."""
    splits = ("train", "train", "", "test")
    lines = ["subject_id,T1w,FLAIR,brain_mask,lesion_mask,split,group,age,site,label:bleed_left"]
    for index, split in enumerate(splits):
        affine = example_affine(flipped=index % 2 == 1)
        write_nifti(root / f"scans/{index}_t1.nii.gz", example_head(10 + index), affine)
        write_nifti(root / f"scans/{index}_flair.nii.gz", example_head(10 + index, contrast=0.7), affine)
        mask = lesion = ""
        if split == "test":
            write_nifti(root / "scans/brain.nii.gz", (example_head(10 + index) > 0).astype(np.float32) * 0.999, affine)
            write_nifti(root / "scans/lesion.nii.gz", example_blob((11, 13, 10)).astype(np.int16) * 4, affine)
            mask, lesion = "scans/brain.nii.gz", "scans/lesion.nii.gz"
        age = "n/a" if index == 1 else str(40 + index)
        files = f"scans/{index}_t1.nii.gz,scans/{index}_flair.nii.gz,{mask},{lesion}"
        lines.append(f'case-{index},{files},{split},"ward 3, east",{age},007,{str(split == "test").lower()}')
    path = root / "cohort.csv"
    # A byte-order mark, as spreadsheets write it.
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join([*lines, "", ""]).encode())
    return path
