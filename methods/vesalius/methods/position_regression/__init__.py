"""Position regression: where does this patch lie? (Bieder et al. 2022).

``network`` is the reconstructed network and its table, ``spectral`` its convolutions, ``dense`` the error map of a
whole volume, ``settings`` and ``deviations`` what the paper says and where we part from it, ``method`` the rest.
"""

from vesalius.methods.position_regression.method import PositionRegression
from vesalius.methods.position_regression.network import PositionNetwork
from vesalius.methods.position_regression.settings import PositionRegressionSettings

__all__ = ["PositionNetwork", "PositionRegression", "PositionRegressionSettings"]
