"""What a method, a stage, a batch, a volume and a score are. Torch and pydantic, nothing else.

Shape suffixes used throughout:

====== =====================================================================
B      items of a batch (what an item is, the view says)
K      points of one volume
N      voxels of a point's neighbourhood
C      channels (modalities)
D H W  the voxel axes i, j, k of an array in canonical RAS+ orientation
       (left to right, posterior to anterior, inferior to superior)
====== =====================================================================

A method has settings, stages and a score, and nothing else. A stage is a first-class phase of training. All
state lives in parameters, buffers and the stages' optimisers, so that a checkpoint is complete by construction.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from vesalius.platform.config import Settings
from vesalius.platform.tables import TableEntry as TableEntry  # lives there so that a table of layouts needs no torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

Effort = Literal["full", "quick"]
Metrics = Mapping[str, "float | Tensor"]
Matrix4 = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]

# ----------------------------------------------------------------------------------------------------
# Views: how a stage looks at the cohort. Data, not code.


@dataclass(frozen=True, kw_only=True)
class Points:
    """Voxel centres drawn uniformly over the whole grid, background included. An item is one volume.

    Attributes:
        per_volume: K, points of one volume in one item.
        neighbourhood: edge n of the cube of voxels given with each point (N = n^3; 1 is the voxel alone). An
            even cube reaches from the voxel towards higher indices; beyond the grid the edge voxel repeats.
    """

    per_volume: int
    neighbourhood: int = 1


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Cubes cut at uniformly drawn centres. An item is one patch; neighbours in a batch share a volume.

    Attributes:
        size: edge of the cube in voxels (odd); the volume is padded with ``background`` by (size - 1) / 2.
        per_volume: patches cut from one volume before the next volume's turn; an epoch visits every volume once.
        background: value outside the grid.
    """

    size: int
    per_volume: int
    background: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Whole slices across one axis. An item is one slice.

    Attributes:
        axis: 0 sagittal, 1 coronal, 2 axial.
        every: take each n-th slice.
        extent: first and last slice as fractions of the axis, so that it holds on any grid.
    """

    axis: int = 2
    every: int = 1
    extent: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class WholeVolumes:
    """The whole grid at once. An item is one volume."""


View = Points | Patches | Slices | WholeVolumes


def slice_indices(view: Slices, shape: tuple[int, int, int]) -> list[int]:
    """Return the indices that ``view`` takes of a grid of ``shape``; the same rule at training and scoring."""
    count = shape[view.axis]
    first, last = (round(fraction * count) for fraction in view.extent)
    return list(range(first, last, view.every))


# ----------------------------------------------------------------------------------------------------
# Randomness that belongs to a thing and not to a process.


def generator(*key: object) -> torch.Generator:
    """Return a CPU generator that is a pure function of ``key`` (any values with a stable ``repr``)."""
    text = "\x1f".join(repr(part) for part in key)
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's share of the global batch of one step.

    The global batch is a pure function of (seed, stage, step); the number of workers changes who computes, not
    what. Fields by view:

    ============ ==================== =================== ===============
    view         image                brain               position
    ============ ==================== =================== ===============
    Points       (B, K, C, N)         (B, K)              (B, K, 3)
    Patches      (B, C, s, s, s)      (B, s, s, s)        (B, 3)
    Slices       (B, C, h, w)         (B, h, w)           (B, 1)
    WholeVolumes (B, C, D, H, W)      (B, D, H, W)        (B, 0)
    ============ ==================== =================== ===============

    Attributes:
        stage: name of the stage.
        step: step of the stage, from 0.
        num_steps: steps of the stage.
        seed: the run's seed.
        items: (B,) int64, each item's place in the global batch: the key of its noise.
        global_size: items of the global batch over all ranks.
        subjects: (B,) int64, index into the ordered subjects of the stage's split
            (for the training split: ``CohortFacts.subjects``).
        image: float32 intensities as the recipe left them.
        brain: bool, inside the brain.
        position: normalised coordinates in [-1, 1] of the cohort's physical box (see :func:`grid_positions`);
            for slices the coordinate along the sliced axis.
    """

    stage: str
    step: int
    num_steps: int
    seed: int
    items: Tensor
    global_size: int
    subjects: Tensor
    image: Tensor
    brain: Tensor
    position: Tensor

    def __len__(self) -> int:
        return int(self.items.shape[0])

    def select(self, start: int, stop: int) -> Batch:
        """Return items ``start`` to ``stop`` (exclusive) as a batch of their own; their noise stays theirs."""
        fields = ("items", "subjects", "image", "brain", "position")
        return replace(self, **{name: getattr(self, name)[start:stop] for name in fields})

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        fields = ("items", "subjects", "image", "brain", "position")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in fields})

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise (B, *shape), per item a function of (seed, stage, step, name, item)."""
        return self._noise(torch.randn, name, shape)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [0, 1) of shape (B, *shape), keyed as :meth:`normal` is."""
        return self._noise(torch.rand, name, shape)

    def _noise(self, draw: Callable[..., Tensor], name: str, shape: Sequence[int]) -> Tensor:
        keys = ((self.seed, self.stage, self.step, name, int(item)) for item in self.items.tolist())
        drawn = [draw(*shape, generator=generator(*key)) for key in keys]
        # A rank without items still meets the others with an empty batch of the right shape.
        noise = torch.stack(drawn) if drawn else torch.empty(0, *shape)
        return noise.to(self.image.device)


