"""NIfTI files with any header and any damage: every one is read, or refused in one sentence by name."""

from __future__ import annotations

import gzip
import math
import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.raw import RawSubject
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.reading import load
from vesalius.datasets.recipes import centered
from vesalius.platform.errors import VesaliusError, VolumeError
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHAPE = (8, 9, 7)
MOST_SECONDS = 10.0
MOST_GROWTH_BYTES = 400 << 20

odd_floats = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e-30, 1e-6, 1e6, 1e30, -1e30, 3.4e38]
)
floats = odd_floats | st.floats(width=32) | st.floats(-3, 3, width=32)
shorts = st.sampled_from([-32768, -1, 0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 512, 32767]) | st.integers(-32768, 32767)
DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)

fields = st.fixed_dictionaries(
    {},
    optional={
        "sizeof_hdr": st.sampled_from([0, 348, 540, 1543569408, -1]),
        "dim": st.lists(shorts, min_size=8, max_size=8)
        | st.permutations(SHAPE).map(lambda shape: [3, *shape, 1, 1, 1, 1])
        | st.tuples(shorts, st.integers(1, 7)).map(lambda pair: [pair[1], *SHAPE, pair[0], 1, 1, 1]),
        "datatype": st.sampled_from(DATATYPES) | shorts,
        "bitpix": shorts,
        "pixdim": st.lists(floats, min_size=8, max_size=8),
        "vox_offset": floats | st.sampled_from([0.0, 348.0, 352.0, 353.5, 1e9, 2.0**31, -352.0]),
        "scl_slope": floats,
        "scl_inter": floats,
        "xyzt_units": st.integers(0, 255),
        "qform_code": shorts,
        "sform_code": shorts,
        "quatern_b": floats,
        "quatern_c": floats,
        "quatern_d": floats,
        "qoffset_x": floats,
        "qoffset_z": floats,
        "srow_x": st.lists(floats, min_size=4, max_size=4),
        "srow_y": st.lists(floats, min_size=4, max_size=4),
        "srow_z": st.lists(floats, min_size=4, max_size=4) | st.just([2.0, 0.0, 0.0, 0.0]),
        "magic": st.sampled_from([b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1x", b"\xff\xff\xff\xff"]),
    },
)
damage = st.fixed_dictionaries(
    {"big_endian": st.booleans(), "gzip": st.booleans(), "version": st.sampled_from([1, 1, 1, 2])},
    optional={
        "keep": st.floats(0, 1),
        "flips": st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=6),
        "append": st.binary(max_size=40),
    },
)


def header_of(version: int, *, big_endian: bool, changes: Mapping[str, Any]) -> bytes:
    """Return the bytes of a NIfTI header with any values in its fields."""
    from nibabel.nifti1 import header_dtype as first
    from nibabel.nifti2 import header_dtype as second

    header = np.zeros((), first if version == 1 else second)
    values: dict[str, Any] = {
        "sizeof_hdr": 348 if version == 1 else 540,
        "dim": [3, *SHAPE, 1, 1, 1, 1],
        "datatype": 4,
        "bitpix": 16,
        "pixdim": [1, 20, 20, 20, 1, 1, 1, 1],
        "vox_offset": 352 if version == 1 else 544,
        "scl_slope": 1,
        "sform_code": 1,
        "srow_x": [20, 0, 0, -70],
        "srow_y": [0, 20, 0, -80],
        "srow_z": [0, 0, 20, -60],
        "magic": b"n+1\0" if version == 1 else b"n+2\0",
        **changes,
    }
    with np.errstate(all="ignore"):
        for name, value in values.items():
            kind = header.dtype[name].base
            if kind.kind == "i":  # NIfTI-2 keeps some floats of NIfTI-1 as whole numbers
                limits = np.iinfo(kind)
                numbers = [0 if isinstance(v, float) and not math.isfinite(v) else int(v) for v in np.atleast_1d(value)]
                value = [min(max(number, limits.min), limits.max) for number in numbers]
                value = value if header.dtype[name].shape else value[0]
            header[name] = value
    return (header.byteswap() if big_endian else header).tobytes()


def content_of(changes: Mapping[str, Any], harm: Mapping[str, Any]) -> bytes:
    voxels = np.random.default_rng(0).integers(0, 9, SHAPE).astype(">i2" if harm["big_endian"] else "<i2")
    voxels[1:-1, 1:-1, 1:-1] += 200
    head = header_of(harm["version"], big_endian=harm["big_endian"], changes=changes)
    content = bytearray(head + b"\0\0\0\0" + voxels.tobytes(order="F"))
    if harm["gzip"]:
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    for place, bit in harm.get("flips", ()):
        content[int(place * len(content))] ^= 1 << bit
    content = content[: int(harm.get("keep", 1.0) * len(content))] + harm.get("append", b"")
    return bytes(content)


def check_reading(path: Path) -> bool:
    """Read a file; whatever it holds, it is a usable volume or one sentence, soon and in bounded memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    volume, refusal = None, ""
    try:
        volume = read_nifti(path)
    except VesaliusError as error:
        refusal = str(error)
    assert time.monotonic() - started < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH_BYTES
    if volume is None:
        assert str(path) in refusal
        assert "\n" not in refusal
        assert len(refusal) < 600
        return False
    assert volume.array.dtype == np.float32
    assert min(volume.shape) >= 2
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 0
    return True


def check_ingest(folder: Path, content: bytes, *, compressed: bool) -> bool:
    """Take a file in beside a sound one: a clean store that holds the sound one, the other too or named as refused."""
    folder.mkdir()
    name = "fuzzed.nii.gz" if compressed else "fuzzed.nii"
    (folder / name).write_bytes(content)
    (folder / "sound.nii").write_bytes(
        content_of({"scl_inter": 3.5}, {"big_endian": False, "gzip": False, "version": 1})
    )
    (folder / "cohort.csv").write_text(f"subject_id,image\nfuzzed,{name}\nsound,sound.nii\n")
    recipe = centered(8.0).model_copy(update={"brain": "otsu"})
    started = time.monotonic()
    report = ingest("manifest", folder / "cohort.csv", folder / "store", recipe=recipe)
    assert time.monotonic() - started < MOST_SECONDS
    assert "unexpectedly" not in str(report.failed), report.failed
    assert all("\n" not in reason for reason in report.failed.values())
    assert "sound" in report.added, report.failed
    store = CohortStore.open(folder / "store")
    assert store.check() == []
    if "fuzzed" in report.failed:
        assert report.added == ("sound",)
        return False
    return True


EVERY: Any = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


def test_the_unchanged_file_is_read(tmp_path: Path) -> None:
    """Without this, fuzzing could pass on a file that is refused whatever is done to it."""
    for version in (1, 2):
        for big_endian in (False, True):
            for compressed in (False, True):
                harm = {"version": version, "big_endian": big_endian, "gzip": compressed}
                path = tmp_path / "a.nii"
                path.write_bytes(content_of({}, harm))
                assert check_reading(path)
    assert check_ingest(tmp_path / "in", content_of({"scl_inter": 5}, harm), compressed=True)


@given(changes=fields, harm=damage)
@hypothesis_settings(max_examples=200, **EVERY)
def test_any_header_is_read_or_refused(tmp_path: Path, changes: dict[str, Any], harm: dict[str, Any]) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(changes, harm))
    check_reading(path)


@given(changes=fields, harm=damage)
@hypothesis_settings(max_examples=15, **EVERY)
def test_any_header_gives_a_clean_store_or_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], harm: dict[str, Any]
) -> None:
    content = content_of(changes, harm)
    check_ingest(tmp_path_factory.mktemp("fuzz") / "in", content, compressed=harm["gzip"])


sizes_mm = st.floats(-7, 7).map(lambda power: 10.0**power)
geometry = st.fixed_dictionaries(
    {"qform_code": st.sampled_from([0, 1, 2]), "sform_code": st.sampled_from([0, 1, 2])},
    optional={
        "pixdim": st.tuples(st.sampled_from([1.0, -1.0, 0.0]), *[sizes_mm] * 3).map(lambda sizes: [*sizes, 1, 1, 1, 1]),
        "srow_x": st.lists(st.floats(-50, 50), min_size=4, max_size=4),
        "srow_y": st.lists(st.floats(-50, 50), min_size=4, max_size=4),
        "srow_z": st.lists(st.floats(-50, 50), min_size=4, max_size=4),
        "quatern_b": st.floats(-1, 1),
        "quatern_c": st.floats(-1, 1),
        "qoffset_x": st.floats(-1e6, 1e6),
    },
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"srow_x": [1e-4, 0, 0, 0]}, "its voxels measure 0.0001 x 20 x 20 mm: expected 0.005 to 100"),
        ({"srow_y": [0, 1000, 0, 0]}, "its voxels measure 20 x 1000 x 20 mm"),
        ({"srow_x": [20, 20, 0, 0], "srow_y": [0, 1, 0, 0]}, "sheared almost into a plane"),
        ({"srow_z": [0, 0, 20, 1e9]}, "lies 1e+09 mm from the world's origin"),
        ({"dim": [3, 2048, 2048, 2048, 1, 1, 1, 1]}, "expected 1,073,741,824 voxels at most"),
    ],
)
def test_a_place_that_no_scanner_has_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "a.nii").write_bytes(content_of(changes, {"big_endian": False, "gzip": False, "version": 1}))
    raw = RawSubject(subject_id="one", images={"T1w": str(tmp_path / "a.nii")})
    with pytest.raises(VolumeError) as caught:
        load(raw, ["T1w"])
    assert words in str(caught.value)


@pytest.mark.parametrize("offset", [-math.inf, math.inf, math.nan, -1.0, 1e30, 3.4e38])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, offset: float) -> None:
    content = content_of({"vox_offset": offset}, {"big_endian": False, "gzip": False, "version": 1})
    (tmp_path / "a.nii").write_bytes(content)
    check_reading(tmp_path / "a.nii")


def test_a_gzip_of_very_many_members_is_read_in_linear_time(tmp_path: Path) -> None:
    """Block compression makes a member of every 64 KB; a hostile file makes one of nothing, a million times."""
    content = content_of({}, {"big_endian": False, "gzip": False, "version": 1})
    nothing = gzip.compress(b"", mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:360], mtime=0) + nothing * 100_000 + gzip.compress(content[360:], mtime=0))
    assert check_reading(path)


@pytest.mark.parametrize(
    ("qform", "words"),
    [
        ({"qoffset_x": -70.0, "qoffset_y": -80.0, "qoffset_z": -60.0}, None),
        ({"qoffset_x": -65.0, "qoffset_y": -80.0, "qoffset_z": -60.0}, "lie up to 5 mm apart: its sform is taken"),
        ({"qoffset_x": -65.0, "qform_code": 2}, None),  # another space may lie elsewhere
        ({"pixdim": [-1, 20, 20, 20, 1, 1, 1, 1], "qform_code": 2}, "mirror images"),
        ({"quatern_b": 3.0}, "its qform is damaged"),
    ],
)
def test_two_transforms_that_disagree_are_said(tmp_path: Path, qform: dict[str, Any], words: str | None) -> None:
    content = content_of({"qform_code": 1, **qform}, {"big_endian": False, "gzip": False, "version": 1})
    (tmp_path / "a.nii").write_bytes(content)
    warnings = read_nifti(tmp_path / "a.nii").warnings
    assert (warnings == ()) == (words is None)
    assert words is None or words in warnings[0]


@given(changes=geometry)
@hypothesis_settings(max_examples=25, **EVERY)
def test_any_place_in_the_world_gives_a_clean_store_or_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    content = content_of(changes, {"big_endian": False, "gzip": False, "version": 1})
    check_ingest(tmp_path_factory.mktemp("fuzz") / "in", content, compressed=False)


@pytest.mark.long
@given(changes=fields | geometry, harm=damage)
@hypothesis_settings(max_examples=20_000, **EVERY)
def test_any_header_is_read_or_refused_long(tmp_path: Path, changes: dict[str, Any], harm: dict[str, Any]) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(changes, harm))
    check_reading(path)


@pytest.mark.long
@given(changes=fields | geometry, harm=damage)
@hypothesis_settings(max_examples=1_500, **EVERY)
def test_any_header_gives_a_clean_store_or_a_named_refusal_long(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], harm: dict[str, Any]
) -> None:
    content = content_of(changes, harm)
    check_ingest(tmp_path_factory.mktemp("fuzz") / "in", content, compressed=harm["gzip"])
