"""The Human Connectome Project's preprocessed structural images: ``<id>/T1w/T1w_acpc_dc_restore_brain.nii.gz``.

The images are bias-corrected, brain-extracted and rigidly aligned to MNI's AC-PC frame at 0.7 mm: what is not 0 is
brain. Everyone is a healthy young adult. The public release does not say who are siblings: where that matters, give
``person`` or the split by a manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILES = {"T1w": "T1w_acpc_dc_restore_brain.nii.gz", "T2w": "T2w_acpc_dc_restore_brain.nii.gz"}


class HcpLayout:
    """A folder of HCP subjects, as the package "Structural Preprocessed" unpacks."""

    default_recipe: ClassVar[str] = "implicit_field_2021"
    about: ClassVar[About] = About(
        tree="""\
ROOT/
  100307/T1w/T1w_acpc_dc_restore_brain.nii.gz
  100307/T1w/T2w_acpc_dc_restore_brain.nii.gz         optional""",
        source="https://db.humanconnectome.org (WU-Minn HCP Young Adult, package Structural Preprocessed), or s3://hcp-openaccess",
        terms="WU-Minn HCP Open Access Data Use Terms: register and accept them; cite Van Essen et al. 2013",
        labels={"anomalous": "false: healthy volunteers"},
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return those of ``T1w`` and ``T2w`` that some subject has.

        Raises:
            CohortError: no folder holds such an image.
        """
        return tuple(name for name in _FILES if any(_is_there(folder / _FILES[name]) for folder in _folders(root)))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a folder, sorted by id, without reading a voxel.

        Raises:
            CohortError: no folder holds such an image.
        """
        return [
            RawSubject(
                subject_id=folder.parent.name,
                images={
                    modality: str((folder / _FILES[modality]).absolute())
                    for modality in modalities
                    if modality in _FILES and _is_there(folder / _FILES[modality])
                },
                labels={"anomalous": False},
                origin=str(folder),
            )
            for folder in _folders(root)
        ]

    def write_example(self, root: Path) -> Path:
        """Write three subjects with both contrasts; unprocessed scans and a release note that are passed over."""
        from vesalius.datasets.layouts.example_mr import write_hcp_example

        return write_hcp_example(root)


def _folders(root: Path) -> list[Path]:
    places = sorted(root.glob("*/T1w")) if root.is_dir() else []
    found = [place for place in places if any(_is_there(place / name) for name in _FILES.values())]
    if not found:
        raise CohortError(f"{root} is not an HCP tree: expected <id>/T1w/{_FILES['T1w']} in it")
    return found


def _is_there(path: Path) -> bool:
    # A broken link counts: ingest says where it leads, or that nothing is there.
    return path.exists() or path.is_symlink()
