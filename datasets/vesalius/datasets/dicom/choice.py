"""Which of a study's series to take."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vesalius.datasets.dicom.discovery import find_series
from vesalius.datasets.dicom.geometry import stack_of
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.datasets.dicom.series import Series

_SHOWN = 4
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
    return by_preference(series)[0]


def by_preference(series: Sequence[Series]) -> list[Series]:
    """Return series, none of them with a problem, in the order of :func:`best_series`."""
    return sorted(series, key=_rank)


def series_in(folder: Path) -> Series:
    """Return the one series to take of a folder that holds one study: for a single scan to be scored.

    Its ``warnings`` name every other series.

    Raises:
        VolumeError: none of the series makes a volume, or they are of several studies.
    """
    found = find_series(folder)
    usable = [series for series in found if series.problem is None]
    problems = [series.problem for series in found if series.problem is not None]
    if not usable:
        reasons = "; ".join(problems[:_SHOWN]) or "there is no DICOM file"
        raise VolumeError(f"{folder} holds no series that makes a volume: {reasons}")
    if len({series.headers[0].study_uid for series in usable}) > 1:
        raise VolumeError(f"{folder} holds several studies: give the folder of one")
    best = best_series(usable)
    others = [f"{series.name} was not taken: {best.name} serves better" for series in usable if series is not best]
    return replace(best, warnings=(*problems, *best.warnings, *others))


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
