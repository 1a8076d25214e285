"""Who may enter the store, and in which split: everything that is decided before a voxel is prepared."""

from __future__ import annotations

import difflib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vesalius.datasets.splits import SPLITS, Candidate, SplitSettings, draw_splits
from vesalius.platform.errors import CohortError, SettingError
from vesalius.platform.store import check_subject_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.datasets.layouts.raw import RawSubject
    from vesalius.datasets.reading import Inspection
    from vesalius.platform.store import SubjectRecord

DRAWN = "drawn"
"""``record.notes["split"]`` of a subject whose split was drawn; ``given`` for the others."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What becomes of each subject.

    Attributes:
        waiting: to be prepared, in order of id.
        splits: split by id, of those waiting.
        drawn: ids among them whose split was drawn and not given.
        unchanged: ids that are committed with the same source.
        failed: reason by id.
        warnings: what differs from what is committed without making it another subject, by id.
    """

    waiting: tuple[RawSubject, ...]
    splits: Mapping[str, str]
    drawn: frozenset[str]
    unchanged: tuple[str, ...]
    failed: Mapping[str, str]
    warnings: Mapping[str, tuple[str, ...]]


def choose_modalities(available: Sequence[str], wanted: Sequence[str], root: Path) -> tuple[str, ...]:
    """Return the modalities to take, in the order wanted; none wanted takes the only one there is.

    Raises:
        SettingError: one is unknown (names the nearest one) or twice, or none is wanted where there are several.
        CohortError: there is none at all.
    """
    if not available:
        raise CohortError(f"{root} holds no image: expected .nii or .nii.gz files")
    if not wanted:
        if len(available) > 1:
            raise SettingError(f"{root} holds the modalities {', '.join(available)}: choose with --modality")
        return (available[0],)
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise SettingError(f"unknown modality '{name}': {hint}{root} holds {', '.join(available)}")
    if len(set(wanted)) < len(wanted):
        raise SettingError(f"a modality is named twice in {', '.join(wanted)}: name each once")
    return tuple(wanted)


def check_ids(subjects: Sequence[RawSubject], root: Path) -> list[RawSubject]:
    """Return the subjects sorted by id.

    Raises:
        CohortError: there is none, an id cannot name a folder, or two subjects share one (also on a disk that does
            not tell upper from lower case).
    """
    if not subjects:
        raise CohortError(f"{root} holds no subject")
    seen: dict[str, RawSubject] = {}
    for raw in subjects:
        try:
            check_subject_id(raw.subject_id)
        except CohortError as error:
            raise CohortError(f"{raw.origin or root}: {error}") from None
        other = seen.setdefault(raw.subject_id.lower(), raw)
        if other is not raw:
            places = " and ".join(place for place in (other.origin, raw.origin) if place) or str(root)
            raise CohortError(f"subject '{raw.subject_id}' is there twice ({places}): give every subject its own id")
    return sorted(subjects, key=lambda raw: raw.subject_id)


