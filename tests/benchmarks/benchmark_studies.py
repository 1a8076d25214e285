"""What a study costs and what it saves, on phantom heads with ``implicit_field``.

- ``side``: trials two at a time on two cores against one after the other, one thread each; the same trials. The ratio
  of the two times, and what a trial takes beside its training and scoring once Ray is up.
- ``workers``: the same beside the training of a trial of two workers.
- ``asha``: what ASHA trains until it has a trial within 0.01 of the best average precision that the same study finds
  without it, as a share of all that this one trains. One study of each kind a seed of the sampler; ASHA's may draw
  twice as many trials, which costs it about as much. Trainings are counted in full lengths of one, not in seconds, so
  that a busy machine changes nothing.

    python tests/benchmarks/benchmark_studies.py [side|workers|asha ...] [--epochs 60] [--trials 16] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings
from vesalius.infra import pipeline
from vesalius.platform.cluster import session
from vesalius.platform.store import CohortStore
from vesalius.tuning import VALIDATIONS, analyse, drive
from vesalius.tuning.seeds import mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.tuning import TrialRow

_WITHIN = 0.01
_SPACES = {
    "num_classes": "4..16",
    "prior_sigma": "log:1e-2..10",
    "latent_dim": "16,32,64,128",
    "decoder_lr": "log:2e-4..1e-2",
}


def _cohort(folder: Path, num_train: int) -> CohortStore:
    settings = CohortSettings(num_train=num_train, num_validation=6, num_gate=0, num_test=0)
    ingest("phantom", write_cohort(folder / "raw", settings), folder / "cohort", name="phantom", num_workers=0)
    return CohortStore.open(folder / "cohort")


def _study(store: CohortStore, home: Path, name: str, **asked: Any) -> tuple[list[TrialRow], float]:
    """Run a study to its end and return its trials and the seconds that took."""
    request = pipeline.StudyRequest(method="implicit_field", store=str(store.path), name=name, **asked)
    study = pipeline.begin_study(request, home=home, say=lambda said: None, progress=lambda *said: None)
    begun = time.monotonic()
    driven = drive(study, pipeline.base_of(study.spec), pipeline.TrialTrainer(home))
    seconds = time.monotonic() - begun
    assert driven.is_finished
    rows = list(analyse(study).trials)
    assert {row.state for row in rows} <= {"complete", "pruned"}, "a failed trial would flatter the time"
    return rows, seconds


def _common(preset: str, epochs: int) -> dict[str, Any]:
    """Return what is asked of trials whose cost is the same whatever is drawn."""
    chosen = {"training.device": "cpu", "training.threads": 1, "method.epochs": epochs}
    space = {"prior_sigma": "log:1e-2..10"}
    return {"preset": preset, "set": chosen, "space": space, "sampler": "random", "pruner": "none"}


def measure_side(folder: Path, preset: str, epochs: int, trials: int, num_train: int) -> dict[str, Any]:
    """Return how much sooner a study ends with two trials at a time, and a trial's time beside its training."""
    store = _cohort(folder, num_train)
    common = _common(preset, epochs) | {"trials": trials}
    with session(2):
        alone, one_by_one = _study(store, folder / "home", "alone", concurrent=1, **common)
        pairs, two_by_two = _study(store, folder / "home", "pairs", concurrent=2, **common)
    assert [row.figures["average_precision"] for row in alone] == [row.figures["average_precision"] for row in pairs]
    beside = [_beside(row) for row in alone[1:]]  # the first one waits for its worker's imports
    return {
        "one_by_one_seconds": one_by_one,
        "two_by_two_seconds": two_by_two,
        "times_faster": one_by_one / two_by_two,
        "training_seconds": statistics.median(row.figures["training_seconds"] for row in alone),
        "training_seconds_two_by_two": statistics.median(row.figures["training_seconds"] for row in pairs),
        "seconds_beside_training": statistics.median(beside),
        "seconds_beside_training_first": _beside(alone[0]),
    }


def measure_workers(folder: Path, preset: str, epochs: int, trials: int, num_train: int) -> dict[str, Any]:
    """Return what a trial of two workers takes beside its training."""
    store = _cohort(folder, num_train)
    with session(2):
        rows, _ = _study(
            store, folder / "home", "two", workers=2, concurrent=1, trials=trials, **_common(preset, epochs)
        )
    return {
        "training_seconds": statistics.median(row.figures["training_seconds"] for row in rows),
        "seconds_beside_training": statistics.median(_beside(row) for row in rows),
    }


def _beside(row: TrialRow) -> float:
    """Return a trial's seconds beside its training and the scoring that judges it."""
    assert row.seconds is not None
    return row.seconds - row.figures["training_seconds"] - 6 * row.figures["seconds_per_volume"]


