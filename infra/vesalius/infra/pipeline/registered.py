"""Models by any name: a run's, a registered one's, a folder's; scored, and promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.infra.pipeline.judging import METHODS_PATH, kept_rows, score_by, score_run, scores_folder
from vesalius.infra.pipeline.tracked import tracked_as
from vesalius.infra.pipeline.training import require_model
from vesalius.platform import registry
from vesalius.platform.config import digest
from vesalius.platform.errors import SettingError
from vesalius.platform.models import ModelCard, model_digest, read_card
from vesalius.platform.progress import silent
from vesalius.platform.registry import Lineage
from vesalius.platform.runs import RunFolder, begun_run, find_run
from vesalius.platform.scoring import ScoreInfo, ScoreStore
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.evaluation import Figures, VoxelSet
    from vesalius.platform.progress import Progress
    from vesalius.platform.registry import Gates, Promotion
    from vesalius.platform.store import Place


def model_folder(reference: str, home: Path) -> Path:
    """Return the local folder of a model named by run id, ``models:/NAME@champion`` or a path.

    Raises:
        RunError, ModelError: there is no such run or model.
    """
    return registry.resolve(reference, home=home)


def score_reference(
    reference: str,
    split: str,
    *,
    home: Path,
    store: Place | None = None,
    out: Path | None = None,
    device: str = "auto",
    num_workers: int = 0,
    progress: Progress = silent,
) -> tuple[CohortStore, ScoreStore, ModelCard]:
    """Score a split with a run's or a registered model.

    A run's maps are kept with the run; any other model's below ``out``, which is then needed, as is ``store``.
    """
    if (home / "runs" / reference / "run.json").is_file():
        run = find_run(home, reference)
        cohort = CohortStore.open(store or run.spec.store)
        scores = score_run(run, split, store=cohort, device=device, num_workers=num_workers, progress=progress)
        return cohort, scores, require_model(run)
    folder = model_folder(reference, home)
    if store is None or out is None:
        raise SettingError(f"'{reference}' is not a run: say what to score with --store and where to with --out")
    cohort = CohortStore.open(store)
    card = read_card(folder)
    info = ScoreInfo(
        method=card.method,
        model_digest=model_digest(folder),
        cohort_digest=cohort.digest,
        store=str(cohort.path),
        split=split,
        run_id=card.run_id,
    )
    place = out / "scores" / split
    scores = score_by(folder, cohort, split, place, info, device, num_workers, progress)
    return cohort, scores, card


def promote_run(
    run: RunFolder,
    name: str,
    *,
    home: Path,
    store: Place | None = None,
    gates: Gates | None = None,
    why: str = "",
    dry_run: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Promotion:
    """Register a run's model and let it challenge the champion on the gate split; see ``registry.promote``.

    The model card of that day is kept with the record.

    Raises:
        RunError: the run is not finished.
        CohortError: there is no gate split, or it shares subjects with another.
    """
    require_model(run)
    cohort = CohortStore.open(store or run.spec.store)
    tracked = tracked_as(run.spec)

    def describe(promotion: Promotion, gate: Mapping[VoxelSet, Figures]) -> Mapping[str, str]:
        from vesalius.infra.cards import as_markdown, write_card
        from vesalius.infra.cards.finding import sources_of_run

        card = write_card(sources_of_run(run, promotion=promotion, gate=gate, subgroups=False))
        return {"card.json": card.model_dump_json(indent=1) + "\n", "card.md": as_markdown(card)}

    return registry.promote(
        run.model,
        name,
        home=home,
        store=cohort,
        methods=METHODS_PATH,
        uri=None if tracked is None else tracked[0],
        mlflow_run_id=None if tracked is None else tracked[1],
        gates=gates,
        lineage=lineage_of(run, home),
        why=why,
        dry_run=dry_run,
        describe=describe,
        test_figures=kept_rows(run, scores_folder(run, "test", cohort).name),
        device=device,
        progress=progress,
    )


def lineage_of(run: RunFolder, home: Path) -> Lineage:
    """Return what is known of where a run comes from: its tracked run, and the run it started from."""
    spec = run.spec
    parent = spec.start_from or spec.shared_from or ("" if spec.forerunner is None else spec.forerunner.run)
    digest_of_parent = ""
    if parent:
        other = begun_run(home, parent.partition("@")[0])
        if other is not None:
            digest_of_parent = digest([other.spec.cohort_digest, other.spec.settings])
    return Lineage(tracked_run=spec.mlflow_run_id or "", parent=parent, parent_digest=digest_of_parent)
