"""f-AnoGAN: a generator of healthy volumes and the encoder that inverts it (Simarro Viana et al. 2020).

::

    settings.py    what the papers and their code state, and what else may be varied
    networks.py    generator, critic and encoder, of volumes or of slices
    objectives.py  Wasserstein losses, the critic's slopes, what a restoration lacks
    inversion.py   the three stages, which volumes and slices share
    method.py      whole volumes: view and score
    deviations.py  where it parts from the papers

The same of slices is :mod:`vesalius.methods.f_anogan_2d`.
"""

from __future__ import annotations

from vesalius.methods.f_anogan.method import FAnoGAN
from vesalius.methods.f_anogan.settings import FAnoGANSettings

__all__ = ["FAnoGAN", "FAnoGANSettings"]
