"""VQ-VAE of slices with an autoregressive prior over its codes (Naval Marimont and Tarroni 2020, 2021).

::

    settings.py     the papers' values, and what else may be varied
    network.py      encoder, codebook, decoder; their losses
    prior.py        the autoregressive prior: all codes of a slice in one pass
    scan.py         the same prior a code at a time, each computed once: raster scans
    restoration.py  resampling of unlikely codes; how several restorations are weighed
    method.py       the stages and the score
    deviations.py   where they part from the papers
"""

from __future__ import annotations

from vesalius.methods.vq_vae.method import VqVae
from vesalius.methods.vq_vae.settings import VqVaeSettings

__all__ = ["VqVae", "VqVaeSettings"]
