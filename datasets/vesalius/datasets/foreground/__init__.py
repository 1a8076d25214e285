"""What is brain and what is head, without a trained model: masks given, stripped volumes, and whole heads in MR and CT.

How far the classical methods go stands in docs/decisions/0004-recipes.md. A mask of your own always comes first.
"""

from vesalius.datasets.foreground.finding import check_hounsfield, find_brain, find_head
from vesalius.datasets.foreground.structures import CT_STRUCTURES, ct_structures

__all__ = ["CT_STRUCTURES", "check_hounsfield", "ct_structures", "find_brain", "find_head"]
