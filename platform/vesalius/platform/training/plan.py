"""What a run will do: its stages, the subjects each of them learns from, and how many steps each takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.contracts import trains_in_bfloat16
from vesalius.platform.errors import SettingError
from vesalius.platform.loading import VolumeCache, batches, budget_bytes, num_steps
from vesalius.platform.training.devices import workers_here
from vesalius.platform.training.subjects import stage_subjects
from vesalius.platform.training.update import has_batch_norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from vesalius.platform.contracts import Batch, CohortFacts, Collective, Method, Stage
    from vesalius.platform.store import CohortStore, SubjectRecord
    from vesalius.platform.training.settings import TrainingSettings


def stage_steps(stage: Stage, num_subjects: int, cohort: CohortFacts) -> int:
    """Return the steps that a stage takes on so many subjects; an optional one without a subject takes none."""
    return 0 if stage.optional and not num_subjects else num_steps(stage, num_subjects, cohort.grid)


class Plan:
    """The stages of a method on a cohort, checked before anything is learnt.

    Attributes:
        stages: in order.
        names: theirs.
        steps: how many each of them takes.
    """

    def __init__(
        self,
        method: Method,
        store: CohortStore,
        settings: TrainingSettings,
        collective: Collective,
        device: torch.device,
    ) -> None:
        """Lay out the run.

        Raises:
            SettingError: two stages share a name, or a stage asks for what cannot be done right.
        """
        self._cohort = method.cohort
        self._settings = settings
        self._collective = collective
        self._pin = device.type == "cuda"
        self.stages = list(method.stages())
        self.names = [stage.name for stage in self.stages]
        if len(set(self.names)) != len(self.names):
            raise SettingError(f"two stages of {type(method).__name__} share a name: {', '.join(self.names)}")
        for stage in self.stages:
            if stage.optimizers:
                trains_in_bfloat16(settings.precision, device, stage.trains)  # refused here, before anything is learnt
        budget = budget_bytes(settings.cache_mib, workers_here(collective, device))
        records = [self._records(stage, store) for stage in self.stages]
        subjects = [tuple(record.subject_id for record in seen) for seen in records]
        shared = {
            ids: VolumeCache(store, ids, budget, spacing_mm=[record.spacing_mm for record in seen])
            for ids, seen in zip(subjects, records, strict=True)
        }
        self._caches = [shared[ids] for ids in subjects]
        self.steps = [
            stage_steps(stage, len(ids), self._cohort) for stage, ids in zip(self.stages, subjects, strict=True)
        ]

    def _records(self, stage: Stage, store: CohortStore) -> list[SubjectRecord]:
        """Return the subjects that a stage learns from, after checking that it may and can."""
        records = stage_subjects(stage, store, self._cohort)
        if stage.group_size == 1 and has_batch_norm(stage.trains):
            raise SettingError(
                f"stage '{stage.name}' trains batch normalisation but states no group_size: its statistics would "
                "depend on the number of workers"
            )
        return records

    @property
    def total(self) -> int:
        """Steps over all stages."""
        return sum(self.steps)

    def before(self, index: int) -> int:
        """Return the steps of all stages before the one at ``index``."""
        return sum(self.steps[:index])

    def batches(self, index: int, start: int, stop: int | None = None) -> Iterable[Batch]:
        """Give this rank's batches of a stage from step ``start`` on; other stages' volumes leave the memory.

        They end before ``stop``, or with the stage.
        """
        for cache in self._caches:
            if cache is not self._caches[index]:
                cache.clear()  # the memory is one stage's at a time
        if not self.steps[index]:  # an optional stage without a subject
            return ()
        return batches(
            self._caches[index],
            self.stages[index],
            self._cohort,
            seed=self._settings.seed,
            start=start,
            stop=self.steps[index] if stop is None else stop,
            rank=self._collective.rank,
            world_size=self._collective.world_size,
            ahead=self._settings.prefetch,
            num_readers=self._settings.readers,
            pin=self._pin,
        )
