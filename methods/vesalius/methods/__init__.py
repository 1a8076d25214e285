"""The methods: one file or folder each, and one line in the table.

A method imports torch and the contracts, nothing else: no Ray, no MLflow, no file.
"""

from __future__ import annotations

from vesalius.platform.tables import TableEntry

METHODS: dict[str, TableEntry] = {
    "implicit_field": TableEntry(
        path="vesalius.methods.implicit_field:ImplicitField",
        summary="3D implicit-field auto-decoder over intensity classes (Naval Marimont and Tarroni 2021)",
    ),
    "residual_vae": TableEntry(
        path="vesalius.methods.residual_vae:ResidualVae",
        summary="2D VAE with residual blocks: difference from the reconstruction (Naval Marimont and Tarroni 2021)",
    ),
    "vae_restoration": TableEntry(
        path="vesalius.methods.vae_restoration:VaeRestoration",
        summary="2D VAE: change of the image on its way to a probable one (You et al. 2019; Chen et al. 2020)",
    ),
    "vq_vae": TableEntry(
        path="vesalius.methods.vq_vae:VqVae",
        summary="2D VQ-VAE whose prior resamples unlikely codes (Naval Marimont and Tarroni 2020 and 2021)",
    ),
    "autoencoder": TableEntry(
        path="vesalius.methods.autoencoder:Autoencoder",
        summary="2D convolutional autoencoder, dense or spatial (Baur et al. 2018, dAE and sAE)",
    ),
    "variational_autoencoder": TableEntry(
        path="vesalius.methods.variational_autoencoder:VariationalAutoencoder",
        summary="2D variational autoencoder, dense or spatial (Baur et al. 2018, dVAE and sVAE)",
    ),
    "context_autoencoder_gan": TableEntry(
        path="vesalius.methods.context_autoencoder_gan:ContextAutoencoderGAN",
        summary="2D context autoencoder with adversarial training (Baur et al. 2018, sAE-GAN)",
    ),
    "anovaegan": TableEntry(
        path="vesalius.methods.anovaegan:AnoVAEGAN",
        summary="2D spatial variational autoencoder with a discriminator (Baur et al. 2018)",
    ),
    "anogan": TableEntry(
        path="vesalius.methods.anogan:AnoGAN",
        summary="2D generative adversarial network with a search for the code (Schlegl et al. 2017; Baur et al. 2018)",
    ),
    "f_anogan": TableEntry(
        path="vesalius.methods.f_anogan:FAnoGAN",
        summary="3D generative adversarial network with an encoder that inverts it (Simarro Viana et al. 2020)",
    ),
    "f_anogan_2d": TableEntry(
        path="vesalius.methods.f_anogan_2d:FAnoGAN2D",
        summary="2D generative adversarial network with an encoder that inverts it (Schlegl et al. 2019)",
    ),
    "implicit_field_2d": TableEntry(
        path="vesalius.methods.implicit_field_2d:ImplicitField2D",
        summary="2D implicit-field auto-decoder, a code per slice (Naval Marimont and Tarroni 2021)",
    ),
    "position_regression": TableEntry(
        path="vesalius.methods.position_regression:PositionRegression",
        summary="3D regression of a patch's place, mapped densely (Bieder et al. 2022)",
    ),
    "autoencoder_3d": TableEntry(
        path="vesalius.methods.autoencoder_3d:Autoencoder3D",
        summary="3D autoencoder of whole volumes, the baseline of position regression (Bieder et al. 2022)",
    ),
    "healthy_atlas": TableEntry(
        path="vesalius.methods.healthy_atlas:HealthyAtlas",
        summary="Baseline: distance from the voxel-wise healthy mean in voxel-wise deviations",
    ),
    "intensity_threshold": TableEntry(
        path="vesalius.methods.intensity_threshold:IntensityThreshold",
        summary="Baseline: distance of the intensity from the healthy brain's mean, wherever the voxel lies",
    ),
}
