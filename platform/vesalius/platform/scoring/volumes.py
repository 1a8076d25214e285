"""A method on a few volumes in memory: in eval mode, without gradients, timed and checked."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

import torch

from vesalius.platform.contracts import Score, Volume
from vesalius.platform.errors import DivergenceError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Effort, Method
    from vesalius.platform.store import CohortStore, SubjectRecord


def volume_of(store: CohortStore, record: SubjectRecord) -> Volume:
    """Read a stored subject as a volume to be scored."""
    head = store.mask(record.subject_id, "head")
    return Volume(
        subject_id=record.subject_id,
        image=torch.from_numpy(store.image(record.subject_id)),
        brain=torch.from_numpy(store.brain(record.subject_id)),
        spacing_mm=record.spacing_mm,
        affine=record.affine,
        head=None if head is None else torch.from_numpy(head),
    )


def score_volume(
    method: Method, volume: Volume, device: torch.device | str = "cpu", *, effort: Effort = "full"
) -> tuple[Score, float]:
    """Score one volume; see :func:`score_volumes`."""
    scores, seconds = score_volumes(method, [volume], device, effort=effort)
    return scores[0], seconds


def score_volumes(
    method: Method, volumes: Sequence[Volume], device: torch.device | str = "cpu", *, effort: Effort = "full"
) -> tuple[list[Score], float]:
    """Score volumes in one call of the method.

    The method is moved to ``device``, scores in eval mode under ``torch.no_grad``, and has its modes back afterwards.

    Returns:
        Scores on the CPU in float32, in order; and the seconds per volume: the duration of the call, transfers to and
        from the device included, disk excluded, divided by the number of volumes. Volumes fitted in one batch share
        their time, so it depends on how many are scored together.

    Raises:
        DivergenceError: a map, image score or restoration is not finite; names the method and the subject.
        ModelError: the method answered in another shape than the volume's.
    """
    device = torch.device(device)
    method.to(device)
    with _scoring(method):
        _wait(device)
        start = time.perf_counter()
        placed = [
            Volume(
                subject_id=volume.subject_id,
                image=volume.image.to(device),
                brain=volume.brain.to(device),
                spacing_mm=volume.spacing_mm,
                affine=volume.affine,
                head=None if volume.head is None else volume.head.to(device),
            )
            for volume in volumes
        ]
        scores = [_on_cpu(score) for score in method.score(placed, effort=effort)]
        _wait(device)
        seconds = (time.perf_counter() - start) / max(1, len(volumes))
    name = type(method).__name__
    if len(scores) != len(volumes):
        raise ModelError(f"{name} returned {len(scores)} scores for {len(volumes)} volumes")
    for volume, score in zip(volumes, scores, strict=True):
        _check(name, volume, score)
    return scores, seconds


@contextlib.contextmanager
def _scoring(method: Method) -> Iterator[None]:
    modes = {module: module.training for module in method.modules()}
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # Module by module: a stage keeps some in eval mode while it trains others.
        for module, training in modes.items():
            module.training = training


def _on_cpu(score: Score) -> Score:
    def moved(values: Tensor) -> Tensor:
        return values.detach().to("cpu", torch.float32).contiguous()

    return Score(
        map=moved(score.map),
        image_score=float(score.image_score),
        restoration=None if score.restoration is None else moved(score.restoration),
        extras={name: moved(values) for name, values in score.extras.items()},
    )


def _check(name: str, volume: Volume, score: Score) -> None:
    expected: dict[str, tuple[Tensor, Sequence[int]]] = {"map": (score.map, volume.shape)}
    if score.restoration is not None:
        expected["restoration"] = (score.restoration, volume.image.shape)
    expected.update({extra: (values, volume.shape) for extra, values in score.extras.items()})
    for what, (values, shape) in expected.items():
        if tuple(values.shape) != tuple(shape):
            raise ModelError(
                f"{name}: its {what} of subject {volume.subject_id} has shape {tuple(values.shape)}, "
                f"expected {tuple(shape)}"
            )
        if not torch.isfinite(values).all():
            raise DivergenceError(f"{name}: its {what} of subject {volume.subject_id} holds NaN or infinite values")
    if not math.isfinite(score.image_score):
        raise DivergenceError(f"{name}: its image score of subject {volume.subject_id} is {score.image_score}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
