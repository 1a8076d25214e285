"""Search spaces, studies and their analysis.

What a study may search is declared beside each setting of a method (:func:`vesalius.platform.contracts.setting`) and
read here; nothing on this floor names a method.
"""

from vesalius.platform.contracts import Choice, Range, spaces

__all__ = ["Choice", "Range", "spaces"]
