"""What a score store knows besides the voxels: plain, frozen, JSON."""

from __future__ import annotations

from pydantic import Field, field_validator

from vesalius.platform.config import Settings, digest
from vesalius.platform.contracts import Effort, Matrix4
from vesalius.platform.errors import CohortError
from vesalius.platform.scoring.files import is_extra_name
from vesalius.platform.store import ArrayFacts, SourceFacts, check_subject_id


class ScoreInfo(Settings):
    """What was scored by which model.

    Attributes:
        method: name in the methods' table.
        model_digest: digest of the model's weights and settings.
        cohort_digest: digest of the store that was scored.
        store: its path.
        split: the split that was scored.
        run_id: the run the model came from, if any.
        effort: ``quick`` is the reduced setting of the validation pass during training.
    """

    method: str
    model_digest: str
    cohort_digest: str
    store: str
    split: str
    run_id: str = ""
    effort: Effort = "full"

    @property
    def identity(self) -> str:
        """Digest of what decides the scores: not where the store lies, nor which run the model is filed under."""
        return digest(self.model_dump(mode="json", exclude={"store", "run_id"}))


class ScoreRecord(Settings):
    """A scored subject: everything but the voxels, with the geometry that its map needs to go home.

    Attributes:
        subject_id: as in the store that was scored; it names a folder, and is checked whenever a record is read.
        image_score: one number for the whole volume, higher is more anomalous.
        seconds: the scoring call's duration divided by the volumes in it.
        has_lesion: as in the store.
        group: as in the store.
        channels: modality names of the restoration's first axis.
        shape: (D, H, W) of the map.
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices of the map to mm (RAS+).
        source: the file the subject came from, and the way back to it.
        restoration: whether there is one.
        extras: names of further maps.
        arrays: facts of the arrays, by name (``map``, ``restoration``, ``extras/<name>``); filled when written.
    """

    subject_id: str
    image_score: float
    seconds: float
    has_lesion: bool
    group: str | None = None
    channels: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Matrix4
    source: SourceFacts | None = None
    restoration: bool = False
    extras: tuple[str, ...] = ()
    arrays: dict[str, ArrayFacts] = Field(default_factory=dict)

    @field_validator("subject_id")
    @classmethod
    def _names_a_folder(cls, subject_id: str) -> str:
        try:
            return check_subject_id(subject_id)
        except CohortError as error:  # what is read from a file is then damaged like any other
            raise ValueError(str(error)) from None

    @field_validator("extras")
    @classmethod
    def _name_folders(cls, extras: tuple[str, ...]) -> tuple[str, ...]:
        for name in extras:
            if not is_extra_name(name):
                raise ValueError(f"{name!r} cannot name a map")
        return extras
