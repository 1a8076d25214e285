"""Ray: the one place where training and ingest meet it.

A run is trained by :func:`train` on N Ray Train workers, or in the calling process where N is 0. Checkpoints are
our own (:mod:`vesalius.platform.training.checkpoint`), on storage that all workers see: a restarted worker group
finds the last one by itself, so a checkpoint counts as soon as it is renamed and not when a controller polls.
"""

from vesalius.platform.cluster.reserved import free_reserved
from vesalius.platform.cluster.session import available_cores, joins_another, session
from vesalius.platform.cluster.tasks import map_tasks
from vesalius.platform.cluster.training import train
from vesalius.platform.cluster.worker import check_store

__all__ = ["available_cores", "check_store", "free_reserved", "joins_another", "map_tasks", "session", "train"]
