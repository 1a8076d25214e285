"""The same volume under two ids, the same person in two splits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vesalius.datasets.quality.comparison import Reference
    from vesalius.datasets.quality.portrait import Portrait
    from vesalius.platform.store import SubjectRecord

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two subjects with the same content.

    Attributes:
        one: number of the first.
        other: number of the second.
        correlation: of what sets them apart from the cohort; 1 where they are equal.
        how: ``voxels`` the stored voxels are equal, ``file`` a source file is, ``likeness`` they look the same,
            ``mirror`` one looks like the other's mirror image.
    """

    one: int
    other: int
    correlation: float
    how: str


def equal_content(records: Sequence[SubjectRecord]) -> Iterator[Twins]:
    """Yield pairs of subjects whose image was read from equal files, or is stored with equal values."""
    by_digest: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if "image" in record.arrays:
            by_digest["voxels", record.arrays["image"].sha256].append(number)
        sha256 = record.source.sha256 if record.source is not None else {}
        # Masks do not count: an empty one is any healthy subject's.
        for digest in {sha256[role] for role in record.channels if role in sha256}:
            by_digest["file", digest].append(number)
    seen = set()
    for (how, _), numbers in sorted(by_digest.items(), key=lambda item: (item[0][0] != "voxels", item[1])):
        # One pair with the first of each group, and not all pairs: fifty copies are not a thousand findings.
        for other in numbers[1:]:
            if (numbers[0], other) not in seen:
                seen.add((numbers[0], other))
                yield Twins(one=numbers[0], other=other, correlation=1.0, how=how)


def likenesses(portraits: Sequence[Portrait], reference: Reference) -> Iterator[Twins]:
    """Yield for every subject the one that it is most like, each pair once.

    What all have in common is taken away first: two brains of one template are alike to 0.9, what sets them apart
    from the median is not.

    Args:
        portraits: all subjects.
        reference: their median.
    """
    apart = _apart(portraits, reference)
    mirrored = _apart(portraits, reference, mirror=True)
    best: dict[tuple[int, int], Twins] = {}
    for start in range(0, len(portraits), _ROWS):
        rows = apart[start : start + _ROWS]
        for other, how in ((apart, "likeness"), (mirrored, "mirror")):
            table = rows @ other.T
            # Nobody is compared with itself; a symmetric head is like its own mirror image.
            table[np.arange(len(rows)), start + np.arange(len(rows))] = -1.0
            for row, nearest in enumerate(np.argmax(table, axis=1).tolist()):
                one, two = sorted((start + row, nearest))
                found = Twins(one=one, other=two, correlation=float(table[row, nearest]), how=how)
                known = best.get((one, two))
                if known is None or found.correlation > known.correlation:
                    best[one, two] = found
    yield from best.values()


def _apart(portraits: Sequence[Portrait], reference: Reference, *, mirror: bool = False) -> NDArray[np.float32]:
    """Return (N, voxels), each row what sets a subject apart from the median inside the brain, of length 1."""
    inside = reference.inside
    rows = np.empty((len(portraits), len(reference.image) * int(np.count_nonzero(inside))), dtype=np.float32)
    for number, portrait in enumerate(portraits):
        image = portrait.image.astype(np.float32)
        image = image[:, ::-1] if mirror else image
        row = (image - reference.image)[:, inside].ravel()
        row = row - row.mean()
        rows[number] = row / max(float(np.linalg.norm(row)), 1e-12)
    return rows


def shared_persons(records: Sequence[SubjectRecord]) -> dict[str, list[int]]:
    """Return the subjects of every person who stands in more than one split."""
    by_person: dict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        person = record.notes.get("person")
        if isinstance(person, str) and person:
            by_person[person].append(number)
    return {
        person: numbers
        for person, numbers in by_person.items()
        if len({records[number].split for number in numbers}) > 1
    }
