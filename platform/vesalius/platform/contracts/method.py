"""The method itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.platform.contracts.search import MethodSettings
    from vesalius.platform.contracts.stage import Stage
    from vesalius.platform.contracts.volumes import CohortFacts, Score, Volume

Effort = Literal["full", "quick"]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Where a method here parts from its paper, by choice or because the paper does not say.

    Attributes:
        paper: what the paper says, or leaves open, and in which section.
        here: what is done instead; names the setting that leads back where there is one.
        why: the reason.
    """

    paper: str
    here: str
    why: str


class Method(nn.Module, ABC):
    """A published method. State lives in parameters, buffers and the stages' optimisers, nowhere else.

    Attributes:
        settings_type: the settings class.
        any_grid: does it take volumes of any grid? They are then scored on their own, and training subjects may lie on
            several where every stage takes ``Points``: the cohort's facts describe a box around all of them.
        deviations: where it parts from its paper.
        settings: frozen settings this instance was built from.
        cohort: what it knows of the cohort.
    """

    settings_type: ClassVar[type[MethodSettings]]
    any_grid: ClassVar[bool] = False
    deviations: ClassVar[Sequence[Deviation]] = ()

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

    def code_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one item's code, channels first, or None where the method does not say."""
        return None

    def capacity(self) -> int | None:
        """Return how many volumes one ``score`` call takes at most, or None where it does not matter."""
        return None
