"""Registered models against a real SQLite store, and once against a real server."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from vesalius.platform.config import digest
from vesalius.platform.errors import CohortError, ModelError, RunError
from vesalius.platform.models import load_model, read_card, update_card
from vesalius.platform.registry import (
    Gates,
    Promotion,
    PromotionRecord,
    history,
    pack_brain,
    promote,
    register,
    resolve,
    rollback,
)
from vesalius.platform.registry.champions import alone
from vesalius.platform.registry.gates import BetterGate
from vesalius.platform.registry.log import append, read
from vesalius.platform.registry.settling import settle
from vesalius.platform.registry.versions import LOG_SUFFIX
from vesalius.platform.runs import RunSpec, create_run
from vesalius.platform.scoring import score_volume, volume_of
from vesalius.platform.store import CohortStore, SourceFacts, SubjectArrays
from vesalius.platform.tracking import client, start_run, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.platform.store import SubjectRecord

METHODS = "toy_methods:METHODS"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _toy_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(str(HERE))
    yield
    assert "MLFLOW_TRACKING_URI" not in os.environ, "a test left its tracking store to those that come after"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making its tables takes seconds. Each test has a model name of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"model-{digest(request.node.name)[:12]}"


def _model(folder: Path, store: CohortStore, share: float, **changes: Any) -> Path:
    from toy_methods import write_model  # type: ignore[import-not-found]  # made importable by the test

    written: Path = write_model(folder, store, share, **changes)
    return written


def _promote(home: Path, name: str, model: Path, store: CohortStore, **options: Any) -> Promotion:
    return promote(model, name, home=home, store=store, methods=METHODS, **options)


def _remake(
    store: CohortStore,
    path: Path,
    change: Callable[[SubjectRecord, SubjectArrays], tuple[SubjectRecord, SubjectArrays] | None],
    **options: Any,
) -> CohortStore:
    """Return a copy of a store with subjects changed or left out."""
    copy = CohortStore.create(path, recipe=options.get("recipe", store.recipe), channels=store.channels)
    with copy.lock():
        records = []
        for record in store.subjects():
            lesion = store.mask(record.subject_id, "lesion")
            arrays = SubjectArrays(
                image=store.image(record.subject_id), brain=store.brain(record.subject_id), lesion=lesion
            )
            fresh = record.model_copy(update={"arrays": {}, "recipe_digest": copy.recipe_digest, "has_lesion": False})
            changed = change(fresh, arrays)
            if changed is not None:
                records.append(copy.write(*changed))
        copy.commit(records)
    return CohortStore.open(path)


@contextlib.contextmanager
def _mlflow(uri: str) -> Iterator[Any]:
    import mlflow

    # By the environment alone: ``mlflow.set_tracking_uri`` writes into it for good, and the tests that come after
    # would track in whatever folder they stand in.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_REGISTRY_URI", uri)
        yield mlflow


def _pooled_ap(model: Path, store: CohortStore) -> float:
    """Average precision over all voxels of the gate, by scikit-learn, from maps kept as float16."""
    from toy_methods import METHODS as table

    method, _ = load_model(model, table)
    scores, labels = [], []
    for record in store.subjects("gate"):
        score, _ = score_volume(method, volume_of(store, record))
        lesion = store.mask(record.subject_id, "lesion")
        scores.append(score.map.numpy().astype(np.float16).astype(np.float64).ravel())
        labels.append((np.zeros(record.shape, dtype=bool) if lesion is None else lesion).ravel())
    return float(average_precision_score(np.concatenate(labels), np.concatenate(scores)))


# ---- promotion


def test_the_first_model_becomes_champion(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", toy_store, 0.4)
    answer = _promote(home, name, model, toy_store)
    assert answer.promoted
    assert (answer.version, answer.champion_version, answer.difference) == ("1", None, None)
    assert (answer.num_subjects, answer.num_lesions) == (4, 2)
    assert answer.average_precision == pytest.approx(_pooled_ap(model, toy_store), abs=1e-9)
    assert "is the first champion" in answer.sentence
    (facts,) = history(name, home=home)
    assert facts.champion
    assert facts.decision == "promoted"
    assert facts.run_id == "run-0.4"
    assert facts.cohort_digest == toy_store.digest
    assert facts.gate["average_precision"] == answer.average_precision


def test_only_a_better_model_takes_over(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    weak = _model(tmp_path / "weak", toy_store, 0.3)
    strong = _model(tmp_path / "strong", toy_store, 0.9)
    _promote(home, name, weak, toy_store)
    won = _promote(home, name, strong, toy_store)
    assert won.promoted
    assert (won.version, won.champion_version) == ("2", "1")
    assert won.difference == pytest.approx(_pooled_ap(strong, toy_store) - _pooled_ap(weak, toy_store), abs=1e-9)
    assert won.lower_bound is not None
    assert won.lower_bound > 0

    other = _model(tmp_path / "other", toy_store, 0.5)
    lost = _promote(home, name, other, toy_store)
    assert not lost.promoted
    assert (lost.version, lost.champion_version) == ("3", "2")
    assert lost.difference == pytest.approx(_pooled_ap(other, toy_store) - _pooled_ap(strong, toy_store), abs=1e-9)
    assert lost.lower_bound is not None
    assert lost.short_by == -lost.lower_bound > 0
    assert f"fell short of the champion by {lost.short_by:.4f}" in lost.sentence
    assert [(facts.decision, facts.champion) for facts in history(name, home=home)] == [
        ("promoted", False),
        ("promoted", True),
        ("kept back", False),
    ]
    assert history(name, home=home)[1].previous_champion == "1"


def test_a_gain_that_may_be_chance_is_not_enough(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    # The lesion of one gate subject is turned dark: whoever trusts brightness gains on one subject and loses on the
    # other, so that resamples of the four disagree.
    def darken(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays]:
        if record.subject_id == "gate-02" and arrays.lesion is not None:
            image = arrays.image.copy()
            image[:, arrays.lesion] = 0.05
            arrays = SubjectArrays(image=image, brain=arrays.brain, lesion=arrays.lesion)
        return record, arrays

    store = _remake(toy_store, tmp_path / "store", darken)
    _promote(home, name, _model(tmp_path / "weak", store, 0.0), store)
    answer = _promote(home, name, _model(tmp_path / "strong", store, 0.9), store)
    assert answer.difference is not None
    assert answer.lower_bound is not None
    assert answer.difference > 0 > answer.lower_bound
    assert not answer.promoted
    assert f"fell short of the champion by {-answer.lower_bound:.4f}" in answer.sentence
    # Asked to be less sure, the same gate lets it through.
    gates = Gates(better=BetterGate(confidence=0.51))
    assert _promote(home, name, tmp_path / "strong", store, gates=gates).promoted


def test_test_figures_are_shown_and_choose_nothing(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    first = {"all": {"average_precision": 0.1}}
    _promote(home, name, _model(tmp_path / "strong", toy_store, 0.9), toy_store, test_figures=first)
    splendid = {"all": {"average_precision": 1.0, "image_auroc": None}}
    lost = _promote(home, name, _model(tmp_path / "weak", toy_store, 0.2), toy_store, test_figures=splendid)
    assert not lost.promoted
    assert lost.test_figures == splendid
    assert lost.champion_test_figures == first
    assert [facts.test_figures for facts in history(name, home=home)] == [first, splendid]
    silent = _promote(home, name, tmp_path / "weak", toy_store)
    undecided = {"test_figures", "champion_test_figures", "record"}
    assert silent.model_dump(exclude=undecided) == lost.model_dump(exclude=undecided)


def test_the_champion_offered_again_changes_nothing(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.6)
    _promote(home, name, model, toy_store)
    update_card(model, metrics={"average_precision": 0.5})
    again = _promote(home, name, model, toy_store)
    assert again.promoted
    assert again.version == "1"
    assert "is the champion of" in again.sentence
    assert len(history(name, home=home)) == 1


def test_one_model_is_registered_once(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    _promote(home, name, _model(tmp_path / "strong", toy_store, 0.9), toy_store)
    weak = _model(tmp_path / "weak", toy_store, 0.2)
    assert _promote(home, name, weak, toy_store).version == "2"
    assert _promote(home, name, weak, toy_store).version == "2"
    update_card(weak, metrics={"auroc": 0.5})  # what is registered holds the card as well
    assert _promote(home, name, weak, toy_store).version == "3"


def test_the_version_belongs_to_the_tracked_run(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    run_id = start_run(tracking_uri(home), "toys", "trained", {})
    _promote(home, name, _model(tmp_path / "model", toy_store, 0.6), toy_store, mlflow_run_id=run_id)
    assert client(tracking_uri(home)).get_model_version(name, "1").run_id == run_id
    assert client(tracking_uri(home)).get_run(run_id).info.status == "RUNNING"
    model = _model(tmp_path / "better", toy_store, 0.9)
    with pytest.raises(RunError, match="there is no tracked run"):
        _promote(home, name, model, toy_store, mlflow_run_id="0" * 32)
    assert len(history(name, home=home)) == 1


# ---- refusals


def _empty_gate(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays] | None:
    return None if record.split == "gate" else (record, arrays)


def _healthy_gate(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays] | None:
    return None if record.split == "gate" and arrays.lesion is not None else (record, arrays)


def _one_lesion(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays] | None:
    return None if record.subject_id == "gate-02" else (record, arrays)


def _unmarked(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays]:
    if record.split == "gate" and arrays.lesion is not None:
        record = record.model_copy(update={"labels": {"anomalous": True}})
        arrays = SubjectArrays(image=arrays.image, brain=arrays.brain)
    return record, arrays


def _outside_the_brain(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays]:
    """One gate subject's lesion lies outside its brain mask: inside the brain one subject's lesion is left."""
    if record.subject_id == "gate-02" and arrays.lesion is not None:
        arrays = SubjectArrays(image=arrays.image, brain=arrays.brain & ~arrays.lesion, lesion=arrays.lesion)
    return record, arrays


def _twin_of(other: str) -> Callable[[SubjectRecord, SubjectArrays], tuple[SubjectRecord, SubjectArrays]]:
    """One gate subject comes from the same source file as another subject; every subject shares one brain mask file."""

    def change(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays]:
        origin = other if record.subject_id == "gate-01" else record.subject_id
        source = SourceFacts(
            files={"T1w": f"{record.subject_id}.nii.gz", "brain_mask": "brain.nii.gz"},
            sha256={"T1w": digest(origin), "brain_mask": digest("template")},
            shape=record.shape,
            affine=record.affine,
        )
        return record.model_copy(update={"source": source}), arrays

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_empty_gate, r"no subject in the split 'gate' \(its splits: test, train, validation\)"),
        (_healthy_gate, "no subject with an annotated lesion and a comparison needs at least 2"),
        (_one_lesion, "one subject with an annotated lesion and a comparison needs at least 2"),
        (_unmarked, "no subject with an annotated lesion"),
        (_twin_of("train-03"), "'gate-01' is the same image as 'train-03' of the split 'train'"),
        (_twin_of("validation-00"), "'gate-01' is the same image as 'validation-00' of the split 'validation'"),
        (_twin_of("test-03"), "'gate-01' is the same image as 'test-03' of the split 'test'"),
    ],
)
def test_a_gate_that_cannot_decide_is_refused(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, change: Any, message: str
) -> None:
    store = _remake(toy_store, tmp_path / "store", change)
    with pytest.raises(CohortError, match=message):
        _promote(home, name, _model(tmp_path / "model", store, 0.6), store)
    with pytest.raises(ModelError, match="no version of"):
        history(name, home=home)


def test_lesions_outside_the_voxels_that_count_decide_nothing(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    store = _remake(toy_store, tmp_path / "store", _outside_the_brain)
    model = _model(tmp_path / "model", store, 0.6)
    with pytest.raises(CohortError, match=r"one subject with a lesion voxel \(brain voxels\) and a comparison needs"):
        _promote(home, name, model, store, gates=Gates(voxel_set="brain"))
    with pytest.raises(ModelError, match="no version of"):
        history(name, home=home)
    assert _promote(home, name, model, store).num_lesions == 2


def test_a_shared_mask_file_is_no_leak(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    store = _remake(toy_store, tmp_path / "store", _twin_of("gate-03"))  # twins inside the gate are no leak either
    assert _promote(home, name, _model(tmp_path / "model", store, 0.6), store).promoted


def test_a_prepared_image_in_two_splits_is_a_leak(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    trained_on = SubjectArrays(image=toy_store.image("train-00"), brain=toy_store.brain("train-00"))

    def change(record: SubjectRecord, arrays: SubjectArrays) -> tuple[SubjectRecord, SubjectArrays]:
        return record, trained_on if record.subject_id == "gate-03" else arrays

    store = _remake(toy_store, tmp_path / "store", change)
    with pytest.raises(CohortError, match="'gate-03' is the same image as 'train-00' of the split 'train'"):
        _promote(home, name, _model(tmp_path / "model", store, 0.6), store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort": {"channels": ("T2w",)}}, r"was trained on the channels T2w and .* holds T1w"),
        (
            {"cohort": {"grid": (12, 10, 9)}},
            r"on a grid of 12 x 10 x 9 voxels and gate subject 'gate-00' .* 12 x 10 x 8",
        ),
        ({"cohort": {"spacing_mm": (2.0, 2.0, 1.0)}}, "at 2 x 2 x 1 mm and gate subject 'gate-00'"),
        ({"recipe": {"name": "other"}}, "of another recipe"),
        ({"cohort": {"digest": "0" * 64}}, r"another cohort \(digest 000000000000\).*train it again"),
    ],
)
def test_a_candidate_of_other_data_is_refused(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.6, **changes)
    with pytest.raises(ModelError, match=rf"the candidate \(run 'run-0.6'\).*{message}") as caught:
        _promote(home, name, model, toy_store)
    assert "\n" not in str(caught.value)


def test_a_champion_that_does_not_fit_is_named(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    other = _model(tmp_path / "old", toy_store, 0.5, cohort={"subjects": ("gate-01", "train-00")})
    register(other, name, home=home, methods=METHODS)
    _crown(home, name, "1")
    model = _model(tmp_path / "model", toy_store, 0.6)
    with pytest.raises(
        ModelError, match=r"the champion \(version 1 .* trained on 1 of the gate's subjects \('gate-01'\)"
    ):
        _promote(home, name, model, toy_store)


def test_a_champion_of_an_earlier_cohort_is_still_challenged(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    smaller = _remake(toy_store, tmp_path / "early", lambda r, a: None if r.subject_id == "train-05" else (r, a))
    _promote(home, name, _model(tmp_path / "old", smaller, 0.3), smaller)
    answer = _promote(home, name, _model(tmp_path / "new", toy_store, 0.9), toy_store)
    assert answer.promoted
    assert answer.champion_version == "1"


def test_a_damaged_champion_is_named(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    _promote(home, name, _model(tmp_path / "model", toy_store, 0.3), toy_store)
    source = Path(client(tracking_uri(home)).get_model_version(name, "1").source.removeprefix("file://"))
    (source / "artifacts" / "model" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        _promote(home, name, _model(tmp_path / "better", toy_store, 0.9), toy_store)
    shutil.rmtree(source)
    shutil.rmtree(home / "models" / name)
    with pytest.raises(ModelError, match=f"cannot fetch models:/{name}/1"):
        _promote(home, name, tmp_path / "better", toy_store)
    assert [facts.version for facts in history(name, home=home)] == ["1"]


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", "a b", "x" * 129, "a@b", "-a", "a'b"])
def test_an_unusable_name_is_refused(home: Path, toy_store: CohortStore, tmp_path: Path, bad: str) -> None:
    model = _model(tmp_path / "model", toy_store, 0.6)
    for call in (
        lambda: _promote(home, bad, model, toy_store),
        lambda: rollback(bad, home=home),
        lambda: history(bad, home=home),
        lambda: register(model, bad, home=home, methods=METHODS),
    ):
        with pytest.raises(ModelError, match="cannot name a model"):
            call()


# ---- champions


@pytest.fixture
def versions(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> list[str]:
    """Three registered versions, none of them champion."""
    models = [_model(tmp_path / f"model-{index}", toy_store, index / 4) for index in range(3)]
    return [register(model, name, home=home, methods=METHODS).version for model in models]


def _line(home: Path, name: str) -> list[str]:
    uri = tracking_uri(home)
    return list(read(client(uri), uri, name).champions)


def _decided(home: Path, name: str, version: str) -> None:
    """Write into the log that a version became champion, and leave alias and tags as they are."""
    uri = tracking_uri(home)
    standing = settle(client(uri), uri, name, "elsewhere")
    record = PromotionRecord(
        kind="promoted",
        name=name,
        version=version,
        champion_version=standing.champion,
        follows=standing.head,
        life=standing.life,
    )
    append(client(uri), uri, record)


def _crown(home: Path, name: str, version: str) -> None:
    _decided(home, name, version)
    uri = tracking_uri(home)
    assert settle(client(uri), uri, name, "elsewhere").alias == version


def test_rolling_back_goes_one_champion_at_a_time(home: Path, name: str, versions: list[str]) -> None:
    with pytest.raises(ModelError, match="has no champion"):
        rollback(name, home=home)
    for version in (*versions, "1", "3"):  # version 1 came back, and then version 3
        _crown(home, name, version)
    assert _line(home, name) == ["1", "2", "3", "1", "3"]
    for expected, before in (("1", "3"), ("3", "1"), ("2", "3"), ("1", "2")):
        answer = rollback(name, home=home)
        assert (answer.version, answer.from_version) == (expected, before)
        assert resolve(f"models:/{name}@champion", home=home) == resolve(f"models:/{name}/{expected}", home=home)
    with pytest.raises(ModelError, match=r"version 1 is the first champion .* there is none before it"):
        rollback(name, home=home)
    assert [facts.champion for facts in history(name, home=home)] == [True, False, False]


def test_a_promotion_after_a_rollback_goes_on_from_there(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    for share in (0.2, 0.5):
        assert _promote(home, name, _model(tmp_path / f"{share}", toy_store, share), toy_store).promoted
    rollback(name, home=home)
    assert history(name, home=home)[1].decision == "rolled back"
    answer = _promote(home, name, _model(tmp_path / "0.9", toy_store, 0.9), toy_store)
    assert (answer.version, answer.champion_version) == ("3", "1")
    assert rollback(name, home=home).version == "1"


class _Killed(BaseException):
    pass


def _killed(*_: Any, **__: Any) -> None:
    raise _Killed


WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_model_version_tag",
    "delete_model_version_tag",
    "log_artifacts",
)
"""Every call by which a registry is written to."""


@contextlib.contextmanager
def _killed_at(number: int) -> Iterator[list[str]]:
    """Kill the process when ``number`` writes have been made; gives those that were."""
    from mlflow import MlflowClient

    made: list[str] = []

    def wrapped(write: str) -> Callable[..., Any]:
        original = getattr(MlflowClient, write)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            if len(made) == number:
                raise _Killed
            answer = original(self, *arguments, **named)
            made.append(write)
            return answer

        return call

    with pytest.MonkeyPatch.context() as patch:
        for write in WRITES:
            patch.setattr(MlflowClient, write, wrapped(write))
        yield made


def _agrees(home: Path, name: str) -> None:
    """Check that aliases and tags say what the log says."""
    uri = tracking_uri(home)
    standing = read(client(uri), uri, name)
    assert not standing.unsettled
    assert standing.alias == standing.crowned == standing.champion
    versions = history(name, home=home)
    assert [facts.version for facts in versions if facts.champion] == [standing.champion]
    once = {entry.record.version for entry in standing.entries if entry.record.kind == "promoted"}
    assert {facts.version for facts in versions if facts.archived} == once - {standing.champion}
    newest = versions[-1].version
    assert standing.challenger == ("" if newest in once else newest)


def _versions(home: Path, name: str) -> list[Any]:
    try:
        return history(name, home=home)
    except ModelError:
        return []


def _promote_until_done(home: Path, name: str, model: Path, store: CohortStore) -> int:
    """Promote, killed at the first write, then at the second and so on, until nothing is left to be killed at."""
    for number in range(200):
        with _killed_at(number), contextlib.suppress(_Killed):
            _promote(home, name, model, store)
            return number
        # What was decided may stand or not; who looks finds a champion that was registered in either case.
        uri = tracking_uri(home)
        assert read(client(uri), uri, name).champion in ("", *(facts.version for facts in _versions(home, name)))
    raise AssertionError("it never ended")


def test_a_promotion_may_be_killed_between_any_two_writes(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    first, second = (_model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.9))
    _promote_until_done(home, name, first, toy_store)
    assert _line(home, name) == ["1"]
    _agrees(home, name)
    _promote_until_done(home, name, second, toy_store)
    assert _line(home, name) == ["1", "2"]
    _agrees(home, name)
    promoted = [entry for entry in _entries(home, name) if entry.record.kind == "promoted" and not entry.overtaken]
    assert [entry.record.version for entry in promoted] == ["1", "2"]


def _entries(home: Path, name: str) -> Any:
    uri = tracking_uri(home)
    return read(client(uri), uri, name).entries


@pytest.mark.long
@pytest.mark.parametrize("kind", ["promoted", "kept back", "rolled back"])
def test_the_next_call_goes_on_wherever_one_was_killed(
    home: Path, toy_store: CohortStore, tmp_path: Path, kind: str
) -> None:
    """Each write of a fresh registry's promotion, refusal and rollback in turn; the next call is another one."""
    models = {share: _model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.6, 0.9)}
    for number in range(200):
        name = f"next-{kind.replace(' ', '-')}-{number}"
        _promote(home, name, models[0.2 if kind != "kept back" else 0.6], toy_store)
        if kind == "rolled back":
            _promote(home, name, models[0.6], toy_store)
        before = _line(home, name)
        survived = False
        with _killed_at(number) as made, contextlib.suppress(_Killed):
            if kind == "rolled back":
                rollback(name, home=home)
            else:
                _promote(home, name, models[0.6 if kind == "promoted" else 0.2], toy_store)
            survived = True
        happened = [entry for entry in _entries(home, name)[len(before) :] if entry.record.kind == kind]
        expected = {"promoted": [*before, "2"], "kept back": before, "rolled back": before[:-1]}[kind]
        assert _line(home, name) == (expected if happened else before), (number, made)
        # The next call, by somebody else and of something else, finds a registry that agrees with itself.
        assert _promote(home, name, models[0.9], toy_store).promoted
        _agrees(home, name)
        assert _line(home, name)[:-1] == (expected if happened else before)
        if survived:
            assert happened
            assert number > 5, "the writes were not seen"
            return
    raise AssertionError("it never ended")


