"""The log of promotions: who, when and why; dry runs; gates in a file; many at once on a real server."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.platform.config import digest
from vesalius.platform.errors import CohortError, ModelError, SettingError
from vesalius.platform.registry import (
    Gates,
    Lineage,
    Promotion,
    attachment_of,
    history,
    list_names,
    promote,
    register,
    resolve,
    rollback,
    settle_aliases,
    standing_of,
    version_of,
)
from vesalius.platform.registry.gates import FalsePositivesGate, LineageGate, SecondsGate, SubgroupsGate
from vesalius.platform.registry.log import log_name
from vesalius.platform.store import CohortStore, SubjectArrays
from vesalius.platform.testing.servers import TrackingServer
from vesalius.platform.tracking import client, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vesalius.platform.testing.servers import PostgreSQL

METHODS = "toy_methods:METHODS"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _toy_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VESALIUS_USER", "ada")
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def _dump(home: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        return list(database.iterdump())


def _files(home: Path) -> dict[str, bytes]:
    folder = home / "mlartifacts"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- records


def test_every_decision_is_on_record(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in (0.3, 0.9, 0.5)]
    _promote(home, name, models[0], toy_store, why="a  first\nmodel")
    monkeypatch.setenv("VESALIUS_USER", "grace")
    _promote(home, name, models[1], toy_store)
    refused = _promote(home, name, models[2], toy_store)
    monkeypatch.delenv("VESALIUS_USER")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "signed-in")
    back = rollback(name, home=home, why="it was slow")
    standing = standing_of(name, home=home)
    told = [(entry.record.kind, entry.record.version, entry.record.champion_version) for entry in standing.entries]
    assert told == [("promoted", "1", ""), ("promoted", "2", "1"), ("kept back", "3", "2"), ("rolled back", "1", "2")]
    assert [entry.record.by for entry in standing.entries] == ["ada", "grace", "grace", "signed-in"]
    assert [entry.record.why for entry in standing.entries] == ["a first model", "", "", "it was slow"]
    assert [entry.number for entry in standing.entries] == [1, 2, 3, 4]
    assert (refused.record, back.record) == (3, 4)
    assert not any(entry.overtaken for entry in standing.entries)
    second = standing.entries[1].record
    versions = {facts.version: facts for facts in history(name, home=home)}
    assert (second.model_digest, second.champion_digest) == (versions["2"].digest, versions["1"].digest)
    assert second.cohort_digest == toy_store.digest
    assert second.gates_digest == digest(Gates())
    (verdict,) = second.promotion["verdicts"]
    assert (verdict["gate"], verdict["outcome"]) == ("better", "passed")
    full = json.loads(attachment_of(second, "record.json", home=home) or "")
    assert full["promotion"]["verdicts"] == second.promotion["verdicts"]
    assert full["gates"] == Gates().model_dump(mode="json")
    # The aliases, and who was champion once.
    assert (standing.champion, standing.challenger) == ("1", "3")
    assert [facts.aliases for facts in versions.values()] == [("champion",), (), ("challenger",)]
    assert [bool(facts.archived) for facts in versions.values()] == [False, True, False]
    assert versions["2"].archived["by"] == "signed-in"
    assert versions["2"].archived["entry"] == 4
    assert resolve(f"models:/{name}@challenger", home=home) == resolve(f"models:/{name}/3", home=home)
    assert version_of(f"models:/{name}@champion", home=home) == (name, "1")
    # Champion again: archived no more; who gave way is.
    _promote(home, name, models[1], toy_store)
    versions = {facts.version: facts for facts in history(name, home=home)}
    assert [bool(facts.archived) for facts in versions.values()] == [True, False, False]


def test_what_is_on_record_stays_as_it_was(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in (0.3, 0.9)]
    _promote(home, name, models[0], toy_store)
    before, files = standing_of(name, home=home).entries, _files(home)
    _promote(home, name, models[1], toy_store)
    rollback(name, home=home)
    after, later = standing_of(name, home=home).entries, _files(home)
    assert after[: len(before)] == before
    assert {path: later[path] for path in files} == files


def test_the_champion_offered_again_is_no_decision(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.5)
    _promote(home, name, model, toy_store)
    before = _dump(home)
    again = _promote(home, name, model, toy_store)
    assert (again.promoted, again.record) == (True, None)
    assert _dump(home) == before


@pytest.mark.parametrize("shares", [(0.3, 0.9), (0.9, 0.3)])
def test_a_dry_run_writes_nothing(
    home: Path, toy_store: CohortStore, tmp_path: Path, shares: tuple[float, float]
) -> None:
    name = f"dry-{shares[0]}"
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in shares]
    first = _promote(home, name, models[0], toy_store, dry_run=True)
    assert (first.promoted, first.passed, first.version, first.champion_version) == (False, True, "", None)
    assert "would be the first champion" in first.sentence
    assert name not in list_names(home=home)
    _promote(home, name, models[0], toy_store)
    before = _dump(home), _files(home)
    dry = _promote(home, name, models[1], toy_store, dry_run=True, gates=Gates(seconds=SecondsGate(limit=1000)))
    assert (_dump(home), _files(home)) == before
    assert [verdict.gate for verdict in dry.verdicts] == ["better", "seconds"]
    assert (dry.promoted, dry.dry_run, dry.version, dry.record) == (False, True, "", None)
    real = _promote(home, name, models[1], toy_store)
    assert dry.passed == real.promoted == (shares[1] == 0.9)
    assert dry.lower_bound == real.lower_bound
    assert ("would be" if dry.passed else "falls short") in dry.sentence


def test_names_of_logs_are_kept_apart(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", toy_store, 0.5)
    _promote(home, name, model, toy_store)
    assert log_name(name) not in list_names(home=home)
    assert name in list_names(home=home)
    with pytest.raises(ModelError, match="promotions are recorded"):
        _promote(home, log_name(name), model, toy_store)
    with pytest.raises(ModelError, match="names no registered model"):
        resolve(f"models:/{log_name(name)}/1", home=home)
    with pytest.raises(ModelError) as caught:
        resolve("models:/nowhere/1", home=home)
    assert ".promotions" not in str(caught.value)


def test_a_registry_from_before_there_was_a_log_is_taken_over(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    for share in (0.2, 0.3, 0.9):
        _promote(home, name, _model(tmp_path / f"{share}", toy_store, share), toy_store)
    mlflow = client(tracking_uri(home))
    mlflow.delete_registered_model(log_name(name))
    mlflow.set_registered_model_tag(name, "vesalius.champions", "1,2,1,3")
    assert standing_of(name, home=home).champion == "3"
    assert rollback(name, home=home).version == "1"
    standing = standing_of(name, home=home)
    assert [entry.record.kind for entry in standing.entries] == ["adopted", "rolled back"]
    assert standing.champions == ("1", "2", "1")


def test_a_name_that_is_deleted_and_made_again_begins_anew(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.9)
    _promote(home, name, model, toy_store)
    client(tracking_uri(home)).delete_registered_model(name)
    with pytest.raises(ModelError, match="no model"):
        standing_of(name, home=home)
    time.sleep(0.01)  # another millisecond: so a life is told from the next
    answer = _promote(home, name, _model(tmp_path / "other", toy_store, 0.2), toy_store)
    assert (answer.promoted, answer.champion_version, answer.version) == (True, None, "1")
    assert standing_of(name, home=home).champions == ("1",)


def test_a_champion_that_is_deleted_leaves_none(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    _promote(home, name, _model(tmp_path / "strong", toy_store, 0.9), toy_store)
    client(tracking_uri(home)).delete_model_version(name, "1")
    answer = _promote(home, name, _model(tmp_path / "weak", toy_store, 0.2), toy_store)
    assert (answer.promoted, answer.champion_version, answer.version) == (True, None, "2")
    kinds = [entry.record.kind for entry in standing_of(name, home=home).entries]
    assert kinds == ["promoted", "moved", "promoted"]


# ---- records that were tampered with


def test_an_entry_that_was_spoilt_has_no_effect(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    for share in (0.3, 0.9):
        _promote(home, name, _model(tmp_path / f"{share}", toy_store, share), toy_store)
    mlflow = client(tracking_uri(home))
    for text in ("no JSON", "[" * 5000, "{}", '{"kind": "promoted", "name": "another"}'):
        mlflow.set_model_version_tag(log_name(name), "2", "vesalius.record", text)
        assert standing_of(name, home=home).champion == "2"  # as the alias says
    assert settle_aliases(name, home=home).champion == "2"
    assert rollback(name, home=home).version == "1"


def test_an_entry_of_a_later_version_stops_everything(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.5)
    _promote(home, name, model, toy_store)
    mlflow = client(tracking_uri(home))
    mlflow.set_model_version_tag(log_name(name), "1", "vesalius.record", '{"format": 2, "kind": "blessed"}')
    for call in (
        lambda: standing_of(name, home=home),
        lambda: rollback(name, home=home),
        lambda: _promote(home, name, model, toy_store),
    ):
        with pytest.raises(ModelError, match="written by a later version of Vesalius: update"):
            call()


def test_an_exchanged_attachment_is_refused(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    _promote(home, name, _model(tmp_path / "model", toy_store, 0.5), toy_store)
    record = standing_of(name, home=home).entries[0].record
    (stored,) = (home / "mlartifacts").rglob(f"{record.token}/record.json")
    stored.write_text("{}")
    with pytest.raises(ModelError, match="not the file that was recorded"):
        attachment_of(record, "record.json", home=home)
    for path in ("../../../etc/passwd", "promotions/x/../../y.json", "/etc/passwd"):
        wrong = record.attachments["record.json"].model_copy(update={"path": path})
        elsewhere = record.model_copy(update={"attachments": {"record.json": wrong}})
        with pytest.raises(ModelError, match="leads elsewhere"):
            attachment_of(elsewhere, "record.json", home=home)
    assert attachment_of(record, "card.json", home=home) is None


def test_a_version_is_shown_without_the_files_that_are_gone(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in (0.3, 0.9)]
    _promote(home, name, models[0], toy_store)
    _promote(home, name, models[1], toy_store, describe=lambda *_: {"card.json": "{}"})
    last = standing_of(name, home=home).entries[-1].record
    (folder,) = (home / "mlartifacts").rglob(last.token)
    shutil.rmtree(folder)
    answer = CliRunner().invoke(app, ["registry", name, "2", "--json", "--home", str(home)])
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert [record["sentence"] for record in told["records"]] == [last.sentence]
    assert (told["records"][0]["full"], told["card"]) == (None, None)
    assert "decision 2 is shown without its details: cannot fetch record.json" in answer.stderr
    assert "version 2 is shown without its card: cannot fetch card.json" in answer.stderr
    other = CliRunner().invoke(app, ["registry", name, "1", "--json", "--home", str(home)])
    assert [record["full"] is None for record in json.loads(other.stdout)["records"]] == [False, True]


# ---- gates


def test_gates_are_asked_of_real_models(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    gates = Gates(
        false_positives=FalsePositivesGate(limit=0.5),
        seconds=SecondsGate(limit=1000, volumes=2),
        lineage=LineageGate(required=("cohort_digest", "recipe_digest", "settings", "weights", "run_id", "parent")),
    )
    weak, strong = (_model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.9))
    lineage = Lineage(parent="")
    first = _promote(home, name, weak, toy_store, gates=gates, lineage=lineage)
    assert [(one.gate, one.outcome) for one in first.verdicts] == [
        ("better", "does not apply"),
        ("false_positives", "passed"),
        ("seconds", "passed"),
        ("lineage", "passed"),
    ]
    timed = next(one for one in first.verdicts if one.gate == "seconds")
    assert len(timed.details[0]["seconds"]) == 2
    strict = gates.model_copy(update={"false_positives": FalsePositivesGate(limit=0.0)})
    refused = _promote(home, name, strong, toy_store, gates=strict, lineage=lineage)
    assert not refused.promoted
    assert {one.gate: one.passes for one in refused.verdicts} == {
        "better": True,
        "false_positives": False,
        "seconds": True,
        "lineage": True,
    }
    assert "is kept back by 1 of 4 gates: false_positives:" in refused.sentence
    assert standing_of(name, home=home).champion == "1"
    kept = history(name, home=home)[1]
    assert (kept.decision, kept.gate["passed"]) == ("kept back", False)
    assert _promote(home, name, strong, toy_store, gates=gates, lineage=lineage).promoted


def _without_lesions_in_the_gate(store: CohortStore, path: Path) -> CohortStore:
    copy = CohortStore.create(path, recipe=store.recipe, channels=store.channels)
    with copy.lock():
        records = []
        for record in store.subjects():
            name = record.subject_id
            lesion = None if record.split == "gate" else store.mask(name, "lesion")
            arrays = SubjectArrays(image=store.image(name), brain=store.brain(name), lesion=lesion)
            fresh = record.model_copy(
                update={"arrays": {}, "recipe_digest": copy.recipe_digest, "has_lesion": False, "group": "site"}
            )
            records.append(copy.write(fresh, arrays))
        copy.commit(records)
    return CohortStore.open(path)


def test_a_gate_of_healthy_subjects_needs_no_lesions(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    store = _without_lesions_in_the_gate(toy_store, tmp_path / "store")
    model = _model(tmp_path / "model", store, 0.5)
    with pytest.raises(CohortError, match="no subject with an annotated lesion"):
        _promote(home, name, model, store)
    with pytest.raises(CohortError, match="no subject with an annotated lesion"):
        _promote(home, name, model, store, gates=Gates(better=None, subgroups=SubgroupsGate()))
    gates = Gates(better=None, false_positives=FalsePositivesGate(limit=1))
    answer = _promote(home, name, model, store, gates=gates)
    assert answer.promoted
    assert (answer.num_subjects, answer.num_lesions, answer.average_precision) == (4, 0, None)
    assert answer.sentence == f"version 1 is the first champion of '{name}'"
    second = _promote(home, name, _model(tmp_path / "second", store, 0.6), store, gates=gates)
    assert second.promoted
    assert second.champion_version == "1"
    assert second.sentence == f"version 2 is the new champion of '{name}': it passed false_positives"


def test_labels_that_are_not_there_are_said_before_anything_is_scored(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    model = _model(tmp_path / "model", toy_store, 0.5)
    with pytest.raises(SettingError, match=r"no gate subject has 'labels\.scanner'"):
        _promote(home, name, model, toy_store, gates=Gates(subgroups=SubgroupsGate(by=("labels.scanner",))))
    assert not (home / "gate" / name).exists()


def test_a_first_champion_that_was_not_the_first_is_compared(
    home: Path, name: str, toy_store: CohortStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find no such model: the one whose entry comes second is compared with the first."""
    weak, strong = (_model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.9))
    from vesalius.platform.registry import promotion

    ours: Any = vars(promotion)["register"]

    def after_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(promotion, "register", ours)
        other = tmp_path / "elsewhere"
        assert _promote(other, name, strong, toy_store, uri=tracking_uri(home)).promoted
        return ours(*arguments, **options)

    monkeypatch.setattr(promotion, "register", after_another)
    answer = _promote(home, name, weak, toy_store)
    assert (answer.promoted, answer.champion_version) == (False, "1")
    assert standing_of(name, home=home).champions == ("1",)


