"""Training: stages, updates, checkpoints, exact resume.

Plain PyTorch; :mod:`vesalius.platform.cluster` runs it on Ray.
"""

from vesalius.platform.training.checkpoint import Best, Checkpoints, State
from vesalius.platform.training.collective import Alone, Distributed, backend_for, collective
from vesalius.platform.training.loop import TrainingResult, choose_device, train
from vesalius.platform.training.settings import TrainingSettings
from vesalius.platform.training.subjects import stage_subjects
from vesalius.platform.training.update import Updater
from vesalius.platform.training.watching import Unwatched, Watcher

__all__ = [
    "Alone",
    "Best",
    "Checkpoints",
    "Distributed",
    "State",
    "TrainingResult",
    "TrainingSettings",
    "Unwatched",
    "Updater",
    "Watcher",
    "backend_for",
    "choose_device",
    "collective",
    "stage_subjects",
    "train",
]
