"""Sentences about content and persons that stand in a cohort twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.datasets.quality.duplicates import shared_persons
from vesalius.datasets.quality.report import Finding

if TYPE_CHECKING:
    from vesalius.datasets.quality.survey import Seen

_MAX_NAMES = 5


def add_twins(seen: Seen, found: dict[str, list[Finding]]) -> None:
    """Add a finding to both subjects of every pair with the same content."""
    words = {
        "voxels": "its stored voxels are equal to those of {}",
        "file": "its source file is byte for byte that of {}",
        "likeness": "it looks like {} in all that sets both apart from the cohort (correlation {:.2f})",
        "mirror": "it looks like the mirror image of {} (correlation {:.2f})",
    }
    for pair in seen.twins:
        one, other = seen.order[pair.one], seen.order[pair.other]
        persons = [seen.records[name].notes.get("person") for name in (one, other)]
        same_person = persons[0] is not None and persons[0] == persons[1]
        splits = sorted({seen.records[name].split for name in (one, other)})
        if same_person and pair.how in ("likeness", "mirror"):
            # Two scans of one person are alike, and a person in two splits is named for that.
            continue
        across = f"; they stand in two splits ({' and '.join(splits)})" if len(splits) > 1 else ""
        for name, twin in ((one, other), (other, one)):
            found[name].append(
                Finding(
                    kind="duplicate",
                    severity="alarm",
                    sentence=words[pair.how].format(twin, pair.correlation) + across,
                    advice=f"keep one of {one} and {other}, or give both one person so that they stay in one split",
                    others=(twin,),
                    excess=pair.correlation + (len(splits) > 1),
                )
            )


def add_leaks(seen: Seen, found: dict[str, list[Finding]]) -> None:
    """Add a finding to every subject whose person stands in another split as well."""
    records = list(seen.records.values())
    for person, numbers in shared_persons(records).items():
        ids = [records[number].subject_id for number in numbers]
        splits = sorted({records[number].split for number in numbers})
        for subject_id in ids:
            others = tuple(name for name in ids if name != subject_id)
            found[subject_id].append(
                Finding(
                    kind="leak",
                    severity="alarm",
                    sentence=f"its person ({person}) also stands in another split ({' and '.join(splits)}), "
                    f"as {_names(others)}",
                    advice="give all of a person's scans one split and take them in again: figures on a split that "
                    "shares persons with training are too good",
                    others=others,
                    excess=float(len(splits)),
                )
            )


def _names(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _MAX_NAMES} more" if len(ids) > _MAX_NAMES else ""
    return ", ".join(ids[:_MAX_NAMES]) + more
