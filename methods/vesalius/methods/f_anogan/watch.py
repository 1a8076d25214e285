"""The watch over a Wasserstein game: whether the critic keeps to its slope, and whether generated images differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from vesalius.methods.blocks.averages import MovingAverages, spread_of
from vesalius.platform.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.methods.f_anogan.settings import CriticWatchSettings
    from vesalius.platform.contracts import Batch


class CriticWatch(MovingAverages):
    """Moving averages of the critic's slope and of the images' spread; stops a game that is over.

    A Wasserstein critic has no accuracy that could tell, and its loss is a distance that may rightly be large. Nor does
    a steep one tell: of images W apart a critic of slope c gains c W - lambda (c - 1)^2, most at c = 1 + W / 2 lambda.
    W is no more than the mean distance of real images from generated ones, however paired. So that is what the slope is
    held against.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("slope", "apart", "real_variance", "fake_variance")

    def __init__(self, settings: CriticWatchSettings, penalty_weight: float) -> None:
        super().__init__(settings.window)
        self._settings = settings
        self._penalty_weight = penalty_weight

    def see(self, observed: Mapping[str, float], batch: Batch) -> dict[str, float]:
        """Take in a step's means of :attr:`NAMES` and return the spread, and the slope over the greatest rightful one.

        Raises:
            DivergenceError: the critic has run away, or the generator gives one image; names stage and step.
        """
        slope, apart, real_variance, fake_variance = self.take(observed)
        # Without a penalty any slope is rightful.
        rightful = 1 + apart / (2 * self._penalty_weight) if self._penalty_weight else math.inf
        steepness = slope / rightful
        spread = spread_of(real_variance, fake_variance)
        if int(self.seen) > self._settings.grace:
            self._judge(steepness, spread, f"at step {batch.step} of stage '{batch.stage}'")
        return {"steepness": steepness, "spread": spread}

    def _judge(self, steepness: float, spread: float, where: str) -> None:
        settings, steps = self._settings, min(int(self.seen), self.window)
        if spread < settings.spread:
            raise DivergenceError(
                f"the generator has collapsed {where}: over some {steps} steps its images differ from each other by "
                f"{100 * spread:.2g} % of what real images do (game.watch.spread allows {100 * settings.spread:g} %): "
                "train for fewer epochs or lower game.learning_rate"
            )
        if settings.steepness and steepness > settings.steepness:
            raise DivergenceError(
                f"the critic has run away from its penalty {where}: over some {steps} steps its slope was "
                f"{steepness:.3g} times the greatest that the penalty lets pay (game.watch.steepness allows "
                f"{settings.steepness:g}): lower game.learning_rate, or raise game.penalty_weight"
            )
