"""The program of the process that decodes compressed pixels: a loop over files on standard input, by SimpleITK's GDCM.

Run by :mod:`vesalius.datasets.dicom.decoding`, by its path and on its own: it imports nothing of ours. A request is
eight bytes of length and a DICOM file that our side wrote; an answer is a line of JSON (``type`` and ``shape``; an
``error`` instead where there is one), and the pixels. It ends with its input.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

MEMORY_BYTES = 4 << 30
"""Of the whole process: a stream may promise any size, and is asked for no more than this."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        while len(head := requests.read(8)) == 8:
            path.write_bytes(requests.read(struct.unpack("<Q", head)[0]))
            try:
                image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
                array = sitk.GetArrayViewFromImage(image)
                content = array.tobytes()
                told = {"type": array.dtype.str, "shape": array.shape}
            except Exception as error:  # the library raises whatever the bytes lead it to
                content, told = b"", {"error": type(error).__name__}
            answers.write(json.dumps(told).encode() + b"\n" + content)
            answers.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)
