"""Settings of the implicit-field auto-decoder: the paper's values, and the official code's as a preset.

Where the paper and its authors' public code disagree the paper is the default; every difference can be reached by a
setting. Two are not this method's: the intensity clip (98th percentile in the paper, 2nd and 98th of the non-zero
voxels in the code) belongs to the recipe, and coordinates follow one convention here (voxel centres), where the
code has two that lie up to a voxel apart.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from vesalius.methods.blocks import AVERAGES, MINIMA, MapSettings, Window
from vesalius.platform.config import Settings
from vesalius.platform.contracts import SCORING, Choice, MethodSettings, Range, setting

_PAPER = "Naval Marimont and Tarroni 2021"
_CODE = "the authors' public code"


class FieldMapSettings(MapSettings):
    """The paper's post-processing: minimum over 3^3 voxels, then mean over 15^3, the whole box, at 160^3 voxels."""

    min_pool: Window = setting(
        3, "edge of the minimum window in voxels; 1 is none", source=f"{_PAPER}, section 2", inference_space=MINIMA
    )
    average_pool: Window = setting(
        15,
        "edge of the averaging window in voxels, as in the paper at 160^3; 1 is none",
        source=f"{_PAPER}, section 2",
        inference_space=AVERAGES,
    )


class RestorationSettings(Settings):
    """How the code of a new volume is found (Eq. 4)."""

    since: ClassVar[str | None] = SCORING

    steps: tuple[int, ...] = setting(
        (700,),
        "optimiser steps of each phase",
        source=f"{_PAPER}, section 2",
        inference_space=Choice(values=("[100]", "[300]", "[700]", "[1500]")),
    )
    points: tuple[int, ...] = setting(
        (16_200,),
        "points a step of each phase",
        source=f"{_PAPER}, section 2",
        inference_space=Choice(values=("[4096]", "[16200]")),
    )
    quick_steps: int = setting(
        100, "steps of the quick effort, with the first phase's points", ge=1, source="this implementation"
    )
    learning_rate: float = setting(
        1e-3,
        "Adam's learning rate",
        source=f"{_CODE}; the paper gives none",
        gt=0,
        space=Range(low=3e-4, high=3e-2, log=True),
    )
    learning_rate_end: float = setting(
        1.0,
        "fraction of the learning rate that the last step has; it falls geometrically",
        gt=0,
        le=1,
        source="this implementation",
        inference_space=Range(low=0.01, high=1, log=True),
    )
    prior: bool = setting(
        True,
        "keep the training's code prior in the objective; without effect where the method's prior is none",
        source=f"{_PAPER}, Eq. 4; the code leaves it out",
        inference_space=Choice(values=(False, True)),
    )
    start: Literal["random", "mean", "encoder"] = setting(
        "random",
        "where a code starts: drawn as training codes are, at the training codes' mean, or where the encoder says",
        source=f"{_PAPER}, section 2; section 3 proposes an encoder",
    )
    restorations: int = setting(
        1,
        "restorations of a volume: the others start code_init_std away from the first and draw points of their own; "
        "the map is of their mean evidence, their deviation is the extra map 'spread'",
        ge=1,
        le=64,
        source=f"{_PAPER}: one; section 3 proposes several",
        inference_space=Choice(values=(1, 2, 4)),
    )
    volumes: int = setting(6, "restorations of volumes fitted in one batch at most", ge=1, source="this implementation")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "arithmetic of the network; auto takes bfloat16 where the device has matrix units for it",
        source="this implementation",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.steps) != len(self.points) or not self.steps:
            raise ValueError("restoration.steps and restoration.points need one number for each phase")
        if min(*self.steps, *self.points, 1) < 1:
            raise ValueError("restoration.steps and restoration.points must be at least 1")
        return self


