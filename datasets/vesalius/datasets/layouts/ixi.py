"""IXI: ``IXI002-Guys-0828-T1.nii.gz``, some 600 healthy adults of three hospitals in London, whole heads.

The name gives the person, the hospital (``Guys``, ``HH``: Hammersmith, ``IOP``: Institute of Psychiatry; kept as the
group, since each has its own scanner) and the contrast. Contrasts lie on grids of their own. Diffusion images
(``...-DTI-00.nii.gz``) are passed over. The heads are whole: the default recipe strips them.

Demographics come as ``IXI.xls``: save it as ``IXI.csv`` in the same folder to have them. Rows without a scan are passed
over, and people whose rows contradict each other get the cells on which these agree.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from vesalius.datasets.layouts.raw import About, RawSubject
from vesalius.datasets.layouts.tabular import read_table, require_columns, value_of
from vesalius.platform.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME = re.compile(r"(?P<person>IXI\d{3,})-(?P<site>[A-Za-z]+)-(?P<number>\d+)-(?P<contrast>T1|T2|PD|MRA)\.nii(\.gz)?")
_MODALITIES = {"T1": "T1w", "T2": "T2w", "PD": "PDw", "MRA": "MRA"}
_ID = "IXI_ID"
_SEX = "SEX_ID (1=m, 2=f)"


class IxiLayout:
    """A folder of IXI's files, or one that holds an unpacked folder a contrast."""

    default_recipe: ClassVar[str] = "mni_stripped"
    about: ClassVar[About] = About(
        tree="""\
ROOT/ (or ROOT/IXI-T1/, ROOT/IXI-T2/, ...)
  IXI002-Guys-0828-T1.nii.gz                          T1, T2, PD or MRA
  IXI.csv                                             optional: IXI.xls saved as CSV""",
        source="https://brain-development.org/ixi-dataset/ (IXI-T1.tar, IXI-T2.tar, ...)",
        terms="CC BY-SA 3.0; name the IXI project (EPSRC GR/S21533/02)",
        labels={"anomalous": "false: healthy volunteers"},
    )

    def modalities(self, root: Path) -> tuple[str, ...]:
        """Return those of ``MRA``, ``PDw``, ``T1w`` and ``T2w`` that someone has.

        Raises:
            CohortError: there is no file of such a name.
        """
        return tuple(sorted({modality for scan in _scans(root).values() for modality in scan}))

    def discover(self, root: Path, modalities: Sequence[str]) -> list[RawSubject]:
        """Return one subject a person, sorted by id, without reading a voxel.

        Raises:
            CohortError: there is no file of such a name, or IXI.csv is not IXI's table.
        """
        people = _demographics(root)
        subjects = []
        for person, scan in sorted(_scans(root).items()):
            files = sorted(path for paths in scan.values() for path in paths)
            sites = sorted({match["site"] for path in files if (match := _NAME.fullmatch(path.name))})
            twice = next((paths for paths in scan.values() if len(paths) > 1), None)
            problem = None
            if twice is not None:
                problem = f"{person} has one contrast twice ({' and '.join(str(path) for path in twice)}): keep one"
            elif len(sites) > 1:
                problem = f"{person} has scans of two sites ({' and '.join(sites)}): keep one site's"
            subjects.append(
                RawSubject(
                    subject_id=person,
                    images={name: str(scan[name][0].absolute()) for name in modalities if name in scan},
                    group=sites[0],
                    demographics=people.get(person, {}),
                    labels={"anomalous": False},
                    origin=str(files[0]),
                    problem=problem,
                )
            )
        return subjects

    def write_example(self, root: Path) -> Path:
        """Write three sites, contrasts on grids of their own, diffusion images, a table with doubled rows and gaps."""
        from vesalius.datasets.layouts.example_mr import write_ixi_example

        return write_ixi_example(root)


def _scans(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the files by person and modality."""
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted([*root.glob("*.nii*"), *root.glob("*/*.nii*")]) if root.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(match["person"], {}).setdefault(_MODALITIES[match["contrast"]], []).append(path)
    if not found:
        raise CohortError(f"{root} is not an IXI folder: expected files such as IXI002-Guys-0828-T1.nii.gz")
    return found


def _demographics(root: Path) -> dict[str, dict[str, str | float | int | bool | None]]:
    path = root / "IXI.csv"
    if not path.is_file():
        return {}
    columns, rows = read_table(path, ",")
    require_columns(path, columns, [_ID, "AGE"])
    found: dict[str, dict[str, str | float | int | bool | None]] = {}
    for row in rows:
        number = row.cells[_ID]
        if not number.isdecimal():
            raise CohortError(f"{path} line {row.line}: {_ID} is '{number}': expected a whole number")
        person = f"IXI{int(number):03d}"
        values: dict[str, str | float | int | bool | None] = {
            name.lower(): value_of(text) for name, text in row.cells.items() if name and name not in (_ID, _SEX)
        }
        if _SEX in columns:
            values["sex"] = {"1": "m", "2": "f"}.get(row.cells[_SEX])
        before = found.get(person)
        if before is not None:
            values = {name: value if before.get(name) == value else None for name, value in values.items()}
        found[person] = values
    return found
