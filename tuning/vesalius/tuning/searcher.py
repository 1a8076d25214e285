"""How Ray Tune is told what to try next and what to stop: by the study's ledger.

Ray's own ``OptunaSearch`` keeps beside Optuna's storage a state of its own, written now and then; after a kill the two
differ by the trials that ended in between. It also notes trials that were stopped early as complete. This one keeps
nothing but which of Tune's trials is which of the study's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from vesalius.platform.errors import RunError, StudyError, VesaliusError
from vesalius.tuning.spec import Record
from vesalius.tuning.trial import error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vesalius.platform.progress import Progress
    from vesalius.tuning.folder import StudyFolder
    from vesalius.tuning.ledger import Ledger
    from vesalius.tuning.noted import Begun
    from vesalius.tuning.spec import StudySpec

_HOPELESS = 3
"""Trials of a call that fail where no other of the study has ended, after which it stops: a fourth would fail too."""


class LedgerSearch(Searcher):  # type: ignore[misc]  # Ray comes without types
    """Hands out the trials that were left half-way, then new ones, until the study has as many as it is to have.

    Attributes:
        error: what ends the study, once something does.
    """

    def __init__(
        self,
        ledger: Ledger,
        spec: StudySpec,
        folder: StudyFolder,
        *,
        deadline: float | None,
        progress: Progress,
        abandon: Callable[[Record], None],
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._spec = spec
        self._folder = folder
        self._deadline = deadline
        self._progress = progress
        self._abandon = abandon
        self._waiting = ledger.left_behind()
        self._running: dict[str, Begun] = {}
        self._percent: dict[str, float] = {}
        self._passed: dict[str, float] = {}
        self._pruned: set[str] = set()
        self._ended = 0
        self._failed = 0
        self._exhausted_at: int | None = None
        self.error: VesaliusError | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether the spaces held nothing new when they were last asked."""
        return self._exhausted_at is not None

    def __getstate__(self) -> dict[str, Any]:
        """Leave all behind: Tune writes its searcher beside its trials, and nobody reads that again."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return what to try next, None where enough is under way, or FINISHED."""
        if self.error is not None or self.is_over():
            return str(Searcher.FINISHED)
        if len(self._running) >= self._spec.concurrent:
            return None
        with _Noting(self):
            begun = self._next()
            if begun is not None:
                self._running[trial_id] = begun
                self._say()
                after = {} if begun.parent is None else {"parent": begun.parent.model_dump(mode="json")}
                return {"number": begun.number, "values": begun.values, **after}
        if self._running and self.error is None:
            return None  # the spaces are asked again once something has ended
        return str(Searcher.FINISHED)

    def beat(self) -> None:
        """Let other drivers of the study know that this one is at work."""
        with _Noting(self):
            self._ledger.beat()

    def is_over(self) -> bool:
        """Say whether the time that was given is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _next(self) -> Begun | None:
        while self._waiting:
            begun = self._waiting.pop(0)
            record = self._folder.record(begun.number)  # its worker had finished when the driver was killed
            if record is None and begun.given_up is not None:
                run_id = self._spec.run_id(begun.number)
                record = self._given_up(
                    Record(
                        number=begun.number,
                        ending="pruned",
                        run_id=run_id,
                        percent=begun.given_up,
                        passed=begun.passed,
                    )
                )
            if record is None:
                return begun
            self._ledger.end(begun, record)
        if sum(self._ledger.counts()) >= self._spec.trials and not self._ledger.start_waits():
            return None
        if self._exhausted_at == self._ended or not self._ledger.is_ready():
            return None  # nothing has ended since: the same draws would come to the same
        fresh = self._ledger.draw()
        self._exhausted_at = self._ended if fresh is None else None
        return fresh

    def hear(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Note a validation pass and return whether the pruner gives the trial up."""
        criterion = self._spec.criterion
        begun = self._running.get(trial_id)
        if begun is None or not result.get("total"):
            return False
        percent = 100.0 * result["step"] / result["total"]
        self._percent[trial_id] = percent
        # A population is judged by what its members are, not by the best that they were.
        best = "" if self._spec.population is not None else "best_"
        value = None if criterion is None else result.get(f"{best}{criterion}")
        if value is not None:
            self._passed[trial_id] = float(value)
            with _Noting(self):
                if self._ledger.report(begun.number, percent, float(value)):
                    self._pruned.add(trial_id)
        return trial_id in self._pruned

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note what became of a trial; one that was broken off with the whole study stays under way."""
        begun = self._running.pop(trial_id, None)
        if begun is None:
            return
        with _Noting(self):
            record = self._record(trial_id, begun, result or {}, error)
            if record is not None:
                self._ledger.end(begun, record)
                self._count(record)
                self._say()

    def take_back(self, trial_id: str) -> None:
        """Hand a trial out once more that Tune has given up without a word, if it is one of those under way."""
        begun = self._running.pop(trial_id, None)
        if begun is not None:
            self._waiting.append(begun)

    def _record(self, trial_id: str, begun: Begun, result: Mapping[str, Any], error: bool) -> Record | None:
        number, run_id = begun.number, self._spec.run_id(begun.number)
        percent = self._percent.get(trial_id, 0.0)
        if "fatal" in result:
            wrong = error_of(result["fatal"])
            # A run that cannot go on, such as one with a damaged checkpoint, would end every call from now on.
            if not (self._ledger.blocks(number) and isinstance(wrong, RunError)):
                self.error = self.error or wrong
                return None
            return self._given_up(
                Record(number=number, ending="failed", reason=str(wrong)[:500], run_id=run_id, percent=percent)
            )
        # The worker's own word is the last one, even where Tune has lost the worker since.
        kept = Record.model_validate_json(result["record"]) if "record" in result else self._folder.record(number)
        if kept is not None:
            return kept
        if trial_id in self._pruned:
            passed = self._passed.get(trial_id)
            return self._given_up(Record(number=number, ending="pruned", run_id=run_id, percent=percent, passed=passed))
        if error:
            reason = "its worker process died again and again: most likely it ran out of memory"
            return self._given_up(
                Record(number=number, ending="failed", reason=reason, run_id=run_id, percent=percent, is_transient=True)
            )
        return None  # stopped with the study, by its budget or by a person: it goes on with --resume

    def _given_up(self, record: Record) -> Record:
        """Keep in its worker's place what became of a trial that is not gone on with."""
        self._abandon(record)
        self._folder.keep(record)
        return record

    def _count(self, record: Record) -> None:
        self._ended += 1
        self._failed += record.ending == "failed"
        if record.ending != "failed":
            return
        ended, _ = self._ledger.counts()
        if self._ledger.failed() == ended and (self._failed >= _HOPELESS or ended >= self._spec.trials):
            more = "" if self._spec.population is not None else " --trials N"
            self.error = StudyError(
                f"every trial has failed so far, the last one because: {record.reason}; mend that, then go on with "
                f"`vesalius tune --resume {self._spec.name}{more}`"
            )

    def _say(self) -> None:
        with _Noting(self):
            failed = self._ledger.failed()
            note = f"{len(self._running)} under way" + (f", {failed} failed" if failed else "")
            self._progress(self._ledger.counts()[0], self._spec.trials, note)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of worth: all state is the ledger's."""
        with open(checkpoint_path, "w") as file:
            file.write("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: all state is the ledger's."""


class _Noting:
    """Keeps a storage's failure for the end: raised inside Tune's loop it would come out as Tune's own."""

    def __init__(self, search: LedgerSearch) -> None:
        self._search = search

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, VesaliusError):
            self._search.error = self._search.error or error
            return True
        return False


class LedgerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that the study's pruner gives up."""

    def __init__(self, search: LedgerSearch) -> None:
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a trial goes on."""
        # Tune asks the scheduler first, and does not tell the searcher of a result that a trial is stopped for.
        stop = self._search.hear(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


class LostTrials(Callback):  # type: ignore[misc]
    """Gives trials back that Tune has given up without a word to its searcher.

    It does so where the worker of an earlier trial, which the next one was to use, has not let go of that in time.
    """

    def __init__(self, search: LedgerSearch) -> None:
        self._search = search

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look for them."""
        for trial in trials:
            if trial.status == "ERROR":
                self._search.take_back(trial.trial_id)


class StudyStopper(Stopper):  # type: ignore[misc]
    """Ends everything at once where the study cannot go on, or its time is over."""

    def __init__(self, search: LedgerSearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Say whether the study ends now; Tune asks again and again."""
        self._search.beat()
        return self._search.error is not None or self._search.is_over()


class RepeatStopper(Stopper):  # type: ignore[misc]
    """Counts trainings with other seeds, and ends all where one tells of what is wrong for all.

    Attributes:
        told: runs whose workers have said what became of them.
        error: that ends them, once something does.
    """

    def __init__(self, ended: int, total: int, progress: Progress) -> None:
        self._before = ended
        self._total = total
        self._progress = progress
        self.told: set[str] = set()
        self.error: VesaliusError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave all behind: Tune writes its stopper down, and a terminal cannot be."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Hear of a result, and never stop a single training."""
        if "fatal" in result:
            self.error = self.error or error_of(result["fatal"])
        if "record" in result:
            self.told.add(Record.model_validate_json(result["record"]).run_id)  # Tune asks of a last result twice
            self._progress(self._before + len(self.told), self._total, "")
        return False

    def stop_all(self) -> bool:
        """Say whether all end now."""
        return self.error is not None
