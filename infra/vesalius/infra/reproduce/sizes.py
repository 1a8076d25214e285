"""How large the model of a row is: its parameters, and the memory that its training takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vesalius.infra.pipeline import method_type
from vesalius.infra.pipeline.forecasting import training_memory
from vesalius.infra.reproduce.kept import kept
from vesalius.platform.config import Settings, flatten, validate
from vesalius.platform.errors import VesaliusError
from vesalius.platform.store import CohortStore, place_of

if TYPE_CHECKING:
    from vesalius.platform.contracts import MethodSettings
    from vesalius.platform.runs import RunFolder


class Size(Settings):
    """What a row's model is, for curves over models.

    Attributes:
        kind: method and what is done to its map, a line of a curve.
        parameters: trainable numbers.
        memory_bytes: the most that some steps of its training held here, with its batches and precision; None where
            nothing was learnt by gradients, or where it could not be measured.
        width: m; None where the method has none.
        patch_size: s_p in voxels; None where it has none.
    """

    kind: str
    parameters: int
    memory_bytes: int | None = None
    width: int | None = None
    patch_size: int | None = None

    def numbers(self) -> dict[str, Any]:
        """Return what :data:`SIZES` show, by key."""
        memory = self.memory_bytes
        return {"parameters": self.parameters, "memory_mib": None if memory is None else round(memory / 2**20)}


SIZES = (("parameters", "parameters", ","), ("memory_mib", "training MiB", ","))
"""Columns of a section that show it."""


class Memory(Settings):
    """What ``training_memory.json`` of a run holds.

    Attributes:
        peak_bytes: see :attr:`Size.memory_bytes`.
        lacks: why it is not known; None where it is.
    """

    peak_bytes: int | None = None
    lacks: str | None = None


def size_of(run: RunFolder) -> Size:
    """Return what a run's model is; no weight is drawn for it. Its memory is measured once and kept with the run."""
    spec = run.spec
    kind = method_type(spec.method)
    settings = validate(kind.settings_type, spec.settings, spec.method)
    with torch.device("meta"):
        network = kind(settings, CohortStore.open(spec.store).facts())
    memory = Memory()
    if any(stage.optimizers for stage in network.stages()):
        memory = kept(run.path / "training_memory.json", Memory, lambda: _memory(run, settings))
    flat = flatten(settings)
    filters = [
        word for key, word in (("min_pool", "erosion"), ("median_pool", "median")) if flat.get(f"map.{key}", 1) > 1
    ]
    if flat.get("scoring.calibrate"):
        filters.append("calibrated")
    return Size(
        kind=", ".join([spec.method.replace("_", " "), *filters]),
        parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        memory_bytes=memory.peak_bytes,
        width=flat.get("network.width"),
        patch_size=flat.get("network.patch_size"),
    )


def _memory(run: RunFolder, settings: MethodSettings) -> Memory:
    spec = run.spec
    try:
        return Memory(peak_bytes=training_memory(spec.method, settings, spec.training, place_of(spec.store)))
    except VesaliusError as error:
        # The row is trained and judged; a point of a curve less is no reason to lose it.
        return Memory(lacks=" ".join(str(error).split()))
