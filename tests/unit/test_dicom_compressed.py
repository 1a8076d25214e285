"""Compressed pixels: the very numbers of the uncompressed series, or a refusal by name; and what a bad stream costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from vesalius.datasets.dicom import decoding, find_series, read_series
from vesalius.datasets.dicom.decoding import Decoder
from vesalius.datasets.dicom.headers import read_header
from vesalius.datasets.dicom.pixels import read_slice
from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Encoder = Callable[[NDArray[Any], int], bytes]

LOSSLESS_ANY, LOSSLESS_FIRST = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
REAL = (
    Path(pydicom.data.__file__).parent / "test_files"
)  # never by name: pydicom would look for a missing one elsewhere


def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
    image = np.rint(0.37 * points[..., 0] * points[..., 1] + 13 * points[..., 2]) % 1900 - 899
    image.reshape(-1)[:5] = -900
    return np.asarray(image)


def jpeg_lossless(predictor: int) -> Encoder:
    """Return an encoder by the standard (ITU-T T.81, annex H) with all code words five bits long."""

    def encode(words: NDArray[Any], bits: int) -> bytes:
        pixels = words.astype(np.int64) & ((1 << bits) - 1)
        left, above = np.roll(pixels, 1, axis=1), np.roll(pixels, 1, axis=0)
        corner = np.roll(above, 1, axis=1)
        guess = {1: left, 4: left + above - corner, 7: (left + above) >> 1}[predictor].copy()
        guess[:, 0] = above[:, 0]
        guess[0] = left[0]
        guess[0, 0] = 1 << (bits - 1)
        text = []
        for difference in ((pixels - guess + 32768) % 65536 - 32768).ravel().tolist():
            size = abs(difference).bit_length()
            text.append(f"{size:05b}")
            if 0 < size < 16:
                text.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
        stream = "".join(text)
        stream += "1" * (-len(stream) % 8)
        data = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
        rows, columns = words.shape
        return b"".join(
            (
                b"\xff\xd8\xff\xc3\x00\x0b",
                bytes([bits, rows >> 8, rows & 255, columns >> 8, columns & 255, 1, 1, 0x11, 0]),
                b"\xff\xc4\x00\x24\x00" + bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)]),
                b"\xff\xda\x00\x08\x01\x01\x00" + bytes([predictor, 0, 0]),
                data + b"\xff\xd9" + b"\x00" * (len(data) % 2),
            )
        )

    return encode


def by_simpleitk(compressor: str) -> Encoder:
    def encode(words: NDArray[Any], bits: int) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.SetFileName(f"{place}/a.dcm")
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.Execute(sitk.GetImageFromArray(words[None]))
            return next(generate_frames(pydicom.dcmread(f"{place}/a.dcm").PixelData, number_of_frames=1))

    return encode


def compress(path: Path, syntax: str, encode: Encoder) -> None:
    dataset = pydicom.dcmread(path)
    dtype = f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
    words = np.frombuffer(dataset.PixelData, dtype).reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([encode(words, dataset.BitsStored)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(path, enforce_file_format=True)


def restore(path: Path, *, bits: int, stored: int, signed: bool) -> None:
    """Write the same values in another form, with the offset that keeps them what they are."""
    dataset = pydicom.dcmread(path)
    shift = 0 if signed else 1000
    words = np.frombuffer(dataset.PixelData, "<i2").astype(np.int64) + shift
    dataset.RescaleIntercept = int(dataset.RescaleIntercept) - shift
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, stored, stored - 1
    dataset.PixelRepresentation = int(signed)
    # The standard leaves the bits above to the writer: with the sign's, as most have it.
    dataset.PixelData = words.astype(f"<{'i' if signed else 'u'}{bits // 8}").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def plan(**changes: Any) -> SeriesPlan:
    return SeriesPlan(
        **{"places_mm": range(-20, 21, 10), "size": (37, 30), "thickness_mm": 10.0, "intercept": 0.0, **changes}
    )


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (LOSSLESS_FIRST, jpeg_lossless(1)),
        (LOSSLESS_ANY, jpeg_lossless(4)),
        (LOSSLESS_ANY, jpeg_lossless(7)),
        (LOSSLESS_FIRST, by_simpleitk("JPEG")),
        (JPEG_2000, by_simpleitk("JPEG2000")),
    ],
    ids=["first", "fourth", "seventh", "JPEG of GDCM", "JPEG 2000"],
)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("stored", [12, 16])
def test_a_compressed_series_has_the_voxels_of_the_plain_one(
    tmp_path: Path, syntax: str, encode: Encoder, stored: int, signed: bool
) -> None:
    files = write_series(tmp_path, plan(tags={"PixelPaddingValue": -900 if signed else 100}), values)
    for path in files:
        restore(path, bits=16, stored=stored, signed=signed)
    plain = read_series(files)
    assert len(np.unique(plain.array)) > 500
    for path in files:
        compress(path, syntax, encode)
    (series,) = find_series(tmp_path)
    assert series.problem is None
    volume = read_series(series.files)
    np.testing.assert_array_equal(volume.array, plain.array)
    np.testing.assert_array_equal(volume.affine, plain.affine)
    assert volume.notes == plain.notes
    assert volume.notes["dicom"]["num_unmeasured_voxels"] > 0


@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless", "RLE"])
def test_files_of_other_writers_have_the_voxels_of_their_plain_ones(name: str) -> None:
    with Decoder() as decoder:
        plain = read_slice(REAL / "MR_small.dcm", decoder)
        found = read_slice(REAL / f"MR_small_{name}.dcm", decoder)
    assert found.header.transfer_syntax != plain.header.transfer_syntax
    assert np.ptp(plain.image) > 1000
    np.testing.assert_array_equal(found.image, plain.image)


def test_a_copy_is_found_whatever_it_is_compressed_as(tmp_path: Path) -> None:
    files = write_series(tmp_path, plan(), values)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(files[2].read_bytes())
    compress(copy, LOSSLESS_FIRST, jpeg_lossless(1))
    (series,) = find_series(tmp_path)
    assert series.problem is None
    assert len(series.files) == len(files)
    assert "copy.dcm" in series.warnings[0]


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_values_of_more_bits_than_promised_are_refused(tmp_path: Path, signed: bool) -> None:
    """A bone of 3000 in 12 signed bits would become air."""
    files = write_series(tmp_path, plan(), lambda points: np.where(points[..., 0] > 0, 3000.0, -1000.0))
    for path in files:
        restore(path, bits=16, stored=13, signed=signed)
    assert read_series(files).array.max() == 3000
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.BitsStored, dataset.HighBit = 11 + signed, 10 + signed
        dataset.save_as(path)
    with pytest.raises(VolumeError, match=r"values of more bits than the 1[12] its tags promise: export it again"):
        read_series(files)


@pytest.mark.parametrize(("stored", "padding"), [(12, -2000), (12, -3024)])
def test_padding_may_lie_beyond_the_stored_bits(tmp_path: Path, stored: int, padding: int) -> None:
    files = write_series(tmp_path, plan(tags={"PixelPaddingValue": padding}), values)
    for path in files:
        dataset = pydicom.dcmread(path)
        words = np.frombuffer(dataset.PixelData, "<i2").copy() % 2000
        words[:5] = padding
        dataset.PixelData = words.tobytes()
        dataset.BitsStored, dataset.HighBit = stored, stored - 1
        dataset.save_as(path)
    volume = read_series(files)
    assert volume.notes["dicom"]["num_unmeasured_voxels"] == 5 * len(files)
    assert (volume.array == -1024).sum() == 5 * len(files)


# Bad streams ------------------------------------------------------------------------------------------------------


@pytest.fixture
def compressed(tmp_path: Path) -> list[Path]:
    files = write_series(tmp_path / "series", plan(), values)
    for path in files:
        compress(path, LOSSLESS_FIRST, jpeg_lossless(1))
    return files


def test_a_stream_of_another_size_is_refused(compressed: list[Path]) -> None:
    for path in compressed:
        dataset = pydicom.dcmread(path)
        dataset.Rows = 29
        dataset.save_as(path)
    with pytest.raises(VolumeError, match=r"000\.dcm is damaged: its pixels"):
        read_series(compressed)


def test_a_decoder_that_breaks_down_costs_its_own_file(compressed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder() as decoder:
        expected = read_slice(compressed[0], decoder).image
        process = decoder._process
        assert process is not None
        process.kill()
        process.wait()
        with pytest.raises(VolumeError, match="the decoder of its pixels broke down: copy it again"):
            read_slice(compressed[1], decoder)
        np.testing.assert_array_equal(read_slice(compressed[0], decoder).image, expected)
        last = decoder._process
        assert last is not None
    assert last.poll() is not None


def test_a_decoder_that_does_not_come_to_an_end_is_ended(
    compressed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text("import sys, time\nsys.stdin.buffer.read(8)\ntime.sleep(600)\n")
    monkeypatch.setattr(decoding, "_PROGRAM", tmp_path / "sleeping.py")
    monkeypatch.setattr(decoding, "SECONDS", 0.5)
    started = time.monotonic()
    with Decoder() as decoder, pytest.raises(VolumeError, match="did not come to an end"):
        read_slice(compressed[0], decoder)
    assert time.monotonic() - started < 20


def test_a_promise_of_a_huge_image_asks_for_no_memory(compressed: list[Path]) -> None:
    """The stream says 65,535 squared, the tags 37 by 30: the other process is refused it, and this asks for none."""
    import tracemalloc

    content = compressed[0].read_bytes()
    place = content.index(b"\xff\xc3\x00\x0b") + 5
    compressed[0].write_bytes(content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :])
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError, match=r"000\.dcm is damaged"):
            read_series(compressed)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_the_decoder_is_told_nothing_of_the_patient(compressed: list[Path]) -> None:
    content = compressed[0].read_bytes()
    assert b"Doe^Jane" in content
    told = decoding._alone(content, read_header(compressed[0]))
    for private in (b"Doe", b"19500101", b"study"):
        assert private not in told


@pytest.fixture(scope="module")
def streams() -> list[tuple[str, bytes]]:
    words = (np.arange(30 * 37).reshape(30, 37) * 7 % 1900 - 900).astype(np.int16)
    real = pydicom.dcmread(REAL / "MR_small_jpeg_ls_lossless.dcm")
    return [
        (LOSSLESS_FIRST, jpeg_lossless(1)(words, 16)),
        (JPEG_2000, by_simpleitk("JPEG2000")(words, 16)),
        (JPEG_LS, next(generate_frames(real.PixelData, number_of_frames=1))),
    ]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


@given(
    which=st.integers(0, 2),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=6),
    head_flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 7)), max_size=3),
    keep=st.just(1.0) | st.floats(0, 1),
)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_any_damage_to_a_stream_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    streams: list[tuple[str, bytes]],
    decoder: Decoder,
    which: int,
    flips: list[tuple[float, int]],
    head_flips: list[tuple[int, int]],
    keep: float,
) -> None:
    syntax, sound = streams[which]
    damaged = bytearray(sound)
    for place, bit in flips:
        damaged[int(place * len(damaged))] ^= 1 << bit
    for place, bit in head_flips:
        damaged[min(place, len(damaged) - 1)] ^= 1 << bit
    stream = bytes(damaged[: max(2, int(keep * len(damaged)))])
    size = (64, 64) if syntax == JPEG_LS else (37, 30)
    (path,) = write_series(tmp_path_factory.mktemp("fuzz"), plan(places_mm=(0.0,), size=size), values)
    compress(path, syntax, lambda words, bits: stream + b"\x00" * (len(stream) % 2))
    started, refusal = time.monotonic(), ""
    try:
        image = read_slice(path, decoder).image
    except VolumeError as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        assert refusal.isprintable()
    else:
        assert image.shape == size[::-1]
        assert np.isfinite(image).all()
    assert time.monotonic() - started < 30