def test_an_alias_moved_by_hand_is_taken_as_it_is(home: Path, name: str, versions: list[str]) -> None:
    _crown(home, name, "1")
    client(tracking_uri(home)).set_registered_model_alias(name, "champion", "3")
    assert _line(home, name) == ["1", "3"]
    assert rollback(name, home=home).version == "1"


def test_a_deleted_champion_is_not_gone_back_to(home: Path, name: str, versions: list[str]) -> None:
    for version in versions:
        _crown(home, name, version)
    client(tracking_uri(home)).delete_model_version(name, "2")
    with pytest.raises(ModelError, match=r"version 2 .* has been deleted"):
        rollback(name, home=home)
    assert _line(home, name) == versions


# ---- several at once


def test_a_champion_that_changed_elsewhere_is_the_one_to_beat(
    home: Path, name: str, versions: list[str], toy_store: CohortStore, tmp_path: Path
) -> None:
    _crown(home, name, "1")
    notes: list[str] = []

    def from_another_home(done: int, total: int, note: str) -> None:
        notes.append(note)
        if len(notes) == 1:
            _crown(home, name, "3")  # 0.5 bright: better than version 1, and than the candidate

    answer = _promote(home, name, _model(tmp_path / "model", toy_store, 0.3), toy_store, progress=from_another_home)
    assert any("changed meanwhile: comparing with version 3" in note for note in notes)
    assert (answer.champion_version, answer.promoted) == ("3", False)
    assert _line(home, name) == ["1", "3"]
    told = [(entry.record.kind, entry.record.champion_version, entry.overtaken) for entry in _entries(home, name)]
    assert told[2:] == [("promoted", "1", True), ("kept back", "3", False)]


