"""The figures of 50 million voxels against scikit-learn's, and the bootstrap over subjects: seconds and peak memory.

Both sides run one after the other in processes of their own, on the same voxels, in one run; the JSON on stdout holds
their ratio. Memory is what the peak adds to the voxels themselves (read from /proc: Linux only).

Run with ``python tests/benchmarks/benchmark_metrics.py [--voxels 50000000]``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_PIECE = 1_000_000


def voxels(num: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return scores and lesion labels like those of an anomaly map: a large zero background, 1 % lesion, overlap.

    Made piece by piece, so that making them needs no more memory than they do.
    """
    scores, lesion = np.empty(num, dtype=np.float16), np.empty(num, dtype=np.bool_)
    for number, start in enumerate(range(0, num, _PIECE)):
        random = np.random.default_rng(number)
        size = min(_PIECE, num - start)
        part = random.random(size, dtype=np.float32) < 0.01
        values = np.abs(random.standard_normal(size, dtype=np.float32)) + 1.5 * part
        values[(random.random(size, dtype=np.float32) < 0.6) & ~part] = 0
        scores[start : start + size], lesion[start : start + size] = values, part
    return scores, lesion


def by_counting(scores: NDArray[np.float16], lesion: NDArray[np.bool_]) -> tuple[dict[str, float], dict[str, float]]:
    """Return figures and seconds of this package."""
    from vesalius.platform.evaluation import Histogram, auroc, average_precision, best_dice, fpr_at_recall

    seconds: dict[str, float] = {}
    histogram = _timed(seconds, "count", lambda: Histogram.of(scores, lesion))
    best = _timed(seconds, "best_dice", lambda: best_dice(histogram))
    figures = {
        "best_dice": best.dice,
        "average_precision": _timed(seconds, "average_precision", lambda: average_precision(histogram)),
        "auroc": _timed(seconds, "auroc", lambda: auroc(histogram)),
        "fpr_at_95_recall": _timed(seconds, "fpr_at_95_recall", lambda: fpr_at_recall(histogram)),
    }
    return figures, seconds


def by_sorting(scores: NDArray[np.float16], lesion: NDArray[np.bool_]) -> tuple[dict[str, float], dict[str, float]]:
    """Return figures and seconds of scikit-learn."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    seconds: dict[str, float] = {}

    def best() -> float:
        precision, recall, _ = precision_recall_curve(lesion, scores)
        total = precision + recall
        return float(np.max(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)))

    def fpr() -> float:
        false, true, _ = roc_curve(lesion, scores, drop_intermediate=False)
        return float(false[np.argmax(true >= 0.95)])

    figures = {
        "best_dice": _timed(seconds, "best_dice", best),
        "average_precision": _timed(
            seconds, "average_precision", lambda: float(average_precision_score(lesion, scores))
        ),
        "auroc": _timed(seconds, "auroc", lambda: float(roc_auc_score(lesion, scores))),
        "fpr_at_95_recall": _timed(seconds, "fpr_at_95_recall", fpr),
    }
    return figures, seconds


def bootstrap(num_subjects: int, num_voxels: int, num_resamples: int) -> dict[str, Any]:
    """Return seconds and peak memory of the intervals of all pooled figures and of one paired comparison."""
    from vesalius.platform.evaluation import Histogram, bootstrap_intervals, paired_bootstrap

    def histogram(subject: int, method: int) -> Histogram:
        lesion = np.random.default_rng(subject).random(num_voxels, dtype=np.float32) < 0.01
        random = np.random.default_rng((subject, method))
        scores = np.abs(random.standard_normal(num_voxels, dtype=np.float32)) + random.uniform(0.5, 2) * lesion
        return Histogram.of(scores.astype(np.float16), lesion)

    a, b = ([histogram(subject, method) for subject in range(num_subjects)] for method in (0, 1))
    seconds: dict[str, float] = {}
    before = _begin_peak()
    dice = [0.5] * num_subjects
    _timed(seconds, "intervals", lambda: bootstrap_intervals(a, dice, dice, [True] * num_subjects, num=num_resamples))
    _timed(seconds, "paired", lambda: paired_bootstrap(a, b, num=num_resamples))
    return {
        "subjects": num_subjects,
        "voxels_each": num_voxels,
        "occupied_bins": int(np.mean([h.bins.size for h in a])),
        "resamples": num_resamples,
        "seconds": seconds,
        "peak_mb": round(_status_mb("VmHWM") - before, 1),
    }


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    answer = work()
    seconds[name] = round(time.perf_counter() - start, 4)
    return answer


def _begin_peak() -> float:
    """Forget the peak so far and return what is resident now, in MB. Linux keeps both for every process."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


def one_side(side: str, num: int) -> dict[str, Any]:
    """Run one side in this process."""
    if side == "bootstrap":
        return bootstrap(num_subjects=50, num_voxels=num // 50, num_resamples=1000)
    work = {"vesalius": by_counting, "scikit-learn": by_sorting}[side]
    work(*voxels(1000))  # imports and first calls are not what is measured
    scores, lesion = voxels(num)
    before, start, used = _begin_peak(), time.perf_counter(), time.process_time()
    figures, seconds = work(scores, lesion)
    total, used = time.perf_counter() - start, time.process_time() - used
    return {
        "figures": figures,
        "seconds": {**seconds, "total": round(total, 4), "total_cpu": round(used, 4)},
        "peak_mb": round(_status_mb("VmHWM") - before, 1),
    }


def compare(num: int) -> dict[str, Any]:
    """Run all sides, each in its own process."""

    def run(side: str, num: int) -> Any:
        command = [sys.executable, __file__, "--side", side, "--voxels", str(num)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ours, theirs = run("vesalius", num), run("scikit-learn", num)
    return {
        "voxels": num,
        "vesalius": ours,
        "scikit-learn": theirs,
        "times_faster": round(theirs["seconds"]["total"] / ours["seconds"]["total"], 1),
        "times_faster_cpu": round(theirs["seconds"]["total_cpu"] / ours["seconds"]["total_cpu"], 1),
        "largest_difference": max(abs(ours["figures"][key] - theirs["figures"][key]) for key in ours["figures"]),
        "vesalius_with_a_tenth_of_the_voxels": run("vesalius", num // 10),
        "bootstrap": run("bootstrap", num),
    }


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's /proc")
def test_counting_is_faster_than_sorting_equal_to_it_and_bounded() -> None:
    found = compare(10_000_000)
    assert found["times_faster_cpu"] > 5
    assert found["largest_difference"] < 1e-12
    # One byte a voxel would be 10 MB; scikit-learn takes about 500.
    assert found["vesalius"]["peak_mb"] < 10


def main() -> None:
    """Print the comparison, or one side of it, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=50_000_000)
    parser.add_argument("--side", choices=["vesalius", "scikit-learn", "bootstrap"])
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(one_side(arguments.side, arguments.voxels)))
    else:
        print(json.dumps(compare(arguments.voxels), indent=1))


if __name__ == "__main__":
    main()
