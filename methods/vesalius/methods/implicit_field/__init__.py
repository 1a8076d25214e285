"""3D implicit-field auto-decoder (Naval Marimont and Tarroni 2021).

::

    settings.py     the paper's values, the official code's, and what else may be varied
    classes.py      intensity classes: exact one-dimensional k-means; mode pooling
    decoder.py      position encoding and the network, the code's part taken once a volume
    restoration.py  codes of new volumes, many at a time; cross-entropy at every voxel
    encoder.py      an optional network that gives a restoration its first code
    warm_start.py   how that is trained and asked
    method.py       the stages and the score
    deviations.py   where it parts from the paper
"""

from __future__ import annotations

from vesalius.methods.implicit_field.method import ImplicitField
from vesalius.methods.implicit_field.settings import ImplicitFieldSettings

__all__ = ["ImplicitField", "ImplicitFieldSettings"]
