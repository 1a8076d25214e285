"""Which of a study's series to take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vesalius.datasets.dicom.geometry import stack_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.dicom.discovery import Series

_SHARP = re.compile(r"bone|lung|edge|sharp|ear\b|\b[bhu][rfcs]?[5-9]\d[a-z]?\b", re.IGNORECASE)
_CONTRAST = re.compile(r"\b(contrast|post|c\+|cta|ctv|angio\w*|perfusion|ctp)\b", re.IGNORECASE)
_PLAIN = re.compile(r"\b(plain|pre|non|without|w/o|nc|ncct)\b", re.IGNORECASE)


def best_series(series: Sequence[Series]) -> Series:
    """Return the series that serves best as the one image of its modality.

    In this order: an original before a derived (reformatted) one; axial slices before others; without a contrast agent
    before with one; a soft convolution kernel before a sharp one (bone, lung, edge; Siemens' numbers from 50); the
    longer extent along the normal, in whole centimetres; more slices; the lower series number; the lower UID. Contrast
    and kernel are known by their tags and by words of the description: how far those can be trusted is the data's
    affair, so what was not taken is named beside what was.

    Args:
        series: one or more, none of them with a problem.
    """
    return min(series, key=_rank)


def _rank(series: Series) -> tuple[bool, bool, bool, bool, int, int, int, str]:
    first = series.headers[0]
    stack = stack_of(series.headers)
    words = series.description.replace("_", " ")
    with_contrast = first.contrast or (bool(_CONTRAST.search(words)) and not _PLAIN.search(words))
    return (
        "ORIGINAL" not in first.image_type,
        abs(float(stack.normal[2])) < 0.7,
        with_contrast,
        bool(_SHARP.search(f"{first.kernel} {words}")),
        -round(float(stack.offsets_mm[-1]) / 10),
        -len(series.files),
        2**31 if first.series_number is None else first.series_number,
        series.uid,
    )
