"""Training: stages, updates, checkpoints, exact resume.

Plain PyTorch; :mod:`vesalius.platform.cluster` runs it on Ray.

::

    plan.py        the stages of a run, whom each learns from, how many steps it takes
    pausing.py     where a run pauses, and what it goes on from as another run
    loop.py        stage by stage, from the last checkpoint to the end
    update.py      one optimiser step on the global batch
    selection.py   the small validation pass that chooses the best
    checkpoint.py  what is kept, and how it is committed
    collective.py  the other ranks
    devices.py     where and how exactly is computed
    watching.py    who is told
"""

from vesalius.platform.training.checkpoint import Best, Checkpoints, State
from vesalius.platform.training.collective import Alone, Distributed, backend_for, collective
from vesalius.platform.training.devices import choose_device, computing_as
from vesalius.platform.training.loop import TrainingResult, train
from vesalius.platform.training.pausing import Forerunner, Pause, Paused, is_judged, pause_at
from vesalius.platform.training.plan import stage_steps
from vesalius.platform.training.settings import TrainingSettings
from vesalius.platform.training.subjects import stage_subjects
from vesalius.platform.training.update import Updater
from vesalius.platform.training.watching import Unwatched, Watcher

__all__ = [
    "Alone",
    "Best",
    "Checkpoints",
    "Distributed",
    "Forerunner",
    "Pause",
    "Paused",
    "State",
    "TrainingResult",
    "TrainingSettings",
    "Unwatched",
    "Updater",
    "Watcher",
    "backend_for",
    "choose_device",
    "collective",
    "computing_as",
    "is_judged",
    "pause_at",
    "stage_steps",
    "stage_subjects",
    "train",
]
