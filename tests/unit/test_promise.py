"""What a file's header promises is known before one of its voxels is read, and what a recipe would make of it."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest

from vesalius.datasets.nifti import promise_of, read_nifti
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.recipes.general import as_is
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from pathlib import Path


def _file(path: Path, spacing: float = 2.0) -> Path:
    image = np.random.default_rng(0).normal(1, 0.1, (6, 5, 4)).astype(np.float32)
    nibabel.Nifti1Image(image, np.diag([spacing, spacing, spacing, 1.0])).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_promise_is_what_is_read(tmp_path: Path, name: str) -> None:
    path = _file(tmp_path / name)
    promise = promise_of(path)
    assert promise.shape == read_nifti(path).shape
    assert promise.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    assert promise.num_bytes == 352 + 4 * 6 * 5 * 4


def test_a_promise_is_read_from_the_first_bytes_alone(tmp_path: Path) -> None:
    body = bytearray(_file(tmp_path / "a.nii").read_bytes()[:352])
    struct.pack_into("<3h", body, 42, 1000, 1000, 500)
    path = tmp_path / "large.nii.gz"
    path.write_bytes(gzip.compress(bytes(body)))
    assert promise_of(path).num_bytes == 352 + 4 * 500_000_000
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 200_000)
    with pytest.raises(VolumeError, match=r"is truncated|is not a NIfTI file"):
        promise_of(path)


def test_an_infinite_scaling_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.nii")
    body = bytearray(path.read_bytes())
    struct.pack_into("<f", body, 112, float("inf"))
    path.write_bytes(bytes(body))
    with pytest.raises(VolumeError, match="its scaling is infinite"):
        read_nifti(path)


def test_large_voxels_do_not_become_an_endless_grid(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.nii", spacing=99.0)
    recipe = as_is().model_copy(update={"spacing_mm": (0.2, 0.2, 0.2)})
    with pytest.raises(VolumeError, match=r"would become a grid of 2970 x 2475 x 1980 voxels, more than 1,073,741,824"):
        prepare_file(path, recipe)
