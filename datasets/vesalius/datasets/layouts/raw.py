"""What a layout finds: a subject's files, before any of them is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from vesalius.platform.config import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class About:
    """What a person should know of a layout before the first download.

    Attributes:
        tree: what the folder must look like, a line a file or folder.
        source: where the archive is got.
        terms: its licence or terms of use, and what to cite.
        labels: what each subject-level label says, by name. Names are stable: studies select by them.
        lesion_mask: what the lesion mask marks; empty where there is none.
        own_labels: subjects may also have labels that the user named (columns ``label:<name>``).
    """

    tree: str
    source: str
    terms: str
    labels: Mapping[str, str] = field(default_factory=dict)
    lesion_mask: str = ""
    own_labels: bool = False


class RawSubject(Settings):
    """One subject as a layout found it: file paths and what is known about it. Plain JSON, so it travels to workers.

    Attributes:
        subject_id: unique in the cohort; names a folder of the store.
        person: who it is, where one person has several scans; all scans of a person go to one split. None: the
            subject is the person.
        images: absolute file path by modality, in the order of the channels. A modality without a file is absent,
            and the subject is then reported as failed.
        series: absolute paths of a DICOM series' files by modality, for a modality that has no file in ``images``.
        brain_mask: file whose voxels above 0.5 are brain.
        head_mask: likewise for the head.
        lesion_mask: file whose voxels above 0.5 are lesion; a file without any says that the subject is healthy.
        lesion_labels: the values that mark lesion in ``lesion_mask``; any other but 0 is refused. Without them every
            value above 0.5 does.
        structures: file of whole numbers, one a structure, 0 for none.
        structure_names: label value by structure name.
        split: ``train``, ``validation``, ``gate`` or ``test`` where the data set gives it; None has it drawn.
        group: a named part of the cohort, if any.
        demographics: age, sex, ... as the data set gives them; None for what is not known.
        labels: subject-level labels; ``anomalous`` says what the lesion mask cannot.
        reader: ``package.module:function`` that reads it: ``function(raw, modalities) -> reading.RawVolumes``. Set by
            the layout's code, never by the data.
        parameters: JSON for the reader, such as a phantom's seed; what has no files is known by their digest.
        origin: where the subject is described, for messages: a folder, or a file and line.
        problem: what makes it unusable as it is described, as a clause; ingest reports it and goes on.
        warnings: what a person should know of how it was found, a sentence each; kept in the record's notes.
    """

    subject_id: str
    person: str | None = None
    images: dict[str, str] = Field(default_factory=dict)
    series: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    brain_mask: str | None = None
    head_mask: str | None = None
    lesion_mask: str | None = None
    lesion_labels: tuple[int, ...] = ()
    structures: str | None = None
    structure_names: dict[str, int] = Field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    demographics: dict[str, str | float | int | bool | None] = Field(default_factory=dict)
    labels: dict[str, bool | int | float | str] = Field(default_factory=dict)
    reader: str = "vesalius.datasets.reading:read_subject"
    parameters: dict[str, Any] = Field(default_factory=dict)
    origin: str = ""
    problem: str | None = None
    warnings: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """Return paths by role: a modality, ``brain_mask``, ``head_mask``, ``lesion_mask``, ``structures``.

        Of single files: a series has many, which stand in ``series`` alone.
        """
        masks = {name: getattr(self, name) for name in ("brain_mask", "head_mask", "lesion_mask", "structures")}
        return {**self.images, **{name: path for name, path in masks.items() if path is not None}}

    def file_names(self) -> dict[str, str]:
        """Return a name without its folders by role, for the record: of a file, or of a series' folder."""
        series = {
            modality: f"{Path(files[0]).parent.name} ({len(files)} files)"
            for modality, files in self.series.items()
            if files
        }
        return {**series, **{role: Path(path).name for role, path in self.files().items()}}


class Layout(Protocol):
    """A folder layout. Made without arguments; what it keeps between calls changes no answer.

    Attributes:
        default_recipe: name of the recipe (:data:`vesalius.datasets.recipes.RECIPES`) that suits it.
        about: what to download and what it gives.
    """

    default_recipe: ClassVar[str]
    about: ClassVar[About]

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return the modalities that ``root`` offers, sorted.

        Raises:
            CohortError: ``root`` is not of this layout; the message says what was looked for.
        """
        ...

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return the subjects of ``root``, sorted by id, without reading a voxel.

        A subject that lacks a modality is returned without it. Ids may repeat or be ill-formed: ingest says so.

        Args:
            root: the raw tree, or the file that describes it.
            modalities: which images, in the order of the channels; each one that some subject has.

        Raises:
            CohortError: ``root`` is not of this layout, or holds no subject.
        """
        ...

    def write_example(self, root: Path) -> Path:
        """Write a small raw tree with the layout's quirks below ``root`` and return what to give to ``discover``."""
        ...
