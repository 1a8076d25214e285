"""Methods for the registry's tests: importable by name, in this process and in others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from vesalius.platform.contracts import Method, MethodSettings, Score, TableEntry
from vesalius.platform.evaluation import Threshold
from vesalius.platform.models import ModelCard, save_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.platform.contracts import CohortFacts, Effort, Stage, Volume
    from vesalius.platform.store import CohortStore


class BrightnessSettings(MethodSettings):
    offset: float = 0.0


class Brightness(Method):
    """Calls bright voxels anomalous, as far as its one weight lets it; the rest is noise keyed by the volume."""

    settings_type: ClassVar[type[MethodSettings]] = BrightnessSettings
    settings: BrightnessSettings

    def __init__(self, settings: BrightnessSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.share = torch.nn.Parameter(torch.tensor(0.0))

    def stages(self) -> Sequence[Stage]:
        return ()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        return [self._score(volume, effort) for volume in volumes]

    def _score(self, volume: Volume, effort: Effort) -> Score:
        noise = torch.rand(volume.shape, generator=volume.generator("noise"))
        score_map = self.share * volume.image.mean(0) + (1 - self.share) * noise + self.settings.offset
        # Mask and grid take part, so that a loader that loses either is found out.
        score_map = score_map * volume.brain + volume.spacing_mm[0] * 1e-3 + volume.affine[0][3] * 1e-4
        return Score(map=score_map if effort == "full" else score_map / 2, image_score=float(score_map.max()))


METHODS = {"brightness": TableEntry(path="toy_methods:Brightness", summary="bright is anomalous")}


def write_model(folder: Path, store: CohortStore, share: float, **changes: Any) -> Path:
    """Write a model that trusts brightness so far; ``changes`` are of its card, ``cohort`` of the cohort's facts."""
    facts = store.facts()
    facts = facts.model_copy(update=changes.pop("cohort", {}))
    method = Brightness(BrightnessSettings(), facts)
    with torch.no_grad():
        method.share.fill_(share)
    values: dict[str, Any] = {
        "method": "brightness",
        "settings": method.settings.model_dump(mode="json"),
        "cohort": facts,
        "recipe": store.recipe,
        "thresholds": {"all": Threshold(value=0.5, policy="best_dice", split="validation", voxel_set="all")},
        "run_id": f"run-{share}",
        **changes,
    }
    save_model(folder, method, ModelCard(**values))
    return folder


def promote_into(begin: Any, answers: Any, home: str, name: str, model: str, store: str, uri: str) -> None:
    """Promote a model from a process of its own, with a home of its own, and put the answer as JSON into a queue."""
    from vesalius.platform.registry import promote
    from vesalius.platform.store import CohortStore

    torch.set_num_threads(1)
    begin.wait(600)
    answer = promote(
        Path(model),
        name,
        home=Path(home),
        store=CohortStore.open(Path(store)),
        methods="toy_methods:METHODS",
        uri=uri,
        by=Path(home).name,
    )
    answers.put(answer.model_dump_json())