# ---- many at once


def _check_story(home: Path, name: str, uri: str, answers: list[Promotion]) -> None:
    """Check that nobody's win was lost, and that each was compared with whoever was champion when it counted."""
    standing = standing_of(name, home=home, uri=uri)
    assert not standing.unsettled
    line = standing.champions
    assert standing.alias == line[-1]
    valid = [entry.record for entry in standing.entries if not entry.overtaken]
    crowned = [record for record in valid if record.kind == "promoted"]
    assert tuple(record.version for record in crowned) == line
    assert [record.champion_version for record in crowned] == ["", *line[:-1]]
    precisions = [record.promotion["gate"]["average_precision"] for record in crowned]
    assert precisions == sorted(precisions)
    for record in valid:
        if record.kind == "kept back":
            assert record.promotion["gate"]["lower_bound"] <= 0
    counted = {entry.number: entry.record for entry in standing.entries if not entry.overtaken}
    for answer in answers:
        assert answer.record is not None
        record = counted[answer.record]
        assert (record.version, record.champion_version) == (answer.version, answer.champion_version or "")
        assert answer.promoted == (answer.version in line)


def _many(tmp_path: Path, store: CohortStore, uri: str, *, num_killed: int = 0) -> None:
    """Promote several models at once, each from a process and a home of its own; some processes are killed."""
    shares = (0.2, 0.4, 0.6, 0.75, 0.9)
    models = [_model(tmp_path / f"model-{share}", store, share) for share in shares]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "toy_methods", "vesalius.platform.registry"])
    begin, answers = context.Event(), context.Queue()
    from toy_methods import promote_into

    def started(index: int, model: Path, queue: Any) -> Any:
        home = tmp_path / f"home-{index}"
        process = context.Process(
            target=promote_into, args=(begin, queue, str(home), "brain", str(model), str(store.path), uri), daemon=True
        )
        process.start()
        return process

    doomed = [started(100 + index, models[-1 - index], context.Queue()) for index in range(num_killed)]
    processes = [started(index, model, answers) for index, model in enumerate(models)]
    begin.set()
    mlflow = client(uri)
    for index, process in enumerate(doomed):
        # Killed once so many entries are there: in the middle of the others' promotions and of its own.
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # there is no log yet
                if len(mlflow.search_model_versions(f"name='{log_name('brain')}'")) > index:
                    break
            time.sleep(0.02)
        process.kill()
        process.join(30)
    told = [Promotion.model_validate_json(answers.get(timeout=900)) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    home = tmp_path / "home-0"
    settle_aliases("brain", home=home, uri=uri)
    _check_story(home, "brain", uri, told)
    standing = standing_of("brain", home=home, uri=uri)
    # Whoever was there last, the best of them has met every other or been met: it is champion.
    best = max(told, key=lambda answer: answer.average_precision or 0.0)
    assert standing.entries[-1].number >= len(told)
    champion = next(facts for facts in history("brain", home=home, uri=uri) if facts.champion)
    assert champion.digest == next(
        facts.digest for facts in history("brain", home=home, uri=uri) if facts.version == best.version
    )


def test_many_threads_with_homes_of_their_own(home: Path, name: str, toy_store: CohortStore, tmp_path: Path) -> None:
    """The same in little, on a database without a server: they share nothing but it, as each has a home of its own."""
    uri = tracking_uri(home)
    models = [_model(tmp_path / f"{share}", toy_store, share) for share in (0.2, 0.5, 0.7, 0.9)]
    for model in models:  # MLflow's packing is not made for threads
        register(model, name, home=home, methods=METHODS)
    begin = threading.Barrier(len(models))

    def one(model: Path) -> Promotion:
        def scored(done: int, total: int, note: str) -> None:
            if note.startswith("candidate") and done == total and not waited:
                waited.append(True)
                begin.wait(300)  # all have looked at the same champion, none, before any decides

        waited: list[bool] = []
        return _promote(tmp_path / f"home-{model.name}", name, model, toy_store, uri=uri, progress=scored)

    with ThreadPoolExecutor(len(models)) as pool:
        told = list(pool.map(one, models, timeout=300))
    _check_story(home, name, uri, told)
    standing = standing_of(name, home=home)
    assert standing.champion == "4"
    assert any(entry.overtaken for entry in standing.entries)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_processes_that_share_a_server_alone(tmp_path: Path, toy_store: CohortStore, tracking_server: str) -> None:
    _many(tmp_path, toy_store, tracking_server)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_processes_of_which_some_are_killed(tmp_path: Path, toy_store: CohortStore, tracking_server: str) -> None:
    _many(tmp_path, toy_store, tracking_server, num_killed=2)


@pytest.fixture
def postgres_server(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[str]:
    """Start an MLflow server of two workers on PostgreSQL and return its address."""
    server = TrackingServer(tmp_path, postgresql.address(), num_workers=2)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_many_processes_on_postgresql(tmp_path: Path, toy_store: CohortStore, postgres_server: str) -> None:
    _many(tmp_path, toy_store, postgres_server, num_killed=1)
