"""The Ljubljana MS database, cross-sectional part, in MNI space: ``cross_sectional/MNI/patient07/FLAIR_..._regtoMNI``.

Thirty patients with multiple sclerosis; the mask is the consensus of three experts (Lesjak et al. 2017). The images are
N4-corrected, co-registered, brain-extracted and resampled to MNI space, which left small negative values around
strong edges: the default recipe raises them to 0 (``recipe.clip_minimum=0`` in another).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME = re.compile(r"(?P<contrast>FLAIR|T1|T1POST|T2|GOLD_STANDARD)_N4_.*regtoMNI\.nii(\.gz)?")
_MODALITIES = {"FLAIR": "FLAIR", "T1": "T1w", "T1POST": "T1ce", "T2": "T2w"}
_PLACES = ("cross_sectional/MNI", "MNI", ".")


class OpenMsLayout:
    """The repository ``open_ms_data``, or its folder ``cross_sectional/MNI``."""

    default_recipe: ClassVar[str] = "mni_positive"
    about: ClassVar[About] = About(
        tree="""\
ROOT/ (or ROOT/cross_sectional/MNI/)
  patient01/FLAIR_N4_..._regtoMNI.nii.gz              FLAIR, T1, T1POST (with contrast agent), T2
  patient01/GOLD_STANDARD_N4_..._regtoMNI.nii.gz      the experts' consensus""",
        source="https://github.com/muschellij2/open_ms_data (Git LFS), from http://lit.fe.uni-lj.si/tools.php?lang=eng",
        terms="CC BY; cite Lesjak et al., Neuroinformatics 2017, doi 10.1007/s12021-017-9348-7",
        labels={"anomalous": "true: every patient has lesions"},
        lesion_mask="white-matter lesions, the consensus of three experts",
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return those of ``FLAIR``, ``T1ce``, ``T1w`` and ``T2w`` that some patient has.

        Raises:
            CohortError: there is no patient's folder with such images.
        """
        patients = _patients(root)
        return tuple(
            sorted(name for contrast, name in _MODALITIES.items() if any(contrast in found for _, found in patients))
        )

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a patient, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no patient's folder with such images.
        """
        subjects = []
        for folder, files in _patients(root):
            mask = files.get("GOLD_STANDARD")
            subjects.append(
                RawSubject(
                    subject_id=folder.name,
                    images={
                        name: str(files[contrast].absolute())
                        for name in modalities
                        for contrast, known_as in _MODALITIES.items()
                        if known_as == name and contrast in files
                    },
                    lesion_mask=None if mask is None else str(mask.absolute()),
                    lesion_labels=(1,),
                    labels={"anomalous": True},
                    origin=str(folder),
                    problem=None if mask else f"{folder} has no mask: expected GOLD_STANDARD_N4_..._regtoMNI.nii.gz",
                )
            )
        return subjects

    def write_example(self, root: Path) -> Path:
        """Write two patients with ringing below 0, a registration's files, and other parts of the repository."""
        from vesalius.datasets.layouts.example_mr import write_open_ms_example

        return write_open_ms_example(root)


def _patients(root: Path) -> list[tuple[Path, dict[str, Path]]]:
    for place in _PLACES:
        folders = sorted(path for path in (root / place).glob("patient*") if path.is_dir())
        found = []
        for folder in folders:
            files = {
                match["contrast"]: path
                for path in sorted(folder.glob("*.nii*"))
                if (match := _NAME.fullmatch(path.name)) is not None
            }
            if set(files) & set(_MODALITIES):
                found.append((folder, files))
        if found:
            return found
    raise CohortError(
        f"{root} is not the Ljubljana MS database in MNI space: expected "
        "cross_sectional/MNI/patient01/FLAIR_N4_..._regtoMNI.nii.gz in it"
    )
