"""What a run would take, before it is begun: memory counted and measured, seconds a step and a volume.

It is found out in a process of its own, which begins with no memory of anybody else's: what it holds at most is then
the run's, and where there is not enough the machine ends that process and not this one.
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from vesalius.infra.footprint import Footprint, footprint_on
from vesalius.infra.pipeline.estimating import Estimate, estimate
from vesalius.infra.pipeline.training import choose_settings, method_type
from vesalius.platform.config import Settings
from vesalius.platform.contracts import trains_in_bfloat16
from vesalius.platform.errors import SettingError
from vesalius.platform.store import CohortStore
from vesalius.platform.training import choose_device, stage_subjects
from vesalius.platform.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vesalius.platform.contracts import MethodSettings
    from vesalius.platform.store import Place
    from vesalius.platform.training import TrainingSettings

ResultT = TypeVar("ResultT")

_LESS = (
    "set training.checkpoint_activations=true, a small training.micro_batch_size (or group_size, where the method has "
    "batch statistics), or a smaller network"
)


class Forecast(Settings):
    """What training a method on a cohort would take here, on one worker.

    Attributes:
        method: its name.
        store: the cohort's place.
        device: cpu or cuda.
        precision: of the forward pass, bf16 (of one stage at least) or fp32.
        counted: memory that follows from networks and optimisers, and what autograd keeps, in float32.
        probed: what some real steps and one scoring took; its splits are those that training scores in the end.
    """

    method: str
    store: str
    device: str
    precision: str
    counted: Footprint
    probed: Estimate


def forecast(name: str, store: Place, *, preset: str = "paper", assignments: Sequence[str] = ()) -> Forecast:
    """Return what ``start_run`` and ``train`` of the same arguments would take; nothing is created.

    Raises:
        SettingError: the method or a setting is not known or does not fit, or there is not enough memory.
        StoreError: the store cannot be used.
        CohortError: it holds no healthy training subjects, or not of one grid where a stage needs that.
        DivergenceError: training already failed in its first steps.
    """
    settings, training = choose_settings(name, preset, assignments)
    choose_device(training.device)
    return _apart(_forecast, name, settings, training, store)


def training_memory(name: str, settings: MethodSettings, training: TrainingSettings, store: Place) -> int:
    """Return the bytes that some steps of each stage hold at most, in a process of its own; nothing is scored.

    On CUDA what the allocator gave out, on a CPU the growth of the resident memory, of which libraries' workspaces and
    cached volumes are a part.

    Raises:
        SettingError, StoreError, CohortError, DivergenceError: as :func:`forecast`.
    """
    choose_device(training.device)
    return _apart(_training_peak, name, settings, training, store)


def _apart(
    function: Callable[[str, MethodSettings, TrainingSettings, Place], ResultT],
    name: str,
    settings: MethodSettings,
    training: TrainingSettings,
    store: Place,
) -> ResultT:
    """Call a function in a process of its own, whose end for want of memory is told and not shared."""
    # Spawned, not forked: a forked child would begin with this process's memory and threads.
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=apart) as pool:
        try:
            return pool.submit(_within_memory, function, name, settings, training, store).result()
        except BrokenProcessPool:
            # The system ends a process without a word; so does a defect in a library.
            raise SettingError(
                f"the process that tried {name} out ended early, most likely for want of memory: {_LESS}"
            ) from None


def _within_memory(
    function: Callable[[str, MethodSettings, TrainingSettings, Place], ResultT],
    name: str,
    settings: MethodSettings,
    training: TrainingSettings,
    place: Place,
) -> ResultT:
    try:
        return function(name, settings, training, place)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SettingError(
            f"training {name} with these settings takes more memory than there is here: {_LESS}"
        ) from None


def _training_peak(name: str, settings: MethodSettings, training: TrainingSettings, place: Place) -> int:
    store = CohortStore.open(place)
    return max(estimate(name, settings, training, store, [], math.inf, training_alone=True).peak_bytes.values())


def _forecast(name: str, settings: MethodSettings, training: TrainingSettings, place: Place) -> Forecast:
    store, kind = CohortStore.open(place), method_type(name)
    facts = store.facts(any_grid=kind.any_grid)
    device, stages = choose_device(training.device), kind(settings, facts).stages()
    for stage in stages:
        stage_subjects(stage, store, facts)
    bf16 = any(trains_in_bfloat16(training.precision, device, stage.trains) for stage in stages if stage.optimizers)
    # Measured first: memory that was counted in may not come back to the system.
    probed = estimate(name, settings, training, store, ["validation"], math.inf)
    counted = footprint_on(kind, settings, facts, training, device)
    return Forecast(
        method=name,
        store=str(place),
        device=device.type,
        precision="bf16" if bf16 else "fp32",
        counted=counted,
        probed=probed,
    )


def describe_forecast(found: Forecast) -> dict[str, Any]:
    """Return what ``vesalius train --estimate`` says: a plain document, times in seconds and memory in bytes."""
    counted, probed = found.counted, found.probed
    held = {one.stage: one for one in counted.stages}
    stages = []
    for name, num in probed.steps.items():
        of_stage: dict[str, Any] = {
            "stage": name,
            "steps": num,
            "seconds_per_step": probed.step_seconds[name],
            "seconds": num * probed.step_seconds[name],
            "measured_peak_bytes": probed.peak_bytes[name],
        }
        if name in held:
            one = held[name]
            added = one.gradient_bytes + one.optimizer_bytes + one.activation_bytes
            of_stage |= one.model_dump(exclude={"stage"})
            of_stage["counted_bytes"] = counted.parameter_bytes + added
        stages.append(of_stage)
    return {
        "method": found.method,
        "store": found.store,
        "device": found.device,
        "precision": found.precision,
        "grid": list(counted.grid),
        "num_parameters": counted.num_parameters,
        "parameter_bytes": counted.parameter_bytes,
        "stages": stages,
        "steps": sum(probed.steps.values()),
        "training_seconds": probed.training_seconds,
        "validation_volumes": probed.passes,
        "quick_seconds_per_volume": probed.quick_seconds,
        "threshold_volumes": probed.num_volumes,
        "seconds_per_volume": probed.volume_seconds,
        "scoring_seconds": probed.scoring_seconds,
        "total_seconds": probed.total_seconds,
        "counted_peak_bytes": counted.peak_bytes,
        "measured_peak_bytes": max(probed.peak_bytes.values()),
        "scoring_peak_bytes": probed.scoring_peak_bytes,
    }
