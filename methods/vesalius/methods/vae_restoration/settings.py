"""Settings of the restoration: the papers' values; where neither paper gives one, the description says so."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vesalius.methods.blocks import EveryFourthSlice, PooledMapSettings, VaeSettings
from vesalius.methods.blocks.variational import TINY
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, Range, setting

_PAPER = "Naval Marimont and Tarroni 2021"
_REFERENCE = "You et al. 2019, public code"


class RestorationSettings(Settings):
    """The gradient ascent over images, and how rho is found.

    Step sizes and rho have a unit: a step moves an intensity, and the total variation that rho weighs is a sum of
    intensities. The reference's numbers belong to its own, which probably lie in about [0, 1]; here they act on images
    in the cohort's standard deviations, for which nobody gives numbers.
    """

    since: ClassVar[str | None] = "rho"

    steps: int = setting(
        500,
        "steps of gradient ascent",
        source=f"{_PAPER}, Table 1",
        ge=1,
        space=Range(low=50, high=1000, log=True),
        since=SCORING,
    )
    quick_steps: int = setting(
        100, "steps of the quick effort, their sizes in proportion", source="this implementation", ge=1, since=SCORING
    )
    first_steps: float = setting(
        0.2, "fraction of the steps that take the first step size", source=f"{_REFERENCE}: 100 of 500", ge=0, le=1
    )
    first_step_size: float = setting(
        5e-3,
        "step size at first; the number is of the reference's intensities, the images are in standard deviations",
        source=_REFERENCE,
        gt=0,
        space=Range(low=1e-3, high=2e-2, log=True),
    )
    step_size: float = setting(
        2e-3,
        "step size after that; the number is of the reference's intensities, the images are in standard deviations",
        source=_REFERENCE,
        gt=0,
        space=Range(low=5e-4, high=1e-2, log=True),
    )
    clip: float = setting(50.0, "largest gradient of a voxel, either way", source=_REFERENCE, gt=0)
    rho: Annotated[float, Field(ge=0)] | Literal["chosen"] = setting(
        "chosen",
        "weight of the total variation; chosen: the one that changes healthy validation slices least",
        source=f"{_PAPER}, reference 5",
        space=Range(low=0, high=3.8),
    )
    rho_default: float = setting(
        2.2,
        "rho where it is to be chosen and validation holds no healthy brain; without effect where rho is a number; 2.2 "
        "is of the reference's intensities, the images are in standard deviations",
        source=_REFERENCE,
        ge=0,
    )
    rho_last: float = setting(
        3.8,
        "largest rho tried, the smallest being 0; without effect where rho is a number; 3.8 is of the reference's "
        "intensities, the images are in standard deviations: raise it where the choice falls on it",
        source=_REFERENCE,
        gt=0,
    )
    rho_spacing: float = setting(
        0.2, "between the rhos tried; without effect where rho is a number", source=_REFERENCE, gt=0
    )
    rho_steps: int = setting(
        500,
        "steps of gradient ascent for each rho tried; without effect where rho is a number",
        source=_REFERENCE,
        ge=1,
    )
    rho_every: int = setting(
        1,
        "of the slices that training takes, each n-th serves the choice; without effect where rho is a number",
        source="this implementation",
        ge=1,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rho_spacing > self.rho_last:
            raise ValueError(
                f"rho_spacing ({self.rho_spacing}) must not exceed rho_last ({self.rho_last}): "
                "there would be nothing but 0 to choose"
            )
        return self

    def rhos(self) -> list[float]:
        """Return the rhos to choose from, rising from 0."""
        return [
            round(number * self.rho_spacing, 6) for number in range(int(self.rho_last / self.rho_spacing + 1e-6) + 1)
        ]

    def step_sizes(self, steps: int) -> list[float]:
        """Return the size of each of ``steps`` steps: the larger one for the first fraction of them."""
        first = round(self.first_steps * steps)
        return [self.first_step_size] * first + [self.step_size] * (steps - first)


class ManySlices(EveryFourthSlice):
    """Every fourth slice, those of several volumes at once."""

    together: int = setting(
        160, "slices restored in one batch at most", source="this implementation", ge=1, since="rho"
    )


class VaeRestorationSettings(VaeSettings):
    """Settings of the VAE restoration; defaults are the papers' where they give any."""

    latent_dim: int = setting(
        128,
        "Z, length of the latent",
        source=f"{_PAPER}, Table 1",
        ge=1,
        space=Choice(values=(10, 32, 128)),
        since="vae",
    )
    reconstruction: Literal["l1", "l2"] = setting(
        "l2",
        "what the ELBO's reconstruction term sums over the pixels: absolute or squared differences",
        source=f"this implementation: {_REFERENCE}, has squares in its restoration, but trains with a learnt variance "
        f"a pixel; {_PAPER}, Table 1, says L1 of the other VAE only",
        since="vae",
    )
    volumes: int = setting(4, "volumes restored in one call at most", source="this implementation", ge=1, since=SCORING)
    slices: ManySlices = ManySlices()
    restoration: RestorationSettings = RestorationSettings()


def tiny() -> VaeRestorationSettings:
    """A network of some thousand parameters for tests: seconds, and no claim to detect anything."""
    return VaeRestorationSettings(
        **TINY,
        restoration=RestorationSettings(
            steps=10, quick_steps=5, first_step_size=2e-2, step_size=1e-2, rho_steps=4, rho_spacing=1.9, rho_every=2
        ),
    )


def demo() -> VaeRestorationSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels."""
    return VaeRestorationSettings(
        latent_dim=64,
        widths=(16, 32, 64, 64),
        blocks=1,
        batch_slices=32,
        group_slices=16,
        epochs=20,
        learning_rate=1e-3,
        slices=ManySlices(every=2),
        map=PooledMapSettings(min_pool=1, average_pool=7),
        restoration=RestorationSettings(
            steps=100, quick_steps=25, first_step_size=2e-2, step_size=1e-2, rho_steps=100, rho_spacing=0.6, rho_every=8
        ),
    )
