"""What a study asks of a cluster, and whether that is there: a trial that waits in vain hangs in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.tuning.folder import StudySpec

HEAD = "node:__internal_head__"
"""Every cluster has one of these, at its head. A trial of several workers asks for a crumb of it: its own process only
waits for them, and a core for each of those would leave none for the workers where cores are few."""
_CRUMB = 0.001


def trial_resources(spec: StudySpec) -> dict[str, float]:
    """Return what the process of one trial asks for; the workers of a trial of several ask for themselves."""
    if spec.num_workers > 1:
        return {HEAD: _CRUMB}
    return {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}


def fitting(cluster: Mapping[str, Any], num_workers: int, cpus: int, gpus: float) -> int:
    """Return how many trials fit side by side; none gives 0.

    Args:
        cluster: its resources as Ray counts them.
        num_workers: of a trial; of several each takes a core, and a GPU where the cluster has any.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker.
    """
    cores, devices = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
    if num_workers > 1:
        fit = int(cores // num_workers)
        return min(fit, int(devices // num_workers)) if gpus else fit
    fit = int(cores // cpus)
    return min(fit, int((devices + 1e-9) / gpus)) if gpus else fit


def check_resources(cluster: Mapping[str, Any], *, concurrent: int, num_workers: int, cpus: int, gpus: float) -> None:
    """Refuse a study whose trials would wait for each other or for what the cluster does not have.

    Args:
        cluster: its resources as Ray counts them.
        concurrent: trials side by side.
        num_workers: of a trial.
        cpus: of a trial of one worker.
        gpus: of a trial of one worker.

    Raises:
        SettingError: not that many trials fit side by side.
    """
    fit = fitting(cluster, num_workers, cpus, gpus)
    if fit >= concurrent:
        return
    cores, devices = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
    each = f"{cpus} core" if cpus == 1 else f"{cpus} cores"
    if num_workers > 1:
        each = f"{num_workers} workers of a core each"
    if gpus:
        each += f" and {gpus:g} GPUs"
    there = f"{cores:g} cores" + (f" and {devices:g} GPUs" if devices or gpus else "")
    if fit == 0:
        raise SettingError(
            f"a trial takes {each} and the cluster has {there}: it would wait for ever; use fewer --workers, --cpus or "
            "--gpus, or a larger cluster"
        )
    raise SettingError(
        f"{concurrent} trials side by side take {each} apiece and the cluster has {there}: they would wait for each "
        f"other for ever; use --concurrent {fit}, or fewer workers"
    )
