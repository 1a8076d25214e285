"""What windows do to a residual: average precision of maps without a network, and of kept restorations, under each.

Of the training heads are made their mean, the voxel-wise deviations of ``healthy_atlas`` (its own settings) and
principal components. The maps of the test split then pass the windows of ``finish_map``, and are judged as ``vesalius
evaluate`` judges them. Restorations are those of runs that were scored on the test split of the same store; of a method
of slices their differences are taken in the slices that were scored, and stand for those between, as in its own map.

    python tests/benchmarks/residual_windows.py STORE [--voxels all] [--components 20] [--run RUN_FOLDER]...
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vesalius.methods.blocks import BrainMapSettings, SliceSettings, assemble, finish_map
from vesalius.methods.healthy_atlas import HealthyAtlas, HealthyAtlasSettings
from vesalius.platform.contracts import slice_indices
from vesalius.platform.evaluation import Histogram, average_precision
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.made_up import made_up_batch
from vesalius.platform.training import Alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

WINDOWS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "all": {
        "1, 1": {},
        "1, 7": {"average_pool": 7},
        "3, 7": {"min_pool": 3, "average_pool": 7},
        "3, 15": {"min_pool": 3, "average_pool": 15},
    },
    "brain": {"median 5": {"median_pool": 5}, "median 5, brain eroded": {"median_pool": 5, "erosion": 1}},
}
"""By the voxels that are judged, since the papers of the one have the one kind: edges of minimum and mean, or of the
median, in voxels."""


@dataclass(frozen=True)
class Kept:
    """What a run found on the test split, and which slices it looked at."""

    scores: ScoreStore
    slices: SliceSettings | None

    @classmethod
    def of(cls, run: Path) -> Kept:
        """Read a run's folder."""
        slices = json.loads((run / "run.json").read_text())["settings"].get("slices")
        own = None if slices is None else {key: slices[key] for key in SliceSettings.model_fields if key in slices}
        return cls(ScoreStore.open(run / "scores" / "test"), None if own is None else SliceSettings.model_validate(own))

    def difference(self, image: Tensor, subject_id: str) -> Tensor:
        """Return (C, D, H, W) how far a volume is from its restoration, where the run looked."""
        restored = self.scores.restoration(subject_id)
        if restored is None:
            raise SystemExit(f"{self.scores.path} holds no restorations: name a run of a method that restores")
        away = (image - torch.from_numpy(restored).float()).abs()
        if self.slices is None or self.slices.scored == "all":
            return away
        shape, axis = (image.shape[1], image.shape[2], image.shape[3]), self.slices.axis
        index = slice_indices(self.slices.view(), shape)
        looked_at = away.index_select(axis + 1, torch.tensor(index)).movedim(axis + 1, 0)
        return assemble(looked_at, tuple(index), shape, self.slices)


def atlas_of(store: CohortStore) -> HealthyAtlas:
    """Return the method with its defaults, fitted to the training split."""
    atlas = HealthyAtlas(HealthyAtlasSettings(), store.facts())
    (stage,) = atlas.stages()
    ids = [record.subject_id for record in store.subjects("train")]
    stage.begin()
    for subject_id in ids:
        image, brain = torch.from_numpy(store.image(subject_id)), torch.from_numpy(store.brain(subject_id))
        stage.step(made_up_batch(image[None], brain=brain[None]), None)  # type: ignore[arg-type]  # it has no optimiser
    stage.finish(Alone())
    return atlas


def components_of(store: CohortStore, mean: Tensor, num: int) -> Tensor:
    """Return the first ``num`` principal directions (num, C * D * H * W) of the training heads about their mean."""
    heads = torch.stack([torch.from_numpy(store.image(one.subject_id)) for one in store.subjects("train")])
    directions: Tensor = torch.linalg.svd((heads - mean).flatten(1), full_matrices=False).Vh
    return directions[:num]


def residuals(
    store: CohortStore, subject_id: str, atlas: HealthyAtlas, components: Tensor, runs: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """Return a volume's raw maps (D, H, W) by name; of several channels the largest counts."""
    image = torch.from_numpy(store.image(subject_id))
    away = (image - atlas.mean).flatten()
    projected = atlas.mean + (components.T @ (components @ away)).view_as(image)
    signed = {"mean head": image - atlas.mean, f"projection on {len(components)} components": image - projected}
    found = {f"size of volume - {name}": value.abs() for name, value in signed.items()}
    found["size of volume - mean head, in deviations"] = (image - atlas.mean).abs() / atlas.deviation
    found |= {f"volume darker than {name}": -value.clamp(max=0) for name, value in signed.items()}
    for name, kept in runs.items():
        found[f"size of volume - restoration of {name}"] = kept.difference(image, subject_id)
    return {name: value.amax(0) for name, value in found.items()}


def table(
    store: CohortStore, voxels: str, num_components: int, runs: Mapping[str, Kept]
) -> dict[str, dict[str, float | None]]:
    """Return the average precision of each map, pooled over the test split, under each of their windows."""
    atlas = atlas_of(store)
    components = components_of(store, atlas.mean, num_components)
    counts: dict[tuple[str, str], list[Histogram]] = {}
    for record in store.subjects("test"):
        brain, lesion = store.brain(record.subject_id), store.mask(record.subject_id, "lesion")
        for name, raw in residuals(store, record.subject_id, atlas, components, runs).items():
            for window, edges in WINDOWS[voxels].items():
                settings = BrainMapSettings.model_validate({"average_pool": 1, **edges})
                finished = finish_map(raw, torch.from_numpy(brain), settings).numpy().astype(np.float16)
                inside = brain if voxels == "brain" else None
                counts.setdefault((name, window), []).append(Histogram.of(finished, lesion, inside))
    names = dict.fromkeys(name for name, _ in counts)
    pooled = {key: sum(found[1:], found[0]) for key, found in counts.items()}
    return {name: {window: average_precision(pooled[name, window]) for window in WINDOWS[voxels]} for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--voxels", choices=("all", "brain"), default="all")
    parser.add_argument("--components", type=int, default=20)
    parser.add_argument(
        "--run", type=Path, action="append", default=[], help="folder of a run scored on the test split"
    )
    chosen = parser.parse_args(arguments)
    names = [run.resolve().name for run in chosen.run]
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"two runs are called {', '.join(sorted(twice))}: a row has its run's name, so give one at a time")
    runs = {name: Kept.of(run) for name, run in zip(names, chosen.run, strict=True)}
    rows = table(CohortStore.open(chosen.store), chosen.voxels, chosen.components, runs)
    windows = WINDOWS[chosen.voxels]
    sys.stdout.write(f"| map | {' | '.join(windows)} |\n|{'---|' * (1 + len(windows))}\n")
    for name, figures in rows.items():
        values = ("" if value is None else f"{value:.3f}".removeprefix("0") for value in figures.values())
        sys.stdout.write(f"| {name} | {' | '.join(values)} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
