"""Metrics of a running run: buffered, sent in batches by a thread of its own, never lost in silence."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import psutil

from vesalius.platform.errors import RunError, UnansweredError, VesaliusError
from vesalius.platform.tracking.connection import answering, client, existing_run
from vesalius.platform.tracking.journal import Journal, Point

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_LOG = logging.getLogger(__name__)
_METRICS_A_BATCH = 1000
_LONGEST_KEY = 250


def metric_key(name: str) -> str:
    """Return ``name`` as MLflow takes it: letters, digits, ``_ - . space : /``, and a path that is its own short form.

    A name that has to be changed gets six digits of its hash, so that two names never fall together.
    """
    safe = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    safe = "/".join(part for part in safe.split("/") if part not in ("", ".", ".."))
    if safe and safe == name and len(safe) <= _LONGEST_KEY:
        return safe
    return f"{safe[: _LONGEST_KEY - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def artifact_name(name: str) -> str:
    """Return ``name`` if a file of a run may be called so.

    Raises:
        RunError: it is empty, absolute, or leads out of the run's folder.
    """
    path = PurePosixPath(name)
    plain = all(re.fullmatch(r"[\w\-. ]+", part, flags=re.ASCII) for part in path.parts)
    if not path.parts or path.is_absolute() or ".." in path.parts or not plain:
        raise RunError(f"'{name[:160]}' cannot name a file of a run: use a relative path such as 'figures/maps.png'")
    return str(path)


class RunLogger:
    """Logs to a tracked run from one process; safe to call from several threads.

    The same metric with the same value at the same step, logged again (as a resumed run does between its
    checkpoint and the point where it was stopped), is sent once.

    With ``unsent``, every metric is first appended to that file, which is emptied once all have been sent. A
    process that is killed, or a server that is away until the end, then costs nothing: the next logger given the
    same file sends what is left. Such a logger is a training's: it looks for its server after the first metrics and not
    before, since importing MLflow takes as long as a small network's first steps, and it begins without one too; of a
    step that is taken twice, perhaps by fewer workers whose sums round otherwise, the first value stays.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        system_metrics: bool = False,
        unsent: Path | None = None,
        flush_seconds: float = 2.0,
    ) -> None:
        """Connect, or with ``unsent`` open that file.

        Args:
            uri: the tracking store.
            run_id: the run's id in MLflow.
            system_metrics: log the machine's use of CPU, memory, disk and GPU every ten seconds, and at the end.
            unsent: where metrics are kept until they have been sent.
            flush_seconds: between batches.

        Raises:
            RunError: there is no such run, and no ``unsent`` file.
            UnansweredError: nothing answers at ``uri``, and there is no ``unsent`` file to write to meanwhile.
            DiskSpaceError: there is no room for the ``unsent`` file.
        """
        self._uri = uri
        self._run_id = run_id
        self._reached: Any = None
        self._warned = False
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._known: dict[str, set[tuple[int, str]]] = {}
        self._watches = system_metrics
        self._monitor: Any = None
        if system_metrics:
            # Its next answer in this thread, MLflow's at the end of a short run, is of the time since this one.
            psutil.cpu_percent()
        if unsent is None:
            self._client()
            self._start_watching()
        self._journal = None if unsent is None else Journal(unsent)
        self._pending: list[Point] = [] if self._journal is None else list(self._journal.left)
        self._closed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_now_and_then, args=(flush_seconds,), daemon=True)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The error on its way says what happened; a second one about metrics must not take its place.
        with contextlib.suppress(VesaliusError):
            self.close()

    def metrics(self, step: int, metrics: Mapping[str, float], *, timestamp: int | None = None) -> None:
        """Take metrics at a step; they are sent a little later. Never waits for the network.

        Args:
            step: of the run.
            metrics: by name.
            timestamp: when they were taken, milliseconds since 1970; now where None.

        Raises:
            RunError: the logger has been closed.
            DiskSpaceError: there is no room for them in the ``unsent`` file.
        """
        now = int(time.time() * 1000) if timestamp is None else timestamp
        points = [Point(metric_key(key), float(value), now, int(step)) for key, value in metrics.items()]
        with self._lock:
            if self._closed:
                raise RunError(
                    f"the logger of tracked run {self._run_id} is closed and takes no metrics of step {step}"
                )
            self._pending.extend(points)
            if self._journal is not None:
                self._journal.add(points)
            if self._thread.ident is None:
                self._thread.start()

    def flush(self) -> None:
        """Send what is waiting, now.

        Raises:
            RunError: it cannot be sent; it is kept and tried again later.
            DiskSpaceError: it has been sent, and the ``unsent`` file cannot be emptied: it is sent once more later.
        """
        with self._sending, answering(self._uri, f"log metrics of tracked run {self._run_id}"):
            while True:
                with self._lock:
                    batch = self._pending[:_METRICS_A_BATCH]
                if not batch:
                    break
                fresh = self._not_yet_logged(batch)
                if fresh:
                    from mlflow.entities import Metric  # the client has seen to it that MLflow is imported quietly

                    # Kept timestamps make a batch that was written but not answered harmless when sent again.
                    entities = [Metric(point.key, point.value, point.timestamp, point.step) for point in fresh]
                    self._client().log_batch(self._run_id, metrics=entities)
                for point in batch:
                    self._known[point.key].add(self._identity(point))
                with self._lock:
                    del self._pending[: len(batch)]
                    if not self._pending and self._journal is not None:
                        self._journal.clear()

    def text(self, text: str, name: str) -> None:
        """Keep a text as a file of the run. Raises RunError as :meth:`flush` does."""
        with answering(self._uri, f"keep '{name}' of tracked run {self._run_id}"):
            self._client().log_text(self._run_id, text, artifact_name(name))

    def dict(self, value: Mapping[str, Any], name: str) -> None:
        """Keep plain data as a JSON file of the run. Raises RunError as :meth:`flush` does."""
        self.text(json.dumps(value, indent=1), name)

    def figure(self, figure: Any, name: str) -> None:
        """Keep a picture as a file of the run. Raises RunError as :meth:`flush` does.

        Args:
            figure: a Matplotlib figure, or the path of a picture, which must have the same suffix as ``name``.
            name: such as ``figures/maps.png``.
        """
        target = PurePosixPath(artifact_name(name))
        with answering(self._uri, f"keep '{name}' of tracked run {self._run_id}"):
            if not isinstance(figure, str | Path):
                self._client().log_figure(self._run_id, figure, str(target))
                return
            import tempfile

            # MLflow names a file as it finds it.
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / target.name
                copy.write_bytes(Path(figure).read_bytes())
                parent = str(target.parent)
                self._client().log_artifact(self._run_id, str(copy), None if parent == "." else parent)

    def close(self) -> None:
        """Stop, and send what is waiting; a second call does nothing.

        Raises:
            RunError: metrics could not be sent and there is no ``unsent`` file that keeps them.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self.flush()
        except VesaliusError as error:
            left = len(self._pending)
            if self._journal is None:
                raise RunError(f"{left} metrics of tracked run {self._run_id} are lost: {error}") from None
            _LOG.warning("metrics wait in %s for the next start of the run: %s", self._journal.path, error)
        finally:
            self._start_watching()  # a short run's machine is told of too
            if self._monitor is not None:
                _stop_monitor(self._monitor)
            if self._journal is not None:
                self._journal.close()

    def _send_now_and_then(self, every_seconds: float) -> None:
        while not self._stop.wait(every_seconds):
            try:
                self.flush()
            except VesaliusError as error:
                self._warn(error)
            else:
                self._warned = False
            self._start_watching()

    def _warn(self, error: VesaliusError) -> None:
        if not self._warned:
            later = "sent later" if isinstance(error, UnansweredError) else "sent once that is mended"
            _LOG.warning("%s (metrics are kept and %s)", error, later)
        self._warned = True

    def _start_watching(self) -> None:
        """Have the machine watched, where that is asked for and the server has been reached; once."""
        if not self._watches or self._reached is None:
            return
        self._watches = False
        try:
            self._monitor = _start_monitor(self._uri, self._run_id)
        except Exception as error:  # what the machine was doing is not worth a run
            _LOG.warning("the machine is not watched: %s", (str(error).splitlines() or [type(error).__name__])[0])

    def _client(self) -> Any:
        if self._reached is None:
            reached = client(self._uri)
            existing_run(reached, self._uri, self._run_id)
            self._reached = reached
        return self._reached

    def _identity(self, point: Point) -> tuple[int, str]:
        # The text of the value, because NaN differs from itself.
        return (point.step, repr(point.value) if self._journal is None else "")

    def _not_yet_logged(self, batch: list[Point]) -> list[Point]:
        fresh: dict[tuple[str, int, str], Point] = {}
        for point in batch:
            if point.key not in self._known:
                history = self._client().get_metric_history(self._run_id, point.key)
                logged = (Point(one.key, float(one.value), one.timestamp, one.step) for one in history)
                self._known[point.key] = {self._identity(one) for one in logged}
            identity = self._identity(point)
            if identity not in self._known[point.key]:
                fresh.setdefault((point.key, *identity), point)
        return list(fresh.values())


def _start_monitor(uri: str, run_id: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
    with answering(uri, f"watch the machine for tracked run {run_id}"):
        monitor = SystemMetricsMonitor(run_id, tracking_uri=uri, resume_logging=True)
        monitor.start()
        return monitor


def _stop_monitor(monitor: Any) -> None:
    monitor.finish()
    # A run shorter than the sampling interval would otherwise say nothing about its machine.
    try:
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
    except Exception as error:  # what the machine was doing is not worth a run
        _LOG.warning("the last system metrics could not be logged: %s", str(error).splitlines()[0])
