"""What a study costs and what it saves, on phantom heads with ``implicit_field``.

- ``side``: trials two at a time on two cores against one after the other, one thread each; the same trials. The ratio
  of the two times, and what a trial takes beside its training and scoring once Ray is up.
- ``workers``: the same beside the training of a trial of two workers.
- ``asha``: what ASHA trains until it has a trial within 0.01 of the best average precision of all, as a share of
  training all of them to their ends. The trials of a study are independent draws, trained to their ends once a seed;
  then the pruner that studies have is given their curves in many orders, two trials side by side that pass at one pace
  (a study's do nearly), and the shares are averaged. What trains beside the trial that is good enough counts too. An
  order in which ASHA stops every such trial counts as all that it trained and all of them once more, two by two.
  Trainings are counted in full lengths of one, not in seconds, so that a busy machine changes nothing. The first trial
  of every study has the settings that it starts from: seeds have one trial in common.

    python tests/benchmarks/benchmark_studies.py [side|workers|asha ...] [--epochs 60] [--trials N] [--seeds 3]
        [--set KEY=VALUE ...] [--keep FOLDER]

``asha`` is hours of two cores with the demo's network; with ``--keep`` the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings
from vesalius.infra import pipeline
from vesalius.platform.cluster import session
from vesalius.platform.store import CohortStore
from vesalius.tuning import VALIDATIONS, analyse, drive, find_study
from vesalius.tuning.samplers import make_pruner
from vesalius.tuning.seeds import mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.tuning import TrialRow

_LOG = logging.getLogger(__name__)
_WITHIN = 0.01
_FEWEST_OF_ASHA = 9
_SPACES = {
    "num_classes": "4..16",
    "prior_sigma": "log:1e-2..10",
    "latent_dim": "16,32,64,128",
    "decoder_lr": "log:2e-4..1e-2",
}


def _cohort(folder: Path, num_train: int) -> CohortStore:
    if (folder / "cohort").exists():
        return CohortStore.open(folder / "cohort")
    settings = CohortSettings(num_train=num_train, num_validation=6, num_gate=0, num_test=0)
    ingest("phantom", write_cohort(folder / "raw", settings), folder / "cohort", name="phantom", num_workers=0)
    return CohortStore.open(folder / "cohort")


def _study(store: CohortStore, home: Path, name: str, **asked: Any) -> tuple[list[TrialRow], float]:
    """Run a study to its end and return its trials and the seconds that took."""
    request = pipeline.StudyRequest(method="implicit_field", store=str(store.path), name=name, **asked)
    if (home / "studies" / name).exists():
        study = find_study(home, name)
    else:
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


def measure_asha(
    folder: Path, preset: str, epochs: int, trials: int, num_train: int, seeds: int, changes: dict[str, str]
) -> dict[str, Any]:
    """Return what ASHA trains until it has one of the best trials, over seeds of the sampler.

    Args:
        folder: of the cohort and the studies; what is there already is gone on with.
        preset: of the method.
        epochs: of a training to its end.
        trials: of a study.
        num_train: subjects.
        seeds: studies.
        changes: of the preset's settings.
    """
    store = _cohort(folder, num_train)
    found = []
    with session(2):
        for seed in range(seeds):
            asked = _drawn(preset, epochs, trials, "none", seed)
            asked["set"] |= changes
            rows, _ = _study(store, folder / "home", f"full-{seed}", **asked)
            found.append(compared(rows))
            _LOG.info("seed %d: %s", seed, found[-1])
    return over_seeds(found)


def over_seeds(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return what :func:`compared` says of each seed, and the means with the intervals over seeds.

    ``ratio`` is the claim: geometric mean of share over share_without, with the interval of its logarithm.
    """
    interval = mean_interval([math.log(one["ratio"]) for one in found])
    means: dict[str, Any] = {
        name: {"mean": statistics.fmean(values), "interval": mean_interval(values)}
        for name in ("share", "share_without", "trained")
        if (values := [one[name] for one in found])
    }
    means["ratio"] = {
        "mean": statistics.geometric_mean([one["ratio"] for one in found]),
        "interval": None if interval is None else tuple(map(math.exp, interval)),
    }
    return {"seeds": list(found), **means, "kept": statistics.fmean(one["kept"] for one in found)}


