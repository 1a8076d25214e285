"""Compressed pixels -> the numbers that were stored, exactly: JPEG lossless, JPEG-LS lossless, JPEG 2000 lossless.

Their decoders (those of GDCM, which SimpleITK brings along) are C and C++ that have had memory errors, and what they
are given comes from elsewhere. So they run in a process of their own, with bounded memory and time: a stream that
brings them down costs its own file, by name, and nothing else. They are given the compressed stream in a file that is
written here, with the few tags that describe it, and never the file from elsewhere.

Run-length pixels are decoded by pydicom, which is Python, in this process (:mod:`vesalius.datasets.dicom.pixels`).
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.dicom.headers import quiet
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from vesalius.datasets.dicom.headers import SliceHeader

SECONDS = 60.0
"""For one slice: far more than the largest takes on a busy machine."""

_PROGRAM = Path(__file__).with_name("gdcm_process.py")
_LONGEST_LINE = 4096


class Decoder:
    """The process that decodes, started at the first slice that needs it and after each that brought it down.

    A context: leaving it ends the process. One thread at a time.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def decode(self, content: bytes, header: SliceHeader) -> NDArray[np.integer[Any]]:
        """Return the (rows, columns) stored values of a file, as wide as its tags say; unused bits as they come.

        Args:
            content: the file's bytes.
            header: its tags, which promise pixels that can be decoded.

        Raises:
            VolumeError: the stream is damaged, or holds another image than the tags promise.
        """
        with quiet(header.path):
            request = _alone(content, header)
        told, answer = self._ask(request, header)
        if "error" in told:
            raise VolumeError(f"{header.path} is damaged: its pixels cannot be decoded: copy it again")
        values: NDArray[np.integer[Any]] = np.frombuffer(answer, np.dtype(told["type"]))
        width = (header.bits or 0) // 8
        if values.dtype.kind not in "iu" or values.dtype.itemsize != width:
            raise VolumeError(
                f"{header.path} is damaged: its pixels hold {values.dtype} and its tags promise {header.bits} bits: "
                "copy it again"
            )
        shape = [size for size in told["shape"] if size != 1]
        if shape != [header.rows, header.columns]:
            raise VolumeError(f"{header.path} is damaged: its pixels have shape {tuple(shape)}: copy it again")
        return values.reshape(shape)

    def _ask(self, request: bytes, header: SliceHeader) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._process = _started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<Q", len(request)) + request)
            process.stdin.flush()
            stop = time.monotonic() + SECONDS
            received = b""
            while b"\n" not in received:
                if len(received) > _LONGEST_LINE:
                    raise EOFError
                received += _received(process.stdout, stop)
            line, _, answer = received.partition(b"\n")
            told: dict[str, Any] = json.loads(line)
            parts, missing = [answer], _num_bytes(told) - len(answer)
            while missing > 0:
                parts.append(_received(process.stdout, stop))
                missing -= len(parts[-1])
            return told, b"".join(parts)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._stop()
            how = "did not come to an end" if isinstance(error, TimeoutError) else "broke down"
            raise VolumeError(f"{header.path} is damaged: the decoder of its pixels {how}: copy it again") from None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written to a process that is gone
                    continue
        process.wait()


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    return subprocess.Popen(
        # By its path, without that path's folder among the places where modules are looked for.
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the decoders print what they think of a stream
        env=environment,
    )


def _received(stream: IO[bytes], stop: float) -> bytes:
    """Return what has come, waiting until then.

    Raises:
        TimeoutError: nothing came in time.
        EOFError: nothing will come.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(max(0.0, stop - time.monotonic())):
            raise TimeoutError
    part = os.read(stream.fileno(), 1 << 20)
    if not part:
        raise EOFError
    return part


def _num_bytes(told: dict[str, Any]) -> int:
    return 0 if "error" in told else int(np.prod(told["shape"])) * np.dtype(told["type"]).itemsize


def _alone(content: bytes, header: SliceHeader) -> bytes:
    """Return the compressed stream of a file in a new one that says nothing else: no rescaling, no place, no name."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import UID

    source = dcmread(BytesIO(content), specific_tags=["PixelData"])
    frame = next(generate_frames(source.PixelData, number_of_frames=1))
    dataset = Dataset()
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    dataset.SOPInstanceUID = UID("1.2.3")
    dataset.Rows, dataset.Columns = header.rows, header.columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = header.bits, header.bits_stored
    dataset.HighBit = (header.bits_stored or 1) - 1
    dataset.PixelRepresentation = int(header.signed)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
