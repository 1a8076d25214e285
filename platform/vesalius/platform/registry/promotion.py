"""Promotion: a candidate becomes champion if every gate lets it through."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import digest
from vesalius.platform.errors import ModelError
from vesalius.platform.evaluation import VOXEL_SETS, Figures, Histogram, average_precision, evaluate
from vesalius.platform.models import load_model, read_card
from vesalius.platform.progress import silent
from vesalius.platform.registry.attachments import attach_files
from vesalius.platform.registry.champions import alone
from vesalius.platform.registry.fetching import resolve
from vesalius.platform.registry.gate import (
    check_fits,
    gate_subjects,
    require_lesions,
    score_gate,
    time_volumes,
)
from vesalius.platform.registry.gates import Evidence, Gates, Judged, Lineage, check_subgroups, judge
from vesalius.platform.registry.log import append, read
from vesalius.platform.registry.outcome import Promotion, compared, gate_figures, sentence_of
from vesalius.platform.registry.records import LONGEST_REASON, PromotionRecord, current_user, one_line
from vesalius.platform.registry.settling import settle
from vesalius.platform.registry.versions import check_name, history, register, registered_as
from vesalius.platform.tables import resolve as import_path
from vesalius.platform.tracking import client, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from vesalius.platform.evaluation import Threshold, VoxelSet
    from vesalius.platform.models import ModelCard
    from vesalius.platform.progress import Progress
    from vesalius.platform.registry.gates import Timing
    from vesalius.platform.store import CohortStore, SubjectRecord

    Describe = Callable[["Promotion", "dict[VoxelSet, Figures]"], Mapping[str, str]]

_ROUNDS = 8


def promote(
    model: Path,
    name: str,
    *,
    home: Path,
    store: CohortStore,
    methods: str,
    uri: str | None = None,
    mlflow_run_id: str | None = None,
    gates: Gates | None = None,
    lineage: Lineage | None = None,
    why: str = "",
    by: str | None = None,
    dry_run: bool = False,
    describe: Describe | None = None,
    test_figures: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Promotion:
    """Register a model, and make it the champion if every gate lets it through.

    Candidate and champion are scored on the gate split of one store. By default they are compared by average precision
    over all voxels of all its subjects, and the candidate wins where the one-sided lower bound of the difference
    (paired bootstrap over subjects) lies above zero. The first champion of a name needs no comparison. Everything is
    checked before anything is registered. Whatever is decided is recorded in the log of promotions; where somebody
    elsewhere changed the champion meanwhile, the candidate is compared with the new one.

    Args:
        model: the candidate's folder.
        name: registered model.
        home: with the lock, the gate's scores and the fetched champion; decides the tracking store too.
        store: the cohort the candidate was trained on.
        methods: where the methods' table is, ``package.module:NAME``; a constant of the program.
        uri: the tracking store where it is not that of ``home``.
        mlflow_run_id: the candidate's tracked run.
        gates: what is asked of it; None asks what ``gates/default.yaml`` says.
        lineage: what is known of its run beside the model.
        why: for the record.
        by: who asks; None asks the environment.
        dry_run: ask the gates and write nothing to the registry.
        describe: makes files that are kept with the record (a model card), from the decision and the figures on the
            gate.
        test_figures: recorded and returned beside the champion's; they take no part in the decision.
        device: where to score.
        progress: of the scoring.

    Raises:
        CohortError: the gate is empty, lacks lesions that are needed, or shares a subject with another split.
        ModelError: candidate or champion cannot be read or does not fit the gate, or the champion changed again and
            again.
        SettingError: the gates name labels that no gate subject has.
        RunError: nothing answers at the tracking store.
    """
    check_name(name)
    gates = gates or Gates()
    uri = uri or tracking_uri(home)
    reported = dict(test_figures or {})
    gate = gate_subjects(store, with_lesions=gates.compares)
    check_subgroups(gates, store.subjects("gate"))
    candidate = read_card(model)
    check_fits(candidate, store, gate, f"the candidate (run '{candidate.run_id}')", same_cohort=True)
    mlflow = client(uri)
    by, why = by or current_user(), one_line(why, LONGEST_REASON)
    court = _Court(name=name, home=home, store=store, gate=gate, gates=gates, methods=methods, device=device)
    court.progress = progress
    with alone(home, name, progress) as home_id:
        for _ in range(_ROUNDS):
            standing = read(mlflow, uri, name) if dry_run else settle(mlflow, uri, name, home_id)
            champion = standing.champion or None
            rival = None
            if champion is not None:
                rival = resolve(f"models:/{name}/{champion}", home=home, uri=uri)
                _check_rival(rival, store, gate, name, champion)
            mine = court.candidate(model)
            facts = court.facts(mine, candidate, champion)
            known = {one.version: one for one in history(name, home=home, uri=uri)} if champion else {}
            facts |= {
                "by": by,
                "why": why,
                "confidence": None if gates.better is None else gates.better.confidence,
                "test_figures": reported,
                "champion_test_figures": known[champion].test_figures if champion in known else {},
            }
            if rival is not None and read_card(rival).digest == candidate.digest:
                return _champion_already(facts, dry_run=dry_run)
            theirs = None if rival is None else court.champion(rival)
            evidence = court.evidence(mine, theirs, champion, model, lineage or Lineage())
            verdicts, comparison = judge(gates, evidence)
            facts |= compared(comparison, 0.0 if gates.better is None else gates.better.margin)
            if theirs is not None:
                facts["champion_average_precision"] = average_precision(Histogram.pooled(theirs.histograms))
            passed = all(verdict.passes for verdict in verdicts)
            facts |= {"verdicts": verdicts, "passed": passed, "dry_run": dry_run}
            if dry_run:
                facts["version"] = registered_as(model, name, uri=uri)
                return Promotion(promoted=False, sentence=sentence_of(facts, verdicts, dry_run=True), **facts)
            registered = register(model, name, home=home, methods=methods, uri=uri, mlflow_run_id=mlflow_run_id)
            facts["version"] = registered.version
            answer = Promotion(promoted=passed, sentence=sentence_of(facts, verdicts, dry_run=False), **facts)
            # Made a moment ago, it has a beginning now; what was compared stays what was looked at.
            life = standing.life if standing.exists else settle(mlflow, uri, name, home_id).life
            figures = evaluate(mine.scores, store, _by_set(candidate)) if describe is not None else {}
            record = _record(answer, standing.head, life, candidate, rival, store, gates)
            files = {} if describe is None else dict(describe(answer, figures))
            record = attach_files(
                mlflow, uri, record, registered.tracked_run, {**files, "record.json": _full(record, gates)}
            )
            append(mlflow, uri, record)
            after = settle(mlflow, uri, name, home_id)
            entry = after.entry_of(record.token)
            if entry is not None and not entry.overtaken:
                return answer.model_copy(update={"record": entry.number})
            progress(0, 0, f"the champion of '{name}' changed meanwhile: comparing with version {after.champion}")
    raise ModelError(
        f"the champion of '{name}' changed {_ROUNDS} times while the candidate was compared: promote it again when "
        "others have ended"
    )


@dataclass(kw_only=True)
class _Court:
    """What stays the same while the champion may change: the gate, and the candidate's scores of it."""

    name: str
    home: Path
    store: CohortStore
    gate: Sequence[SubjectRecord]
    gates: Gates
    methods: str
    device: torch.device | str
    progress: Progress = silent
    _mine: Judged | None = None
    _timing: Timing | None = None

    def candidate(self, model: Path) -> Judged:
        if self._mine is None:
            self._mine = self._judged(model, "candidate")
        return self._mine

    def champion(self, folder: Path) -> Judged:
        return self._judged(folder, "champion")

    def _judged(self, folder: Path, who: str) -> Judged:
        method, card = load_model(folder, import_path(self.methods), self.device)
        scores = score_gate(
            method,
            card,
            self.store,
            self.home / "gate" / self.name,
            batch_volumes=self.gates.batch_volumes,
            device=self.device,
            progress=lambda done, total, note: self.progress(done, total, f"{who}: {note}"),
        )
        return Judged.of(card, scores, self.store, self.gate, self.gates.voxel_set)

    def facts(self, mine: Judged, candidate: ModelCard, champion: str | None) -> dict[str, Any]:
        with_lesion = sum(histogram.num_positives > 0 for histogram in mine.histograms)
        if self.gates.compares:
            require_lesions(self.store, with_lesion, f"with a lesion voxel ({self.gates.voxel_set} voxels)")
        return {
            "name": self.name,
            "version": "",
            "run_id": candidate.run_id,
            "average_precision": average_precision(Histogram.pooled(mine.histograms)),
            "voxel_set": self.gates.voxel_set,
            "num_subjects": len(mine.histograms),
            "num_lesions": with_lesion,
            "champion_version": champion,
        }

    def evidence(
        self, mine: Judged, theirs: Judged | None, champion: str | None, model: Path, lineage: Lineage
    ) -> Evidence:
        def timed(num: int) -> Timing:
            if self._timing is None:
                method, _ = load_model(model, import_path(self.methods), self.device)
                self._timing = time_volumes(method, self.store, num, self.device, self.progress)
            return self._timing

        return Evidence(
            store=self.store,
            subjects=self.store.subjects("gate"),
            candidate=mine,
            champion=theirs,
            champion_version=champion,
            lineage=lineage,
            timed=timed,
        )


