"""What a study asks of a cluster, and whether that is there: a trial that waits in vain hangs in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vesalius.tuning.spec import StudySpec

HEAD = "node:__internal_head__"
"""Every cluster has one of these, at its head. A trial of several workers asks for a crumb of it: its own process only
waits for them, and a core for each of those would leave none for the workers where cores are few."""
_CRUMB = 0.001


def trial_resources(spec: StudySpec) -> dict[str, float]:
    """Return what the process of one trial asks for; the workers of a trial of several ask for themselves."""
    if spec.num_workers > 1:
        return {HEAD: _CRUMB}
    return {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def fitting(
    cluster: Mapping[str, Any],
    num_workers: int,
    cpus: int,
    gpus: float,
    *,
    nodes: Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """Return how many trials fit side by side; none gives 0.

    Args:
        cluster: its resources as Ray counts them.
        num_workers: of a trial; of several each takes a core, and a GPU where the cluster has any.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker.
        nodes: the resources of each machine: a trial of one worker fits into one of them. None where it is one.
    """
    if num_workers == 1 and nodes is not None:
        return sum(fitting(node, num_workers, cpus, gpus) for node in nodes)
    cores, devices = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
    if num_workers > 1:
        fit = int(cores // num_workers)
        return min(fit, int(devices // num_workers)) if gpus else fit
    fit = int(cores // cpus)
    if not gpus:
        return fit
    # A part of a device is one device's: what is left of two does not add up.
    on_devices = int(devices) * int((1 + 1e-9) / gpus) if gpus < 1 else int(devices / gpus)
    return min(fit, on_devices)


def check_resources(
    cluster: Mapping[str, Any],
    *,
    concurrent: int,
    num_workers: int,
    cpus: int,
    gpus: float,
    nodes: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Refuse a study whose trials would wait for each other or for what the cluster does not have.

    Args:
        cluster: its resources as Ray counts them.
        concurrent: trials side by side.
        num_workers: of a trial.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker.
        nodes: the resources of each machine; None where it is one.

    Raises:
        SettingError: not that many trials fit side by side, or a share is one that no device can give.
    """
    if gpus > 1 and gpus % 1:
        raise SettingError(f"--gpus is {gpus:g}: above 1 it is a whole number, below 1 a part of one device")
    if num_workers > 1 and cpus > 1:
        raise SettingError(
            f"--cpus is {cpus}: it gives cores to trials of one worker; several workers take one each, and as many "
            "threads as --set training.threads=N says"
        )
    fit = fitting(cluster, num_workers, cpus, gpus, nodes=nodes)
    if fit >= concurrent:
        return
    cores, devices = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
    each = f"{cpus} core" if cpus == 1 else f"{cpus} cores"
    if num_workers > 1:
        each = f"{num_workers} workers of a core each"
    if gpus:
        each += f" and {gpus:g} GPUs"
    there = f"{cores:g} cores" + (f" and {devices:g} GPUs" if devices or gpus else "")
    cluster_has = "the cluster has" if nodes is None or len(nodes) < 2 else f"the {len(nodes)} machines have together"
    if fit == 0:
        raise SettingError(
            f"a trial takes {each} and {cluster_has} {there}: it would wait for ever; use fewer --workers, --cpus or "
            "--gpus, or a larger cluster"
        )
    raise SettingError(
        f"{concurrent} trials side by side take {each} apiece and the cluster has {there}: they would wait for each "
        f"other for ever; use --concurrent {fit}, or fewer workers"
    )
