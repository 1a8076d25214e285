"""The application on Ray Serve: whether there is room for it, its start under a deadline, its end without a loss."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import ray
from ray import serve

from vesalius.infra.serving.application import build
from vesalius.infra.serving.settings import INGRESS_CPUS
from vesalius.platform.cluster.capacity import capacity, num_fitting, resources_by_node
from vesalius.platform.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vesalius.infra.serving.settings import ServingSettings

NAME = "vesalius"
_log = logging.getLogger("ray.serve")


def refuse_second() -> None:
    """Leave a cluster alone on which Ray Serve runs already: it has one address, and ours would replace what it serves.

    Raises:
        RunError: it does.
    """
    status = serve.status()
    if status.applications or status.proxies:
        names = " and ".join(f"'{name}'" for name in sorted(status.applications)) or "no application yet"
        raise RunError(
            f"Ray Serve runs on this cluster already, with {names}, and has one address for all: end it first (Ctrl-C "
            "where it was started; `serve shutdown` where that is gone), or serve on another cluster"
        )


def scorer_cpus(replicas: int, gpus: float) -> float:
    """Return the cores for each scorer on a cluster that is joined: of those that are free, else of all.

    Args:
        replicas: scorers.
        gpus: of each, so that only the cores beside them count.
    """
    for free in (True, False):
        cpus = most_each(resources_by_node(free=free), replicas, gpus)
        if cpus:
            return cpus
    return 1.0  # what an autoscaler is asked for where no node stands


def most_each(nodes: Sequence[Mapping[str, float]], replicas: int, gpus: float) -> float:
    """Return the most cores that each scorer can have beside the ingress: whole ones, or tenths of one; 0 for none.

    Args:
        nodes: what each has.
        replicas: scorers.
        gpus: of each scorer.
    """
    # Whichever node the ingress is put on has room for it.
    left = [_without_ingress(node) for node in nodes if node.get("GPU", 0.0) >= gpus]
    whole = range(int(max((node["CPU"] for node in left), default=0.0)), 0, -1)
    for cpus in (*whole, *(tenths / 10 for tenths in range(9, 0, -1))):
        if num_fitting({"CPU": cpus, "GPU": gpus}, left) >= replicas:
            return float(cpus)
    return 0.0


def _without_ingress(node: Mapping[str, float]) -> dict[str, float]:
    return {**node, "CPU": max(0.0, node.get("CPU", 0.0) - INGRESS_CPUS)}


def check_room(settings: ServingSettings) -> None:
    """Refuse what the cluster cannot hold however long it is waited for.

    Raises:
        RunError: it has fewer CPUs or GPUs, with all that its autoscaler may add; or none is added, and its nodes have
            enough of them together only.
    """
    most, nodes = capacity(), resources_by_node(free=False)
    cpus, gpus = settings.replicas * settings.cpus + INGRESS_CPUS, settings.replicas * settings.gpus
    if cpus > most.get("CPU", 0.0) + 1e-6 or gpus > most.get("GPU", 0.0) + 1e-6:
        raise RunError(f"there is no room for {_asked(settings)} on {_amount(most)}: {_ADVICE}")
    grows = any(most.get(name, 0.0) > sum(node.get(name, 0.0) for node in nodes) + 1e-6 for name in ("CPU", "GPU"))
    if not grows and not _fits(settings, nodes):  # of nodes to come nobody knows what each will have
        raise RunError(
            f"there is no room for {_asked(settings)} on {_amount(most)} of {len(nodes)} node(s), each scorer on one "
            f"of them: {_ADVICE}"
        )


def _fits(settings: ServingSettings, nodes: Sequence[Mapping[str, float]]) -> bool:
    bundle = {"CPU": settings.cpus, "GPU": settings.gpus}
    total = num_fitting(bundle, nodes)
    with_ingress = (
        total - num_fitting(bundle, [node]) + num_fitting(bundle, [_without_ingress(node)])
        for node in nodes
        if node.get("CPU", 0.0) >= INGRESS_CPUS
    )
    return max(with_ingress, default=0) >= settings.replicas


def start(host: str, port: int) -> None:
    """Start Ray Serve.

    Raises:
        RunError: its processes do not run in time.
    """
    options = {"host": host, "port": port, "keep_alive_timeout_s": 30}
    with _in_time():
        serve.start(http_options=options, logging_config={"log_level": "WARNING", "enable_access_log": False})


def deploy(settings: ServingSettings, seconds: float) -> None:
    """Start the application and wait until its processes run.

    Raises:
        RunError: one of them fails, or they do not run in time: the message says what was asked for and what is free.
    """
    deadline = time.monotonic() + seconds
    target = serve.RunTarget(build(settings.model_dump(mode="json")), name=NAME, route_prefix="/")
    with _in_time():
        # Its own waiting for what there is no room for has no end.
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    while True:
        found = serve.status().applications.get(NAME)
        if found is not None and found.status == "RUNNING":
            return
        if found is not None and found.status == "DEPLOY_FAILED":
            lines = [line.strip() for line in found.message.splitlines() if line.strip()]
            raise RunError(f"the server did not come up: {lines[-1][:300] if lines else 'its processes failed'}")
        if time.monotonic() > deadline:
            free = _amount(ray.available_resources())
            raise RunError(
                f"the server did not come up within {seconds:.0f} s: it asks for {_asked(settings)}, and free are "
                f"{free}: {_ADVICE}, or wait for what computes there"
            )
        time.sleep(0.2)


def drain(seconds: float) -> None:
    """Let the application take no more requests in, and wait until those under way are answered, but no longer."""
    try:
        left = serve.get_app_handle(NAME).end.remote(seconds).result(timeout_s=seconds + 30)
    except Exception as error:  # whatever is wrong with it, it is to end
        _log.warning("what was under way could not be waited for (%s)", type(error).__name__)
        return
    if left:
        _log.warning("%d requests were not answered within %g s and are cut off", left, seconds)


def take_down() -> None:
    """End Ray Serve, or our application alone where somebody's other has come to run beside it since."""
    try:
        others = set(serve.status().applications) - {NAME}
    except Exception:  # it is gone already, or its cluster is
        return
    if others:
        serve.delete(NAME)
    else:
        serve.shutdown()


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        said = str(error).rstrip(".")
        raise RunError(
            f"the server did not come up: Ray Serve did not start in time ({said}): give the same command again when "
            "the machine has time for it"
        ) from None


_ADVICE = "ask for less with --cpus, --gpus or --replicas"


def _asked(settings: ServingSettings) -> str:
    gpus = f" and {settings.gpus:g} GPU(s)" if settings.gpus else ""
    each = " each" if settings.replicas > 1 else ""
    return f"{settings.replicas} scorer(s) of {settings.cpus:g} CPU(s){gpus}{each} and an ingress of {INGRESS_CPUS:g}"


def _amount(resources: dict[str, float]) -> str:
    gpus = resources.get("GPU", 0.0)
    return f"{resources.get('CPU', 0.0):g} CPU(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
