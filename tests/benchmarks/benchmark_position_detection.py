"""Does position regression feel a lesion? The same heads with and without it, and what that does to the error.

Anatomy and noise of a phantom do not depend on what is set into it, so that the difference of the two maps is the
lesion's alone. Printed: the mean error of the brain, that of the lesion's voxels in the healthy twin and in the head
itself, the AUROC of the lesion's voxels among the brain's, and that of the maxima of the hemispheres (or halves of the
skull), healthy twins and the other side being the negatives; the last two also of the calibrated score. Decision 18
has its figures.

    python tests/benchmarks/benchmark_position_detection.py [--case ct|t1w|fracture] [--uncentred] [--per-step 64]
        [--learning-rate 1e-3] [--steps 2000] [--width 8] [--patch-size 19] [--edge 64] [--voxel-mm 3] [--train 40]
        [--pairs 8]

``ct``: heads with their skull, equalised, with bleeds; ``t1w``: brains without it, with lesions 40 % darker;
``fracture``: the vault alone, whatever EDGE, with gaps in its bone, judged in the halves of the skull.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vesalius.datasets.foreground.structures import CT_STRUCTURES
from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import PhantomLayout, write_cohort
from vesalius.datasets.phantom import CohortSettings, FindingSettings, LesionSettings, PhantomSettings
from vesalius.datasets.prepare import prepare
from vesalius.datasets.recipes import Recipe, recipe_named
from vesalius.methods.position_regression import PositionRegression
from vesalius.methods.position_regression.settings import demo
from vesalius.platform.config import override
from vesalius.platform.contracts import Volume
from vesalius.platform.evaluation import structure_maxima
from vesalius.platform.scoring.volumes import score_volume
from vesalius.platform.store import CohortStore
from vesalius.platform.testing.methods import trained

CT = {"registration": "none", "spacing_mm": None, "grid": None}
BLEED_MM, BLEED_CONTRAST = (30.0, 50.0), 1.2  # 36 HU above what it lies in
DARK_CONTRAST = -0.4
VAULT_MM, VAULT_CENTER_MM = (168.0, 208.0, 130.0), (0.0, -18.0, 43.0)


class Uncentred(PositionRegression):
    """The same without centring intensities."""

    def centred(self, image: torch.Tensor) -> torch.Tensor:
        """Return intensities as the recipe leaves them."""
        return image


def heads(case: str, edge: int, voxel_mm: float, num_train: int) -> tuple[CohortSettings, Recipe]:
    ct = case != "t1w"
    shape, box_mm, center_mm = (edge,) * 3, (192.0,) * 3, (0.0, -18.0, 8.0)
    if case == "fracture":
        x, y, z = (round(length / voxel_mm) for length in VAULT_MM)
        shape, center_mm = (x, y, z), VAULT_CENTER_MM
        box_mm = (x * voxel_mm, y * voxel_mm, z * voxel_mm)
    settings = PhantomSettings(
        shape=shape,
        box_mm=box_mm,
        center_mm=center_mm,
        modalities=("CT",) if ct else ("T1w",),
        skull_stripped=not ct,
    )
    cohort = CohortSettings(num_train=num_train, num_validation=0, num_gate=0, num_test=0, phantom=settings)
    changes: dict[str, Any] = {"scale": "percentile"}
    return cohort, override(recipe_named("position_regression_2022"), CT) if ct else override(
        recipe_named("as_is"), changes
    )


def twins(cohort: CohortSettings, recipe: Recipe, case: str, number: int) -> tuple[Any, Any, str]:
    """Return a head prepared without and with its lesion, and the lesion's side."""
    rng = np.random.default_rng(number)
    side: Literal["left", "right"] = "right" if number % 2 else "left"
    planted: dict[str, Any]
    if case == "fracture":
        finding = FindingSettings(kind="fracture", hemisphere=side, severity=float(rng.random()))
        planted = {"finding": finding.model_dump(mode="json")}
    else:
        lesion = LesionSettings(
            size_mm=float(rng.uniform(*BLEED_MM)),
            contrast=BLEED_CONTRAST if case == "ct" else DARK_CONTRAST,
            softness_mm=2.0,
            hemisphere=side,
        )
        planted = {"lesions": [lesion.model_dump(mode="json")]}
    with tempfile.TemporaryDirectory() as folder:
        root = write_cohort(
            Path(folder), cohort.model_copy(update={"num_train": 0, "num_test": 1, "seed": 1000 + number})
        )
        (raw,) = PhantomLayout().discover(root, cohort.phantom.modalities)
    pair = [
        prepare(
            raw.model_copy(update={"parameters": {**raw.parameters, **changes}}),
            recipe,
            cohort.phantom.modalities,
        )
        for changes in ({}, planted)
    ]
    return pair[0], pair[1], side