def _by_set(card: ModelCard) -> dict[VoxelSet, Threshold]:
    return {voxels: card.thresholds[voxels] for voxels in VOXEL_SETS if voxels in card.thresholds}


def _check_rival(folder: Path, store: CohortStore, gate: Sequence[SubjectRecord], name: str, version: str) -> None:
    who = f"the champion (version {version} of '{name}')"
    try:
        card = read_card(folder)
    except ModelError as error:
        raise ModelError(f"{who} cannot be read: {error}; go back with --rollback, or use another name") from None
    check_fits(card, store, list(gate), who, same_cohort=False)


def _champion_already(facts: dict[str, Any], *, dry_run: bool) -> Promotion:
    champion = facts["champion_version"]
    sentence = f"the model of run '{facts['run_id']}' is the champion of '{facts['name']}' already (version {champion})"
    facts = {**facts, "version": champion, "champion_average_precision": facts["average_precision"]}
    return Promotion(promoted=True, passed=True, dry_run=dry_run, sentence=sentence, **facts)


def _record(
    answer: Promotion,
    follows: int,
    life: int,
    candidate: ModelCard,
    rival: Path | None,
    store: CohortStore,
    gates: Gates,
) -> PromotionRecord:
    return PromotionRecord(
        kind="promoted" if answer.promoted else "kept back",
        name=answer.name,
        version=answer.version,
        champion_version=answer.champion_version or "",
        follows=follows,
        life=life,
        by=answer.by,
        why=answer.why,
        sentence=answer.sentence,
        model_digest=candidate.digest,
        champion_digest="" if rival is None else read_card(rival).digest,
        cohort_digest=store.digest,
        gates_digest=digest(gates),
        code_version=importlib.metadata.version("vesalius"),
        promotion={
            "gate": gate_figures(answer),
            "verdicts": [verdict.model_dump(mode="json") for verdict in answer.verdicts],
            "test_figures": answer.test_figures,
            "champion_test_figures": answer.champion_test_figures,
        },
    )


def _full(record: PromotionRecord, gates: Gates) -> str:
    document = {**record.model_dump(mode="json"), "gates": gates.model_dump(mode="json")}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
