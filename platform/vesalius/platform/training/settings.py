"""How a run is trained, whatever the method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vesalius.platform.config import Settings


class TrainingSettings(Settings):
    """Settings of the platform's training loop; a method has none of these."""

    seed: int = Field(0, ge=0, description="keys all randomness of the run")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="bf16 autocast of the forward pass; auto: where the device has units for it (CUDA, AMX, AVX-512), "
        "and on a CPU not for 3D or strided convolutions, whose gradients can be wrong; "
        "fp32: training in float32 throughout, CUDA's TensorFloat-32 turned off too (scoring afterwards is not)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="gradient accumulation: items of the view computed at once on one worker, their gradients summed "
        "before a step; a stage with batch statistics computes one of its groups at once, whatever this says",
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep the inputs of a network's segments alone for backward and compute the rest again there: less "
        "memory, about a third more time, the same gradients",
    )
    channels_last: bool = Field(
        False,
        description="lay out images and the kernels of convolutions with a voxel's channels side by side, which some "
        "devices convolve faster",
    )
    clip_norm: float | None = Field(None, gt=0, description="clip each optimiser's gradient to this l2 norm")
    log_every: int = Field(20, ge=1, description="steps between logged metrics")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    validations: int = Field(
        4, ge=1, description="validation passes of a selectable stage, evenly spread, the last at its end"
    )
    validate_every: int | None = Field(
        None, ge=1, description="steps between validation passes of a selectable stage; none: as validations says"
    )
    validate_subjects: int = Field(4, ge=1, description="validation subjects scored in a validation pass")
    cache_mib: int | None = Field(
        None,
        ge=0,
        description="a worker's memory for decoded volumes; none: half of what is free, shared by a machine's workers",
    )
    prefetch: int = Field(2, ge=0, description="batches loaded ahead of the step that needs them")
    readers: int = Field(2, ge=0, description="threads that read volumes ahead of their use")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of one worker; none: its machine's cores, shared by the workers there"
    )
    deterministic: bool = Field(
        False, description="refuse operations that are not deterministic (on CUDA; the CPU ones all are)"
    )
    max_failures: int = Field(
        3, ge=0, description="times in a row, no checkpoint between them, that workers may be lost before the run fails"
    )
    min_workers: int = Field(
        1,
        ge=1,
        description="workers with which a run goes on where nodes are gone, each with a larger share of every batch "
        "(micro_batch_size bounds what that takes); as many as were asked for again once the nodes are back",
    )
    wait_for_nodes_seconds: float = Field(
        60.0, ge=0, description="how long nodes that are missing are waited for before fewer workers go on"
    )