def _drawn(preset: str, epochs: int, trials: int, pruner: str, seed: int) -> dict[str, Any]:
    """Return what is asked of a study of independent draws, with as many passes as ASHA would ask for."""
    common = _common(preset, epochs)
    chosen = {**common["set"], "training.validations": VALIDATIONS}
    return {
        **common,
        "set": chosen,
        "space": _SPACES,
        "trials": trials,
        "pruner": pruner,
        "seed": seed,
        "concurrent": 2,
    }


def compared(rows: Sequence[TrialRow], orders: int = 200) -> dict[str, float]:
    """Return what ASHA would have trained of a study's trials, each of which was trained to its end.

    Returns:
        ``best``: of all; ``share``: trained until one within 0.01 of it came to its end, of training all; ``trained``:
        that of a study that goes on; ``kept``: share of the orders in which one came to its end at all;
        ``share_without``: as ``share`` where nothing is stopped; ``ratio``: of the two. All but ``best`` and ``ratio``
        are means over orders.
    """
    best = max(row.figures["average_precision"] for row in rows)
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {"share": [], "share_without": [], "trained": [], "kept": []}
    for _ in range(orders):
        # The start comes first in every study.
        order = [rows[0], *(rows[1 + place] for place in random.permutation(len(rows) - 1))]
        good = [number for number, row in enumerate(order) if row.figures["average_precision"] >= best - _WITHIN]
        curves = [row.curve for row in order]
        stopping, full = replayed(curves, "asha"), replayed(curves, "none")
        until = stopping.trained_until_one_of(good)
        found["kept"].append(float(until is not None))
        found["trained"].append(stopping.trained / len(rows))
        found["share"].append((stopping.trained + full.trained if until is None else until) / len(rows))
        found["share_without"].append((full.trained_until_one_of(good) or full.trained) / len(rows))
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return {"best": best, **means, "ratio": means["share"] / means["share_without"]}


@dataclass
class Replay:
    """What a pruner makes of a study's trials.

    Attributes:
        lengths: of each trial, in full trainings.
        ends: trainings of all trials together, by the number of a trial that came to its end, when it did.
        trained: trainings of all trials together.
    """

    lengths: list[float]
    ends: dict[int, float] = field(default_factory=dict)
    trained: float = 0.0

    def trained_until_one_of(self, numbers: Sequence[int]) -> float | None:
        """Return what all had trained when the first of these came to its end, or None where none did."""
        return min((self.ends[number] for number in numbers if number in self.ends), default=None)


