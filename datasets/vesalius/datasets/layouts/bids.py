"""The Brain Imaging Data Structure: ``sub-XX[/ses-YY]/anat/sub-XX[_ses-YY][_...]_<modality>.nii[.gz]``.

``participants.tsv`` gives demographics ('n/a' is unknown); its columns ``group``, ``split`` and ``label:<name>`` are
taken as such. Masks in native space stand in ``derivatives/<pipeline>/`` under the same path:
``*_desc-brain_mask``, ``*_label-lesion_mask`` (or ``_roi``, or ``desc-lesion``) and ``*_dseg``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import known, labels_of, read_table, value_of
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SUFFIX = re.compile(r"_([A-Za-z0-9]+)\.nii(\.gz)?$")
_NOT_IMAGES = frozenset({"mask", "roi", "dseg", "probseg", "defacemask"})
_DERIVATIVES = {
    "brain_mask": r"_(desc-brain[^.]*_mask|brainmask)",
    "lesion_mask": r"_(label-lesion[^.]*_(mask|roi)|desc-lesion[^.]*_mask)",
    "structures": r"_dseg",
}
_RESERVED = frozenset({"participant_id", "group", "split"})


class BidsLayout:
    """A BIDS tree. A subject with sessions gives one scan a session, ``sub-XX_ses-YY``, all in one split."""

    default_recipe: ClassVar[str] = "mni_affine"
    about: ClassVar[About] = About(
        tree="""\
ROOT/
  participants.tsv                                    optional: participant_id, group, split, label:<name>, ...
  sub-01[/ses-a]/anat/sub-01[_ses-a]_T1w.nii.gz       or any other suffix: T2w, FLAIR, ...
  derivatives/<pipeline>/sub-01/anat/
    sub-01_desc-brain_mask.nii.gz                     optional
    sub-01_label-lesion_mask.nii.gz                   optional
    sub-01_dseg.nii.gz                                optional""",
        source="any BIDS data set, such as those of https://openneuro.org",
        terms="each data set's own: see its dataset_description.json",
        lesion_mask="what the derivative *_label-lesion_mask marks",
        own_labels=True,
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return the suffixes of all images in ``anat`` folders.

        Raises:
            CohortError: there is no sub-XX folder.
        """
        names = {_suffix(path) for _, _, anat in _scans(root) for path in _volumes(anat)}
        return tuple(sorted(names - _NOT_IMAGES - {""}))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return the scans of ``root``, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no sub-XX folder, or participants.tsv cannot be read.
        """
        participants = _participants(root)
        return [
            _scan(root, person, session, anat, modalities, participants.get(person, {}))
            for person, session, anat in _scans(root)
        ]

    def write_example(self, root: Path) -> Path:
        """Write four subjects: two sessions of one, derivatives of another, an oblique LAS scan, unknown cells."""
        from vesalius.datasets.layouts.example import write_bids_example

        return write_bids_example(root)


def _scans(root: Path) -> list[tuple[str, str | None, Path]]:
    """Return (sub-XX, ses-YY or None, anat folder) in order of name."""
    people = sorted(path for path in root.glob("sub-*") if path.is_dir()) if root.is_dir() else []
    if not people:
        raise CohortError(f"{root} is not a BIDS tree: expected folders named sub-XX in it")
    scans: list[tuple[str, str | None, Path]] = []
    for person in people:
        sessions = sorted(path for path in person.glob("ses-*") if path.is_dir())
        if (person / "anat").is_dir() or not sessions:
            scans.append((person.name, None, person / "anat"))
        scans.extend((person.name, session.name, session / "anat") for session in sessions)
    return scans


def _volumes(anat: Path) -> list[Path]:
    # A broken link (an annexed file that was not fetched) is kept: ingest says that it is missing. What a Mac leaves
    # beside each file that it archives (._sub-01_T1w.nii.gz) is none.
    return sorted(path for path in anat.glob("sub-*.nii*") if _SUFFIX.search(path.name)) if anat.is_dir() else []


def _suffix(path: Path) -> str:
    match = _SUFFIX.search(path.name)
    return match.group(1) if match else ""


def _scan(
    root: Path, person: str, session: str | None, anat: Path, modalities: Sequence[str], cells: Mapping[str, str]
) -> RawSubject:
    subject_id = person if session is None else f"{person}_{session}"
    images: dict[str, str] = {}
    problem = None
    for modality in modalities:
        files = [path for path in _volumes(anat) if _suffix(path) == modality]
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            problem = f"{subject_id} has {len(files)} {modality} images ({names}): keep one, or list it in a manifest"
        elif files:
            images[modality] = str(files[0].absolute())
    derived: dict[str, str | None] = {}
    for role, ending in _DERIVATIVES.items():
        files = _derived(root, anat, ending)
        if len(files) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in files)
            problem = f"{subject_id} has {len(files)} files of its {role} ({names}): keep one, or list it in a manifest"
        derived[role] = str(files[0].absolute()) if files else None
    demographics = {name: value_of(text) for name, text in cells.items() if not _is_reserved(name)}
    return RawSubject(
        subject_id=subject_id,
        person=person,
        images=images,
        brain_mask=derived["brain_mask"],
        lesion_mask=derived["lesion_mask"],
        structures=derived["structures"],
        split=known(cells.get("split", "")),
        group=known(cells.get("group", "")),
        demographics=demographics,
        labels=labels_of(cells),
        origin=str(anat),
        problem=problem,
    )


def _is_reserved(column: str) -> bool:
    return column in _RESERVED or column.startswith("label:")


def _derived(root: Path, anat: Path, ending: str) -> list[Path]:
    """Return the derivatives of a scan with that ending in native space, of all pipelines."""
    pattern = re.compile(ending + r"\.nii(\.gz)?$")
    folders = sorted((root / "derivatives").glob("*")) if (root / "derivatives").is_dir() else []
    return [
        path
        for folder in folders
        for path in _volumes(folder / anat.relative_to(root))
        if pattern.search(path.name) and "_space-" not in path.name
    ]


def _participants(root: Path) -> dict[str, dict[str, str]]:
    table = root / "participants.tsv"
    if not table.is_file():
        return {}
    columns, rows = read_table(table, "\t")
    if "participant_id" not in columns:
        raise CohortError(f"{table} has no column participant_id: it has {', '.join(columns)}")
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row.cells["participant_id"]
        name = name if name.startswith("sub-") else f"sub-{name}"
        if name in found:
            raise CohortError(f"{table} line {row.line} names '{name}' a second time: give every participant one row")
        found[name] = dict(row.cells)
    return found
