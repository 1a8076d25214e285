"""The contract suite of folder layouts: what ``vesalius ingest`` may take for granted of each.

The suite knows no layout. Each check takes a layout, a function that ingests it, and an empty folder, and raises
``AssertionError`` where the contract is broken; the raw tree is the layout's own ``write_example``::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_layout(check, tmp_path):
        check(MyLayout(), ingest, tmp_path)

``ingest(layout, root, store, modalities=...)`` must use a recipe that suits the example and return a report with
``added``, ``unchanged``, ``failed`` and ``digest``.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vesalius.platform.errors import InputError, VesaliusError
from vesalius.platform.store import CohortStore, check_subject_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SPLITS = ("train", "validation", "gate", "test")


class AboutUnderTest(Protocol):
    """What the suite asks of what a layout says of itself."""

    @property
    def tree(self) -> str:
        """What the folder must look like."""
        ...

    @property
    def source(self) -> str:
        """Where the archive is got."""
        ...

    @property
    def terms(self) -> str:
        """Licence or terms of use."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """What each subject-level label says."""
        ...

    @property
    def lesion_mask(self) -> str:
        """What the lesion mask marks; empty where there is none."""
        ...

    @property
    def own_labels(self) -> bool:
        """Whether the user may name labels."""
        ...


class LayoutUnderTest(Protocol):
    """What the suite asks of a layout."""

    @property
    def about(self) -> AboutUnderTest:
        """What a person should know of it."""
        ...

    def modalities(self, root: Path) -> Sequence[str]:
        """Return the modalities that ``root`` offers."""
        ...

    def discover(self, root: Path, modalities: Sequence[str]) -> Sequence[Any]:
        """Return the subjects of ``root``."""
        ...

    def write_example(self, root: Path) -> Path:
        """Write a small raw tree and return what to give to ``discover``."""
        ...


class Report(Protocol):
    """What the suite reads of an ingest's report."""

    @property
    def added(self) -> Sequence[str]:
        """Ids that were committed."""
        ...

    @property
    def unchanged(self) -> Sequence[str]:
        """Ids that were there already."""
        ...

    @property
    def failed(self) -> Mapping[str, str]:
        """Reason by id."""
        ...

    @property
    def digest(self) -> str:
        """The cohort's digest."""
        ...


class Ingest(Protocol):
    """How the suite ingests."""

    def __call__(self, layout: Any, root: Path, store: Path, *, modalities: Sequence[str]) -> Report:
        """Ingest the raw tree in this process."""
        ...


