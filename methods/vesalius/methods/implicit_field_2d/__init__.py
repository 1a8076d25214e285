"""2D implicit-field auto-decoder (Naval Marimont and Tarroni 2021, section 3): a code per slice.

::

    settings.py    what a slice changes; all else is the implicit field's
    deviations.py  where it parts from the paper
    method.py      slices instead of volumes: the code table, points, restoration, assembly
"""

from __future__ import annotations

from vesalius.methods.implicit_field_2d.method import ImplicitField2D
from vesalius.methods.implicit_field_2d.settings import ImplicitField2DSettings

__all__ = ["ImplicitField2D", "ImplicitField2DSettings"]
