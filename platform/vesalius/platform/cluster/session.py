"""Hold a Ray runtime, quietly."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.platform import own_runtime
from vesalius.platform.cluster.capacity import GROWS_TO
from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger(__name__)

_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_UNWATCHED = {"RAY_enable_metrics_collection": "0", "RAY_event_stats": "0"}
"""Nothing reads the metrics of a runtime that ends with us; collecting them takes a hundredth of a core all along."""


_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many cores this process may use.

    They are fewer than the machine has where a scheduler or taskset says so, or where its container's share of time is
    less. A part of a core counts only where there is no whole one.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for quota in (
        _quota(cgroup / "cpu.max"),
        _quota(cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"),
    ):
        if quota is not None:
            cores = min(cores, max(1, int(quota)))
    return cores


def _quota(*files: Path) -> float | None:
    """Return the cores whose time a control group may take, which one file or two say, or None without a limit."""
    try:
        share, period = " ".join(path.read_text() for path in files).split()
        return int(share) / int(period) if int(share) > 0 else None
    except (OSError, ValueError):  # no such file, or the word "max"
        return None


def joins_another() -> bool:
    """Return whether :func:`session` holds a runtime that it did not begin: one of this process, or a cluster."""
    if own_runtime.lives.is_set():
        return False
    ray = sys.modules.get("ray")  # who has not imported it has not begun one
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


@contextlib.contextmanager
def session(num_cpus: int | None = None) -> Iterator[None]:
    """Hold a Ray runtime: the one that runs already, the cluster at ``RAY_ADDRESS``, or a local one for the while.

    Args:
        num_cpus: cores of a local runtime; all that this process may use where None.

    Raises:
        RunError: nothing answers at ``RAY_ADDRESS``, or what does lets this process not in, or a local runtime does not
            come up.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as undone:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own start-up
            if os.environ.get("RAY_ADDRESS"):
                own_runtime.forget_token()
                try:
                    ray.init(log_to_driver=False, logging_level="ERROR")
                except ConnectionError:
                    raise RunError(
                        f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: start it, or "
                        "unset RAY_ADDRESS to compute on this machine"
                    ) from None
                except Exception as error:  # of other versions, without its token, and whatever else Ray says no to
                    raise RunError(_refusal(os.environ["RAY_ADDRESS"], error)) from error
            else:
                undone.enter_context(_without(GROWS_TO))  # said of another cluster: no node ever joins this one
                own_runtime.let_no_one_else_in()
                for name, value in _UNWATCHED.items():
                    os.environ.setdefault(name, value)
                _begin(num_cpus or available_cores())
                own_runtime.lives.set()
        try:
            yield
        finally:
            try:
                ray.shutdown()
            finally:
                own_runtime.lives.clear()


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Hide a variable from this process and those that it starts."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _begin(num_cpus: int) -> None:
    """Begin a runtime on this machine, at the second try where the first fails: Ray gives its processes half a minute.

    Raises:
        RunError: it does not come up.
    """
    import ray

    for tries_left in (1, 0):
        try:
            ray.init(
                address="local",  # without a word Ray would join whatever cluster was started on this machine
                num_cpus=num_cpus,
                object_store_memory=512 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False,  # seven processes that nobody looks at
            )
        except Exception as error:  # of no class of its own where its processes take too long
            _end_half_begun(error)
            if not tries_left:
                raise RunError(
                    f"Ray did not start on this machine ({_first_sentence(error)}), twice: nothing was begun; give the "
                    "same command again when the machine has memory and time for it"
                ) from error
            _LOG.warning("Ray did not start on this machine (%s): trying once more", _first_sentence(error))
        else:
            return


def _end_half_begun(error: Exception) -> None:
    """End the processes of a runtime that did not come up, which Ray leaves alone until this process ends."""
    import ray
    from ray._private.node import Node

    # Ray keeps such a node nowhere.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=True)
            break
    ray.shutdown()


def _refusal(address: str, error: Exception) -> str:
    """Return what is wrong where a cluster answers and is not joined."""
    from ray.exceptions import AuthenticationError

    cluster = f"the Ray cluster at RAY_ADDRESS={address}"
    if isinstance(error, AuthenticationError):
        return (
            f"{cluster} lets nobody in without its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file "
            "that holds it"
        )
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))  # the cluster's, and then this process's
    if len(versions) == 2:
        (ray_there, python_there), (ray_here, python_here) = versions
        return (
            f"{cluster} has Ray {ray_there} on Python {python_there}, and this process has Ray {ray_here} on Python "
            f"{python_here}: install the cluster's versions here, or unset RAY_ADDRESS to compute on this machine"
        )
    return (
        f"{cluster} cannot be joined ({_first_sentence(error)}): check that it runs as it should, or unset RAY_ADDRESS "
        "to compute on this machine"
    )


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
