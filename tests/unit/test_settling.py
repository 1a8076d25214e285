"""Who moved the alias: two who settle at once, in every order of their calls, killed at any of them."""

from __future__ import annotations

import copy
import re
import secrets
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

from vesalius.platform.registry import records, settling
from vesalius.platform.registry.log import append, begin_settling, log_name, mark_of, read
from vesalius.platform.registry.records import PromotionRecord
from vesalius.platform.registry.settling import settle, settle_wholly

if TYPE_CHECKING:
    from collections.abc import Callable

    from vesalius.platform.registry.log import Standing

NAME, URI = "brain", "sqlite:///nowhere.db"
LOG = log_name(NAME)


@pytest.fixture(autouse=True)
def _nothing_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tokens and times follow from who asks, so that a state that comes again is known."""
    monkeypatch.setattr(records, "now", lambda: "2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(secrets, "token_hex", lambda _: _token())


_ASKED = threading.local()


def _token() -> str:
    _ASKED.times = getattr(_ASKED, "times", 0) + 1
    return f"{threading.current_thread().name}-{_ASKED.times}"


class Page(list[Any]):
    token = None


class Registry:
    """MLflow's registry as far as it is called: each call happens at once, one after the other."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}

    def create_registered_model(self, name: str, description: str = "") -> None:
        if name in self.models:
            raise MlflowException("is there", error_code=RESOURCE_ALREADY_EXISTS)
        self.models[name] = SimpleNamespace(versions={}, tags={}, aliases={}, creation_timestamp=1)

    def _model(self, name: str) -> Any:
        if name not in self.models:
            raise MlflowException("is not there", error_code=RESOURCE_DOES_NOT_EXIST)
        return self.models[name]

    def get_registered_model(self, name: str) -> Any:
        model = self._model(name)
        return SimpleNamespace(tags=dict(model.tags), aliases=dict(model.aliases), creation_timestamp=1)

    def search_model_versions(self, asked: str, max_results: int, page_token: None) -> Page:
        name = re.fullmatch("name='(.*)'", asked)
        assert name is not None
        model = self.models.get(name[1])
        versions = [] if model is None else model.versions.values()
        return Page(SimpleNamespace(version=one.version, tags=dict(one.tags)) for one in versions)

    def create_model_version(self, name: str, tags: dict[str, str], **_: Any) -> None:
        versions = self._model(name).versions
        number = str(len(versions) + 1)
        versions[number] = SimpleNamespace(version=number, tags=dict(tags))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._model(name).tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self._model(name).tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._model(name).aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._model(name).aliases.pop(alias, None)

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._model(name).versions[version].tags[key] = value

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self._model(name).versions[version].tags.pop(key, None)


def promote(registry: Any, version: str, home: str) -> None:
    """Write into the log that a version became champion; the alias lags behind."""
    standing = settle(registry, URI, NAME, home)
    facts = {"champion_version": standing.champion, "follows": standing.head, "life": standing.life}
    append(registry, URI, PromotionRecord(kind="promoted", name=NAME, version=version, by="ada", **facts))


def roll_back(registry: Any, home: str) -> None:
    standing = settle(registry, URI, NAME, home)
    before = standing.champions[-2]
    facts = {"champion_version": standing.champion, "follows": standing.head, "life": standing.life}
    append(registry, URI, PromotionRecord(kind="rolled back", name=NAME, version=before, by="grace", **facts))
    settle(registry, URI, NAME, home)


def kinds(standing: Standing) -> list[str]:
    return [entry.record.kind for entry in standing.entries]


def begun() -> Registry:
    """Return a registry of three versions: the first was champion, the second has just become it, in the log alone."""
    _ASKED.times = 0
    registry = Registry()
    registry.create_registered_model(NAME)
    for number in range(3):
        registry.create_model_version(NAME, {"vesalius.card": str(number)})
    promote(registry, "1", "before")
    promote(registry, "2", "before")
    return registry


