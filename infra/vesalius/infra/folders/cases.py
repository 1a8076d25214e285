"""Which files of a folder make a volume."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.datasets.dicom.headers import looks_like_dicom
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ENDINGS = (".nii.gz", ".nii")
_BETWEEN = "_-."
_ADVICE = (
    "expected .nii or .nii.gz files (named by their channel where the model takes several), or a folder a DICOM study"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A volume to be scored.

    Attributes:
        name: of its folder of results.
        files: one a channel, a NIfTI file or a folder of DICOM files.
        problem: why it cannot be scored; empty where it can.
    """

    name: str
    files: tuple[Path, ...]
    problem: str = ""


def holds_nifti(folder: Path) -> bool:
    """Say whether a NIfTI file lies in a folder or below."""
    return next(_nifti_files(folder), None) is not None


def cases_in(folder: Path, channels: Sequence[str], *, without: Path | None = None) -> list[Case]:
    """Return a folder's volumes, sorted by name.

    Every NIfTI file is a volume where the model takes one channel. Where it takes several, a file's name ends in its
    channel (``anna_T1w.nii.gz``, ``anna/T1w.nii.gz``), and what is left of the path is the volume's name; files of one
    name that are not one of each channel, side by side, are a case with a problem. Folders of the first level without a
    NIfTI file that hold DICOM files are one study each (of a model with one channel).

    Args:
        folder: what to look through; links to folders are not followed.
        channels: of the model.
        without: a folder below it that holds results.

    Raises:
        SettingError: it holds no volume, or two would have one name.
    """
    files = [path for path in _nifti_files(folder) if without is None or not path.is_relative_to(without)]
    found = _single(folder, files) if len(channels) == 1 else _grouped(folder, files, channels)
    if len(channels) == 1:
        found += [Case(name=_name(path.name), files=(path,)) for path in _studies(folder, files, without)]
    if not found:
        raise SettingError(f"{folder} holds no volume: {_ADVICE}")
    found.sort(key=lambda case: case.name)
    for one, other in pairwise(found):
        if one.name == other.name:
            raise SettingError(
                f"{_shown(one)} and {_shown(other)} would both be called '{one.name}': rename one of them"
            )
    return found


def _nifti_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if _stem(name) and not name.startswith("."))


def _single(folder: Path, files: Sequence[Path]) -> list[Case]:
    return [Case(name=_name(_stem(str(path.relative_to(folder)))), files=(path,)) for path in files]


def _grouped(folder: Path, files: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    strangers = []
    longest_first = sorted(channels, key=len, reverse=True)  # a_T1_ce is T1_ce, where there is also ce
    for path in files:
        stem = _stem(str(path.relative_to(folder)))
        channel = next((name for name in longest_first if _ends_in(stem, name)), None)
        if channel is None:
            strangers.append(Case(name=_name(stem), files=(path,), problem=_stranger(path, channels)))
            continue
        groups[stem.removesuffix(channel).rstrip(_BETWEEN + "/")].append((channel, path))
    cases = []
    for stem, given in groups.items():
        paths = tuple(path for name in channels for channel, path in given if channel == name)
        cases.append(Case(name=_name(stem or folder.name), files=paths, problem=_mismatch(given, channels)))
    return cases + strangers


def _mismatch(given: Sequence[tuple[str, Path]], channels: Sequence[str]) -> str:
    """Say why files whose names agree but for their channels are not one volume; nothing where they are."""
    _, first = given[0]
    taken: dict[str, Path] = {}
    for channel, path in given:
        if path.parent != first.parent:
            return f"{first} and {path} would be one volume, and lie in different folders: rename one of them"
        if channel in taken:
            return f"{taken[channel]} and {path} are both {channel} of one volume: remove or rename one of them"
        taken[channel] = path
    missing = [name for name in channels if name not in taken]
    return f"there is no {missing[0]} beside {first}" if missing else ""


def _studies(folder: Path, files: Sequence[Path], without: Path | None) -> list[Path]:
    with_nifti = {path.relative_to(folder).parts[0] for path in files}
    return [
        place
        for place in sorted(folder.iterdir())
        if place.is_dir()
        and not place.is_symlink()
        and not place.name.startswith(".")
        and place.name not in with_nifti
        and place != without
        and _holds_dicom(place)
    ]


def _holds_dicom(folder: Path) -> bool:
    return any(
        looks_like_dicom(Path(place) / name) for place, _, names in os.walk(folder) for name in sorted(names)[:50]
    )


def _ends_in(stem: str, channel: str) -> bool:
    rest = stem.removesuffix(channel)
    return rest != stem and (not rest or rest[-1] in _BETWEEN + "/")


def _stranger(path: Path, channels: Sequence[str]) -> str:
    return f"{path} does not say which channel it is: expected a name that ends in {' or '.join(channels)}"


def _stem(name: str) -> str:
    """Return a NIfTI file's name without its ending; nothing for another file."""
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), "")


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text.replace("/", "__")).lstrip(".")[:120] or "volume"


def _shown(case: Case) -> str:
    return str(case.files[0]) if case.files else case.name