class EncoderSettings(Settings):
    """A network that gives a restoration its first code, trained after the decoder; none by default."""

    since: ClassVar[str | None] = "encoder"

    epochs: float = setting(
        0.0, "passes over the training subjects; 0 trains no encoder", ge=0, source=f"{_PAPER}: proposed, not built"
    )
    code_weight: float = setting(
        0.5,
        "1: regress the training codes; 0: the decoder's loss of the encoder's codes; between: both, weighted",
        ge=0,
        le=1,
        source="this implementation",
        space=Range(low=0.0, high=1.0),
        mutable=True,
    )
    cells: int = setting(
        32, "cells along each edge of the cohort's box that it sees", ge=8, le=128, source="this implementation"
    )
    width: int = setting(16, "channels of its first convolution", ge=1, source="this implementation")
    learning_rate: float = setting(
        1e-3,
        "Adam's learning rate; it falls as the decoder's does (lr_factor, lr_periods)",
        gt=0,
        source="this implementation",
        space=Range(low=1e-4, high=1e-2, log=True),
        mutable=True,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cells % 8:
            raise ValueError("encoder.cells must be a multiple of 8, since three convolutions halve it")
        return self


class ImplicitFieldSettings(MethodSettings):
    """Settings of the implicit field; defaults are the paper's."""

    num_classes: int = setting(
        10, "intensity classes, k of k-means", source=f"{_PAPER}, section 3", ge=2, le=255, space=Range(low=4, high=24)
    )
    class_voxels: int = setting(
        2_000_000, "voxels sampled over the training subjects for k-means", source=f"{_PAPER}, Fig. 2", ge=1
    )
    mode_pool_training: int = setting(
        2,
        "edge of the mode-pooling cube for training volumes",
        source=f"{_PAPER}, section 2",
        ge=1,
        le=6,
        since="decoder",
    )
    mode_pool_scoring: int = setting(
        3,
        "edge of the mode-pooling cube for volumes to be scored",
        source=f"{_PAPER}, section 2",
        ge=1,
        le=6,
        since=SCORING,
        inference_space=Range(low=1, high=5),
    )
    latent_dim: int = setting(
        256,
        "length of a code",
        source=f"{_PAPER}, section 3",
        ge=1,
        space=Choice(values=(64, 128, 256)),
        since="decoder",
    )
    width: int = setting(
        512,
        "units of a hidden layer",
        source=f"{_PAPER}, section 3",
        ge=8,
        space=Choice(values=(128, 256, 512)),
        since="decoder",
    )
    hidden_layers: int = setting(
        8,
        "hidden layers; one linear layer of outputs follows",
        source=f"{_CODE}: nine in all; the paper says eight",
        ge=3,
        since="decoder",
    )
    skip_layer: int = setting(
        4, "hidden layer, from 0, that sees code and position again", source=_CODE, ge=2, since="decoder"
    )
    num_frequencies: int = setting(
        10,
        "L of the position encoding",
        source=f"{_PAPER}, Eq. 3",
        ge=1,
        le=16,
        space=Range(low=4, high=12),
        since="decoder",
    )
    dropout: float = setting(
        0.2,
        "after every hidden layer",
        source=f"{_PAPER}, section 3",
        ge=0,
        lt=1,
        space=Range(low=0, high=0.3),
        since="decoder",
        mutable=True,
    )
    points: int = setting(
        16_200,
        "K, points of a volume in a batch",
        source=f"{_PAPER}, section 3; 16,384 in the code",
        ge=1,
        since="decoder",
    )
    batch_volumes: int = setting(6, "volumes in a batch", source=f"{_PAPER}, section 3", ge=1)
    epochs: float = setting(
        2_000,
        "passes over the training subjects",
        source=f"{_PAPER}, section 3; 2,001 in the code",
        gt=0,
        since="decoder",
    )
    decoder_lr: float = setting(
        5e-4,
        "Adam's learning rate for the network",
        source=_CODE,
        gt=0,
        space=Range(low=1e-4, high=1e-2, log=True),
        since="decoder",
        mutable=True,
    )
    code_lr: float = setting(
        1e-3,
        "Adam's learning rate for the codes",
        source=_CODE,
        gt=0,
        space=Range(low=1e-4, high=3e-2, log=True),
        since="decoder",
        mutable=True,
    )
    lr_factor: float = setting(
        0.5,
        "what the learning rates are multiplied by between two periods",
        source=_CODE,
        gt=0,
        le=1,
        since="decoder",
        mutable=True,
    )
    lr_periods: int = setting(
        4, "equal periods of training between which the learning rates fall", source=_CODE, ge=1, since="decoder"
    )
    prior: Literal["gaussian", "official", "none"] = setting(
        "gaussian",
        "gaussian: |z|^2 / sigma^2 a volume (Eq. 2); official: prior_weight * min(1, epoch / 100) * |z| a point",
        source=f"{_PAPER}, Eq. 2; {_CODE}",
        since="decoder",
    )
    prior_sigma: float = setting(
        0.01,
        "sigma of the gaussian prior; without effect where prior is another",
        source=f"{_PAPER}, section 3",
        gt=0,
        space=Range(low=3e-3, high=1.0, log=True),
        since="decoder",
        mutable=True,
    )
    prior_weight: float = setting(
        1e-4,
        "weight of the official prior; without effect where prior is another",
        source=_CODE,
        ge=0,
        since="decoder",
        mutable=True,
    )
    code_init_std: float = setting(
        0.01, "deviation of fresh codes", source=f"{_PAPER}, section 3; 0.0625 in the code", ge=0, since="decoder"
    )
    code_bound: float | None = setting(
        None,
        "radius of the ball that codes are kept in; null is none",
        source=f"{_CODE}: 1; not in the paper",
        since="decoder",
    )
    restoration_image: Literal["most_probable", "expectation"] = setting(
        "most_probable",
        "the restored intensity: centre of the most probable class, or the classes' expectation",
        source="this implementation",
        since=SCORING,
    )
    restoration: RestorationSettings = RestorationSettings()
    encoder: EncoderSettings = EncoderSettings()
    map: FieldMapSettings = FieldMapSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        inputs = self.latent_dim + 6 * self.num_frequencies
        if self.width <= inputs:
            raise ValueError(
                f"width must exceed latent_dim + 6 * num_frequencies = {inputs}, "
                "because the skip layer takes them in beside the layer before it"
            )
        if self.skip_layer >= self.hidden_layers:
            raise ValueError("skip_layer must be smaller than hidden_layers")
        if self.code_bound is not None and self.code_bound <= 0:
            raise ValueError("code_bound must be positive, or null for none")
        if self.restoration.start == "encoder" and not self.encoder.epochs:
            raise ValueError("restoration.start is encoder and none is trained: set encoder.epochs above 0")
        return self


def official_code() -> ImplicitFieldSettings:
    """The authors' public code where it differs from the paper."""
    return ImplicitFieldSettings(
        points=16_384,
        epochs=2_001,
        prior="official",
        code_init_std=0.0625,
        code_bound=1.0,
        restoration=RestorationSettings(steps=(501, 101), points=(10_000, 50_000), prior=False),
    )


def tiny() -> ImplicitFieldSettings:
    """A network of a few thousand parameters for tests: seconds, and no claim to detect anything."""
    return ImplicitFieldSettings(
        num_classes=5,
        class_voxels=20_000,
        latent_dim=8,
        width=48,
        num_frequencies=4,
        dropout=0.0,
        points=256,
        batch_volumes=4,
        epochs=20,
        decoder_lr=3e-3,
        code_lr=1e-2,
        prior_sigma=0.3,
        code_init_std=0.1,
        restoration=RestorationSettings(steps=(30,), points=(256,), quick_steps=10, learning_rate=3e-2),
        map=FieldMapSettings(average_pool=3),
    )


def demo() -> ImplicitFieldSettings:
    """A few minutes on two CPU cores for some forty volumes of 48 to 64 voxels; chosen on the phantom's validation."""
    return ImplicitFieldSettings(
        num_classes=10,
        class_voxels=500_000,
        mode_pool_training=3,
        latent_dim=64,
        width=192,
        num_frequencies=6,
        dropout=0.0,
        points=2_048,
        batch_volumes=6,
        epochs=100,
        decoder_lr=1e-3,
        code_lr=3e-3,
        prior_sigma=1.0,
        code_init_std=0.05,
        restoration=RestorationSettings(
            steps=(120,), points=(2_048,), quick_steps=30, learning_rate=1e-2, learning_rate_end=0.1
        ),
        map=FieldMapSettings(min_pool=1, average_pool=7),
    )