class Update(Protocol):
    """Performs one optimiser step on the global batch; handed to a stage's ``step`` by the platform.

    The platform splits ``batch`` into micro-batches, runs ``loss`` on each (under bf16 autocast where the run's
    precision says so), calls backward for that optimiser's parameters only, sums gradients and counts over
    ranks and divides, checks finiteness, clips, steps. So a generator's loss leaves nothing in the critic, and
    unequal counts over ranks or micro-batches are weighted right. No graph may be shared by two updates.
    """

    def __call__(self, optimizer: str, loss: Callable[[Batch], tuple[Tensor, Tensor | float]], batch: Batch) -> float:
        """Step ``optimizer`` on the loss.

        Args:
            optimizer: a name of the stage's ``optimizers``.
            loss: ``micro_batch -> (sum of losses, count)``; the sum is a scalar with a graph.
            batch: this rank's share of the global batch.

        Returns:
            The mean loss over the global batch (the same on every rank).

        Raises:
            DivergenceError: the loss or a gradient is not finite.
        """
        ...


class Collective(Protocol):
    """What a stage's ``finish`` may ask of the other ranks. With one worker, it answers alone."""

    rank: int
    world_size: int

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all ranks (same shape and dtype, a new tensor)."""
        ...

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return every rank's ``value``, in rank order; shapes may differ in the first dimension."""
        ...


def _constant(progress: float) -> float:
    return 1.0


def _nothing() -> None:
    return None


def _nothing_to_finish(collective: Collective) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training.

    What is fitted without gradients (intensity classes, an atlas) is a stage without optimisers: ``begin`` clears
    its accumulators, ``step`` adds a batch to them, ``finish`` sums them over ranks and solves. Broken off, such
    a stage restarts at its own first step.

    Attributes:
        name: unique within the method; it keys the randomness and stands in errors, metrics and ``--from``.
        view: how the stage looks at the cohort.
        batch_size: items of the view in the GLOBAL batch.
        epochs: passes over the split as the papers count them; steps follow from the cohort.
        trains: modules that this stage trains. Every other module is in eval mode and frozen.
        optimizers: by name; ``{}`` is legal.
        step: one batch a step; ``batch.step`` tells a critic loop where it stands.
        split: the split it sees; only healthy subjects of it are used unless ``healthy_only`` is False.
        healthy_only: leave out subjects with a lesion.
        group_size: items that batch statistics are taken over; a group is never split over ranks or micro-batches.
        lr: multiplier of every optimiser's learning rates as a stateless function of progress in [0, 1].
        begin: called on every rank before the stage's first step (not on resume in its middle).
        after_update: called on every rank after each step: project codes onto the ball.
        finish: called on every rank after the last step: solve moments, build a memory.
        selectable: may "best so far" be chosen in this stage?
    """

    name: str
    view: View
    batch_size: int
    epochs: float
    step: Callable[[Batch, Update], Metrics]
    trains: Sequence[nn.Module] = ()
    optimizers: Mapping[str, Optimizer] = field(default_factory=dict)
    split: str = "train"
    healthy_only: bool = True
    group_size: int = 1
    lr: Callable[[float], float] = _constant
    begin: Callable[[], None] = _nothing
    after_update: Callable[[], None] = _nothing
    finish: Callable[[Collective], None] = _nothing_to_finish
    selectable: bool = False


# ----------------------------------------------------------------------------------------------------
# The cohort as a method sees it, volumes to be scored, and scores.


class CohortFacts(Settings):
    """What a method may know of the cohort it is built for. Saved with the model.

    Attributes:
        subjects: ids of the healthy training subjects, in order: the rows of a code table.
        grid: voxels along D, H, W of the prepared volumes.
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices to millimetres (RAS+) of the cohort's grid.
        channels: modality names, in the order of the channel axis.
        digest: digest of the cohort the method was trained on.
    """

    subjects: tuple[str, ...]
    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Matrix4
    channels: tuple[str, ...]
    digest: str

    @property
    def box_mm(self) -> tuple[float, float, float]:
        """Edges of the cohort's physical box: from the outer face of the first voxel to that of the last."""
        d, h, w = (n * s for n, s in zip(self.grid, self.spacing_mm, strict=True))
        return (d, h, w)


