"""What a subject's labels say: yes, no, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vesalius.platform.store import SubjectRecord


def marked(record: SubjectRecord, label: str) -> bool | None:
    """Return whether a subject has what a label names; None where nothing is known of it.

    A table's cells of 1 and 0 are numbers by then: they say yes and no as true and false do.

    Raises:
        CohortError: the label is neither.
    """
    value = record.labels.get(label)
    if value is None:
        return None
    # True == 1 and False == 0; text equals neither.
    if value not in (0, 1):
        raise CohortError(
            f"the label {label} of {record.subject_id} is {value!r}: expected true or false, or leave it out where it "
            "is not known"
        )
    return bool(value)


def whole(records: Iterable[SubjectRecord], quality: Sequence[str]) -> list[SubjectRecord]:
    """Return the subjects whose images nothing spoilt: that none of the ``quality`` labels marks.

    Raises:
        CohortError: as :func:`marked` does.
    """
    return [record for record in records if not any(marked(record, label) for label in quality)]
