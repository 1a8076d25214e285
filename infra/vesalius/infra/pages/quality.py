"""The quality page: what stands out first, then every subject, in one file without a network."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from vesalius.datasets.quality.report import TITLES
from vesalius.infra.pages.cards import MEASURES, card
from vesalius.infra.pages.document import QUALITY, render_page, write_page
from vesalius.infra.pages.overview import demographics_table, rules, split_order, strips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.datasets.quality import CohortQuality
    from vesalius.infra.pages.slices import Slices
    from vesalius.platform.store import CohortStore


def write_quality_page(
    path: Path,
    store: CohortStore,
    quality: CohortQuality,
    slices: Mapping[str, Slices],
    *,
    common_outline: str = "",
    problems: Sequence[str] | None = None,
) -> int:
    """Write the page, complete or absent, and return its size in bytes.

    Args:
        path: see :func:`page_path`.
        store: the cohort.
        quality: what quality control says of it.
        slices: pictures by subject id.
        common_outline: SVG path of the cohort's common brain over every picture of the same size.
        problems: what re-reading the store against its checksums found; None where it was not re-read.

    Raises:
        DiskSpaceError: there is no room.
    """
    return write_page(path, render(store, quality, slices, common_outline=common_outline, problems=problems))


def render(
    store: CohortStore,
    quality: CohortQuality,
    slices: Mapping[str, Slices],
    *,
    common_outline: str = "",
    problems: Sequence[str] | None = None,
) -> str:
    """Return the page's HTML. Everything that comes from data is escaped; no style, script or address comes from it."""
    outliers = [card(subject, quality, slices, number) for number, subject in enumerate(quality.outliers)]
    others = [subject for subject in quality.subjects if not subject.findings]
    splits: dict[str, int] = {}
    for subject in sorted(quality.subjects, key=lambda one: split_order(one.split)):
        splits[subject.split] = splits.get(subject.split, 0) + 1
    return render_page(
        "quality",
        QUALITY,
        styles=("page", "quality"),
        filters={"begun": _begun},
        name=store.name or store.path.name,
        path=str(store.path),
        digest=store.digest,
        channels=store.channels,
        written=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        quality=quality,
        splits=splits,
        groups=sorted({subject.group for subject in quality.subjects if subject.group}),
        demographics=demographics_table(quality.subjects),
        problems=problems,
        outliers=outliers,
        others=[card(subject, quality, slices, len(outliers) + number) for number, subject in enumerate(others)],
        num_alarms=sum(subject.alarm for subject in quality.subjects),
        strips=strips(quality),
        measures=MEASURES,
        titles=TITLES,
        frame={"template": "one grid in MNI space", "grid": "one grid", "own": "grids of their own"}[quality.frame],
        limits=rules(quality),
        common_outline=common_outline,
        has_lesions=any(one.lesion for one in slices.values()),
    )


def _begun(sentence: str) -> str:
    """Return a clause as the beginning of a sentence; what begins with a file's or a channel's name keeps it."""
    first = sentence.split(" ", 1)[0]
    return sentence[:1].upper() + sentence[1:] if first in ("it", "its", "the", "half") else sentence
