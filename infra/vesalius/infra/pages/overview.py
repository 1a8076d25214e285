"""The cohort as a whole as the quality page shows it: figures, who is in it, the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.datasets.quality.report import TITLES
from vesalius.infra.pages.cards import MEASURES, as_text, known_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.datasets.quality import CohortQuality, SubjectQuality

_STRIP_WIDTH, _STRIP_HEIGHT = 600, 26
_MAX_DOTS = 200


def strips(quality: CohortQuality) -> list[dict[str, Any]]:
    """Return one line of dots a measure, a dot a subject; above 200 subjects the others' dots become a shaded line."""
    found = []
    for measure in MEASURES:
        valued = [(s, getattr(s.measures, measure.key)) for s in quality.subjects]
        valued = [(subject, float(value)) for subject, value in valued if value is not None]
        if len(valued) < 2:
            continue
        values = np.array([value for _, value in valued])
        low, high = float(values.min()), float(values.max())
        span = (high - low) or 1.0
        dots = [
            {
                "x": f"{8 + (_STRIP_WIDTH - 16) * (value - low) / span:.1f}",
                # A fixed scatter of three heights, so that equal values do not hide each other.
                "y": f"{8 + 5 * (number % 3):d}",
                "label": f"{subject.subject_id}: {as_text(value, measure)}",
                "anchor": f"s-{subject.subject_id}",
                "level": "alarm" if subject.alarm else "look" if subject.findings else "fine",
            }
            for number, (subject, value) in enumerate(valued)
        ]
        shade = ""
        if len(dots) > _MAX_DOTS:
            counts, _ = np.histogram(values, bins=80, range=(low, low + span))
            heights = _STRIP_HEIGHT * (1 - counts / counts.max() * 0.9)
            steps = np.linspace(8, _STRIP_WIDTH - 8, len(counts))
            line = " ".join(f"{x:.0f},{y:.1f}" for x, y in zip(steps, heights, strict=True))
            shade = f"8,{_STRIP_HEIGHT} {line} {_STRIP_WIDTH - 8},{_STRIP_HEIGHT}"
            dots = [dot for dot in dots if dot["level"] != "fine"]
        found.append(
            {
                "measure": measure,
                "low": as_text(low, measure),
                "high": as_text(high, measure),
                "median": as_text(float(np.median(values)), measure),
                "middle": f"{8 + (_STRIP_WIDTH - 16) * (float(np.median(values)) - low) / span:.1f}",
                # What stands out is drawn last, on top.
                "dots": sorted(dots, key=lambda dot: ("fine", "look", "alarm").index(dot["level"])),
                "shade": shade,
            }
        )
    return found


def demographics_table(subjects: Sequence[SubjectQuality]) -> list[dict[str, Any]]:
    """Return what is known of the cohort, by split: counts of words, quartiles of numbers."""
    keys = list(dict.fromkeys(key for subject in subjects for key, _ in known_facts(subject)))
    splits = list(dict.fromkeys(subject.split for subject in sorted(subjects, key=lambda one: split_order(one.split))))
    rows = []
    for key in keys[:8]:
        cells = []
        for split in splits:
            values = [
                dict(known_facts(one))[key] for one in subjects if one.split == split and key in dict(known_facts(one))
            ]
            cells.append(_summary(values))
        rows.append({"name": key, "cells": cells})
    counts = [
        {"name": name, "cells": [str(sum(one.split == split and test(one) for one in subjects)) for split in splits]}
        for name, test in (
            ("subjects", lambda one: True),
            ("with a lesion", lambda one: one.has_lesion),
            ("that stand out", lambda one: bool(one.findings)),
        )
    ]
    return [{"name": "", "cells": splits}, *counts, *rows]


def split_order(split: str) -> tuple[int, str]:
    """Return a key that sorts splits as they are used."""
    known = ("train", "validation", "gate", "test")
    return (known.index(split) if split in known else len(known), split)


def _summary(values: Sequence[Any]) -> str:
    if not values:
        return "-"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (0, 50, 100))
        return f"{middle:.4g} ({low:.4g} to {high:.4g})" if high > low else f"{middle:.4g}"
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", {len(most) - 4} more" if len(most) > 4 else ""
    return ", ".join(f"{count} {value}" for value, count in most[:4]) + more


def rules(quality: CohortQuality) -> list[tuple[str, str]]:
    """Return every rule as a sentence with its figures."""
    limits = quality.limits
    deviations = f"{limits.robust_deviations:g} robust deviations (1.4826 times the median absolute deviation)"
    return [
        (
            TITLES["orientation"],
            f"one of the 23 other orientations is more similar by {limits.orientation_gain:g} or more, and similar to "
            f"at least {limits.orientation_least:g}",
        ),
        (
            TITLES["placement"],
            f"overlap below the median by {limits.overlap_margin:g}, or centre {limits.offset_margin_mm:g} mm farther "
            f"than the median, and {deviations}",
        ),
        (
            TITLES["modality"],
            f"contrast below the median by {limits.contrast_margin:g}, or histogram distance above it by "
            f"{limits.histogram_margin:g}, and {deviations}",
        ),
        (
            TITLES["truncated"],
            f"a flat end of {100 * limits.cut_share:g} % of the widest cross-section more than a ball's, and above the "
            f"median by {100 * limits.cut_margin:g} % and {deviations}",
        ),
        (
            TITLES["brain"],
            f"brain mask larger or smaller than the median by a factor of {limits.volume_factor:g}, and {deviations}",
        ),
        (
            TITLES["duplicate"],
            f"equal voxels, equal source files, or a correlation of {limits.twin_correlation:g} in what sets both "
            "apart from the cohort, mirrored or not",
        ),
        (TITLES["leak"], "scans of one person (as noted at ingest) in more than one split"),
    ]
