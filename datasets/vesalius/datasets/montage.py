"""Every subject of a store in one picture, the template's outline over it: registration is to be looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vesalius.datasets.template import mni152
from vesalius.platform.errors import CohortError
from vesalius.platform.geometry import resample
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from vesalius.platform.store import SubjectRecord

_PLANES = (0, 1, 2)
_TILE_INCHES = 1.15


def registration_montage(store: CohortStore | Path, path: Path, *, columns: int = 4, channel: int = 0) -> Path:
    """Draw three planes through the grid's centre for every subject, the MNI152 brain's outline over them.

    Left is left. The title gives the id, the split and, where there was a registration, the overlap with the
    template's brain.

    Args:
        store: a cohort store whose world is MNI152.
        path: the picture to write (.png).
        columns: subjects side by side.
        channel: which modality.

    Returns:
        ``path``.

    Raises:
        CohortError: the store is empty.
    """
    from matplotlib import figure as drawing
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    cohort = store if isinstance(store, CohortStore) else CohortStore.open(store)
    records = cohort.subjects()
    if not records:
        raise CohortError(f"{cohort.path} holds no subject: there is nothing to draw")
    rows = math.ceil(len(records) / columns)
    # No pyplot: a figure of its own leaves whatever the caller draws alone and needs no display.
    figure = drawing.Figure(figsize=(columns * 3.3 * _TILE_INCHES, rows * 1.35 * _TILE_INCHES), facecolor="black")
    FigureCanvasAgg(figure)
    outlines: dict[tuple[tuple[int, int, int], object], NDArray[np.bool_]] = {}
    for index, record in enumerate(records):
        key = (record.shape, record.affine)
        if key not in outlines:
            outlines[key] = _template_brain(record)
        row, column = divmod(index, columns)
        _draw(figure, (row, column, rows, columns), record, cohort.image(record.subject_id)[channel], outlines[key])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="black")
    return path


def _template_brain(record: SubjectRecord) -> NDArray[np.bool_]:
    template = mni152()
    return resample(template.brain.astype(np.float32), template.affine, record.shape, record.affine, order=0) > 0.5


def _draw(
    figure: Figure,
    place: tuple[int, int, int, int],
    record: SubjectRecord,
    image: NDArray[np.float32],
    outline: NDArray[np.bool_],
) -> None:
    row, column, rows, columns = place
    top = float(np.percentile(image[image > image.min()], 99.5)) if np.ptp(image) > 0 else 1.0
    for plane in _PLANES:
        width = 1 / (3 * columns)
        left = (column * 3 + plane) * width
        axes = figure.add_axes((left, 1 - (row + 1) / rows, width, 0.86 / rows))
        middle = image.shape[plane] // 2
        # Columns along the picture's x: world left to right, or back to front.
        picture = np.take(image, middle, axis=plane).T
        edge = np.take(outline, middle, axis=plane).T
        sides = [axis for axis in range(3) if axis != plane]
        aspect = record.spacing_mm[sides[1]] / record.spacing_mm[sides[0]]
        axes.imshow(picture, origin="lower", cmap="gray", vmin=float(image.min()), vmax=top, aspect=aspect)
        if edge.any() and not edge.all():
            axes.contour(edge, levels=[0.5], colors="#ff5a36", linewidths=0.6)
        axes.set_axis_off()
        if plane == 1:
            axes.set_title(_title(record), color="white", fontsize=6.5, pad=1.5)


def _title(record: SubjectRecord) -> str:
    registration = record.notes.get("registration")
    overlap = f"  Dice {registration['dice']:.3f}" if isinstance(registration, dict) else ""
    return f"{record.subject_id}  {record.split}{overlap}"