def check_discovery(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """Subjects come sorted, well named, once, with files that exist, the same on every call, and nothing is written."""
    root = layout.write_example(folder / "raw")
    before = _snapshot(folder)
    available = tuple(layout.modalities(root))
    assert available == tuple(sorted(set(available))), f"modalities are not sorted and distinct: {available}"
    assert available, "the example offers no modality"
    subjects = list(layout.discover(root, available))
    assert len(subjects) >= 2, "an example needs two subjects or more"
    ids = [raw.subject_id for raw in subjects]
    assert ids == sorted(set(ids)), f"ids are not sorted and distinct: {ids}"
    for raw in subjects:
        check_subject_id(raw.subject_id)
        assert set(raw.images) <= set(available), f"{raw.subject_id} has an image of no modality asked for"
        assert raw.split is None or raw.split in SPLITS, f"{raw.subject_id} is in the split {raw.split}"
        assert raw.files() or raw.series or raw.parameters, f"{raw.subject_id} has neither files nor parameters"
        assert set(raw.series) <= set(available), f"{raw.subject_id} has a series of no modality asked for"
        for path in (path for files in raw.series.values() for path in files):
            assert Path(path).is_absolute(), f"{raw.subject_id}: a path of its series is relative: {path}"
            assert Path(path).is_file(), f"{raw.subject_id}: a file of its series is not there: {path}"
        for role, path in raw.files().items():
            assert Path(path).is_absolute(), f"{raw.subject_id}: the path of {role} is relative: {path}"
            assert Path(path).is_file(), f"{raw.subject_id}: the file of {role} is not there: {path}"
    assert list(layout.discover(root, available)) == subjects, "a second look finds something else"
    assert _snapshot(folder) == before, "discovery wrote into the raw tree"
    one = layout.discover(root, available[:1])
    assert all(set(raw.images) <= set(available[:1]) for raw in one), "modalities not asked for were returned"


def check_about(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """A layout says what to download and what it gives; its subjects have the labels and masks that it names."""
    about = layout.about
    for name in ("tree", "source", "terms"):
        text = getattr(about, name)
        assert text.strip(), f"about.{name} is empty"
        # A terminal's width: what wraps is no drawing of a tree.
        assert all(len(line) <= 120 for line in text.splitlines()), f"about.{name} has a line of over 120 characters"
    root = layout.write_example(folder / "raw")
    subjects = layout.discover(root, layout.modalities(root))
    given = {name for raw in subjects for name in raw.labels}
    if not about.own_labels:
        assert given <= set(about.labels), f"labels that about does not name: {sorted(given - set(about.labels))}"
    assert set(about.labels) <= given, f"the example never gives {sorted(set(about.labels) - given)}"
    for name in given:
        values = {raw.labels[name] for raw in subjects if name in raw.labels}
        kinds = {isinstance(value, str) for value in values}
        assert len(kinds) == 1, f"the label {name} is now text and now a number: {values}"
    has_masks = any(raw.lesion_mask is not None or raw.parameters for raw in subjects)
    assert has_masks == bool(about.lesion_mask), "about.lesion_mask and the example's masks contradict each other"


def check_travel(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """A subject survives JSON, so that it reaches workers; it holds nothing of this process."""
    root = layout.write_example(folder / "raw")
    for raw in layout.discover(root, layout.modalities(root)):
        assert type(raw).model_validate_json(raw.model_dump_json()) == raw, f"{raw.subject_id} is not plain JSON"


def check_ingest(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """The whole example is taken in; a second ingest changes nothing; another store gets the same digest."""
    root = layout.write_example(folder / "raw")
    modalities = layout.modalities(root)
    ids = tuple(raw.subject_id for raw in layout.discover(root, modalities))
    first = ingest(layout, root, folder / "store", modalities=modalities)
    assert not first.failed, f"the layout's own example fails: {first.failed}"
    assert tuple(first.added) == ids, f"{ids} were found and {first.added} added"
    before = _snapshot(folder / "store")
    second = ingest(layout, root, folder / "store", modalities=modalities)
    assert tuple(second.unchanged) == ids, f"a second ingest takes {second.unchanged} for unchanged"
    assert not second.added, f"a second ingest adds {second.added}"
    assert second.digest == first.digest, "a second ingest changes the digest"
    assert _snapshot(folder / "store") == before, "a second ingest writes"
    third = ingest(layout, root, folder / "another", modalities=modalities)
    assert third.digest == first.digest, "another store of the same input has another digest"


def check_store(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """What is in the store can be used: whole, finite, with a brain in it, split by subject, healthy in training."""
    root = layout.write_example(folder / "raw")
    modalities = tuple(layout.modalities(root))
    ingest(layout, root, folder / "store", modalities=modalities)
    store = CohortStore.open(folder / "store")
    assert store.check() == [], "the store does not pass its own check"
    assert store.channels == modalities
    found = {raw.subject_id: raw for raw in layout.discover(root, modalities)}
    for record in store.subjects():
        raw = found[record.subject_id]
        assert dict(record.labels) == dict(raw.labels), f"{record.subject_id} has other labels than were found"
        assert dict(record.demographics) == dict(raw.demographics), f"{record.subject_id} lost its demographics"
        assert record.group == raw.group
        if raw.labels.get("anomalous") is True:
            assert record.has_lesion, f"{record.subject_id} is anomalous by its labels and not in the store"
        if raw.lesion_labels:
            lesion = store.mask(record.subject_id, "lesion")
            assert lesion is not None, f"{record.subject_id} lost its lesion mask"
            if lesion.any():
                share = (lesion & store.brain(record.subject_id)).sum() / lesion.sum()
                assert share > 0.5, f"{record.subject_id}: {1 - share:.0%} of its lesion lies outside its brain"
        image, brain = store.image(record.subject_id), store.brain(record.subject_id)
        assert image.shape == (len(modalities), *record.shape)
        assert brain.any(), f"{record.subject_id} has no brain"
        assert not brain.all(), f"{record.subject_id} is brain all over"
        for channel in image:
            assert np.ptp(channel[brain]) > 0, f"{record.subject_id} has a channel without contrast"
        assert record.split in SPLITS
        assert record.source is not None, f"{record.subject_id} does not say where it came from"
        assert all(len(value) == 64 for value in record.source.sha256.values())
        assert record.source.sha256, f"{record.subject_id} has no digest of its source"
        if record.split == "train":
            assert not record.has_lesion, f"{record.subject_id} is anomalous and in the training split"


def check_refusals(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """What is no such tree, and a modality that is not there, are answered in one sentence; nothing is written."""
    empty = folder / "empty"
    empty.mkdir()
    for root in (empty, folder / "absent"):
        _refused(partial(ingest, layout, root, folder / "store", modalities=()), str(root))
    root = layout.write_example(folder / "raw")
    wrong = layout.modalities(root)[0] + "x"
    message = _refused(partial(ingest, layout, root, folder / "store", modalities=(wrong,)), wrong)
    assert layout.modalities(root)[0] in message, f"the message does not name the modalities there are: {message}"
    assert not (folder / "store").exists(), "a refused ingest left a store behind"


def check_broken_subjects(layout: LayoutUnderTest, ingest: Ingest, folder: Path) -> None:
    """A file cut in half and a link that leads out of the tree cost their own subjects alone, and are named."""
    root = layout.write_example(folder / "raw")
    modalities = tuple(layout.modalities(root))[:1]
    subjects = [raw for raw in layout.discover(root, modalities) if raw.images or raw.series]
    if not subjects:
        return  # generated: there is no file to break
    outside = folder / "elsewhere.bin"
    cut, moved = (_heart_of(raw, modalities[0]) for raw in subjects[:2])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    moved.rename(outside)
    moved.symlink_to(outside)
    broken = {subjects[0].subject_id: "cut", subjects[1].subject_id: "link"}
    report = ingest(layout, root, folder / "store", modalities=modalities)
    whole = {raw.subject_id for raw in subjects} - set(broken)
    assert set(report.added) == whole, f"{sorted(whole)} are whole and {report.added} were taken in: {report.failed}"
    for subject_id, how in broken.items():
        # What cannot be read may also not be found: then nothing may be said of it, nor stored.
        message = report.failed.get(subject_id, "")
        assert "unexpectedly" not in message, message
        assert "\n" not in message, f"the message is more than a sentence: {message}"
        if how == "link" and message:
            assert "outside" in message, f"the message does not say that a file leads out of the tree: {message}"
    assert report.failed, "broken files went without a word"
    if whole:
        assert CohortStore.open(folder / "store").check() == []


def _heart_of(raw: Any, modality: str) -> Path:
    """Return the file that holds a subject's voxels, or the middle one of its series."""
    if modality in raw.images:
        path = Path(raw.images[modality])
        return path.with_suffix(".img") if path.suffix == ".hdr" else path
    files = raw.series[modality]
    return Path(files[len(files) // 2])


CHECKS: tuple[Callable[[Any, Any, Path], None], ...] = (
    check_discovery,
    check_about,
    check_travel,
    check_ingest,
    check_store,
    check_refusals,
    check_broken_subjects,
)
"""Every check of the suite."""


def _refused(action: Callable[[], object], named: str) -> str:
    try:
        action()
    except InputError as error:
        message = str(error)
    except VesaliusError as error:
        raise AssertionError(f"bad input is answered by {type(error).__name__}, which is no InputError") from error
    else:
        raise AssertionError(f"{named} was accepted")
    assert named in message, f"the message does not name '{named}': {message}"
    assert "\n" not in message, f"the message is more than a sentence: {message}"
    return message


def _snapshot(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