class Killed(BaseException):
    pass


_IN_TURN = {
    "get_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model_tag",
}


@dataclass
class Actor:
    """Somebody in a thread of their own, who makes one call when told to."""

    name: str
    work: Callable[[Any], object]
    registry: Registry
    told: list[str] = field(default_factory=list)  # all that they know, so all that they will do follows from it
    ended: bool = False
    doomed: bool = False
    failed: BaseException | None = None

    def __post_init__(self) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self) -> None:
        try:
            self.work(self)
        except Killed:
            pass
        except BaseException as error:  # told to the test
            self.failed = error
        self.ended = True
        self._stopped.release()

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            if call in _IN_TURN and (call != "get_registered_model" or arguments == (LOG,)):
                self._stopped.release()
                self._go.acquire()
                if self.doomed:
                    raise Killed
            try:
                answer = getattr(self.registry, call)(*arguments, **named)
            except MlflowException as error:
                self.told.append(str(error))
                raise
            self.told.append(f"{call} {arguments} {answer}")
            return answer

        return made

    def step(self, *, kill: bool = False) -> None:
        self.doomed = self.doomed or kill
        self._go.release()
        self._stopped.acquire()

    def end(self) -> None:
        if not self.ended:
            self.step(kill=True)
        self._thread.join()


Choice = tuple[str, bool]
"""Who makes the next call, and whether they are killed instead."""


def every_order(
    work: dict[str, Callable[[Any], object]],
    check: Callable[[Registry, list[Choice]], None],
    *,
    switches: int,
    kills: int = 0,
) -> int:
    """Try every order of calls in which so many leave off before they have ended, or are killed at any call.

    Where all have been told the same and the registry is the same, all goes on the same: this is tried once.

    Returns:
        How many orders came to an end, which were checked.
    """
    start = begun()
    seen: set[int] = set()
    left: list[list[Choice]] = [[]]
    ends = 0
    while left:
        prefix = left.pop()
        _ASKED.times = 0
        registry = copy.deepcopy(start)
        actors = {name: Actor(name, one, registry) for name, one in work.items()}
        done: list[Choice] = []
        last, switched, killed = "", 0, 0
        try:
            while running := [name for name, actor in actors.items() if not actor.ended]:
                if len(done) < len(prefix):
                    choice = prefix[len(done)]
                else:
                    told = [(one.told, one.ended) for one in actors.values()]
                    state = hash(repr((registry.models, told, last, switched, killed)))
                    if state in seen:
                        break
                    seen.add(state)
                    stay = [last] if last in running else running
                    others = [] if switched == switches else [name for name in running if name not in stay]
                    choices = [(name, False) for name in (*stay, *others)]
                    choices += [(name, True) for name in running if killed < kills]
                    choice = choices[0]
                    left += [[*done, other] for other in choices[1:]]
                if not choice[1]:
                    switched += last in running and choice[0] != last
                    last = choice[0]
                killed += choice[1]
                done.append(choice)
                actors[choice[0]].step(kill=choice[1])
            else:
                for actor in actors.values():
                    assert actor.failed is None, (done, actor.failed)
                ends += 1
                check(registry, done)
        finally:
            for actor in actors.values():
                actor.end()
    return ends


def agreed(registry: Registry, done: list[Choice]) -> None:
    """Check that whoever comes next finds no move that nobody made, and brings the alias to what the log says."""
    standings = [settle(registry, URI, NAME, home) for home in ("elsewhere", "of-a", "of-b", "of-c")]
    for standing in standings:
        assert "moved" not in kinds(standing), done
        assert standing.alias == standing.crowned, done
    assert not standings[-1].settling, done
    told = kinds(standings[-1])
    assert told in (["promoted", "promoted"], ["promoted", "promoted", "rolled back"]), done
    assert standings[-1].champion == ("1" if len(told) == 3 else "2"), done


def settled_from(home: str) -> Callable[[Any], object]:
    return lambda registry: settle(registry, URI, NAME, home)


