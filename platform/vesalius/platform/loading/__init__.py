"""From a prepared cohort to batches: ``(cohort, view, seed, stage, step, rank) -> Batch``, a pure function.

``stream`` says which items a step has, ``cutting`` takes them out of volumes, ``volumes`` keeps the volumes within a
stated memory and reads ahead, ``budget`` states that memory, ``buffers`` keeps what batches are written into,
``batches`` puts these together;
``augmentation`` draws and applies a stage's. How much memory there is changes what is read when, never what a batch
holds.
"""

from vesalius.platform.loading.augmentation import augmented, draw
from vesalius.platform.loading.batches import batches, load_batch, prefetch
from vesalius.platform.loading.budget import available_bytes, budget_bytes, memory_shared_by
from vesalius.platform.loading.stream import items_per_epoch, num_items, num_steps, share
from vesalius.platform.loading.volumes import VolumeCache
from vesalius.platform.loading.voxels import VolumeReader

__all__ = [
    "VolumeCache",
    "VolumeReader",
    "augmented",
    "available_bytes",
    "batches",
    "budget_bytes",
    "draw",
    "items_per_epoch",
    "load_batch",
    "memory_shared_by",
    "num_items",
    "num_steps",
    "prefetch",
    "share",
]
