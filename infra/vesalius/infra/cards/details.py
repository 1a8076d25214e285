"""Sections on the model itself: details, and what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import safetensors

from vesalius.infra.cards.document import Section, Table
from vesalius.infra.tables import as_time
from vesalius.platform.config import digest
from vesalius.platform.models import WEIGHTS_FILE
from vesalius.platform.runs import flat_settings
from vesalius.platform.training import TrainingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.cards.writing import CardSources


def model_details(sources: CardSources) -> Section:
    """Who and what: method, paper, version, run, lineage, settings that are not the paper's."""
    model, spec = sources.model, sources.spec
    facts = [
        ("Method", f"{model.method}: {sources.summary}" if sources.summary else model.method),
        ("Run", model.run_id or "not known"),
        ("Trained", model.created or "not known"),
        ("Vesalius", model.vesalius_version or "not known"),
        ("Last stage", f"{model.stage}, {model.step} steps" if model.stage else "not known"),
    ]
    if sources.seconds:
        told = ", ".join(f"{stage} {as_time(value)}" for stage, value in sources.seconds.items())
        facts.append(("Training time", told))
    values = None if sources.folder is None else _num_values(sources.folder)
    if values is not None:
        facts.append(("Values in its weights", f"{values:,}"))
    if spec is not None:
        facts.append(("Workers", str(spec.num_workers)))
        facts.append(("Started from", spec.start_from or spec.shared_from or "nothing: trained from the start"))
        if spec.mlflow_run_id is not None:
            facts.append(("Tracked run", spec.mlflow_run_id))
    facts += [
        ("Model digest", model.digest),
        ("Weights, SHA-256", model.weights_sha256 or "not known"),
        ("Settings digest", digest(model.settings)),
        ("Cohort digest", model.cohort.digest),
        ("Recipe digest", digest(model.recipe)),
    ]
    tables = []
    changed = _changed(sources)
    if changed:
        tables.append(
            Table(
                title="Settings that are not the defaults (the paper's)",
                heads=("setting", "here", "default"),
                rows=changed,
            )
        )
    sentences = [] if changed or sources.kind is None else ["All settings are the defaults, which are the paper's."]
    if sources.kind is None:
        sentences.append("This version of Vesalius has no such method: its paper's settings are not known here.")
    return Section(title="Model Details", sentences=tuple(sentences), facts=tuple(facts), tables=tuple(tables))


def intended_use(sources: CardSources) -> Section:
    """What it answers, on what, and what it was not made for."""
    model = sources.model
    cohort = model.cohort
    grid = " x ".join(str(number) for number in cohort.grid)
    spacing = " x ".join(f"{number:g}" for number in cohort.spacing_mm)
    any_grid = bool(sources.kind is not None and sources.kind.any_grid)
    items = [
        f"Volumes of other modalities than {', '.join(cohort.channels)}: it has never seen any.",
        "Volumes prepared by another recipe than its own (below): intensities and places would mean something else.",
        "Decisions about a patient: it is research software, and nothing here is a clinical evaluation.",
        "Naming a disease: a score says how far a voxel departs from the healthy training subjects, not why.",
    ]
    if not any_grid:
        items.insert(1, f"Grids other than {grid} voxels of {spacing} mm: the recipe brings a volume to that grid.")
    return Section(
        title="Intended Use",
        sentences=(
            f"It gives each voxel of a {', '.join(cohort.channels)} volume a score: the higher, the further the voxel "
            f"departs from what {len(cohort.subjects)} training volumes without known anomalies have taught it. A "
            "person who reads such volumes is to look at what it marks.",
            "It was not made for, and not judged on:",
        ),
        items=tuple(items),
    )


def _changed(sources: CardSources) -> tuple[tuple[str, str, str], ...]:
    if sources.kind is None:
        return ()
    training = TrainingSettings() if sources.spec is None else sources.spec.training
    here = flat_settings(sources.model.settings, training)
    there = flat_settings(sources.kind.settings_type().model_dump(mode="json"), TrainingSettings())
    machine = ("training.device", "training.threads")  # where it was computed, and not what
    return tuple(
        (key, _text(value), _text(there.get(key)))
        for key, value in here.items()
        if key not in machine and there.get(key) != value
    )


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _num_values(folder: Path) -> int | None:
    """Count numbers in a weights file from its header alone."""
    try:
        with safetensors.safe_open(folder / WEIGHTS_FILE, "numpy") as file:
            total = 0
            for name in file.keys():  # noqa: SIM118 - not a mapping
                size = 1
                for edge in file.get_slice(name).get_shape():
                    size *= edge
                total += size
            return total
    except (OSError, safetensors.SafetensorError):
        return None


def recipe_rows(recipe: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a recipe's settings by dotted key."""
    return tuple((key, _text(value)) for key, value in _leaves(recipe))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found