def volume_of(record: Any, arrays: Any) -> Volume:
    return Volume(
        subject_id=record.subject_id,
        image=torch.from_numpy(arrays.image),
        brain=torch.from_numpy(arrays.brain),
        spacing_mm=record.spacing_mm,
        affine=record.affine,
        head=torch.from_numpy(arrays.head),
    )


def judged(case: str, arrays: Any) -> np.ndarray:
    """Return where a lesion is looked for: the brain, or the skull of the healthy twin and of the head itself."""
    return np.asarray(arrays.structures == CT_STRUCTURES["skull"] if case == "fracture" else arrays.brain)


def halves(record: Any, where: np.ndarray) -> np.ndarray:
    """Return labels 1 and 2 of what lies left and right of x = 0."""
    x = record.affine[0][3] + record.affine[0][0] * np.arange(where.shape[0])
    return np.where(where, 1 + (x > 0)[:, None, None], 0).astype(np.uint8)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cohort, recipe = heads(arguments.case, arguments.edge, arguments.voxel_mm, arguments.train)
    kind = Uncentred if arguments.uncentred else PositionRegression
    settings = override(
        demo(),
        {
            "patches.foreground": "brain" if arguments.case == "t1w" else "head",
            "patches.per_step": arguments.per_step,
            "learning_rate": arguments.learning_rate,
            "network.width": arguments.width,
            "network.patch_size": arguments.patch_size,
            "epochs": arguments.steps / arguments.train,
            "scoring.calibrate": True,
            "map.voxels": "all" if arguments.case == "fracture" else "brain",
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        root = write_cohort(Path(folder) / "raw", cohort)
        ingest("phantom", root, Path(folder) / "store", recipe=recipe).raise_for_failures()
        began, spent = time.perf_counter(), time.process_time()
        method = trained(kind, settings, CohortStore.open(Path(folder) / "store"))
        assert isinstance(method, PositionRegression)
        began, spent = time.perf_counter() - began, time.process_time() - spent
    calibration = method.calibration
    rows: list[dict[str, float]] = []
    maxima: dict[str, list[tuple[float, bool]]] = {"": [], "_calibrated": []}
    for number in range(arguments.pairs):
        *pair, side = twins(cohort, recipe, arguments.case, number)
        brain = judged(arguments.case, pair[1][1])
        lesion = pair[1][1].lesion & brain
        row: dict[str, float] = {}
        for name in maxima:
            method.calibration = calibration if name else None
            errors = [score_volume(method, volume_of(*one))[0].map.numpy() for one in pair]
            for bad, (error, (record, arrays)) in enumerate(zip(errors, pair, strict=True)):
                found = structure_maxima(error, halves(record, judged(arguments.case, arrays)), {"left": 1, "right": 2})
                maxima[name] += [(value, bool(bad) and which == side) for which, value in found.items()]
            row[f"voxel_auroc{name}"] = float(roc_auc_score(lesion[brain], errors[1][brain]))
            if not name:
                row["brain"] = float(errors[0][brain].mean())
                row["lesion_in_the_healthy_twin"] = float(errors[0][lesion].mean())
                row["lesion"] = float(errors[1][lesion].mean())
        rows.append(row)
    means = {key: round(statistics.mean(row[key] for row in rows), 4) for key in rows[0]}
    return {
        "benchmark": "position detection",
        **{key: value for key, value in vars(arguments).items() if key != "out"},
        "training_seconds": round(began, 1),
        "training_processor_seconds": round(spent, 1),
        **means,
        **{
            f"hemispheres_auroc{name}": round(
                float(roc_auc_score([bad for _, bad in of], [value for value, _ in of])), 3
            )
            for name, of in maxima.items()
        },
        "rows": rows,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--case", choices=("ct", "t1w", "fracture"), default="ct")
    made.add_argument("--uncentred", action="store_true")
    made.add_argument("--per-step", type=int, default=64)
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--steps", type=int, default=2000)
    made.add_argument("--width", type=int, default=8)
    made.add_argument("--patch-size", type=int, default=19)
    made.add_argument("--edge", type=int, default=64)
    made.add_argument("--voxel-mm", type=float, default=3.0, help="of the vault; a whole head has EDGE voxels")
    made.add_argument("--train", type=int, default=40)
    made.add_argument("--pairs", type=int, default=8)
    made.add_argument("--out", type=Path, default=None, help="write the JSON here as well")
    return made


@pytest.mark.long
def test_a_lesion_raises_the_error_where_it_is() -> None:
    result = measure(
        parser().parse_args(["--edge", "32", "--train", "6", "--steps", "60", "--pairs", "2", "--width", "2"])
    )
    # Too short for a network that finds anything: what is asked is that both maps differ there, and are errors.
    assert all(0 < row["lesion"] != row["lesion_in_the_healthy_twin"] > 0 for row in result["rows"])


def main() -> int:
    arguments = parser().parse_args()
    result = measure(arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
