"""A paper's table, reproduced row by row on whatever data and time there are.

::

    protocols/     a JSON file a paper: rows, published figures, recipe, threshold
    protocol.py    what such a file says
    cohort.py      phantoms, a prepared store, or raw scans
    budget.py      the settings that fit a time, by what pipeline/estimating.py foresees
    running.py     one row, from its settings to its figures
    kept.py        files that a call writes and a later one finds
    side_by_side.py  rows at once, a process each
    levels.py      what a table is about, where it is not voxels
    images.py      whole images, as what is judged
    structures.py  structures of the head, as what is judged
    without_structures.py  whole images in their place, on a cohort that has no structures
    over_models.py  AUROC against parameters, memory and patch size
    sizes.py       parameters and memory of a row's model, for curves over models
    gallery.py     restorations and maps of all rows on one sheet
    table.py       the call: rows one after the other or at once, the document, what is printed and drawn
"""

from __future__ import annotations

from vesalius.infra.reproduce.cohort import DataRequest
from vesalius.infra.reproduce.protocol import Protocol, load_protocol, protocol_names
from vesalius.infra.reproduce.table import reproduce

__all__ = ["DataRequest", "Protocol", "load_protocol", "protocol_names", "reproduce"]