def measure_asha(folder: Path, preset: str, epochs: int, trials: int, num_train: int, seeds: int) -> dict[str, Any]:
    """Return what ASHA trains until it is as good as the study without it, over seeds of the sampler."""
    store = _cohort(folder, num_train)
    common = _common(preset, epochs) | {"space": _SPACES, "sampler": "tpe", "trials": trials, "concurrent": 2}
    del common["pruner"]
    # As many candidates for the best in both: ASHA alone would ask for more passes.
    common["set"] = {**common["set"], "training.validations": VALIDATIONS}
    found = []
    with session(2):
        for seed in range(seeds):
            full, _ = _study(store, folder / "home", f"full-{seed}", pruner="none", seed=seed, **common)
            # Twice as many trials cost it about as much as the other one's: what it saves it may spend.
            twice = {**common, "trials": 2 * trials}
            asha, _ = _study(store, folder / "home", f"asha-{seed}", pruner="asha", seed=seed, **twice)
            found.append(compared(full, asha))
    return {
        "seeds": found,
        **over_seeds([one["share"] for one in found]),
    }


def over_seeds(shares: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean share over seeds and its interval; None where some never came there: theirs is not known."""
    known = [one for one in shares if one is not None]
    is_whole = len(known) == len(shares)
    return {
        "reached": len(known),
        "share": statistics.fmean(known) if is_whole else None,
        "interval": mean_interval(known) if is_whole else None,
    }


def compared(full: Sequence[TrialRow], asha: Sequence[TrialRow]) -> dict[str, Any]:
    """Return what ASHA trained until a trial came within 0.01 of the other study's best; ``share`` None if none did.

    Trials count in the order of their numbers, in full trainings; one that came to its end is 1.
    """
    best = max(row.figures["average_precision"] for row in full)
    return {
        "best": best,
        "best_of_asha": max(row.figures["average_precision"] for row in asha if row.figures),
        "trained": sum(_length(row) for row in asha),
        "trained_without": sum(_length(row) for row in full),
        "until": _until(asha, best - _WITHIN),
        "until_without": _until(full, best - _WITHIN),
        "share": None if (until := _until(asha, best - _WITHIN)) is None else until / sum(_length(row) for row in full),
    }


def _until(rows: Sequence[TrialRow], value: float) -> float | None:
    spent = 0.0
    for row in sorted(rows, key=lambda row: row.number):
        spent += _length(row)
        if row.figures.get("average_precision", -1.0) >= value:
            return spent
    return None


def _length(row: TrialRow) -> float:
    return 1.0 if row.state == "complete" else (row.percent or 0.0) / 100


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_contest_runs_and_both_ways_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    figures = measure_side(tmp_path, "tiny", epochs=2, trials=2, num_train=4)
    assert figures["times_faster"] > 0


def test_what_asha_saves_is_counted_in_full_trainings() -> None:
    from vesalius.tuning import TrialRow

    def row(number: int, value: float | None, percent: float = 100.0) -> TrialRow:
        figures = {} if value is None else {"average_precision": value}
        return TrialRow(
            number=number,
            state="pruned" if value is None else "complete",
            is_start=number == 0,
            values={},
            figures=figures,
            curve=(),
            percent=percent,
            reason="",
            run="",
            seconds=1.0,
        )

    full = [row(0, 0.1), row(1, 0.2), row(2, 0.5), row(3, 0.3)]
    asha = [row(0, 0.1), row(1, None, 25.0), row(2, 0.495), row(3, None, 11.0)]
    found = compared(full, asha)
    assert found["until"] == 2.25
    assert found["share"] == 2.25 / 4
    assert found["trained"] == pytest.approx(2.36)
    assert compared(full, [row(0, 0.1), row(1, None, 11.0)])["share"] is None
    three = over_seeds([0.2, 0.3, 0.4])
    low, high = three["interval"]
    assert three["share"] == (low + high) / 2 == pytest.approx(0.3)
    assert high - 0.3 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert over_seeds([0.2, None, 0.4]) == {"reached": 2, "share": None, "interval": None}, "two of three flatter"
    assert over_seeds([0.2])["interval"] is None


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", choices=("side", "workers", "asha"), default=["side", "workers"])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    os.environ["MLFLOW_TRACKING_URI"] = "off"
    common = {"preset": chosen.preset, "epochs": chosen.epochs, "trials": chosen.trials, "num_train": chosen.subjects}
    figures: dict[str, Any] = {}
    for what in chosen.what:
        with tempfile.TemporaryDirectory() as folder:
            if what == "side":
                figures[what] = measure_side(Path(folder), **common)
            elif what == "workers":
                figures[what] = measure_workers(Path(folder), **common)
            else:
                figures[what] = measure_asha(Path(folder), **common, seeds=chosen.seeds)
    json.dump(figures, sys.stdout, indent=None if chosen.json else 1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
