"""A store with lesions, made from one without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.datasets.lesions.choosing import choose, draw_shape, mask_files, read_shape
from vesalius.datasets.lesions.painting import plant
from vesalius.datasets.lesions.settings import LesionReport, PlantingSettings
from vesalius.platform.config import validate
from vesalius.platform.errors import StoreError
from vesalius.platform.progress import silent
from vesalius.platform.store import CohortStore, SubjectArrays, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.platform.progress import Progress
    from vesalius.platform.store import Place, SubjectRecord


def plant_lesions(
    store: CohortStore,
    out: Place | str,
    masks: Path,
    *,
    contrast: float = -0.4,
    softness_mm: float = 6.0,
    texture: float = 0.2,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "gate", "test"),
    healthy_fraction: float = 1 / 3,
    min_voxels: int = 50,
    progress: Progress = silent,
) -> LesionReport:
    """Write a store that is ``store`` with lesions in its held-out healthy subjects.

    Every subject is there again under its id and split; those without a new lesion are the same voxel by voxel. A
    subject's lesion is a function of (seed, its id, the masks), whatever else the store holds. What was planted is
    recorded under ``notes["planted_lesion"]``, and in the labels ``anomalous``, ``lesion_type``, ``lesion_left``,
    ``lesion_right``.

    Args:
        store: prepared subjects in MNI space.
        out: the new store, by folder or URL; made when absent. Written already by the same call, it is completed.
        masks: folder of lesion masks (.nii, .nii.gz; above 0.5 is lesion) in MNI space.
        contrast: see :class:`PlantingSettings`, as for the others.
        softness_mm: width of the border.
        texture: unevenness inside.
        seed: decides the lesions.
        splits: where lesions go.
        healthy_fraction: share of each of these splits that stays healthy.
        min_voxels: smallest lesion.
        progress: called with subjects done, subjects in all and the last one's id.

    Raises:
        SettingError: a setting is out of range, or ``masks`` is no folder with NIfTI files.
        CohortError: no healthy subject in ``splits``, or no mask lies in a subject's brain.
        VolumeError: a mask file cannot be read, or a subject's intensities are not positive.
        StoreError: ``out`` is no store, ``store`` itself, or holds other subjects by these ids.
        DiskSpaceError: there is no room; ``out`` shows nothing half-written.
    """
    settings = validate(
        PlantingSettings,
        {
            "contrast": contrast,
            "softness_mm": softness_mm,
            "texture": texture,
            "seed": seed,
            "splits": tuple(splits),
            "healthy_fraction": healthy_fraction,
            "min_voxels": min_voxels,
        },
        "synthetic lesions",
    )
    files = mask_files(masks)
    out = place_of(out)
    if out.resolve() == store.path.resolve():
        raise StoreError(f"{out} is the store that the lesions are for: give another folder for the result")
    chosen, healthy = choose(store, settings)
    records = store.subjects()
    # Whatever can be wrong with masks or subjects is found before anything is written.
    plans = {record.subject_id: draw_shape(store, record, files, settings).file_name for record in chosen}
    by_name = {file.name: file for file in files}
    target = CohortStore.create(out, recipe=store.recipe, channels=store.channels, name=store.name)
    written = []
    with target.lock():
        for done, record in enumerate(records):
            progress(done, len(records), record.subject_id)
            arrays = _arrays(store, record)
            if record.subject_id in plans:
                shape = read_shape(by_name[plans[record.subject_id]], record)
                record, arrays = plant(record, arrays, shape, settings)
            written.append(target.write(record.model_copy(update={"arrays": {}}), arrays))
        target.commit(written)
    progress(len(records), len(records), "")
    changed = {*plans, *healthy}
    return LesionReport(
        store=str(out),
        planted=plans,
        healthy=tuple(sorted(healthy)),
        copied=tuple(record.subject_id for record in records if record.subject_id not in changed),
        digest=target.digest,
    )


def _arrays(store: CohortStore, record: SubjectRecord) -> SubjectArrays:
    subject_id = record.subject_id
    return SubjectArrays(
        image=store.image(subject_id),
        brain=store.brain(subject_id),
        head=store.mask(subject_id, "head"),
        lesion=store.mask(subject_id, "lesion"),
        structures=store.structures(subject_id),
    )
