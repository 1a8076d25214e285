"""AnoGAN: a generator of healthy slices, searched for the one nearest to a new slice (Schlegl et al. 2017).

::

    settings.py   what the comparison of Baur et al. 2018 states, and what else may be varied
    search.py     codes of new slices, many at a time
    method.py     the networks, the stage and the score
"""

from __future__ import annotations

from vesalius.methods.anogan.method import AnoGAN
from vesalius.methods.anogan.settings import AnoGANSettings

__all__ = ["AnoGAN", "AnoGANSettings"]
