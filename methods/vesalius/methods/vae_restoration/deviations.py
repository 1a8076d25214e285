"""Where the VAE restoration parts from its paper; its reference 5 is You et al. 2019, with their code."""

from __future__ import annotations

from vesalius.methods.blocks.variational import VAE_DEVIATIONS
from vesalius.platform.contracts import Deviation

DEVIATIONS = (
    *VAE_DEVIATIONS,
    Deviation(
        paper="the likelihood is not named; reference 5's code trains with a learnt variance a pixel",
        here="squared differences with weight 1 in training and in restoration (reconstruction)",
        why="so is the term of the reference's restoration",
    ),
    Deviation(
        paper="128 latent dimensions (Table 1); reference 5's latent is a plane of one channel",
        here="a vector of 128 (latent_dim)",
        why="it is the 2021 paper's row",
    ),
    Deviation(
        paper="how rho was chosen is not said; reference 5's code has 2.2, and L1 changes for 0 to 3.8",
        here=(
            "the rho that changes healthy validation brains least (restoration.rho = chosen), 2.2 where there are none"
        ),
        why="a healthy image should be restored to itself",
    ),
    Deviation(
        paper="reference 5's code computes these changes on healthy training slices, over whole images",
        here="on every fourth slice of healthy validation subjects, inside the brain (restoration.rho_every)",
        why="the training slices were fitted",
    ),
    Deviation(
        paper="reference 5's step sizes and rho belong to its own intensities",
        here="the same numbers on images in the cohort's standard deviations (restoration.step_size, restoration.rho)",
        why="the paper gives no others",
    ),
    Deviation(
        paper="reference 5's code draws the latent anew at every step",
        here="so here, from a generator of the volume's content",
        why="the same map every time",
    ),
)
