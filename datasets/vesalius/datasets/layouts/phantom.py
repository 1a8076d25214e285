"""Generated heads as a data set: a JSON file says how many and how they look, and every voxel follows from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vesalius.datasets.layouts.ct_findings import CT_FINDINGS
from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.nifti import RawVolume
from vesalius.datasets.phantom import (
    STRUCTURES,
    CohortSettings,
    FindingSettings,
    LesionSettings,
    PhantomSettings,
    make_phantom,
)
from vesalius.datasets.phantom.cohort import FINDING_LABELS, phantom_cohort
from vesalius.datasets.reading import RawVolumes
from vesalius.platform.config import validate
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE_NAME = "phantom.json"


class PhantomLayout:
    """A file such as ``{"num_train": 16, "num_test": 9, "seed": 0, "phantom": {"shape": [64, 64, 64]}}``.

    Its keys are those of :class:`vesalius.datasets.phantom.CohortSettings`; ``{}`` takes every default. The root is
    the file, or a folder that holds it as ``phantom.json``.
    """

    default_recipe: ClassVar[str] = "as_is"
    about: ClassVar[About] = About(
        tree='phantom.json, or ROOT/phantom.json: {"num_train": 16, "num_test": 9, "phantom": {"shape": [64, 64, 64]}}',
        source="generated: needs no download",
        terms="none: no person was scanned",
        labels={
            "anomalous": "a lesion was planted, or a finding set in",
            "lesion_left": "a lesion lies in the left hemisphere",
            "lesion_right": "a lesion lies in the right hemisphere",
            "lesion_type": "its kind, or none",
            "finding": "in a cohort with findings: which, or none",
            **{name: CT_FINDINGS[name] for name in FINDING_LABELS},
        },
        lesion_mask="the lesions and findings that have a place, voxel by voxel",
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return the modalities that the file asks for, sorted."""
        return tuple(sorted(read_cohort(root).phantom.modalities))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return the subjects of the cohort, sorted by id; nothing is generated yet.

        Raises:
            CohortError: there is no file, or it describes a cohort without subjects.
            SettingError: the file has an unknown key or a value out of range.
        """
        cohort = read_cohort(root)
        settings = cohort.phantom.model_copy(
            update={"modalities": tuple(name for name in modalities if name in cohort.phantom.modalities)}
        )
        counts = (cohort.num_train, cohort.num_validation, cohort.num_gate, cohort.num_test)
        if not any(counts):
            raise CohortError(f"{root} describes a cohort without subjects: set num_train, num_test, ...")
        cases = phantom_cohort(*counts, settings=settings, seed=cohort.seed, findings=cohort.findings)
        subjects = [
            RawSubject(
                subject_id=case.subject_id,
                split=case.split,
                group=case.group,
                labels={**case.labels, "anomalous": case.anomalous},
                structure_names=STRUCTURES,
                reader="vesalius.datasets.layouts.phantom:read",
                parameters={
                    "seed": case.seed,
                    "settings": settings.model_dump(mode="json"),
                    "lesions": [lesion.model_dump(mode="json") for lesion in case.lesions],
                    # Only where there is one: a subject without keeps the digest it had before there were findings.
                    **({} if case.finding is None else {"finding": case.finding.model_dump(mode="json")}),
                },
                origin=f"{root} ({case.subject_id})",
            )
            for case in cases
        ]
        return sorted(subjects, key=lambda subject: subject.subject_id)

    def write_example(self, root: Path) -> Path:
        """Write a small cohort's file: two contrasts, voxels that are no cubes, two findings in each split."""
        return write_cohort(
            root,
            CohortSettings(
                num_train=3,
                num_validation=2,
                num_gate=1,
                num_test=2,
                findings=("epidural", "hydrocephalus"),
                phantom=PhantomSettings(shape=(20, 24, 18), modalities=("T1w", "FLAIR")),
            ),
        )


def write_cohort(root: Path, cohort: CohortSettings) -> Path:
    """Write the file that describes ``cohort`` below ``root`` and return ``root``, which is made if need be."""
    root.mkdir(parents=True, exist_ok=True)
    (root / FILE_NAME).write_text(json.dumps(cohort.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    return root


def read_cohort(root: Path) -> CohortSettings:
    """Return the cohort that ``root`` (the file or its folder) describes.

    Raises:
        CohortError: there is no such file, or it is not JSON.
        SettingError: it has an unknown key or a value out of range.
    """
    path = root / FILE_NAME if root.is_dir() else root
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CohortError(
            f"{path} is missing: a phantom cohort is described by a {FILE_NAME}, and {{}} in it takes every default"
        ) from None
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise CohortError(f"{path} holds {type(value).__name__}, expected settings such as {{'num_train': 16}}")
    return validate(CohortSettings, value, str(path))


def read(raw: RawSubject, modalities: Sequence[str]) -> RawVolumes:
    """Generate a subject: the reader of :class:`PhantomLayout`."""
    parameters: dict[str, Any] = raw.parameters
    origin = raw.origin or raw.subject_id
    settings = validate(PhantomSettings, parameters["settings"], origin)
    missing = [name for name in modalities if name not in settings.modalities]
    if missing:
        raise CohortError(f"{origin}: there is no {missing[0]} (it has {', '.join(settings.modalities)})")
    lesions = [validate(LesionSettings, lesion, origin) for lesion in parameters["lesions"]]
    finding = validate(FindingSettings, parameters["finding"], origin) if "finding" in parameters else None
    subject = make_phantom(int(parameters["seed"]), settings, lesions=lesions, finding=finding)

    def volume(array: NDArray[Any], name: str) -> RawVolume:
        return RawVolume(array=array.astype(np.float32), affine=subject.affine, name=f"{raw.subject_id} ({name})")

    return RawVolumes(
        images={name: volume(subject.channel(name), name) for name in modalities},
        brain=volume(subject.brain, "brain"),
        head=volume(subject.head, "head"),
        lesion=volume(subject.lesion, "lesion"),
        structures=volume(subject.structures, "structures"),
        structure_names=STRUCTURES,
        notes={
            "seed": subject.seed,
            "planted": [
                {
                    **lesion.settings.model_dump(mode="json"),
                    "center_mm": list(lesion.center_mm),
                    "hemisphere": lesion.hemisphere,
                    "num_voxels": lesion.num_voxels,
                    "volume_mm3": lesion.volume_mm3,
                }
                for lesion in subject.planted
            ],
        },
    )
