"""The small validation pass that "best so far", early stopping and a study's scheduler all read.

A fixed small part of the validation split is scored with the method's reduced settings. The criterion is the
pooled average precision where those subjects are annotated, else a named healthy-only one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vesalius.platform.config import digest
from vesalius.platform.evaluation import Histogram, average_precision
from vesalius.platform.scoring import score_volume, volume_of

if TYPE_CHECKING:
    from vesalius.platform.contracts import Collective, Method
    from vesalius.platform.store import CohortStore, SubjectRecord
    from vesalius.platform.training.settings import TrainingSettings

AVERAGE_PRECISION = "validation_average_precision"
HEALTHY = "validation_healthy_image_score"
"""Minus the mean image score of healthy validation subjects: higher means that healthy anatomy is explained."""


def validation_interval(num_steps: int, settings: TrainingSettings) -> int:
    """Return the steps between validation passes of a selectable stage; the last step has one in any case."""
    return settings.validate_every or max(1, math.ceil(num_steps / settings.validations))


def num_validations(num_steps: int, settings: TrainingSettings) -> int:
    """Return the validation passes of a selectable stage."""
    return math.ceil(num_steps / validation_interval(num_steps, settings))


def validation_subjects(store: CohortStore, num: int) -> tuple[str, list[SubjectRecord]]:
    """Return the criterion's name and the fixed small part of validation it is computed on.

    Annotated subjects first; where there are none, healthy ones. Which ones is decided by the hash of their
    ids, so that a subject added later moves none but itself.
    """
    records = sorted(store.subjects("validation"), key=lambda record: digest(record.subject_id))
    annotated = [record for record in records if record.has_lesion and "lesion" in record.arrays]
    if annotated:
        return AVERAGE_PRECISION, annotated[:num]
    return HEALTHY, [record for record in records if not record.has_lesion][:num]


def validate(
    method: Method, store: CohortStore, num: int, collective: Collective, device: torch.device
) -> tuple[str, float] | None:
    """Score the small part of validation, shared out over the ranks; every rank returns the same figure.

    Returns:
        The criterion's name and value (higher is better), or None where validation holds no usable subject.
    """
    criterion, records = validation_subjects(store, num)
    if not records:
        return None
    mine = records[collective.rank :: collective.world_size]
    histogram = Histogram.empty()
    image_scores = torch.zeros(2, dtype=torch.float64, device=device)
    for record in mine:
        score, _ = score_volume(method, volume_of(store, record), device, effort="quick")
        if criterion == AVERAGE_PRECISION:
            lesion = store.mask(record.subject_id, "lesion")
            histogram = histogram + Histogram.of(score.map.cpu().to(torch.float16).numpy(), lesion)
        else:
            image_scores += torch.tensor([score.image_score, 1.0], dtype=torch.float64, device=device)
    if criterion == AVERAGE_PRECISION:
        counts = torch.stack([torch.from_numpy(histogram.negatives), torch.from_numpy(histogram.positives)])
        negatives, positives = collective.sum(counts.to(device)).cpu().numpy()
        value = average_precision(Histogram(negatives=negatives, positives=positives))
        return None if value is None else (criterion, value)
    total, count = collective.sum(image_scores).tolist()
    return criterion, -total / count
