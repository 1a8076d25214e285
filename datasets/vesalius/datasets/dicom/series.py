"""Files that belong together, as discovery found them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.datasets.dicom.headers import SliceHeader


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files that make one volume, or that were to make one.

    Attributes:
        uid: SeriesInstanceUID; empty for a file that cannot be read.
        files: by position along the normal, from the patient's lowest to the highest where that is defined.
        description: SeriesDescription.
        modality: ``CT`` or ``MR``; whatever the file says for what is neither.
        problem: why it is no volume, as a sentence that names the series; None where it is one.
        warnings: what was left out of it or is odd about it, a sentence each.
        name: for messages.
        headers: the files' tags, in the same order.
    """

    uid: str
    files: tuple[Path, ...]
    description: str = ""
    modality: str = ""
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""
    headers: tuple[SliceHeader, ...] = ()


def left_out(headers: Sequence[SliceHeader], clause: str) -> Series:
    """Return files as a series that is no volume, with why not: a clause to follow its name."""
    series = named(headers)
    return replace(series, problem=f"{series.name} is left out: {clause}")


def named(headers: Sequence[SliceHeader]) -> Series:
    """Return files as a series, with the name that messages have for it."""
    first = headers[0]
    number = "without a number" if first.series_number is None else str(first.series_number)
    title = f" '{first.description}'" if first.description else ""
    count = "1 file" if len(headers) == 1 else f"{len(headers)} files"
    return Series(
        uid=first.series_uid,
        files=tuple(header.path for header in headers),
        description=first.description,
        modality=first.modality,
        name=f"{first.path.parent}: series {number}{title} ({count})",
        headers=tuple(headers),
    )
