"""One rank's share of a step's global batch, and the batches of a stage one after the other."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from vesalius.platform.contracts import Augmentation, Batch, Points
from vesalius.platform.errors import CohortError, DivergenceError
from vesalius.platform.loading.augmentation import draw
from vesalius.platform.loading.buffers import Buffers
from vesalius.platform.loading.cutting import Cutter
from vesalius.platform.loading.stream import Stream
from vesalius.platform.loading.volumes import Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.platform.contracts import CohortFacts, Stage
    from vesalius.platform.loading.volumes import VolumeCache
    from vesalius.platform.loading.voxels import Voxels


def load_batch(
    cache: VolumeCache,
    stage: Stage,
    facts: CohortFacts,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    buffers: Buffers | None = None,
) -> Batch:
    """Return ``rank``'s share of the global batch of one step, on the CPU. A pure function of its arguments.

    Args:
        cache: the volumes of the stage's split.
        stage: view, batch and group size.
        facts: grid and channels.
        seed: the run's.
        step: of the stage.
        rank: this worker.
        world_size: of so many.
        buffers: memory to write into; fresh memory where there is none.

    Raises:
        CohortError: the stage's split holds no subject that the stage may see, or one that does not fit.
        DivergenceError: an intensity is not finite.
    """
    stream = _stream(cache, stage.settled(), facts, seed, rank, world_size)
    cutter = Cutter(stage, facts, seed)
    cache.require(cutter.foreground)
    return _load(stream, cutter, cache, facts, step, buffers or Buffers(0))


def batches(
    cache: VolumeCache,
    stage: Stage,
    facts: CohortFacts,
    *,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    ahead: int = 2,
    num_readers: int = 2,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of steps ``start`` to ``stop - 1``: those of :func:`load_batch`, made ahead of their use.

    Args:
        cache: the volumes of the stage's split.
        stage: view, batch and group size.
        facts: grid and channels.
        seed: the run's.
        start: first step.
        stop: last step, exclusive.
        rank: this worker.
        world_size: of so many.
        ahead: batches made while the caller computes; 0 makes each when it is asked for.
        num_readers: threads that read volumes before their turn; 0 reads each when it is cut.
        pin: make them in page-locked memory, for a CUDA device.
    """
    stream = _stream(cache, stage.settled(), facts, seed, rank, world_size)
    cutter = Cutter(stage, facts, seed)
    cache.require(cutter.foreground)
    # One being made, ``ahead`` made, one with the caller.
    buffers = Buffers(3 * (ahead + 2), pin=pin)
    load = functools.partial(_load, stream, cutter, cache, facts, buffers=buffers)
    if num_readers < 1:
        yield from prefetch(load, start, stop, ahead=ahead)
        return
    with cache.following(_uses(stream, cutter, start, stop), num_readers):
        yield from prefetch(load, start, stop, ahead=ahead)


def prefetch(load: Callable[[int], Batch], start: int, stop: int, *, ahead: int = 2) -> Iterator[Batch]:
    """Yield ``load(start)`` to ``load(stop - 1)``, loading up to ``ahead`` of them while the caller computes."""
    if ahead < 1:
        yield from (load(step) for step in range(start, stop))
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(start + ahead, stop))]
        try:
            for step in range(start, stop):
                batch = waiting.pop(0).result()
                if step + ahead < stop:
                    waiting.append(pool.submit(load, step + ahead))
                yield batch
                del batch  # or its memory could not be used again before the next one is here
        finally:
            for future in waiting:
                future.cancel()


def _stream(cache: VolumeCache, stage: Stage, facts: CohortFacts, seed: int, rank: int, world_size: int) -> Stream:
    if not len(cache):
        kind = "healthy " if stage.healthy_only else ""
        raise CohortError(
            f"stage '{stage.name}' needs {kind}subjects in the '{stage.split}' split and the store has none there: "
            "assign some when ingesting"
        )
    return Stream(stage=stage, seed=seed, num_subjects=len(cache), grid=facts.grid, rank=rank, world_size=world_size)


def _uses(stream: Stream, cutter: Cutter, start: int, stop: int) -> Iterator[Use]:
    for step in range(start, stop):
        share = stream.share(step)
        for subject, rows in share.uses():
            yield Use(subject, functools.partial(cutter.boxes, share.places[rows]))


def _load(stream: Stream, cutter: Cutter, cache: VolumeCache, facts: CohortFacts, step: int, buffers: Buffers) -> Batch:
    stage = stream.stage
    share = stream.share(step)
    num = len(share.subjects)
    dtypes = (torch.float32, torch.bool, torch.float32)
    image, brain, position = (
        buffers.empty((num, *shape), dtype) for shape, dtype in zip(cutter.shapes(), dtypes, strict=True)
    )
    arrays = image.numpy(), brain.numpy(), position.numpy()
    keep = np.ones(num, dtype=np.bool_)
    for subject, rows in share.uses():
        with cache.use(subject) as voxels:
            _require_sound(voxels, stage, step, facts)
            keep[rows] = cutter.cut(voxels, share.places[rows], rows.tolist(), *arrays)
            del voxels  # or a volume that is dropped would live on while the next one is read
    items = range(*share.items)
    drawn = None
    if isinstance(stage.augmentation, Augmentation) and not stage.augmentation.is_identity:
        keys = {"seed": stream.seed, "step": step}
        drawn = draw(stage.augmentation, stage.view, facts, stage=stage.name, items=items, **keys)
    batch = Batch(
        stage=stage.name,
        step=step,
        num_steps=stream.num_steps,
        seed=stream.seed,
        items=torch.tensor(items, dtype=torch.int64),
        global_size=share.global_size,
        subjects=torch.from_numpy(share.subjects),
        image=image,
        brain=brain,
        position=position,
        drawn=drawn,
    )
    return batch if keep.all() else batch.take(torch.from_numpy(np.flatnonzero(keep)))


def _require_sound(voxels: Voxels, stage: Stage, step: int, facts: CohortFacts) -> None:
    if not voxels.finite:
        raise DivergenceError(
            f"an intensity is not finite at step {step} of stage '{stage.name}' (subjects {voxels.subject}): "
            "run `vesalius check` on the store and ingest the subject again"
        )
    # Points have a place in millimetres, whatever the grid they are drawn from: of a volume only the channels count.
    of_any_grid = isinstance(stage.view, Points) and voxels.image.shape[:1] == (len(facts.channels),)
    if voxels.is_whole and not of_any_grid and voxels.image.shape != (len(facts.channels), *facts.grid):
        raise CohortError(
            f"subject {voxels.subject} has the shape {voxels.image.shape} and stage '{stage.name}' expects "
            f"{(len(facts.channels), *facts.grid)} (C, D, H, W): prepare all subjects with one grid"
        )
