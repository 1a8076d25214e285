"""DICOM: which files of a folder make a volume, and the volume they make.

:func:`find_series` groups, orders and judges what a folder holds, by tags alone; :func:`read_series` reads one series
into Hounsfield units on a rectangular grid, which :func:`promised_grid` tells beforehand. What is no volume is named
and left out; what had to be resampled is said. :func:`best_series` says which of a study's series to take.
"""

from vesalius.datasets.dicom.choice import best_series, by_preference, series_in
from vesalius.datasets.dicom.discovery import find_series
from vesalius.datasets.dicom.reading import promised_grid, read_series, series_sha256
from vesalius.datasets.dicom.series import Series

__all__ = [
    "Series",
    "best_series",
    "by_preference",
    "find_series",
    "promised_grid",
    "read_series",
    "series_in",
    "series_sha256",
]
