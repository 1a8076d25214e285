"""What a recipe registers to: the MNI152 brain, or a file of the user's, known by the SHA-256 in the recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.files import file_sha256
from vesalius.datasets.foreground import check_hounsfield, find_brain, find_head
from vesalius.datasets.foreground.stripping import BRAIN_HU
from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.recipes.settings import MNI152, TEMPLATE_CENTER_MM, Recipe
from vesalius.datasets.registration import Target, mni152_target, register
from vesalius.datasets.steps import row_ends, world_points
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.geometry import canonical, check_affine

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER_VARIABLE = "VESALIUS_REFERENCES"
"""Environment variable: a folder in which reference files are looked for by name."""

HEAD_HU = (-200.0, 800.0)
"""What a CT is clipped to for a registration by the head: skin, fat, muscle, brain and bone, no enamel and metal."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference, ready to be registered to.

    Attributes:
        name: for notes: ``mni152``, or the file's name.
        target: image and mask that volumes are matched with.
        center_mm: centre of its brain's bounding box.
    """

    name: str
    target: Target
    center_mm: tuple[float, float, float]


def pinned(recipe: Recipe) -> Recipe:
    """Return the recipe with its reference file's SHA-256, and its path made absolute unless it is found by name.

    A recipe that has the digest already is returned as it is: its file is looked at when it is needed.

    Raises:
        SettingError: there is no such file.
    """
    if recipe.reference == MNI152 or recipe.reference_sha256 is not None or recipe.registration == "none":
        return recipe
    path = _find(recipe.reference)
    try:
        digest = file_sha256(path)
    except VolumeError as error:
        raise SettingError(f"recipe.reference: {error}: give a NIfTI file, or mni152") from None
    by_name = Path(recipe.reference).name == recipe.reference and path.parent == _folder()
    reference = recipe.reference if by_name else str(path.absolute())
    return recipe.model_copy(update={"reference": reference, "reference_sha256": digest})


def reference_of(recipe: Recipe) -> Reference:
    """Return what a recipe registers to, read once a process.

    Raises:
        SettingError: the file is gone or is another one than the recipe's, or shows no brain.
    """
    if recipe.reference == MNI152:
        return Reference(name=MNI152, target=mni152_target(), center_mm=TEMPLATE_CENTER_MM)
    whole = pinned(recipe)
    head = whole.head if whole.registration_of == "head" else "none"
    return _from_file(whole.reference, str(whole.reference_sha256), hounsfield=whole.hounsfield, head=head)


@lru_cache(maxsize=4)
def midline_of(reference: str, sha256: str | None, *, hounsfield: bool) -> tuple[tuple[float, ...], ...]:
    """Return (4, 4) from a reference's mm to MNI mm, whose midline is x = 0: the identity for MNI152 itself.

    Raises:
        SettingError: the file is gone, is another one, or shows no brain.
    """
    if reference == MNI152:
        return tuple(map(tuple, np.eye(4).tolist()))
    image, affine, brain = _read(reference, str(sha256), hounsfield=hounsfield)
    seen = seen_by_registration(image, "brain", hounsfield=hounsfield)
    found = register(seen, affine, brain, reference, mni152_target(), "affine")
    return tuple(map(tuple, np.linalg.inv(found.to_source).tolist()))


@lru_cache(maxsize=2)
def _from_file(text: str, sha256: str, *, hounsfield: bool, head: str) -> Reference:
    image, affine, brain = _read(text, sha256, hounsfield=hounsfield)
    name = Path(text).name
    if head == "none":
        target = Target(seen_by_registration(image, "brain", hounsfield=hounsfield), affine, brain, name)
    else:
        # A reference comes without a head mask, so "given" has to be found.
        how = ("ct" if hounsfield else "mr") if head == "given" else head
        mask = find_head(image, affine, None, how, name)
        assert mask is not None  # "none" is another branch
        target = Target(seen_by_registration(image, "head", hounsfield=hounsfield), affine, mask, name, "head")
    points = world_points(row_ends(brain), affine)
    x, y, z = (points.min(axis=0) + points.max(axis=0)) / 2
    return Reference(name=name, target=target, center_mm=(float(x), float(y), float(z)))


def seen_by_registration(image: NDArray[np.float32], part: str, *, hounsfield: bool) -> NDArray[np.float32]:
    """Return the intensities that a registration by the ``brain`` or the ``head`` looks at: CT within a window."""
    if not hounsfield:
        return image
    limits = BRAIN_HU if part == "brain" else HEAD_HU
    clipped: NDArray[np.float32] = np.clip(image, *limits)
    return clipped


def _read(
    text: str, sha256: str, *, hounsfield: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    path = _find(text)
    try:
        volume = read_nifti(path)
        if volume.sha256 != sha256:
            raise SettingError(
                f"recipe.reference: {path} is another file than the recipe's (its SHA-256 begins with "
                f"{volume.sha256[:12]}, expected {sha256[:12]}): put the right one in its place"
            )
        image, affine = canonical(volume.array, check_affine(volume.affine, str(path)))
        if hounsfield:
            check_hounsfield(image, str(path))
        brain, _ = find_brain(image, affine, None, "ct" if hounsfield else "mr", str(path))
    except VolumeError as error:
        raise SettingError(
            f"recipe.reference: {error}; the recipe needs the file with the SHA-256 {sha256[:12]}..., at its path or "
            f"by its name in the folder that {FOLDER_VARIABLE} names"
        ) from None
    return image, affine, brain


def _folder() -> Path | None:
    text = os.environ.get(FOLDER_VARIABLE)
    return Path(text).absolute() if text else None


def _find(text: str) -> Path:
    """Return where a reference lies: at its path if it is there, else by its name in the references' folder."""
    path, folder = Path(text), _folder()
    if folder is not None and not path.is_file() and (folder / path.name).is_file():
        return folder / path.name
    return path
