"""A card from what is known: the model, its run, its figures, the store, the gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vesalius.infra.cards import caveats, data, details, results
from vesalius.infra.cards.document import CardDocument
from vesalius.platform.config import digest
from vesalius.platform.registry.records import now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.evaluation import Figures, VoxelSet
    from vesalius.platform.models import ModelCard
    from vesalius.platform.registry import Promotion
    from vesalius.platform.runs import RunSpec
    from vesalius.platform.store import CohortStore


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """Figures of a part of a split."""

    split: str
    name: str
    figures: Mapping[VoxelSet, Figures]


@dataclass(frozen=True, kw_only=True)
class CardSources:
    """What a card is written from. What is None is not known, and the card says so.

    Attributes:
        model: the model's own card.
        folder: of its two files.
        kind: the method's class; None where this version has no such method.
        summary: the methods' table's sentence on it.
        spec: of its run.
        seconds: of training, by stage.
        store: the cohort, where it can still be read and is still the same.
        figures: by split and voxel set.
        subgroups: of these splits.
        promotion: the gates' answer.
        registered: ``NAME version N``, where it is registered.
    """

    model: ModelCard
    folder: Path | None = None
    kind: type[Method] | None = None
    summary: str = ""
    spec: RunSpec | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    store: CohortStore | None = None
    figures: Mapping[str, Mapping[VoxelSet, Figures]] = field(default_factory=dict)
    subgroups: Sequence[Subgroup] = ()
    promotion: Promotion | None = None
    registered: str = ""


def write_card(sources: CardSources) -> CardDocument:
    """Return the card of a model. Everything on it is computed from the sources."""
    model = sources.model
    trained = len(model.cohort.subjects)
    return CardDocument(
        title=sources.registered or model.run_id or model.method,
        summary=(
            f"{sources.summary or model.method}, trained on {trained} healthy volumes of "
            f"{', '.join(model.cohort.channels)}"
        ),
        written=now(),
        identity=_identity(sources),
        figures={
            split: {voxels: one.model_dump(mode="json") for voxels, one in of_split.items()}
            for split, of_split in sources.figures.items()
        },
        sections=(
            details.model_details(sources),
            details.intended_use(sources),
            data.factors(sources),
            results.metrics(sources),
            data.evaluation_data(sources),
            data.training_data(sources),
            results.quantitative_analyses(sources),
            data.ethical_considerations(sources),
            caveats.caveats(sources),
        ),
    )


def _identity(sources: CardSources) -> dict[str, Any]:
    model, spec = sources.model, sources.spec
    return {
        "method": model.method,
        "run_id": model.run_id,
        "model_digest": model.digest,
        "weights_sha256": model.weights_sha256,
        "settings_digest": digest(model.settings),
        "recipe_digest": digest(model.recipe),
        "cohort_digest": model.cohort.digest,
        "code_version": model.vesalius_version,
        "started_from": None if spec is None else spec.start_from,
        "tracked_run": None if spec is None else spec.mlflow_run_id,
    }