def replayed(curves: Sequence[Sequence[tuple[int, float]]], pruner: str, concurrent: int = 2) -> Replay:
    """Return how far each trial comes under a pruner of studies.

    Args:
        curves: of each trial, in the order in which they begin: the hundredth of its training and the criterion there.
        pruner: its name.
        concurrent: trials side by side; each goes on by one pass, in turn.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner))
    replay = Replay([1.0] * len(curves))
    waiting = list(range(len(curves)))
    running: list[tuple[int, Any, list[tuple[int, float]]]] = []
    while waiting or running:
        while waiting and len(running) < concurrent:
            running.append((number := waiting.pop(0), study.ask(), list(curves[number])))
        for one in list(running):
            number, trial, left = one
            before = curves[number][-len(left) - 1][0] if len(left) < len(curves[number]) else 0
            percent, value = left.pop(0)
            replay.trained += (percent - before) / 100
            trial.report(value, percent)
            given_up = trial.should_prune() and percent < 100 and number > 0  # the start comes to its end
            if given_up:
                replay.lengths[number] = percent / 100
            elif not left:
                replay.ends[number] = replay.trained
            if given_up or not left:
                study.tell(trial, state=TrialState.PRUNED if given_up else None, values=None if given_up else value)
                running.remove(one)
    return replay


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_contest_runs_and_both_ways_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    figures = measure_side(tmp_path, "tiny", epochs=2, trials=2, num_train=4)
    assert figures["times_faster"] > 0


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_replay_stops_what_a_study_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    store = _cohort(tmp_path, 4)
    # One after the other, so that the order of passes is known; the tiny network has no room for larger codes.
    asked = {"concurrent": 1, "space": {name: _SPACES[name] for name in ("prior_sigma", "decoder_lr")}}
    with session(1):
        full, asha = (
            _study(store, tmp_path / "home", pruner, **{**_drawn("tiny", 18, 8, pruner, seed=1), **asked})[0]
            for pruner in ("none", "asha")
        )
    assert [row.values for row in asha] == [row.values for row in full]
    lengths = replayed([row.curve for row in full], "asha", concurrent=1).lengths
    assert [1.0 if row.state == "complete" else row.curve[-1][0] / 100 for row in asha] == lengths
    assert min(lengths) < 1.0


def _rows(*ends: float) -> list[TrialRow]:
    """Return trials that were trained to their ends, each as good at every pass as at its end."""
    from vesalius.tuning import TrialRow

    steps = (11, 22, 33, 44, 55, 66, 77, 88, 100)
    return [
        TrialRow(
            number=number,
            state="complete",
            is_start=number == 0,
            figures={"average_precision": end},
            curve=tuple((step, end) for step in steps),
        )
        for number, end in enumerate(ends)
    ]


def test_what_asha_saves_is_counted_in_full_trainings() -> None:
    assert replayed([row.curve for row in _rows(0.5, 0.4, 0.3)], "none").lengths == [1.0, 1.0, 1.0]
    # Of fewer than six at a rung the best one alone goes on, and the start whatever it is.
    alone = replayed([row.curve for row in _rows(0.5, 0.4, 0.3, 0.45)], "asha", concurrent=1)
    assert alone.lengths == [1.0, 0.22, 0.22, 0.22]
    assert alone.trained == pytest.approx(1.66)
    assert alone.ends == {0: pytest.approx(1.0)}
    # Two side by side: of the other one 100 hundredths as well, in four pieces of 22 and one that has begun (11).
    beside = replayed([row.curve for row in _rows(0.5, 0.4, 0.3, 0.45, 0.2, 0.1)], "asha")
    assert beside.lengths == [1.0, *[0.22] * 5]
    assert beside.ends[0] == pytest.approx(1 + 4 * 0.22)


def test_the_first_draw_that_is_good_enough_ends_the_count() -> None:
    alike = compared(_rows(0.1, *[0.2] * 8), orders=20)
    assert alike["best"] == 0.2
    assert alike["share_without"] == pytest.approx(2 / 9), "the start beside the first draw, both to their ends"
    assert alike["share"] == pytest.approx(2 / 9)
    # The ninth is as good as the third best of nine, a third of which go on: to the next rung, where one of three does.
    rows = _rows(0.3, 0.5, *[0.1] * 7)
    assert replayed([row.curve for row in rows], "asha").lengths == [1.0, 1.0, *[0.22] * 6, 0.66]
    found = compared(rows, orders=20)
    assert found["kept"] == 1.0
    assert 2 + 7 * 0.22 <= 9 * found["trained"] <= 2 + 5 * 0.22 + 2 * 0.66, "one or two of them come to the next rung"
    assert found["share"] < found["share_without"]
    assert found["ratio"] == pytest.approx(found["share"] / found["share_without"])


def test_what_asha_stops_too_early_costs_all_of_it_again() -> None:
    late = _rows(0.3, 0.2, 0.2, 0.2)
    late[-1] = late[-1].model_copy(
        update={
            "figures": {"average_precision": 0.9},
            "curve": (*((step, 0.0) for step, _ in late[0].curve[:-1]), (100, 0.9)),
        }
    )
    found = compared(late, orders=10)
    assert found["kept"] == 0.0
    assert found["share"] == pytest.approx((1 + 3 * 0.22 + 4) / 4)


def test_the_saving_has_the_interval_of_its_logarithm() -> None:
    seeds = [{"share": 1.0, "share_without": 2.0, "trained": 0.5, "kept": 1.0, "ratio": ratio} for ratio in (0.25, 1.0)]
    found = over_seeds(seeds)
    low, high = found["ratio"]["interval"]
    assert found["ratio"]["mean"] == pytest.approx(0.5)
    # Student's t of one degree of freedom at 97.5 % is tan(.475 pi).
    assert (
        math.log(high / 0.5)
        == pytest.approx(math.log(0.5 / low))
        == pytest.approx(math.tan(0.475 * math.pi) * math.log(2))
    )
    assert found["kept"] == 1.0


def _check_same(folder: Path, asked: dict[str, Any], parser: argparse.ArgumentParser) -> None:
    """End with a sentence where a folder's studies were asked for otherwise; seeds may be added."""
    file = folder / "asked.json"
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            parser.error(f"--keep {folder}: it holds something else: name a new folder, or one of this benchmark")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked))
    was = json.loads(file.read_text())
    if was != asked:
        parser.error(f"--keep {folder}: its studies are of {was}: ask for the same, or name another folder")


