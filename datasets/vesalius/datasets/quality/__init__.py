"""Quality control of a prepared cohort: what stands out, why, and what to do about it.

Every subject is read once and kept as a coarse portrait (:mod:`.portrait`); the portraits are compared with the
cohort's own median and with the MNI152 template (:mod:`.comparison`, :mod:`.duplicates`); robust thresholds turn the
measures into sentences (:mod:`.judging`). What comes out is plain JSON (:mod:`.report`).
"""

from vesalius.datasets.quality.portrait import See
from vesalius.datasets.quality.report import CohortQuality, Finding, Limits, SubjectQuality
from vesalius.datasets.quality.survey import survey

__all__ = ["CohortQuality", "Finding", "Limits", "See", "SubjectQuality", "survey"]