def admit(
    subjects: Sequence[RawSubject],
    inspections: Mapping[str, Inspection],
    committed: Sequence[SubjectRecord],
    settings: SplitSettings,
    *,
    allow_anomalous_training: bool = False,
) -> Admission:
    """Decide who is new, who is there already, who is refused, and who goes into which split.

    Args:
        subjects: sorted by id.
        inspections: by id; a subject without one has failed already.
        committed: what the store holds.
        settings: how subjects without a given split are divided.
        allow_anomalous_training: anomalous subjects that are given the training split are taken into it and trained
            on; without it they are refused.
    """
    known = {record.subject_id: record for record in committed}
    failed: dict[str, str] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    unchanged: list[str] = []
    new: list[RawSubject] = []
    content = {_content(record.source.sha256): key for key, record in known.items() if record.source is not None}
    for raw in subjects:
        inspection = inspections.get(raw.subject_id)
        if inspection is None:
            continue
        if raw.subject_id in known:
            reason, differing = _compare(raw, inspection, known[raw.subject_id])
            if reason:
                failed[raw.subject_id] = reason
                continue
            unchanged.append(raw.subject_id)
            if differing:
                warnings[raw.subject_id] = differing
            continue
        key = _content(inspection.sha256)
        twin = content.setdefault(key, raw.subject_id)
        if twin != raw.subject_id:
            failed[raw.subject_id] = (
                f"{raw.subject_id} has the very images of {twin}: one scan under two names would sit in two splits"
            )
            continue
        if raw.split is not None and raw.split not in SPLITS:
            near = difflib.get_close_matches(raw.split, SPLITS, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            failed[raw.subject_id] = (
                f"{raw.origin or raw.subject_id}: unknown split '{raw.split}': {hint}expected {', '.join(SPLITS)}"
            )
            continue
        new.append(raw)
    splits, drawn, refused = _assign(subjects, new, inspections, known, settings, allow=allow_anomalous_training)
    failed.update(refused)
    return Admission(
        waiting=tuple(raw for raw in new if raw.subject_id not in refused),
        splits=splits,
        drawn=drawn,
        unchanged=tuple(unchanged),
        failed=failed,
        warnings=warnings,
    )


def _content(sha256: Mapping[str, str]) -> tuple[str, ...]:
    masks = ("brain_mask", "head_mask", "lesion_mask", "structures")
    return tuple(sorted(value for role, value in sha256.items() if role not in masks))


def _compare(raw: RawSubject, inspection: Inspection, record: SubjectRecord) -> tuple[str, tuple[str, ...]]:
    """Return why a subject that is committed cannot stay as it is, and what else differs."""
    before = dict(record.source.sha256) if record.source is not None else {}
    changed = [
        role for role in sorted({*before, *inspection.sha256}) if before.get(role) != inspection.sha256.get(role)
    ]
    where = raw.origin or raw.subject_id
    advice = "the store keeps what it has: give another id, or ingest into a new store"
    if changed:
        return f"{where}: the {', '.join(changed)} of {raw.subject_id} changed since it was taken in; {advice}", ()
    if raw.split is not None and raw.split != record.split:
        return f"{where}: {raw.subject_id} stands in the split {record.split} and not {raw.split}; {advice}", ()
    if dict(raw.labels) != dict(record.labels):
        return f"{where}: the labels of {raw.subject_id} changed since it was taken in; {advice}", ()
    differing = tuple(
        f"{where}: the {name} of {raw.subject_id} changed since it was taken in; the store keeps what it has"
        for name, mine, theirs in (
            ("group", raw.group, record.group),
            ("demographics", dict(raw.demographics), dict(record.demographics)),
        )
        if mine != theirs
    )
    return "", differing


def _person(raw: RawSubject) -> str:
    return raw.person or raw.subject_id


def _assign(
    subjects: Sequence[RawSubject],
    new: Sequence[RawSubject],
    inspections: Mapping[str, Inspection],
    known: Mapping[str, SubjectRecord],
    settings: SplitSettings,
    *,
    allow: bool,
) -> tuple[dict[str, str], frozenset[str], dict[str, str]]:
    standing: dict[str, str] = {}
    drawn_before: set[str] = set()
    anomalous: dict[str, bool] = defaultdict(bool)
    for record in known.values():
        person = str(record.notes.get("person", record.subject_id))
        standing[person] = record.split
        anomalous[person] |= record.has_lesion
        if record.notes.get("split") == DRAWN:
            drawn_before.add(person)
    given: dict[str, str] = {}
    refused: dict[str, str] = {}
    for raw in new:
        person = _person(raw)
        if raw.split is not None:
            stands = standing.get(person) or given.setdefault(person, raw.split)
            if stands != raw.split:
                refused[raw.subject_id] = (
                    f"{raw.origin or raw.subject_id}: {raw.subject_id} is to go into {raw.split} and another scan of "
                    f"{person} into {stands}: all scans of a person belong in one split"
                )
    # Subjects that cannot be read keep their place in the draw, so that repairing one file moves nobody else.
    for raw in subjects:
        if raw.subject_id not in known:
            inspection = inspections.get(raw.subject_id)
            anomalous[_person(raw)] |= (
                inspection.anomalous if inspection is not None else raw.labels.get("anomalous") is True
            )
    undecided = {_person(raw) for raw in subjects if raw.subject_id not in known} - set(standing) - set(given)
    candidates = [
        Candidate(person=person, anomalous=anomalous[person], committed=standing.get(person))
        for person in sorted(undecided | drawn_before)
    ]
    draw = draw_splits(candidates, settings)
    splits = {
        raw.subject_id: standing.get(_person(raw)) or given.get(_person(raw)) or draw[_person(raw)]
        for raw in new
        if raw.subject_id not in refused
    }
    for raw in new:
        subject_id = raw.subject_id
        if splits.get(subject_id) == "train" and inspections[subject_id].anomalous and not allow:
            refused[subject_id] = (
                f"{raw.origin or subject_id}: {subject_id} is anomalous and may not be in the training split: "
                "give it another, or allow it with --allow-anomalous-training"
            )
    drawn = frozenset(raw.subject_id for raw in new if _person(raw) in undecided | drawn_before)
    return splits, drawn, refused
