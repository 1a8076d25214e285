"""The 3D autoencoder that position regression is compared with (Bieder et al. 2022, section 3.4 and appendix C).

``network`` is Baur's autoencoder made 3D, ``settings`` what the paper says of it, ``method`` the rest.
"""

from vesalius.methods.autoencoder_3d.method import Autoencoder3D
from vesalius.methods.autoencoder_3d.network import VolumeAutoencoder
from vesalius.methods.autoencoder_3d.settings import Autoencoder3DSettings

__all__ = ["Autoencoder3D", "Autoencoder3DSettings", "VolumeAutoencoder"]
