"""Settings of the VQ-VAE: those of Naval Marimont and Tarroni 2020, and of 2021 where that differs."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from vesalius.methods.blocks import AVERAGES, EveryFourthSlice, PooledMapSettings, Window
from vesalius.methods.blocks.variational import check_widths_and_groups
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting

_PAPER = "Naval Marimont and Tarroni 2021"
_REFERENCE = "Naval Marimont and Tarroni 2020"
_CODE = f"{_REFERENCE}, public code"
_OURS = "this implementation"


class CodeMapSettings(PooledMapSettings):
    """The post-processing of the 2021 paper's 2D baselines: minimum over 3^3, mean over 15^3.

    The reference of 2020 has a mean over 7^2 in the slice's plane and 3 across slices: ``average_pool`` 7 and
    ``average_across`` 3.
    """

    average_pool: Window = setting(
        15,
        "edge of the averaging window in the slice's plane, and across slices unless average_across is set; 1 is none",
        source=f"{_PAPER}, sections 2 and 3; 7 in the code of 2020",
        inference_space=AVERAGES,
    )
    average_across: Window | None = setting(
        None,
        "edge of the averaging window across slices where it is no cube; null takes average_pool",
        source=f"{_PAPER}, section 3: maps are replicated, then pooled in 3D; 3 in the code of 2020",
    )
    image_score: Literal["top_mean", "max", "mean"] = setting(
        "top_mean",
        "the volume's number: mean of the highest fraction, maximum or mean of the map inside the brain; without "
        "effect where the method's image_score is codes",
        source=_OURS,
    )
    top_fraction: float = setting(
        0.01,
        "fraction of brain voxels that top_mean averages; without effect where the method's image_score is codes",
        gt=0,
        le=1,
        source=_OURS,
    )


class PriorSettings(Settings):
    """The autoregressive network over codes and its training."""

    since: ClassVar[str | None] = "prior"

    channels: int = setting(128, "F, channels", source=_REFERENCE, ge=1)
    blocks: int = setting(4, "blocks of residual units with attention", source=_REFERENCE, ge=1)
    units: int = setting(4, "residual units of a block", source=_REFERENCE, ge=1)
    key_size: int = setting(16, "length of a query and a key", source=_CODE, ge=1)
    dropout: float = setting(0.1, "in every residual unit", source=_CODE, ge=0, lt=1, mutable=True)
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate",
        source=_REFERENCE,
        gt=0,
        space=Range(low=3e-5, high=3e-3, log=True),
        mutable=True,
    )
    epochs: float = setting(600, "passes over the training slices", source=_REFERENCE, gt=0)


class ResamplingSettings(Settings):
    """How restorations are made and weighed."""

    since: ClassVar[str | None] = SCORING

    restorations: int = setting(
        8,
        "restorations",
        source=f"{_PAPER}, Table 1; 15 in the reference's code",
        ge=1,
        inference_space=Range(low=2, high=16),
    )
    quick_restorations: int = setting(2, "restorations of the quick effort", source=_OURS, ge=1)
    threshold: float = setting(
        5.0,
        "a code whose -log p (nats) exceeds this is drawn again",
        source=_CODE,
        ge=0,
        space=Range(low=2, high=8),
    )
    sharpness: float = setting(
        3.0,
        "weights are softmax(sharpness / mean difference) over the restorations",
        source=_CODE,
        ge=0,
        inference_space=Range(low=0.3, high=30, log=True),
    )
    sequences: int = setting(320, "code maps resampled at once at most", source=_OURS, ge=1)


class VqVaeSettings(MethodSettings):
    """Settings of the VQ-VAE; defaults are the papers'."""

    widths: tuple[int, ...] = setting(
        (16, 32, 64, 256),
        "channels before the first halving of the plane and after each; the last is D",
        source=_CODE,
        since="autoencoder",
    )
    blocks: int = setting(
        2, "gated blocks at each resolution above the latent's", source=_CODE, ge=1, since="autoencoder"
    )
    dropout: float = setting(
        0.1,
        "of whole channels, in every gated block",
        source=_CODE,
        ge=0,
        lt=1,
        since="autoencoder",
        mutable=True,
    )
    num_codes: int = setting(
        128,
        "K, codes in the codebook",
        source=_REFERENCE,
        ge=2,
        space=Choice(values=(32, 64, 128, 256)),
        since="autoencoder",
    )
    batch_slices: int = setting(
        64, "slices in a batch, of both stages", source=f"{_CODE}: 8 slices of 8 volumes", ge=2, since="autoencoder"
    )
    group_slices: int = setting(
        16,
        "slices that batch statistics are taken over; batch_slices must be a multiple",
        source=_OURS,
        ge=2,
        since="autoencoder",
    )
    epochs: float = setting(
        600, "passes over the training slices, first stage", source=_REFERENCE, gt=0, since="autoencoder"
    )
    learning_rate: float = setting(
        1e-4,
        "Adam's learning rate, first stage",
        source=_REFERENCE,
        gt=0,
        space=Range(low=3e-5, high=3e-3, log=True),
        since="autoencoder",
        mutable=True,
    )
    clip_value: float = setting(
        1.0,
        "largest gradient of a weight, either way, first stage",
        source=_CODE,
        gt=0,
        since="autoencoder",
        mutable=True,
    )
    augment: bool = setting(
        True,
        "elastic, scaling, rotation, brightness and contrast; the paper names the kinds, not the magnitudes",
        source=f"{_PAPER}, section 3",
        since="autoencoder",
    )
    image_score: Literal["codes", "map"] = setting(
        "codes",
        "the volume's number: sum of -log p over unlikely codes, or what map.image_score takes of the map",
        source=_REFERENCE,
        since=SCORING,
    )
    unlikely: float = setting(
        7.0,
        "-log p (nats) above which a code counts in the volume's number; without effect where image_score is map",
        source=_CODE,
        ge=0,
        since=SCORING,
    )
    volumes: int = setting(4, "volumes scored in one call at most", source=_OURS, ge=1, since=SCORING)
    slices: EveryFourthSlice = EveryFourthSlice()
    prior: PriorSettings = PriorSettings()
    resampling: ResamplingSettings = ResamplingSettings()
    map: CodeMapSettings = CodeMapSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_widths_and_groups(self.widths, self.batch_slices, self.group_slices)
        return self


def tiny() -> VqVaeSettings:
    """Networks of some thousand parameters for tests: seconds, and no claim to detect anything."""
    return VqVaeSettings(
        widths=(4, 4, 8),
        blocks=1,
        dropout=0.0,
        num_codes=8,
        batch_slices=8,
        group_slices=4,
        epochs=4,
        learning_rate=3e-3,
        prior=PriorSettings(channels=8, blocks=1, units=1, key_size=4, dropout=0.0, learning_rate=1e-2, epochs=3),
        resampling=ResamplingSettings(restorations=3, threshold=1.5),
        map=CodeMapSettings(min_pool=1, average_pool=3, average_across=1),
    )


def demo() -> VqVaeSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels."""
    return VqVaeSettings(
        widths=(8, 16, 32),
        blocks=1,
        dropout=0.0,
        num_codes=32,
        batch_slices=32,
        group_slices=16,
        epochs=20,
        learning_rate=1e-3,
        slices=EveryFourthSlice(every=2),
        prior=PriorSettings(channels=32, blocks=2, units=2, dropout=0.0, learning_rate=1e-3, epochs=10),
        resampling=ResamplingSettings(restorations=4, threshold=4.0),
        map=CodeMapSettings(min_pool=1, average_pool=7),
    )
