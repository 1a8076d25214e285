"""Stages that only count: what is fitted to every training volume without a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.contracts import Stage, WholeVolumes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vesalius.platform.contracts import Batch, Collective, Metrics, Update


def one_pass(
    name: str,
    begin: Callable[[], None],
    step: Callable[[Batch, Update], Metrics],
    finish: Callable[[Collective], None],
) -> Stage:
    """Return a stage without optimisers, in which every training volume is seen once, for methods that only count."""
    return Stage(name=name, view=WholeVolumes(), batch_size=1, epochs=1, begin=begin, step=step, finish=finish)