MANY = pytest.mark.long


@pytest.mark.parametrize(
    ("switches", "kills"),
    [(3, 0), (1, 1), pytest.param(5, 0, marks=MANY), pytest.param(2, 1, marks=MANY), pytest.param(1, 2, marks=MANY)],
)
def test_a_rollback_elsewhere_stands_whatever_the_order(switches: int, kills: int) -> None:
    work = {"b": settled_from("of-b"), "a": lambda registry: roll_back(registry, "of-a")}
    assert every_order(work, agreed, switches=switches, kills=kills) > 200


@pytest.mark.long
def test_a_third_who_looks_writes_no_move_that_nobody_made() -> None:
    work = {"b": settled_from("of-b"), "a": lambda registry: roll_back(registry, "of-a"), "c": settled_from("of-c")}
    assert every_order(work, agreed, switches=2) > 200


def stopped_before_pointing(registry: Registry, home: str) -> Actor:
    """Return somebody who has marked that the alias is about to be pointed, and has not pointed it."""
    actor = Actor("slow", settled_from(home), registry)
    while not actor.told or "set_registered_model_tag" not in actor.told[-1]:
        actor.step()
    return actor


def test_of_a_killed_process_the_next_from_its_home_takes_the_mark_away() -> None:
    registry = begun()
    stopped_before_pointing(registry, "of-b").end()
    assert settle(registry, URI, NAME, "of-a").settling, "of another home nobody knows"
    assert not settle(registry, URI, NAME, "of-b").settling
    registry.set_registered_model_alias(NAME, "champion", "3")
    standing = settle(registry, URI, NAME, "of-a")
    assert (kinds(standing)[-1], standing.champion) == ("moved", "3")


def test_a_person_may_move_the_alias_wherever_no_mark_says_so() -> None:
    registry = begun()
    stopped_before_pointing(registry, "of-b").end()
    roll_back(registry, "of-a")
    registry.set_registered_model_alias(NAME, "champion", "3")
    assert (read(registry, URI, NAME).moved, read(registry, URI, NAME).champion) == (True, "3")
    registry.set_registered_model_alias(NAME, "champion", "2")  # as the killed process would have
    assert (read(registry, URI, NAME).moved, read(registry, URI, NAME).champion) == (False, "1")
    assert settle(registry, URI, NAME, "of-a").alias == "1"


@pytest.mark.parametrize("alive", [False, True])
def test_when_asked_marks_from_elsewhere_go_after_a_while(monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    monkeypatch.setattr(settling, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(settling, "_BETWEEN_SECONDS", 0.01)
    registry = begun()
    slow = stopped_before_pointing(registry, "of-b")
    roll_back(registry, "of-a")
    assert not settle_wholly(registry, URI, NAME, "of-a").settling
    while alive and not slow.ended:  # stopped for longer than it was waited for, and then it points the alias
        slow.step()
    slow.end()
    standing = settle(registry, URI, NAME, "of-a")
    assert kinds(standing) == ["promoted", "promoted", "rolled back"]
    assert (standing.alias, dict(standing.settling)) == ("1", {})


def test_who_is_at_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = begun()
    slow = stopped_before_pointing(registry, "of-b")

    def goes_on(_: float) -> None:
        while not slow.ended:
            slow.step()

    monkeypatch.setattr(settling, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=goes_on))
    assert settle_wholly(registry, URI, NAME, "of-a").alias == "2"
    assert slow.failed is None
    slow.end()


def test_an_alias_taken_away_late_is_nobodys_move() -> None:
    registry = begun()
    settle(registry, URI, NAME, "of-a")
    begin_settling(registry, NAME, mark_of("of-b", "1"), {""})
    registry.delete_registered_model_alias(NAME, "champion")
    standing = settle(registry, URI, NAME, "of-a")
    assert (standing.alias, kinds(standing)) == ("2", ["promoted", "promoted"])