def axis_positions(num: int, spacing_mm: float, box_mm: float) -> Tensor:
    """Return (num,) float32 coordinates of voxel centres along one axis, in units of half the cohort's box.

    Every grid of a cohort shares the box's centre, so a grid of another resolution or extent lands on the same
    physical coordinates: voxel i of n sits at (2 i + 1 - n) * spacing / box. On the cohort's own grid that is
    (2 i + 1) / n - 1.
    """
    index = torch.arange(num, dtype=torch.float64)
    return ((2 * index + 1 - num) * (spacing_mm / box_mm)).to(torch.float32)


def grid_positions(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], box_mm: tuple[float, float, float]
) -> Tensor:
    """Return (D, H, W, 3) float32 normalised coordinates of every voxel centre; see :func:`axis_positions`."""
    axes = [axis_positions(n, s, b) for n, s, b in zip(shape, spacing_mm, box_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A prepared volume to be scored.

    Attributes:
        subject_id: for messages only; a score never depends on it.
        image: (C, D, H, W) float32.
        brain: (D, H, W) bool.
        spacing_mm: voxel size along D, H, W.
        affine: voxel indices to millimetres (RAS+).
    """

    subject_id: str
    image: Tensor
    brain: Tensor
    spacing_mm: tuple[float, float, float]
    affine: Matrix4

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        _, d, h, w = self.image.shape
        return (d, h, w)

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator keyed by ``name`` and the volume's content.

        A volume scored alone therefore draws the same noise as the same volume scored among others.
        """
        content = hashlib.sha256(self.image.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return generator("volume", content, name)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A method's answer for one volume, on the volume's own grid.

    Attributes:
        map: (D, H, W) float32, higher is more anomalous.
        image_score: one number for the whole volume, higher is more anomalous.
        restoration: (C, D, H, W) float32, the healthy image nearest to the volume, where the method has one.
        extras: further maps (D, H, W) by name, such as the spread of several restorations.
    """

    map: Tensor
    image_score: float
    restoration: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------
# Search spaces, declared on a method's settings, and the method itself.


class Range(Settings):
    """A numeric search space, whole numbers where the field is an int; ``log`` samples its logarithm."""

    low: float
    high: float
    log: bool = False


class Choice(Settings):
    """A search space of listed values."""

    values: tuple[bool | int | float | str, ...]


Space = Range | Choice


def setting(default: Any, description: str, *, space: Space | None = None, source: str = "", **bounds: Any) -> Any:
    """Declare a setting of a method.

    Args:
        default: the paper's value.
        description: one sentence for ``vesalius methods NAME``.
        space: what a study may search, where it makes sense to.
        source: paper and section, or who states otherwise.
        bounds: pydantic bounds: ``gt``, ``ge``, ``lt``, ``le``.
    """
    extra: dict[str, Any] = {"source": source, "space": space.model_dump() if space else None}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def spaces(settings_type: type[Settings]) -> dict[str, Space]:
    """Return the search spaces declared on a settings class, by field name."""
    found: dict[str, Space] = {}
    for name, info in settings_type.model_fields.items():
        extra = info.json_schema_extra
        space = extra.get("space") if isinstance(extra, dict) else None
        if isinstance(space, dict):
            found[name] = Choice.model_validate(space) if "values" in space else Range.model_validate(space)
    return found


class MethodSettings(Settings):
    """Base of every method's settings; defaults are the paper's."""


class Method(nn.Module, ABC):
    """A published method. State lives in parameters, buffers and the stages' optimisers, nowhere else.

    Attributes:
        settings_type: the settings class.
        settings: frozen settings this instance was built from.
        cohort: what it knows of the cohort.
    """

    settings_type: ClassVar[type[MethodSettings]]

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__()
        self.settings = settings
        self.cohort = cohort

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """Named settings: ``paper`` is the default; others say what they are for."""
        return {"paper": cls.settings_type()}

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Return the training stages in order. Called once a process; optimisers are made here."""

    @abstractmethod
    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Score volumes, each of its own shape; called in eval mode under ``torch.no_grad``.

        Args:
            volumes: one or more prepared volumes; several may be fitted in one batch.
            effort: ``quick`` is the reduced setting of the validation pass during training.

        Returns:
            One score a volume, in order, each independent of the other volumes (to float tolerance).
        """

    def capacity(self) -> int | None:
        """Return how many volumes one ``score`` call takes at most, or None where it does not matter."""
        return None