def test_a_champion_that_changes_all_the_time_ends_in_words(
    home: Path,
    name: str,
    versions: list[str],
    toy_store: CohortStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vesalius.platform.registry.promotion._ROUNDS", 3)
    _crown(home, name, "1")
    turns = iter("123" * 100)

    def from_another_home(done: int, total: int, note: str) -> None:
        _crown(home, name, next(turns))

    with pytest.raises(ModelError, match="changed 3 times while the candidate was compared: promote it again when"):
        _promote(home, name, _model(tmp_path / "model", toy_store, 0.9), toy_store, progress=from_another_home)


def test_of_two_rollbacks_at_once_one_counts(
    home: Path, name: str, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in versions:
        _crown(home, name, version)
    from vesalius.platform.registry import champions

    def overtaking(mlflow: Any, uri: str, record: PromotionRecord) -> None:
        append(mlflow, uri, record.model_copy(update={"token": "a" * 16}))
        append(mlflow, uri, record)

    monkeypatch.setattr(champions, "append", overtaking)
    with pytest.raises(ModelError, match="changed meanwhile: it is version 2 now"):
        rollback(name, home=home)
    assert _line(home, name) == ["1", "2"]


def test_an_entry_that_is_sent_twice_counts_once(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client sends a request again whose answer was lost."""
    from mlflow import MlflowClient

    create = MlflowClient.create_model_version

    def sent_twice(self: MlflowClient, name: str, *arguments: Any, **named: Any) -> Any:
        if name.endswith(LOG_SUFFIX):
            create(self, name, *arguments, **named)
        return create(self, name, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_model_version", sent_twice)
    answers = [_promote(home, name, _model(tmp_path / f"{share}", toy_store, share), toy_store) for share in (0.3, 0.9)]
    assert [(answer.promoted, answer.version, answer.record) for answer in answers] == [(True, "1", 1), (True, "2", 3)]
    back = rollback(name, home=home)
    assert (back.version, back.record) == ("1", 5)
    assert [(entry.number, entry.overtaken) for entry in _entries(home, name)] == [(1, False), (3, False), (5, False)]
    _agrees(home, name)


def test_a_slow_process_undoes_no_rollback_from_elsewhere(
    home: Path, name: str, versions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    _crown(home, name, "1")
    _decided(home, name, "2")
    point = MlflowClient.set_registered_model_alias
    uri = tracking_uri(home)

    def slowly(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if (alias, version) == ("champion", "2"):
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", point)
            assert rollback(name, home=tmp_path, uri=uri).version == "1"
        point(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", slowly)
    assert settle(client(uri), uri, name, "slow").champion == "1"
    assert [entry.record.kind for entry in _entries(home, name)] == ["promoted", "promoted", "rolled back"]
    assert read(client(uri), uri, name).alias == "1"


def test_a_second_promotion_waits(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", toy_store, 0.5)
    waiting, answers = threading.Event(), []

    def progress(done: int, total: int, note: str) -> None:
        if "waiting for another promotion" in note:
            waiting.set()

    second = threading.Thread(target=lambda: answers.append(_promote(home, name, model, toy_store, progress=progress)))
    with alone(home, name):
        second.start()
        assert waiting.wait(60)
        second.join(3)  # long enough for a promotion that does not wait
        assert second.is_alive()
        assert not answers
        assert _line(home, name) == []
    second.join(60)
    assert answers[0].promoted


_PROMOTE = """
import sys
from pathlib import Path
from vesalius.platform.registry import promote
from vesalius.platform.store import CohortStore

home, name, model, store = sys.argv[1:]
def progress(done, total, note):
    if note.startswith("waiting"):
        print(note, flush=True)
store = CohortStore.open(Path(store))
answer = promote(
    Path(model), name, home=Path(home), store=store, methods="toy_methods:METHODS", progress=progress
)
print(answer.model_dump_json())
"""


@pytest.mark.long
def test_two_processes_promote_one_after_the_other(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    _promote(home, name, _model(tmp_path / "weak", toy_store, 0.1), toy_store)
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in (0.5, 0.55)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    with alone(home, name):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", _PROMOTE, str(home), name, str(model), str(toy_store.path)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for model in models
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("waiting for another promotion")
    answers = [Promotion.model_validate_json(process.communicate(timeout=120)[0]) for process in started]
    first, second = sorted(answers, key=lambda answer: int(answer.version))
    assert (first.version, first.champion_version, first.promoted) == ("2", "1", True)
    # The second was compared with the one that had just won, not with the champion both had seen.
    assert (second.version, second.champion_version) == ("3", "2")
    expected = ["1", "2", "3"] if second.promoted else ["1", "2"]
    assert _line(home, name) == expected


# ---- what is registered, and how it is read


def test_mlflow_serves_the_same_scores_bit_for_bit(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    from toy_methods import METHODS as table

    model = _model(tmp_path / "model", toy_store, 0.7)
    _promote(home, name, model, toy_store)
    records = toy_store.subjects("gate")
    volumes = [volume_of(toy_store, record) for record in records]
    method, _ = load_model(model, table)
    with torch.no_grad():
        expected = method.score(volumes)
        quick = method.score(volumes, effort="quick")
    image_NCDHW = np.stack([volume.image.numpy() for volume in volumes])
    brain = pack_brain(np.stack([volume.brain.numpy() for volume in volumes]))
    with _mlflow(tracking_uri(home)) as mlflow:
        served = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        answer = served.predict(image_NCDHW, params={"brain": brain})
        reduced = served.predict(image_NCDHW, params={"brain": brain, "effort": "quick"})
        assert answer["map"].dtype == np.float32
        assert np.array_equal(answer["map"], np.stack([score.map.numpy() for score in expected]))
        assert np.array_equal(reduced["map"], np.stack([score.map.numpy() for score in quick]))
        assert answer["image_score"].tolist() == [score.image_score for score in expected]
        # Without a mask the brain is what is not zero: the toy's volumes are zero outside, and nowhere inside.
        assert np.array_equal(served.predict(image_NCDHW)["map"], answer["map"])
        # Another spacing reaches the method.
        other = served.predict(image_NCDHW, params={"brain": brain, "spacing_mm": [4.0, 4.0, 4.0]})
        assert not np.array_equal(other["map"], answer["map"])
        with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
            served.predict(np.repeat(image_NCDHW, 2, axis=1))
        with pytest.raises(Exception, match="NaN or infinite"):
            served.predict(np.where(image_NCDHW > 0, np.float32(np.nan), image_NCDHW))
        with pytest.raises(Exception, match="packed bits in base64"):
            served.predict(image_NCDHW, params={"brain": "AAAA"})


def test_what_is_registered_holds_no_pickle_and_names_its_needs(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    _promote(home, name, _model(tmp_path / "model", toy_store, 0.7), toy_store)
    source = Path(client(tracking_uri(home)).get_model_version(name, "1").source.removeprefix("file://"))
    assert source.is_relative_to(home / "mlartifacts")
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert {"artifacts/model/weights.safetensors", "artifacts/model/model.json", "pyfunc_model.py"} <= files
    for path in source.rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"}
        if path.is_file():
            with pytest.raises(Exception), path.open("rb") as file:  # noqa: B017, PT011 - whatever pickle says
                pickle.load(file)
    needs = (source / "requirements.txt").read_text().split()
    assert {need.partition("==")[0] for need in needs} >= {"vesalius", "torch", "mlflow", "safetensors"}
    assert all("+" not in need for need in needs)
    with _mlflow(tracking_uri(home)) as mlflow:
        facts = mlflow.models.get_model_info(f"models:/{name}@champion")
        assert facts.signature.inputs.inputs[0].shape == (-1, 1, -1, -1, -1)
        assert mlflow.pyfunc.load_model(f"models:/{name}@champion") is not None


def test_a_registered_model_is_fetched_whole_and_once(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_methods import METHODS as table

    model = _model(tmp_path / "model", toy_store, 0.7)
    _promote(home, name, model, toy_store)
    folder = resolve(f"models:/{name}@champion", home=home)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    for path in folder.iterdir():
        assert path.read_bytes() == (model / path.name).read_bytes()
    method, card = load_model(folder, table)
    assert float(method.get_parameter("share")) == float(torch.tensor(0.7))
    assert card.thresholds == read_card(model).thresholds
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", _killed)
    assert resolve(f"models:/{name}/1", home=home) == folder


@pytest.mark.parametrize("exchange", ["both", "card", "damaged"])
def test_fetching_an_exchanged_model_is_refused(
    exchange: str, home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    _promote(home, name, _model(tmp_path / "model", toy_store, 0.7), toy_store)
    source = Path(client(tracking_uri(home)).get_model_version(name, "1").source.removeprefix("file://"))
    stored = source / "artifacts" / "model"
    other = _model(tmp_path / "other", toy_store, 0.2)  # a whole, well-formed model: card and weights agree
    shutil.rmtree(home / "models" / name, ignore_errors=True)
    if exchange == "both":
        shutil.copyfile(other / "weights.safetensors", stored / "weights.safetensors")
        shutil.copyfile(other / "model.json", stored / "model.json")
    elif exchange == "card":
        card = json.loads((stored / "model.json").read_text())
        card["thresholds"]["all"]["value"] = 0.1  # the model's digest stays; what a person is told changes
        (stored / "model.json").write_text(json.dumps(card))
    else:
        (stored / "model.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match=f"version 1 of '{name}' is not what was registered") as caught:
        resolve(f"models:/{name}@champion", home=home)
    assert "\n" not in str(caught.value)
    assert list((home / "models" / name).iterdir()) == []
    shutil.copyfile(tmp_path / "model" / "weights.safetensors", stored / "weights.safetensors")
    shutil.copyfile(tmp_path / "model" / "model.json", stored / "model.json")
    assert resolve(f"models:/{name}@champion", home=home).is_dir()


def test_a_hostile_version_runs_nothing(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    from toy_methods import METHODS as table

    _promote(home, name, _model(tmp_path / "model", toy_store, 0.7), toy_store)
    mark = tmp_path / "gone-off"
    hostile = tmp_path / "hostile"
    (hostile / "artifacts" / "model").mkdir(parents=True)
    bomb = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    (hostile / "pyfunc_model.py").write_text(bomb)
    (hostile / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
        "    python_model: python_model.pkl\n    model_code_path: pyfunc_model.py\n"
    )
    (hostile / "artifacts" / "model" / "sitecustomize.py").write_text(bomb)
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    (hostile / "artifacts" / "model" / "model.json").write_text(json.dumps({**card, "method": "os:system"}))
    (hostile / "artifacts" / "model" / "weights.safetensors").write_bytes(
        (tmp_path / "model" / "weights.safetensors").read_bytes()
    )
    mlflow = client(tracking_uri(home))
    mlflow.create_model_version(name, source=hostile.as_uri())
    mlflow.set_registered_model_alias(name, "champion", "2")
    with pytest.raises(ModelError, match=f"version 2 of '{name}' is not what was registered"):
        resolve(f"models:/{name}@champion", home=home)
    forged = digest(json.loads((hostile / "artifacts" / "model" / "model.json").read_text()))
    mlflow.set_model_version_tag(name, "2", "vesalius.card", forged)
    folder = resolve(f"models:/{name}@champion", home=home)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    with pytest.raises(ModelError, match="unknown method 'os:system'") as caught:
        load_model(folder, table)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    with pytest.raises(ModelError, match="unknown method 'os:system'"):
        _promote(home, name, _model(tmp_path / "better", toy_store, 0.9), toy_store)
    assert not mark.exists()


@pytest.mark.parametrize(
    "reference",
    [
        "models:/../x@champion",
        "models:/a/../../b",
        "models:/a/../1",
        "models:a",
        "models:/a",
        "models:/a@b/../../c",
        "models://h/a@b",
    ],
)
def test_a_reference_that_leads_elsewhere_is_refused(home: Path, reference: str) -> None:
    with pytest.raises(ModelError, match="names no registered model: expected models:/NAME@champion"):
        resolve(reference, home=home)


def test_what_cannot_be_resolved_is_said(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", toy_store, 0.7)
    register(model, name, home=home, methods=METHODS)
    with pytest.raises(ModelError, match=r"no model 'nothing' is registered at sqlite.*; registered are: .*"):
        resolve("models:/nothing@champion", home=home)
    with pytest.raises(ModelError, match="has no such version or alias; its versions are 1"):
        resolve(f"models:/{name}@champion", home=home)
    with pytest.raises(ModelError, match="has no such version or alias; its versions are 1"):
        resolve(f"models:/{name}/7", home=home)
    with pytest.raises(RunError, match="no run 'nowhere'"):
        resolve("nowhere", home=home)
    with pytest.raises(ModelError, match="holds no model"):
        resolve(str(HERE), home=home)


def test_a_run_and_a_folder_are_models_too(home: Path, toy_store: CohortStore, tmp_path: Path) -> None:
    spec = RunSpec(run_id="a-run", method="brightness", settings={}, store="/s", cohort_digest="d", created="2026")
    run = create_run(home, spec)
    with pytest.raises(RunError, match="run 'a-run' has no model yet"):
        resolve("a-run", home=home)
    _model(run.model, toy_store, 0.7)
    assert resolve("a-run", home=home) == run.model
    assert resolve(str(run.path), home=home) == run.model
    assert resolve(str(_model(tmp_path / "model", toy_store, 0.7)), home=home) == tmp_path / "model"


def test_an_absent_server_is_said_at_once(home: Path, toy_store: CohortStore, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    model = _model(tmp_path / "model", toy_store, 0.7)
    for call in (
        lambda: _promote(home, "a", model, toy_store, uri=uri),
        lambda: rollback("a", home=home, uri=uri),
        lambda: history("a", home=home, uri=uri),
        lambda: resolve("models:/a@champion", home=home, uri=uri),
    ):
        with pytest.raises(RunError, match="no tracking server answers"):
            call()


@pytest.mark.long
def test_the_whole_way_on_a_server(tmp_path: Path, toy_store: CohortStore, tracking_server: str) -> None:
    from toy_methods import METHODS as table

    home = tmp_path / "home"
    models = {share: _model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.9)}
    uri = tracking_server
    run_id = start_run(uri, "toys", "remote", {})
    assert _promote(home, "brain", models[0.2], toy_store, uri=uri, mlflow_run_id=run_id).promoted
    assert _promote(home, "brain", models[0.9], toy_store, uri=uri).promoted
    folder = resolve("models:/brain@champion", home=home, uri=uri)
    assert (folder / "weights.safetensors").read_bytes() == (models[0.9] / "weights.safetensors").read_bytes()
    volume = volume_of(toy_store, toy_store.subjects("gate")[0])
    method, _ = load_model(folder, table)
    with torch.no_grad():
        (expected,) = method.score([volume])
    with _mlflow(uri) as mlflow:
        served = mlflow.pyfunc.load_model("models:/brain@champion")
        answer = served.predict(volume.image.numpy()[None], params={"brain": pack_brain(volume.brain.numpy()[None])})
    assert np.array_equal(answer["map"][0], expected.map.numpy())
    assert rollback("brain", home=home, uri=uri).version == "1"
    assert [facts.champion for facts in history("brain", home=home, uri=uri)] == [True, False]
    with pytest.raises(ModelError, match="first champion"):
        rollback("brain", home=home, uri=uri)
    with pytest.raises(ModelError, match="no model 'other' is registered"):
        resolve("models:/other@champion", home=home, uri=uri)
