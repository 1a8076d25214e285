"""Runs to be killed: a method whose steps take their time and whose answer forgives rounding, driven by a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import torch
from safetensors.torch import load_file
from torch import nn

from vesalius.platform.contracts import Method, MethodSettings, Score, Stage, WholeVolumes
from vesalius.platform.runs import RunSpec, create_run
from vesalius.platform.testing.training_runs import training_settings
from vesalius.platform.tracking import start_run
from vesalius.platform.training import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Metrics, Update, Volume
    from vesalius.platform.store import CohortStore

_DRIVER = """
import sys
from pathlib import Path
from vesalius.platform import cluster
from vesalius.platform.runs import RunFolder
from vesalius.platform.testing.steady import Steady
cluster.train(RunFolder(Path(sys.argv[1])), Steady)
"""


class SteadySettings(MethodSettings):
    """How long, how slowly, where a file may come to lie that tells a worker to take memory, where steps are told."""

    epochs: float = 100
    pause_seconds: float = 0.05
    glutton: str = ""
    glutton_mib: int = 0
    beats: str = ""


class Steady(Method):
    """Learns a mean head by gradient descent, which forgets a rounding error as it forgets where it began."""

    settings_type: ClassVar[type[MethodSettings]] = SteadySettings
    settings: SteadySettings

    def __init__(self, settings: SteadySettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.head = nn.Parameter(torch.zeros(len(cohort.channels), *cohort.grid))

    def stages(self) -> Sequence[Stage]:
        """Return the one stage."""
        return [
            Stage(
                name="head",
                view=WholeVolumes(),
                batch_size=4,
                epochs=self.settings.epochs,
                trains=[self],
                optimizers={"head": torch.optim.SGD(self.parameters(), 0.02)},
                step=self._step,
                selectable=True,
            )
        ]

    def _step(self, batch: Batch, update: Update) -> Metrics:
        time.sleep(self.settings.pause_seconds)
        if self.settings.glutton and Path(self.settings.glutton).exists():
            Path(self.settings.glutton).unlink(missing_ok=True)  # one worker, once
            self.held = torch.ones(self.settings.glutton_mib * 2**18)
            time.sleep(60)
        metrics = {"loss": update("head", self._loss, batch)}
        if self.settings.beats:
            with Path(self.settings.beats).open("a") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
        return metrics

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        return ((batch.image - self.head) ** 2).flatten(1).sum(1).sum(), len(batch)

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Return the size of a volume minus the mean head."""
        maps = [(volume.image - self.head).abs().mean(0) for volume in volumes]
        return [Score(map=one, image_score=float(one.max())) for one in maps]


class SteadyRun:
    """A run of :class:`Steady` whose driver is a process of its own."""

    def __init__(
        self,
        home: Path,
        name: str,
        store: CohortStore,
        *,
        num_workers: int = 2,
        settings: Mapping[str, Any] | None = None,
        tracked_at: str | None = None,
        **training: Any,
    ) -> None:
        """Create the run, of 600 steps on six training subjects with a checkpoint every 20; nothing is started.

        Args:
            home: of the run.
            name: of it.
            store: to train on.
            num_workers: Ray Train workers; 0 trains in the driver.
            settings: changes to the method's.
            tracked_at: where a tracked run is begun for it; None tracks nothing.
            training: changes to the loop's settings.
        """
        tracked = None if tracked_at is None else start_run(tracked_at, "steady", name, {})
        spec = RunSpec(
            run_id=name,
            method="steady",
            settings=SteadySettings(**{"epochs": 400, **(settings or {})}).model_dump(mode="json"),
            training=training_settings(threads=1, checkpoint_every=20, validate_every=100_000, **training),
            store=str(store.path),
            cohort_digest=store.digest,
            num_workers=num_workers,
            mlflow_tracking_uri=tracked_at,
            mlflow_run_id=tracked,
            created="2026-01-01T00:00:00Z",
        )
        self.folder = create_run(home, spec)
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a driver, in a session of its own, and return it."""
        with (self.folder.path / "driver.log").open("ab") as log:
            self._driver = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, str(self.folder.path)],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._driver

    def wait(self, condition: Callable[[], object], seconds: float = 180.0) -> None:
        """Wait for something to come true while the driver lives.

        Raises:
            AssertionError: the driver ends before, or it takes longer; with what the driver said.
        """
        assert self._driver is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._driver.poll() is None, f"the driver ended before its time: {self.log[-3000:]}"
            assert time.monotonic() < deadline, f"nothing came of it in {seconds:.0f} s: {self.log[-3000:]}"
            time.sleep(0.1)

    def ends(self, seconds: float = 400.0) -> int:
        """Wait for the driver to end and return its exit status."""
        assert self._driver is not None
        return self._driver.wait(seconds)

    def end(self) -> None:
        """Kill the driver and what it started: they share its session, which is nobody else's."""
        if self._driver is None:
            return
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(process.pid) == self._driver.pid:
                    process.kill()
        self._driver.wait(30)

    @property
    def log(self) -> str:
        """What the drivers have said."""
        return (self.folder.path / "driver.log").read_text()

    @property
    def last(self) -> str:
        """Name of the last checkpoint; empty before the first one."""
        return Checkpoints(self.folder.checkpoints).last() or ""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Weights of the last checkpoint."""
        weights: dict[str, torch.Tensor] = load_file(self.folder.checkpoints / self.last / "weights.safetensors")
        return weights
