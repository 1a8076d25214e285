"""The MNI152 template that ships inside nilearn's package, read without importing nilearn."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.datasets.nifti import read_nifti
from vesalius.datasets.steps import solid
from vesalius.platform.errors import VolumeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILE = ("datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")


@dataclass(frozen=True, kw_only=True)
class Template:
    """The ICBM 2009a nonlinear symmetric T1 average (Fonov et al. 2011), 1 mm, skull-stripped.

    Attributes:
        image: (197, 233, 189) float32 in RAS+.
        affine: (4, 4) voxel indices to MNI mm.
        brain: where the template is not zero, holes filled: 1.89 litres, cerebrospinal fluid included.
    """

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    brain: NDArray[np.bool_]


@lru_cache(maxsize=1)
def mni152() -> Template:
    """Return the template, read once a process.

    Raises:
        VolumeError: nilearn is not installed, or its template is not where it was.
    """
    spec = importlib.util.find_spec("nilearn")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise VolumeError("the MNI152 template comes with nilearn, which is not installed: pip install nilearn")
    volume = read_nifti(Path(places[0]).joinpath(*_FILE))
    return Template(image=volume.array, affine=volume.affine, brain=solid(volume.array > 0))
