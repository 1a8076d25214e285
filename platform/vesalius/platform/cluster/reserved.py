"""What a run's workers have reserved of a cluster, freed where whoever started them was killed.

Ray Train leaves that to an actor which asks a dashboard whether the controller still lives. It looks for the dashboard
without an address, fails where two runtimes are on one machine, and the cores stay reserved for workers that are gone.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from vesalius.platform.store.lock import is_held

if TYPE_CHECKING:
    from vesalius.platform.runs import RunFolder

_NAME = "reserved"


def note_reserved(run: RunFolder) -> None:
    """Note what the worker that calls has been reserved, so that another process can free it."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        (run.path / _NAME).write_text(group.id.hex())


def free_reserved(run: RunFolder, *, wait_seconds: float = 0.0) -> None:
    """Free what workers of a run had been reserved, which ends those that still live.

    Args:
        run: whose driver has ended, or is about to.
        wait_seconds: how long its driver may take to end; a controller that outlives its workers starts others.
    """
    from ray._raylet import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    path = run.path / _NAME
    deadline = time.monotonic() + wait_seconds
    while is_held(run.lock) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(OSError, ValueError):  # nothing is noted, or half of it
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(path.read_text()))))
        path.unlink()
