"""A study in its storage: what is tried, what was tried, and which trials were left half-way.

The storage is the one truth. Samplers and pruners of Optuna read all they know from it, so a study that goes on after a
kill goes on with all that it knew: there is no other state to be saved, or to be saved too late.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import digest, flatten
from vesalius.platform.errors import SettingError
from vesalius.tuning.noted import (
    BLOCKS,
    DRIVER,
    GIVEN_UP,
    HEARD,
    PARENT,
    RECORD,
    SILENT_SECONDS,
    START,
    Begun,
    Elsewhere,
    distribution,
    is_start,
    is_unsigned,
    noted_parent,
    objective_values,
    put_back,
    record_of,
    silence,
)
from vesalius.tuning.opening import open_study, put_start
from vesalius.tuning.population import breed
from vesalius.tuning.samplers import given, make_sampler
from vesalius.tuning.spaces import chosen, point
from vesalius.tuning.spec import COUNTED, Record
from vesalius.tuning.storage import Patience, close_storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.dimension import Dimension
    from vesalius.tuning.spec import StudySpec

_MOST_DRAWS = 50
"""Draws in a row that are no new trial, after which the spaces count as exhausted."""
_STUBBORN = 10
"""Draws in a row that are no new trial, after which they are random: a sampler would ask for the same for ever."""
_BEAT_SECONDS = 60.0
_SIGNING_SECONDS = 60.0
"""How long a driver that shares a study may take from a draw to its signature, after which the draw counts as lost."""


class Ledger:
    """A study in its storage, as one driver sees it. Used by one thread, and closed by it."""

    def __init__(
        self, spec: StudySpec, base: RunSettings, address: str, patience: Patience, *, has_ended: bool = False
    ) -> None:
        """Open the study, or make it.

        Args:
            spec: of the study.
            base: the settings that trials start from.
            address: of the storage, whole.
            patience: with a storage that is down.
            has_ended: whether trials of the study have come to their end: the storage must then know of them.

        Raises:
            StudyError: the storage does not answer, holds a study of that name on other terms, or has lost this one.
        """
        self._spec = spec
        self._base = base
        self._try = patience
        self._single = len(spec.objectives) == 1
        self._trials: dict[int, Trial] = {}
        self._beaten = time.time()
        self._unsigned_since: dict[int, float] = {}
        self._storage = open_storage(address, patience)
        try:
            self.study: Study = open_study(spec, base, self._storage, patience, has_ended=has_ended)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connections to the storage."""
        close_storage(self._storage)

    def _seed_sampler(self, number: int, trials: Sequence[FrozenTrial]) -> None:
        """Make what is drawn a function of the seed, the trial's number and the trials before it.

        A sampler that goes on would draw by a generator whose state is kept nowhere; so a study that was broken off
        draws what an unbroken one does. Drivers that share a study draw each their own.
        """
        driver = self._spec.token if self._spec.shared else ""
        self.study.sampler = make_sampler(
            "random" if put_back(trials[:number]) >= _STUBBORN else self._spec.sampler,
            int(digest([self._spec.seed, driver, number])[:8], 16),
            study_seed=self._spec.seed,
            trials=self._spec.trials,
        )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, oldest first."""
        return self._try(self.study.get_trials, deepcopy=False)

    def counts(self) -> tuple[int, int]:
        """Return how many trials have ended and how many are under way, the repeated and refused ones left out.

        What another driver has under way counts as long as that driver is heard of.
        """
        from optuna.trial import TrialState

        ended = running = 0
        for trial in self.trials():
            record = record_of(trial)
            if trial.state == TrialState.RUNNING:
                running += DRIVER in trial.user_attrs and not self._is_silent(trial)
            elif record is not None:
                ended += record.ending in COUNTED
        return ended, running

    def elsewhere(self) -> Elsewhere:
        """Return what other drivers have under way."""
        from optuna.trial import TrialState

        now = time.time()
        others = [one for one in self.trials() if one.state == TrialState.RUNNING and self._is_foreign(one)]
        silences = [silence(one, now) for one in others if self._is_silent(one)]
        return Elsewhere(len(others) - len(silences), len(silences), min(silences, default=0.0))

    def beat(self) -> None:
        """Let other drivers know, once a minute, that what is under way here is."""
        if not self._spec.shared or time.time() - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = time.time()
        for trial in self._trials.values():
            self._try(trial.set_user_attr, HEARD, self._beaten)

    def _is_foreign(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get(DRIVER) not in (None, self._spec.token)

    def _is_silent(self, trial: FrozenTrial) -> bool:
        return self._is_foreign(trial) and silence(trial, time.time()) > SILENT_SECONDS

    def failed(self) -> int:
        """Return how many trials have failed."""
        return sum(record is not None and record.ending == "failed" for record in map(record_of, self.trials()))

    def left_behind(self) -> list[Begun]:
        """Return trials that an earlier driver of this folder left half-way, to be gone on with."""
        from optuna.trial import TrialState

        found = []
        trials = self.trials()
        for frozen in trials:
            driver = frozen.user_attrs.get(DRIVER)
            # Where nobody has signed, the kill came between the draw and the signature.
            ours = driver == self._spec.token or (driver is None and not self._spec.shared)
            if frozen.state == TrialState.RUNNING and ours:
                trial = self._found(frozen, trials)
                passes = frozen.intermediate_values
                begun = self._begin(trial, passed=passes[max(passes)] if passes else None)
                if begun is not None:
                    found.append(begun)
        return found

    def start_again(self) -> bool:
        """Let the start be tried once more where it has failed for a reason of the moment; return whether it is.

        Everything is compared with it. The new try is a trial of its own, beyond those that the study is to have.
        """
        if self._spec.population is not None:
            return False  # its place was taken by another member
        starts = [trial for trial in self.trials() if is_start(trial)]
        records = [record for trial in starts if (record := record_of(trial)) is not None]
        if len(records) < len(starts) or any(one.ending != "failed" for one in records) or not records[-1].is_transient:
            return False
        values = point(self._base, self._spec.searched)
        self._try(self.study.enqueue_trial, values or {}, user_attrs={START: True})
        return True

    def start_waits(self) -> bool:
        """Say whether the start is what is drawn next."""
        from optuna.trial import TrialState

        waiting = (trial for trial in self.trials() if trial.state == TrialState.WAITING)
        first = next(waiting, None)
        return first is not None and is_start(first)

    def is_ready(self) -> bool:
        """Say whether the next trial can be drawn: of a population, whether the generation before its own has ended."""
        from optuna.trial import TrialState

        population = self._spec.population
        if population is None:
            return True
        begun = [one for one in self.trials() if one.state != TrialState.WAITING and not is_unsigned(one)]
        generation, _ = population.place(len(begun))
        return all(record_of(trial) is not None for trial in begun[: generation * population.size])

    def draw(self) -> Begun | None:
        """Return the next trial, or None where the spaces hold nothing new.

        A draw that the settings refuse is put back, and so is one that repeats an earlier trial: the same settings and
        seed train to the same weights.
        """
        for _ in range(_MOST_DRAWS):
            begun = self._begin(self._ask())
            if begun is not None:
                return begun
        return None

    def _ask(self) -> Trial:
        """Return a draw: a new one, or one that the storage made and whose answer never came."""
        trials = self.trials()
        lost = [trial for trial in trials if is_unsigned(trial)]
        if lost and not self._spec.shared:  # nobody else draws here
            return self._found(lost[0], trials)
        self._fail_lost(lost)
        self._seed_sampler(len(trials), trials)
        return self._try(self.study.ask)

    def _found(self, frozen: FrozenTrial, trials: Sequence[FrozenTrial]) -> Trial:
        """Return a trial that was drawn before, to be drawn to its end as it would have been then."""
        import optuna

        self._seed_sampler(frozen.number, trials)
        return self._try(optuna.trial.Trial, self.study, frozen._trial_id)

    def _fail_lost(self, unsigned: list[FrozenTrial]) -> None:
        """Close draws of a shared study that nobody has signed for long; the start is put up again.

        They are timed from when they were first seen here: the clocks of other machines may be wrong.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        now = time.monotonic()
        self._unsigned_since = {one.number: self._unsigned_since.get(one.number, now) for one in unsigned}
        for one in unsigned:
            if now - self._unsigned_since[one.number] < _SIGNING_SECONDS:
                continue
            with contextlib.suppress(UpdateFinishedTrialError):  # another driver has closed it
                self._try(self._storage.set_trial_state_values, one._trial_id, TrialState.FAIL)
            if is_start(one):
                self._try(put_start, self.study, self._spec, self._base)

    def _begin(self, trial: Trial, passed: float | None = None) -> Begun | None:
        from optuna.exceptions import UpdateFinishedTrialError

        # Signed before anything else: a trial of a shared study that nobody has signed is nobody's to go on with.
        try:
            self._try(trial.set_user_attr, DRIVER, self._spec.token)
        except UpdateFinishedTrialError:
            return None  # it took so long that another driver has closed it
        if self._spec.shared:
            self._try(trial.set_user_attr, HEARD, time.time())
        parent = None if self._spec.population is None else self._breed(trial)
        starts = is_start(trial)
        outside = starts and point(self._base, self._spec.searched) is None
        values = {} if outside else self._suggest(trial)
        begun = Begun(
            number=trial.number,
            values=values,
            is_start=starts,
            outside=outside,
            given_up=trial.user_attrs.get(GIVEN_UP),
            passed=passed,
            parent=parent,
        )
        self._trials[trial.number] = trial
        if self._spec.population is not None:
            return begun
        try:
            chosen(self._base, values)
        except SettingError as error:
            self.end(begun, Record(number=begun.number, ending="refused", reason=str(error)))
            return None
        earlier = self._same_as(begun)
        if earlier is not None:
            number, record = earlier
            self.end(
                begun,
                Record(
                    number=begun.number,
                    ending="repeated",
                    reason=f"the values of trial {number}",
                    run_id=record.run_id if record else "",
                ),
            )
            return None
        return begun

    def _breed(self, trial: Trial) -> Record | None:
        """Let a trial set what it is to set as a member of its generation; return its parent's record."""
        member = breed(self._spec, self._base, trial.number, self.trials())
        if member.is_start:
            self._try(trial.set_user_attr, START, True)
        if member.parent is not None:
            self._try(trial.set_user_attr, PARENT, noted_parent(member.parent))
        self.study.sampler = given(member.values)
        return member.parent

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        flat = flatten(self._base)
        values: dict[str, Any] = {}
        stored = set(trial.params)  # what a kill has left of the draw
        before: list[Dimension] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fixed values, which are meant
            for one in self._spec.searched:
                if one.condition is None or one.condition.holds({**flat, **values}):
                    if one.key in stored:
                        before.append(one)
                    elif before:
                        self._pass_over(trial, before)
                        before = []
                    values[one.key] = self._try(trial._suggest, one.key, distribution(one))
        return values

    def _pass_over(self, trial: Trial, stored: Sequence[Dimension]) -> None:
        """Let the sampler draw once more what is stored of a trial, so that it goes on as it would have."""
        frozen = self._try(self._storage.get_trial, trial._trial_id)
        for one in stored:
            if one.key not in trial._fixed_params and one.key not in trial.relative_params:
                self.study.sampler.sample_independent(self.study, frozen, one.key, distribution(one))

    def _same_as(self, begun: Begun) -> tuple[int, Record | None] | None:
        from optuna.trial import TrialState

        for other in self.trials():
            is_same = is_start(other) if begun.outside else dict(other.params) == begun.values
            if other.number == begun.number or other.state == TrialState.WAITING or not is_same:
                continue
            record = record_of(other)
            if begun.is_start and is_start(other) and record is not None and record.ending == "failed":
                continue  # it is tried again
            if other.state == TrialState.RUNNING:
                # Of two that are left half-way with the same values the first goes on.
                if other.number < begun.number and DRIVER in other.user_attrs and not self._is_silent(other):
                    return other.number, None
            elif record is not None and record.ending in COUNTED:
                return other.number, record
        return None

    def report(self, number: int, percent: float, value: float) -> bool:
        """Note a validation pass and return whether the trial should stop.

        Args:
            number: of the trial.
            percent: of its training that is done; hundredths are what is noted.
            value: of the criterion.
        """
        trial = self._trials[number]
        if not self._single or self._spec.criterion is None:
            return False
        if trial.user_attrs.get(GIVEN_UP) is not None:
            return True
        step = self._note(trial, percent, value)
        # The pruner is asked in any case: by that it notes the values that later trials are measured by.
        given_up = bool(self._try(trial.should_prune))
        # At its end there is nothing left to be saved; and what the best is compared with has to come to its end.
        if not given_up or step >= 100 or is_start(trial):
            return False
        # Asked again after a kill the pruner would let it go on: it takes the rung for one that was passed.
        self._try(trial.set_user_attr, GIVEN_UP, percent)
        return True

    def _note(self, trial: Trial, percent: float, value: float) -> int:
        """Note the criterion at a hundredth of the training, and return that."""
        step = int(percent)
        known = self._try(self._storage.get_trial, trial._trial_id).intermediate_values
        if step not in known:  # a trial that goes on after a kill passes some of them again
            self._try(trial.report, value, step)
        return step

    def blocks(self, number: int) -> bool:
        """Note that a trial has ended a call of the whole study, and return whether it had done so before."""
        trial = self._trials[number]
        before = bool(trial.user_attrs.get(BLOCKS))
        self._try(trial.set_user_attr, BLOCKS, True)
        return before

    def end(self, begun: Begun, record: Record) -> None:
        """Note what became of a trial; a trial that is noted already is left alone."""
        from optuna.trial import TrialState

        trial = self._trials[begun.number]
        frozen = self._try(self._storage.get_trial, trial._trial_id)
        if frozen.state.is_finished():
            return
        self._try(trial.set_user_attr, RECORD, record.model_dump(mode="json"))
        values = objective_values(self._spec.objectives, record.figures)
        state = TrialState.FAIL
        if record.ending == "complete" and values is not None and not begun.outside:
            # One outside of the spaces is none to a sampler: they take their space from the trials there are. Nor is a
            # repeat, which would count for the random draws that a sampler begins with.
            state = TrialState.COMPLETE
        elif record.ending in ("pruned", "paused") and self._single:
            state = TrialState.PRUNED
        if record.ending == "paused" and (at_pause := record.figures.get(self._spec.criterion or "")) is not None:
            self._note(trial, record.percent, at_pause)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._try(
                self.study.tell,
                trial,
                values=values if state == TrialState.COMPLETE else None,
                state=state,
                skip_if_finished=True,
            )
        del self._trials[begun.number]
