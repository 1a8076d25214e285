"""The card of a model by any name: a run's is written, a registered version's is the one that was kept with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vesalius.infra.cards.document import CardDocument, read_document
from vesalius.infra.cards.writing import CardSources, Subgroup, write_card
from vesalius.infra.pipeline.judging import kept_figures, scores_folder
from vesalius.infra.pipeline.training import require_model
from vesalius.methods import METHODS
from vesalius.platform import registry
from vesalius.platform.errors import CohortError, ModelError, StoreError
from vesalius.platform.evaluation import VOXEL_SETS, evaluate
from vesalius.platform.models import read_card
from vesalius.platform.runs import begun_run
from vesalius.platform.scoring import ScoreStore
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.evaluation import Figures, VoxelSet
    from vesalius.platform.registry import Promotion
    from vesalius.platform.runs import RunFolder

SPLITS = ("validation", "gate", "test")


def card_of(reference: str, home: Path) -> CardDocument:
    """Return a model's card.

    Args:
        reference: a run id, ``models:/NAME@champion``, ``models:/NAME/3``, or a folder of a model.
        home: of runs and models.

    Raises:
        RunError, ModelError: there is no such run or model, or what was kept is not what was recorded.
    """
    run = begun_run(home, reference)
    if run is not None:
        return write_card(sources_of_run(run))
    if reference.startswith("models:"):
        kept = kept_card(reference, home)
        if kept is not None:
            return kept
    folder = registry.resolve(reference, home=home)
    card = read_card(folder)
    title = reference if reference.startswith("models:") else ""
    return write_card(
        CardSources(model=card, folder=folder, kind=_kind(card.method), summary=_summary(card.method), registered=title)
    )


def kept_card(reference: str, home: Path) -> CardDocument | None:
    """Return the card that was kept when a registered version was decided on; None where there is none."""
    name, version = registry.version_of(reference, home=home)
    standing = registry.standing_of(name, home=home)
    for entry in reversed(standing.entries):
        if entry.overtaken or entry.record.version != version or "card.json" not in entry.record.attachments:
            continue
        text = registry.attachment_of(entry.record, "card.json", home=home)
        origin = f"the card of version {version} of '{name}'"
        try:
            value = json.loads(text or "")
        except (ValueError, RecursionError):
            raise ModelError(f"{origin} is damaged") from None
        if not isinstance(value, dict):
            raise ModelError(f"{origin} is damaged")
        return read_document(value, origin)
    return None


def sources_of_run(
    run: RunFolder,
    *,
    promotion: Promotion | None = None,
    gate: Mapping[VoxelSet, Figures] | None = None,
    subgroups: bool = True,
) -> CardSources:
    """Return what a run's card is written from: its folder, its store, the figures that were kept.

    Args:
        run: finished.
        promotion: what the gates said of it just now.
        gate: its figures on the gate, taken for that.
        subgroups: also count figures of groups, of splits whose maps are there.

    Raises:
        RunError: the run is not finished.
    """
    card, spec = require_model(run), run.spec
    store = _store(spec.store, spec.cohort_digest)
    figures: dict[str, Mapping[VoxelSet, Figures]] = {}
    for split in SPLITS:
        kept = kept_figures(run, split if store is None else scores_folder(run, split, store).name)
        if split == "gate" and gate:
            kept = dict(gate)
        if kept:
            figures[split] = kept
    checkpoints = Checkpoints(run.checkpoints)
    last = checkpoints.last()
    registered = "" if promotion is None or not promotion.version else f"{promotion.name}, version {promotion.version}"
    return CardSources(
        model=card,
        folder=run.model,
        kind=_kind(card.method),
        summary=_summary(card.method),
        spec=spec,
        seconds={} if last is None else checkpoints.state(last).seconds,
        store=store,
        figures=figures,
        subgroups=[] if store is None or not subgroups else _subgroups(run, store, figures),
        promotion=promotion,
        registered=registered,
    )


def _subgroups(run: RunFolder, store: CohortStore, figures: Mapping[str, Mapping[VoxelSet, Figures]]) -> list[Subgroup]:
    """Count the groups of splits that have figures and whose maps are still there."""
    found = []
    for split in figures:
        members: dict[str, list[str]] = {}
        for record in store.subjects(split):
            if record.group is not None:
                members.setdefault(record.group, []).append(record.subject_id)
        if len(members) < 2:
            continue
        try:
            scores = ScoreStore.open(scores_folder(run, split, store))
            thresholds = {voxels: one for voxels in VOXEL_SETS if (one := figures[split][voxels].threshold) is not None}
            for group, ids in sorted(members.items()):
                counted = evaluate(scores, store, thresholds, subjects=ids)
                found.append(Subgroup(split=split, name=f"group {group}", figures=counted))
        except (StoreError, CohortError, KeyError):  # maps that are gone, or of a part: the split's own figures stand
            continue
    return found


def _store(place: str, digest: str) -> CohortStore | None:
    try:
        store = CohortStore.open(place)
    except StoreError:
        return None
    return store if store.digest == digest else None


def _kind(method: str) -> type[Method] | None:
    if method not in METHODS:
        return None
    kind: type[Method] = lookup(METHODS, method, "method")
    return kind


def _summary(method: str) -> str:
    return METHODS[method].summary if method in METHODS else ""
