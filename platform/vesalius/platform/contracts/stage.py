"""A phase of training, and what the platform hands to it: an update and the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from vesalius.platform.contracts.views import Patches, Slices, WholeVolumes
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from vesalius.platform.contracts.augmentation import Augmentation
    from vesalius.platform.contracts.batch import Batch
    from vesalius.platform.contracts.views import View

    LossSum = tuple[Tensor, Tensor | float] | tuple[Tensor, Tensor | float, Mapping[str, Tensor]]

Metrics = Mapping[str, "float | Tensor"]


class Update(Protocol):
    """Performs one optimiser step on the global batch; handed to a stage's ``step`` by the platform.

    The platform splits ``batch`` into micro-batches, runs ``loss`` on each (under bf16 autocast where the run's
    precision says so), calls backward for that optimiser's parameters only, sums gradients and counts over
    ranks and divides, checks finiteness, clips, steps. So a generator's loss leaves nothing in the critic, and
    unequal counts over ranks or micro-batches are weighted right. No graph may be shared by two updates.

    Attributes:
        observed: means over the global batch of what the last call's loss named beside its sum (the same on every
            rank), such as a discriminator's accuracy.
    """

    observed: Mapping[str, float]

    def __call__(self, optimizer: str, loss: Callable[[Batch], LossSum], batch: Batch) -> float:
        """Step ``optimizer`` on the loss.

        Args:
            optimizer: a name of the stage's ``optimizers``.
            loss: ``micro_batch -> (sum of losses, count)``; the sum is a scalar with a graph. A third element may name
                further sums, of the stage's ``observes``, to be divided by the count as well.
            batch: this rank's share of the global batch.

        Returns:
            The mean loss over the global batch (the same on every rank).

        Raises:
            DivergenceError: the loss or a gradient is not finite.
            SettingError: the loss names a sum that is not among the stage's ``observes``.
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
        split: ``train`` or ``validation``; gate and test are refused.
        healthy_only: of validation, leave out subjects with a lesion. All of ``train`` is trained on: an anomalous
            subject stands there only by the user's word.
        group_size: items that batch statistics are taken over: what trains batch normalisation states it. Each
            micro-batch is then one group, no group is split over ranks, and the running statistics that the groups of
            all ranks arrive at are averaged.
        lr: multiplier of every optimiser's learning rates as a stateless function of progress in [0, 1].
        begin: called on every rank before the stage's first step (not on resume in its middle).
        after_update: called on every rank after each step: project codes onto the ball.
        finish: called on every rank after the last step: solve moments, build a memory.
        selectable: may "best so far" be chosen in this stage?
        observes: names of the sums that its losses may report beside the loss; see :class:`Update`.
        augmentation: random changes of whole slices or volumes, made before ``step`` sees them; none by default. A
            function is asked when the stage begins, and when it goes on after a break: for changes measured in what
            an earlier stage fitted, such as the cohort's mean and deviation. Its answer may depend on nothing else.
        optional: where its split holds no subject that it may see, ``begin`` and ``finish`` are called and no step is
            taken. Any other stage stops with a ``CohortError`` then.
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
    observes: Sequence[str] = ()
    augmentation: Augmentation | Callable[[], Augmentation] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be done right.

        Raises:
            SettingError: a view that discards items asks for groups of a fixed size; points or patches, which have a
                place of their own in the volume, ask to be moved; a patch has no centre voxel.
        """
        if isinstance(self.view, Patches) and (self.view.size < 1 or self.view.size % 2 == 0):
            raise SettingError(
                f"stage '{self.name}' asks for patches of {self.view.size} voxels: choose an odd size, so that a patch "
                "has a voxel in its middle, whose place is the patch's"
            )
        if self.augmentation is not None and not isinstance(self.view, Slices | WholeVolumes):
            raise SettingError(
                f"stage '{self.name}' asks for augmentation of {type(self.view).__name__}: only Slices and "
                "WholeVolumes are augmented, since a point or patch stands for its place"
            )
        discards = getattr(self.view, "sampling", "") == "discard" or getattr(self.view, "discard_background", False)
        if discards and self.group_size > 1:
            raise SettingError(
                f"stage '{self.name}' discards items and asks for groups of {self.group_size} (group_size): groups "
                "would differ with the number of workers; draw from the foreground instead, with sampling='touching'"
            )

    def settled(self) -> Stage:
        """Return the stage with the augmentation that it has now, where a function says which."""
        return replace(self, augmentation=self.augmentation()) if callable(self.augmentation) else self
