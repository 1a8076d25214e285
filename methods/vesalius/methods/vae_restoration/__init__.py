"""Restoration of slices under a VAE's prior (You et al. 2019, Chen et al. 2020; Naval Marimont and Tarroni 2021).

::

    settings.py     the papers' values, and what else may be varied
    restoration.py  gradient ascent over images; total variation of what was changed
    method.py       the stages, the choice of rho, the score
    deviations.py   where they part from the papers
"""

from __future__ import annotations

from vesalius.methods.vae_restoration.method import VaeRestoration
from vesalius.methods.vae_restoration.settings import VaeRestorationSettings

__all__ = ["VaeRestoration", "VaeRestorationSettings"]
