"""A folder of volumes, scored: which files make a volume, what is kept of each, and by whom it is done."""

from vesalius.infra.folders.cases import Case, cases_in, holds_nifti
from vesalius.infra.folders.scoring import score_folder

__all__ = ["Case", "cases_in", "holds_nifti", "score_folder"]
