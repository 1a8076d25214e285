"""Promotion: a candidate becomes champion if it is better on the gate, and surely so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.platform.config import Settings
from vesalius.platform.errors import ModelError
from vesalius.platform.evaluation import Histogram, average_precision
from vesalius.platform.models import load_model, read_card
from vesalius.platform.progress import silent
from vesalius.platform.registry.champions import alone, crown
from vesalius.platform.registry.fetching import resolve
from vesalius.platform.registry.gate import (
    PromotionSettings,
    check_fits,
    compare,
    gate_subjects,
    require_lesions,
    score_gate,
)
from vesalius.platform.registry.versions import champion_version, check_name, history, register, tag_version
from vesalius.platform.tables import resolve as import_path
from vesalius.platform.tracking import answering, client, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from vesalius.platform.models import ModelCard
    from vesalius.platform.progress import Progress
    from vesalius.platform.store import CohortStore, SubjectRecord


class Promotion(Settings):
    """What became of a candidate.

    Attributes:
        promoted: whether it is the champion now.
        name: of the registered model.
        version: that holds the candidate.
        champion_version: the champion it was compared with; None where there was none.
        run_id: the candidate's run.
        average_precision: the candidate's, on the gate.
        champion_average_precision: the champion's, on the same subjects.
        difference: the candidate's minus the champion's.
        lower_bound: what the difference exceeds with ``confidence``; above 0 promotes.
        short_by: how much the lower bound lacks; 0 where promoted.
        low: lower end of the two-sided interval of the difference.
        high: upper end of it.
        probability: share of resamples in which the candidate is the better.
        confidence: of the bound and the interval.
        voxel_set: voxels that counted.
        num_subjects: gate subjects that counted.
        num_lesions: those with a lesion.
        test_figures: the candidate's on the test split, as given; nothing is chosen by them.
        champion_test_figures: the champion's, as given when it was promoted.
        sentence: for the person who asked.
    """

    promoted: bool
    name: str
    version: str
    champion_version: str | None = None
    run_id: str = ""
    average_precision: float | None = None
    champion_average_precision: float | None = None
    difference: float | None = None
    lower_bound: float | None = None
    short_by: float = 0.0
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    confidence: float
    voxel_set: str
    num_subjects: int
    num_lesions: int
    test_figures: dict[str, Any] = Field(default_factory=dict)
    champion_test_figures: dict[str, Any] = Field(default_factory=dict)
    sentence: str


_GATE_FIGURES = frozenset(set(Promotion.model_fields) - {"test_figures", "champion_test_figures", "sentence"})


def promote(
    model: Path,
    name: str,
    *,
    home: Path,
    store: CohortStore,
    methods: str,
    uri: str | None = None,
    mlflow_run_id: str | None = None,
    settings: PromotionSettings | None = None,
    test_figures: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Promotion:
    """Register a model, and make it the champion if it beats the champion on the gate.

    Both are scored on the gate split of one store. They are compared by average precision over all voxels of all
    its subjects, and the candidate wins where the one-sided lower bound of the difference (paired bootstrap over
    subjects) lies above zero. The first champion of a name needs no comparison. Promotions of one name wait for
    each other. Everything is checked before anything is registered. A candidate that does not win stays registered,
    and the answer says by how much it fell short.

    Args:
        model: the candidate's folder.
        name: registered model.
        home: with the lock, the gate's scores and the fetched champion; decides the tracking store too.
        store: the cohort the candidate was trained on.
        methods: where the methods' table is, ``package.module:NAME``; a constant of the program.
        uri: the tracking store where it is not that of ``home``.
        mlflow_run_id: the candidate's tracked run.
        settings: of the comparison.
        test_figures: recorded and returned beside the champion's; they take no part in the decision.
        device: where to score.
        progress: of the scoring.

    Raises:
        CohortError: the gate is empty, lacks lesions, or shares a subject with another split.
        ModelError: candidate or champion cannot be read or does not fit the gate, or the champion changed meanwhile.
        RunError: nothing answers at the tracking store.
    """
    check_name(name)
    settings = settings or PromotionSettings()
    uri = uri or tracking_uri(home)
    reported = dict(test_figures or {})
    table = import_path(methods)
    gate = gate_subjects(store)
    candidate = read_card(model)
    check_fits(candidate, store, gate, f"the candidate (run '{candidate.run_id}')", same_cohort=True)
    mlflow = client(uri)
    with alone(home, name, progress):
        champion = champion_version(mlflow, uri, name)
        rival: Path | None = None
        if champion is not None:
            rival = resolve(f"models:/{name}/{champion}", home=home, uri=uri)
            _check_rival(rival, store, gate, name, champion)

        def scored(folder: Path, who: str) -> list[Histogram]:
            method, card = load_model(folder, table, device)
            return score_gate(
                method,
                card,
                store,
                gate,
                home / "gate" / name,
                settings,
                device=device,
                progress=lambda done, total, note: progress(done, total, f"{who}: {note}"),
            )

        mine = scored(model, "candidate")
        with_lesion = sum(histogram.num_positives > 0 for histogram in mine)
        require_lesions(store, with_lesion, f"with a lesion voxel ({settings.voxel_set} voxels)")
        its_own = average_precision(Histogram.pooled(mine))
        assert its_own is not None, "lesion voxels define it"
        if champion is not None and rival is not None and read_card(rival).digest == candidate.digest:
            theirs, version = None, champion
        else:
            theirs = None if rival is None else scored(rival, "champion")
            version = register(model, name, home=home, methods=methods, uri=uri, mlflow_run_id=mlflow_run_id).version
        answer = _decide(name, version, champion, candidate, its_own, mine, theirs, settings)
        known = {facts.version: facts for facts in history(name, home=home, uri=uri)}
        answer = answer.model_copy(
            update={
                "test_figures": reported,
                "champion_test_figures": known[champion].test_figures if champion in known else {},
            }
        )
        _record(mlflow, uri, answer)
        return answer


def _check_rival(folder: Path, store: CohortStore, gate: list[SubjectRecord], name: str, version: str) -> None:
    who = f"the champion (version {version} of '{name}')"
    try:
        card = read_card(folder)
    except ModelError as error:
        raise ModelError(f"{who} cannot be read: {error}; go back with --rollback, or use another name") from None
    check_fits(card, store, gate, who, same_cohort=False)


def _decide(
    name: str,
    version: str,
    champion: str | None,
    candidate: ModelCard,
    its_own: float,
    mine: list[Histogram],
    theirs: list[Histogram] | None,
    settings: PromotionSettings,
) -> Promotion:
    facts: dict[str, Any] = {
        "name": name,
        "version": version,
        "run_id": candidate.run_id,
        "average_precision": its_own,
        "confidence": settings.confidence,
        "voxel_set": settings.voxel_set,
        "num_subjects": len(mine),
        "num_lesions": sum(histogram.num_positives > 0 for histogram in mine),
        "champion_version": champion,
    }
    if champion is None:
        sentence = f"version {version} is the first champion of '{name}' (average precision {its_own:.4f} on the gate)"
        return Promotion(promoted=True, sentence=sentence, **facts)
    if theirs is None:
        sentence = f"the model of run '{candidate.run_id}' is the champion of '{name}' already (version {champion})"
        return Promotion(promoted=True, champion_average_precision=its_own, sentence=sentence, **facts)
    result = compare(mine, theirs, settings)
    promoted = result.lower_bound > 0
    figures = (
        f"average precision {result.a:.4f} on the gate against {result.b:.4f} of version {champion} "
        f"(difference {result.difference:+.4f}, above {result.lower_bound:+.4f} with "
        f"{result.confidence:.0%} confidence; {result.num_subjects} subjects)"
    )
    if promoted:
        sentence = f"version {version} is the new champion of '{name}': {figures}"
    else:
        sentence = f"version {version} of '{name}' fell short of the champion by {-result.lower_bound:.4f}: {figures}"
    return Promotion(
        promoted=promoted,
        champion_average_precision=result.b,
        difference=result.difference,
        lower_bound=result.lower_bound,
        short_by=0.0 if promoted else -result.lower_bound,
        low=result.low,
        high=result.high,
        probability=result.probability,
        sentence=sentence,
        **facts,
    )


def _record(mlflow: Any, uri: str, answer: Promotion) -> None:
    name, version, champion = answer.name, answer.version, answer.champion_version
    if version == champion:
        return
    with answering(uri, f"promote version {version} of '{name}'", ModelError):
        # The lock keeps out whoever shares this home; another home on the same server is caught here.
        if champion_version(mlflow, uri, name) != champion:
            raise ModelError(f"the champion of '{name}' changed while the candidate was scored: promote it again")
        tags: dict[str, Any] = {
            "gate": answer.model_dump(mode="json", include=set(_GATE_FIGURES)),
            "test_figures": answer.test_figures,
        }
        if answer.promoted:
            tags["previous_champion"] = champion or ""
            tag_version(mlflow, name, version, tags)
            crown(mlflow, uri, name, version)
        else:
            tag_version(mlflow, name, version, tags)
        tag_version(mlflow, name, version, {"decision": "promoted" if answer.promoted else "kept back"})