def test_a_folder_of_studies_is_gone_on_with_as_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, folder = argparse.ArgumentParser(), tmp_path / "kept"
    _check_same(folder, {"trials": 12, "epochs": 60}, parser)
    _check_same(folder, {"trials": 12, "epochs": 60}, parser)
    for asked in ({"trials": 12, "epochs": 30}, {"trials": 9, "epochs": 60}):
        with pytest.raises(SystemExit):
            _check_same(folder, asked, parser)
        assert "its studies are of {'trials': 12, 'epochs': 60}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _check_same(tmp_path, {"trials": 12}, parser)
    assert "it holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["side", "--trials", "0"], "--trials 0: 1 or more"),
        (["asha", "--trials", "8"], "--trials 8: of fewer than 9"),
        (["asha", "--set", "threads"], "--set threads: expected KEY=VALUE"),
        (["side", "--set", "a=b"], "are for asha alone"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_in_words(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert sentence in capsys.readouterr().err


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", choices=("side", "workers", "asha"), default=["side", "workers"])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--trials", type=int, help="of a study: 4, of asha 12 (9 or more)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of asha's trials")
    parser.add_argument("--keep", type=Path, help="folder of asha's cohort and studies, to be gone on with")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    if chosen.what != ["asha"] and (chosen.set or chosen.keep):
        parser.error("--set and --keep are for asha alone")
    if chosen.trials is not None and chosen.trials < 1:
        parser.error(f"--trials {chosen.trials}: 1 or more")
    if "asha" in chosen.what and chosen.trials is not None and chosen.trials < _FEWEST_OF_ASHA:
        parser.error(
            f"--trials {chosen.trials}: of fewer than {_FEWEST_OF_ASHA} fewer than three pass asha's first rung"
        )
    if unread := [one for one in chosen.set if "=" not in one]:
        parser.error(f"--set {unread[0]}: expected KEY=VALUE, such as training.threads=2")
    changes = dict(one.split("=", 1) for one in chosen.set)
    os.environ["MLFLOW_TRACKING_URI"] = "off"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for what in chosen.what:
        trials = (12 if what == "asha" else 4) if chosen.trials is None else chosen.trials
        common = {"preset": chosen.preset, "epochs": chosen.epochs, "trials": trials, "num_train": chosen.subjects}
        with contextlib.ExitStack() as stack:
            folder = chosen.keep or stack.enter_context(tempfile.TemporaryDirectory())
            if what == "side":
                figures[what] = measure_side(Path(folder), **common)
            elif what == "workers":
                figures[what] = measure_workers(Path(folder), **common)
            else:
                if chosen.keep:
                    _check_same(chosen.keep, common | {"set": changes}, parser)
                figures[what] = measure_asha(Path(folder), **common, seeds=chosen.seeds, changes=changes)
    json.dump(figures, sys.stdout, indent=None if chosen.json else 1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
