"""A study over settings of no method, for tests of what keeps and drives studies; shipped as other test kits are."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from vesalius.platform.contracts import Choice, MethodSettings, Range, setting
from vesalius.platform.errors import DivergenceError, RunError, StoreError
from vesalius.platform.runs import RunFolder, RunSettings
from vesalius.platform.store.files import write_file
from vesalius.platform.training import Paused
from vesalius.tuning.folder import StudyFolder, create_study
from vesalius.tuning.ledger import Ledger
from vesalius.tuning.spaces import dimensions
from vesalius.tuning.spec import Record, StudySpec
from vesalius.tuning.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vesalius.tuning.noted import Begun

CRITERION = "validation_average_precision"
STEPS = 9


class ToySettings(MethodSettings):
    """Settings whose worth is known: see :func:`worth`."""

    x: float = setting(0.5, "best at 0.3", space=Range(low=0, high=1), mutable=True)
    k: int = setting(3, "best at 5", space=Range(low=1, high=8), mutable=True)
    kind: str = setting("a", "a is better", space=Choice(values=("a", "b")), mutable=True)
    width: int = setting(4, "no difference, but fixed")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.k == 8 and self.kind == "b":
            raise ValueError("k is 8 and kind is b: not both")
        return self


BASE = RunSettings.of(ToySettings())


def worth(values: Mapping[str, Any]) -> float:
    """Return what a trial comes to; the higher its seed, the less."""
    x, k = float(values.get("method.x", 0.5)), int(values.get("method.k", 3))
    kind = 0.1 if values.get("method.kind", "a") == "b" else 0
    return 0.9 - (x - 0.3) ** 2 - 0.01 * abs(k - 5) - kind - 0.001 * int(values.get("seed", 0))


def toy_spec(home: Path, **changes: Any) -> StudySpec:
    """Return a study's specification."""
    given = changes.pop("space", {})
    values: dict[str, Any] = {
        "name": "toy",
        "token": secrets.token_hex(4),
        "method": "toy",
        "settings": BASE.method.model_dump(mode="json"),
        "store": str(home / "store"),
        "cohort_digest": "d" * 64,
        "searched": dimensions(BASE, given, lambda settings: None),
        "objectives": ("average_precision",),
        "criterion": CRITERION,
        "trials": 6,
        "concurrent": 2,
        "storage": f"sqlite:///{home / 'studies' / 'toy' / 'optuna.db'}",
        "experiment": "toy",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return StudySpec.model_validate({**values, **changes})


def toy_study(home: Path, **changes: Any) -> StudyFolder:
    """Make a study's folder."""
    return create_study(home, toy_spec(home, **changes))


def ledger_of(spec: StudySpec) -> Ledger:
    """Open a study's storage as one more driver does, without patience."""
    return Ledger(spec, BASE, spec.storage, Patience(spec.storage, 0))


def drawn(ledger: Ledger) -> Begun:
    """Return the next trial, which there must be."""
    begun = ledger.draw()
    assert begun is not None
    return begun


def complete(ledger: Ledger, begun: Begun, **figures: float) -> None:
    """End a trial with what its values are worth, or other figures."""
    found = {"average_precision": worth(begun.values), **figures}
    ledger.end(begun, Record(number=begun.number, ending="complete", run_id=f"toy-{begun.number:04d}", figures=found))


@dataclass(frozen=True)
class ToyTrainer:
    """Trains by waiting; appends what it does to a file, a line each, so that nothing is done twice unseen.

    Attributes:
        home: of the runs.
        seconds: of a step.
        closing: seconds that a trial needs to let go of its run, stopped or not.
        wrong: by key of a setting, the value from which on a trial fails, and how.
    """

    home: str
    seconds: float = 0.01
    closing: float = 0.0
    wrong: dict[str, tuple[float, str]] = field(default_factory=dict)

    def _say(self, text: str) -> None:
        with (Path(self.home) / "log").open("a") as log:
            log.write(text + "\n")

    def start(
        self,
        spec: StudySpec,
        number: int,
        values: Mapping[str, Any],
        seed: int | None = None,
        parent: Record | None = None,
    ) -> RunFolder:
        """Make a folder; one that goes on from another run begins with what that has gathered."""
        run = RunFolder(Path(self.home) / "runs" / spec.run_id(number, seed))
        run.path.mkdir(parents=True, exist_ok=True)
        until = STEPS if spec.population is None else round(STEPS * spec.population.until(number))
        told = json.dumps({**values, "seed": seed or 0, "until": until})
        write_file(run.path / "values.json", told.encode(), run.path)
        if parent is not None and not (run.path / "gathered.json").exists():
            gathered = (Path(self.home) / "runs" / parent.run_id / "gathered.json").read_bytes()
            if hashlib.sha256(gathered).hexdigest() != parent.weights_sha256:
                raise RunError(f"{parent.run_id} is not what it was when it paused")
            write_file(run.path / "gathered.json", gathered, run.path)
        return run

    def train(self, run: RunFolder) -> None:
        """Wait for some steps, from the one that an earlier worker came to."""
        try:
            self._train(run)
        finally:
            time.sleep(self.closing)

    def _train(self, run: RunFolder) -> None:
        from ray import tune

        values = json.loads((run.path / "values.json").read_text())
        self._say(f"train {run.run_id}")
        done = run.path / "gathered.json"
        gathered = _gathered(run)
        for step in range(len(gathered), values["until"]):
            time.sleep(self.seconds)
            for key, (least, how) in self.wrong.items():
                if float(values.get(key, 0)) >= least:
                    raise {
                        "diverges": DivergenceError(f"the loss is not finite in step {step} of stage 'toy'"),
                        "memory": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
                        "defect": ValueError("a defect"),
                        "store": StoreError("the store is gone"),
                    }[how]
            gathered.append(worth(values) / STEPS)
            value = sum(gathered)
            # As in training: what is told before it is kept is told again after a kill in between.
            tune.report({"step": step + 1, "total": STEPS, CRITERION: value, f"best_{CRITERION}": value})
            write_file(done, json.dumps(gathered).encode(), run.path)

        if values["until"] < STEPS:
            run.set_paused(
                Paused(
                    checkpoint=f"{values['until']}",
                    weights_sha256=hashlib.sha256(done.read_bytes()).hexdigest(),
                    percent=100 * values["until"] / STEPS,
                    criterion=CRITERION,
                    value=sum(gathered),
                )
            )

    def judge(self, run: RunFolder, spec: StudySpec) -> dict[str, float]:
        """Return what the values were worth, step by step."""
        values = json.loads((run.path / "values.json").read_text())
        self._say(f"judge {run.run_id}")
        return {"average_precision": sum(_gathered(run)), "seconds_per_volume": float(values.get("method.k", 3))}

    def abandon(self, spec: StudySpec, record: Record, seed: int | None = None) -> None:
        """Say so."""
        self._say(f"abandon {spec.run_id(record.number, seed)}")


def _gathered(run: RunFolder) -> list[float]:
    path = run.path / "gathered.json"
    found: list[float] = json.loads(path.read_text()) if path.exists() else []
    return found
