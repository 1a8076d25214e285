"""Variational autoencoder of slices, dense or spatial (Baur et al. 2018, rows dVAE and sVAE).

The autoencoder's layers, with a normal posterior of the code that is held to N(0, 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vesalius.methods.blocks.autoencoders import (
    DEMO,
    TINY,
    AutoEncoder,
    PosteriorSettings,
    draw_code,
    reconstruction_loss,
    reconstruction_stage,
    score_by_posterior,
)
from vesalius.methods.blocks.deviations import CODE, DENSE, POSTERIOR, SCORING, TRUNK
from vesalius.methods.blocks.variational import gaussian_divergence
from vesalius.platform.config import override
from vesalius.platform.contracts import Deviation, Method, MethodSettings, Range, Score, Stage, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Volume


class VariationalAutoencoderSettings(PosteriorSettings):
    """Settings of the variational autoencoder; defaults are the paper's spatial one, 16 x 16 x 64."""

    kl_weight: float = setting(
        1.0,
        "weight of the divergence, summed over a slice's code, beside the l1 distance, summed over its values; 1 makes "
        "the evidence lower bound",
        source="this implementation; the paper gives none",
        ge=0,
        space=Range(low=1e-4, high=10, log=True),
        mutable=True,
    )
    sampled: bool = setting(
        True,
        "draw the code from its posterior in training; false takes the mean",
        source="Baur et al. 2018, Eq. 1",
    )


_DEVIATIONS = (
    *TRUNK,
    *CODE,
    *DENSE,
    *POSTERIOR,
    *SCORING,
    Deviation(
        paper="the weight of the divergence is not given",
        here="1 beside the summed l1: the evidence lower bound of a Laplace density of scale 1 (kl_weight)",
        why="the one choice that follows from a model; not tuned",
    ),
)


class VariationalAutoencoder(Method):
    """l1 reconstruction and a divergence from N(0, 1) (Baur et al. 2018).

    Without the divergence (``kl_weight = 0``) and without drawing (``sampled = false``) it is the autoencoder. Batch
    statistics are taken over groups of ``group_size`` slices: over what a worker happens to have, two workers could not
    equal one.

    Attributes:
        network: trunk and bottleneck.
    """

    settings_type: ClassVar[type[MethodSettings]] = VariationalAutoencoderSettings
    deviations: ClassVar[Sequence[Deviation]] = _DEVIATIONS
    settings: VariationalAutoencoderSettings

    def __init__(self, settings: VariationalAutoencoderSettings, cohort: CohortFacts) -> None:
        """Build the network.

        Raises:
            SettingError: the trunk does not fit the cohort's slices or intensities.
        """
        super().__init__(settings, cohort)
        axis = settings.slices.axis
        self.network = AutoEncoder(settings.trunk, settings.bottleneck, cohort, axis, variational=True)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper`` is ``spatial_16``; ``dense_512`` is the table's other row."""
        paper = VariationalAutoencoderSettings()
        return {
            "paper": paper,
            "spatial_16": paper,
            "dense_512": override(paper, {"bottleneck.kind": "dense", "bottleneck.size": 512}),
            "demo": override(paper, {**DEMO, "kl_weight": 0.01}),
            "tiny": override(paper, {**TINY, "kl_weight": 0.01, "samples": 2}),
        }

    def stages(self) -> Sequence[Stage]:
        """One stage, ``autoencoder``."""
        return [reconstruction_stage(self.settings, self.network, self.loss, ("reconstruction", "divergence"))]

    def loss(self, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Return the slices' losses, summed; their number; and the two terms.

        A slice's loss is the negative evidence lower bound under a Laplace density of scale 1, divided by the slice's
        number of values: so its size, and that of the learning rate, does not depend on the plane.
        """
        mean, log_sigma = self.network.posterior(batch.image)
        code = mean
        if self.settings.sampled:
            code = draw_code(mean, log_sigma, batch.normal("posterior", self.network.code_shape))
        distance = reconstruction_loss(batch.image, self.network.decode(code))
        apart = gaussian_divergence(mean, 2 * log_sigma) / batch.image.shape[1:].numel()
        observed = {"reconstruction": distance.sum(), "divergence": apart.sum()}
        return (distance + self.settings.kl_weight * apart).sum(), len(batch), observed

    def code_shape(self) -> tuple[int, ...]:
        """Return (Z,) of a dense code, (Z, r, s) of a spatial one."""
        return self.network.code_shape

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Restore every slice from its posterior; ``quick`` takes the mean, whatever ``samples`` says."""
        return score_by_posterior(volumes, self.network, self.settings, self.cohort, effort)
