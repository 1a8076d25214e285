"""Everything once, small: a cohort of phantoms, three methods, what they find, and a champion."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.phantom import write_cohort
from vesalius.datasets.phantom import CohortSettings
from vesalius.infra import pipeline, tables
from vesalius.infra.pictures import draw_runs
from vesalius.platform import cluster, registry
from vesalius.platform.config import digest
from vesalius.platform.errors import RunError
from vesalius.platform.runs import find_run
from vesalius.platform.store import CohortStore, require_space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.console import Terminal
    from vesalius.platform.evaluation import Figures, VoxelSet
    from vesalius.platform.progress import Progress
    from vesalius.platform.registry import Promotion
    from vesalius.platform.runs import RunFolder

METHODS_SHOWN = ("intensity_threshold", "healthy_atlas", "implicit_field")
"""From the plainest to the one that the demo is about; they challenge the champion in this order."""

COHORT = CohortSettings(num_train=40, num_validation=6, num_gate=9, num_test=9)
REGISTERED_NAME = "phantom"
_ROOM_BYTES = 500_000_000
_CAPTION = (
    "Generated heads, lesions planted. The methods learnt from healthy heads only; thresholds come from the validation "
    "split.\nAP: average precision over all voxels of the test split. Shown: large to small lesions, one healthy head."
)


def run_demo(
    terminal: Terminal,
    out: Path,
    *,
    num_workers: int = 1,
    cohort: CohortSettings | None = None,
    preset: str = "demo",
) -> None:
    """Do everything once in ``out``; what an earlier call finished is found and reused.

    Args:
        terminal: where progress and the result are written.
        out: folder for the cohort, the runs, tracking, the registry and the picture.
        num_workers: Ray Train workers; 0 trains in this process.
        cohort: how many heads of what size; those of the default.
        preset: of each method; a method that has none of that name takes its paper's settings.
    """
    started = time.monotonic()
    home = out / "home"
    # Tracking and registry of a demo belong to the demo, whatever server the shell points at.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with contextlib.ExitStack() as stack:
        if num_workers and not (out / "demo.json").is_file():
            terminal.say("starting Ray")
            # One runtime for all of it: starting one takes longer than training a baseline.
            stack.enter_context(cluster.session())
        store = _make_cohort(terminal, out, cohort or COHORT, num_workers)
        runs = [_find_or_start(name, store, home, num_workers, preset) for name in METHODS_SHOWN]
        for run in runs:
            with terminal.progress(f"train {run.spec.method}") as progress:
                pipeline.train(run, progress=progress)
    judged: list[tuple[RunFolder, Mapping[VoxelSet, Figures]]] = []
    for run in runs:
        with terminal.progress(f"score {run.spec.method}") as progress:
            judged.append((run, pipeline.evaluate_run(run, "test", progress=progress)))
    picture = draw_runs(
        judged, "test", out / "demo.png", title="Three methods look at heads they have never seen", caption=_CAPTION
    )
    promotions = [_challenge(terminal, run, home) for run in runs]
    champion = registry.resolve(f"models:/{REGISTERED_NAME}@champion", home=home)
    document = {
        "out": str(out),
        "cohort": {"store": str(store.path), "digest": store.digest, "num_subjects": len(store.subjects())},
        "figures": [
            {"run": run.run_id, **one.model_dump(mode="json")} for run, figures in judged for one in figures.values()
        ],
        "promotions": promotions,
        "champion": {"model": f"models:/{REGISTERED_NAME}@champion", "folder": str(champion)},
        "picture": str(picture),
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(out / "demo.json", document)
    terminal.result(document, *_say(document, out))


def _make_cohort(terminal: Terminal, out: Path, cohort: CohortSettings, num_workers: int) -> CohortStore:
    require_space(out, _ROOM_BYTES)
    root = write_cohort(out / "phantom", cohort)
    made = (out / "cohort" / "manifest.json").is_file()
    num_tasks = min(4, cluster.available_cores()) if num_workers and not made else 0
    with terminal.progress("make heads") as progress:
        report = ingest("phantom", root, out / "cohort", name="phantom", num_workers=num_tasks, progress=progress)
    report.raise_for_failures()
    return CohortStore.open(out / "cohort")


def _find_or_start(name: str, store: CohortStore, home: Path, num_workers: int, wanted: str) -> RunFolder:
    """Return the demo's run of a method; its name holds a digest of what decides its outcome."""
    preset = wanted if wanted in pipeline.method_type(name).presets() else "paper"
    settings, training = pipeline.choose_settings(name, preset, [])
    key = digest([settings.model_dump(mode="json"), training.model_dump(mode="json"), store.digest, num_workers])
    run_id = f"{name}-{key[:8]}"
    try:
        return find_run(home, run_id)
    except RunError:
        return pipeline.start_run(
            name, store.path, home=home, preset=preset, num_workers=num_workers, name=run_id, experiment="demo"
        )


def _challenge(terminal: Terminal, run: RunFolder, home: Path) -> dict[str, Any]:
    """Let a run challenge the champion, or find what came of it when it did."""
    decided = _decided(run, home)
    if decided is not None:
        return decided
    with terminal.progress(f"gate {run.spec.method}") as progress:
        promotion = pipeline.promote_run(run, REGISTERED_NAME, home=home, progress=_scoring_only(progress))
    return _row(run, promotion)


def _decided(run: RunFolder, home: Path) -> dict[str, Any] | None:
    path = run.path / "promotion.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    versions = {facts.version: facts for facts in registry.history(REGISTERED_NAME, home=home)}
    facts = versions.get(str(kept.get("version")))
    return kept if facts is not None and facts.run_id == run.run_id else None


def _row(run: RunFolder, promotion: Promotion) -> dict[str, Any]:
    row = {"method": run.spec.method, **promotion.model_dump(mode="json")}
    _write(run.path / "promotion.json", row)
    return row


def _scoring_only(progress: Progress) -> Progress:
    def report(done: int, total: int, note: str) -> None:
        if total:
            progress(done, total, note)

    return report


def _say(document: Mapping[str, Any], out: Path) -> list[Any]:
    shown: list[Any] = [""]
    for voxels in ("all", "brain"):
        rows = [row for row in document["figures"] if row["voxel_set"] == voxels]
        shown.append(tables.figures(rows, tables.figures_title(rows[0])))
    shown.append(tables.gate(document["promotions"]))
    shown.append(
        tables.key_values(
            [
                ("picture", document["picture"]),
                ("champion", f"{document['champion']['model']}  (--home {out / 'home'})"),
                ("figures", str(out / "demo.json")),
                ("took", f"{document['seconds']:.0f} s"),
            ]
        )
    )
    return shown


def _write(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(aside, path)
