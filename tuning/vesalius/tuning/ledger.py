"""A study in its storage: what is tried, what was tried, and which trials were left half-way.

The storage is the one truth. Samplers and pruners of Optuna read all they know from it, so a study that goes on after a
kill goes on with all that it knew: there is no other state to be saved, or to be saved too late.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.platform.config import digest, flatten
from vesalius.platform.contracts import Choice
from vesalius.platform.errors import SettingError, StudyError
from vesalius.tuning.folder import COUNTED, Record
from vesalius.tuning.notes import PARENT, RECORD, START, is_start, noted_parent, objective_values, record_of
from vesalius.tuning.objectives import OBJECTIVES
from vesalius.tuning.population import breed
from vesalius.tuning.samplers import given, make_pruner, make_sampler
from vesalius.tuning.spaces import chosen, point
from vesalius.tuning.storage import Patience, close_storage, open_storage

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.dimension import Dimension
    from vesalius.tuning.folder import StudySpec

_TERMS = "vesalius_terms"
_DRIVER = "driver"
_BLOCKS = "blocks"
_GIVEN_UP = "given_up"
_MOST_DRAWS = 50
"""Draws in a row that are no new trial, after which the spaces count as exhausted."""
_JOINING_SECONDS = 20.0


@dataclass
class Begun:
    """A trial that is under way.

    Attributes:
        number: of the trial in its study.
        values: what it sets, by dotted key.
        is_start: whether it is the settings that the study starts from.
        outside: whether these lie outside of the spaces.
        given_up: hundredths of its training at which the pruner gave it up, where a driver was killed upon that.
        parent: the trial whose run its own goes on from, where it is of a later generation.
    """

    number: int
    values: dict[str, Any]
    is_start: bool
    outside: bool
    given_up: float | None = None
    parent: Record | None = None


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
        self._storage = open_storage(address, patience)
        try:
            self.study: Study = self._open(has_ended)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connections to the storage."""
        close_storage(self._storage)

    def _open(self, has_ended: bool) -> Study:
        import optuna

        spec, patience = self._spec, self._try
        directions = [OBJECTIVES[name].direction for name in spec.objectives]
        is_new = spec.name not in [one.study_name for one in patience(self._storage.get_all_studies)]
        if is_new and has_ended:
            raise StudyError(
                f"the storage {spec.storage} holds nothing of study '{spec.name}', of which trials have ended: put it "
                "back, or begin a new study with another name"
            )
        where: dict[str, Any] = {"storage": self._storage, "study_name": spec.name, "pruner": make_pruner(spec.pruner)}
        try:
            study: Study = patience(optuna.create_study, directions=directions, **where)
            is_new = True
        except optuna.exceptions.DuplicatedStudyError:  # of drivers that begin at once one alone has made it
            study = patience(optuna.load_study, **where)
            is_new = False
        self._agree(study, is_new)
        return study

    def _agree(self, study: Study, is_new: bool) -> None:
        """Note the study's terms, or compare them with those that are noted."""
        terms = self._spec.terms()
        deadline = time.monotonic() + (_JOINING_SECONDS if self._spec.shared and not is_new else 0)
        while (noted := self._try(lambda: study.user_attrs).get(_TERMS)) is None and time.monotonic() < deadline:
            time.sleep(0.2)  # whoever made it a moment ago is about to note them
        if noted is None:
            if not self._try(study.get_trials, deepcopy=False):
                values = point(self._base, self._spec.searched)
                self._try(study.enqueue_trial, values or {}, user_attrs={START: True})
            self._try(study.set_user_attr, _TERMS, terms)
            return
        noted = json.loads(json.dumps(noted))
        different = [name for name in terms if noted.get(name) != terms[name]]
        if different:
            names = {"cohort_digest": "cohort", "searched": "spaces", "criterion": "validation criterion"}
            raise StudyError(
                f"the study '{self._spec.name}' in its storage is of another "
                f"{', another '.join(names.get(name, name) for name in different)}: choose another name"
            )

    def _seed_sampler(self, number: int) -> None:
        """Make what is drawn a function of the seed, the trial's number and the trials before it.

        A sampler that goes on would draw by a generator whose state is kept nowhere; so a study that was broken off
        draws what an unbroken one does. Drivers that share a study draw each their own.
        """
        driver = self._spec.token if self._spec.shared else ""
        self.study.sampler = make_sampler(self._spec.sampler, int(digest([self._spec.seed, driver, number])[:8], 16))

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, oldest first."""
        return self._try(self.study.get_trials, deepcopy=False)

    def counts(self) -> tuple[int, int]:
        """Return how many trials have ended and how many are under way, the repeated and refused ones left out."""
        from optuna.trial import TrialState

        ended = running = 0
        for trial in self.trials():
            record = record_of(trial)
            if trial.state == TrialState.RUNNING:
                running += _DRIVER in trial.user_attrs
            elif record is not None:
                ended += record.ending in COUNTED
        return ended, running

    def failed(self) -> int:
        """Return how many trials have failed."""
        return sum(record is not None and record.ending == "failed" for record in map(record_of, self.trials()))

    def left_behind(self) -> list[Begun]:
        """Return trials that an earlier driver of this folder left half-way, to be gone on with."""
        import optuna
        from optuna.trial import TrialState

        found = []
        for frozen in self.trials():
            driver = frozen.user_attrs.get(_DRIVER)
            # Where nobody has signed, the kill came between the draw and the signature.
            ours = driver == self._spec.token or (driver is None and not self._spec.shared)
            if frozen.state == TrialState.RUNNING and ours:
                self._seed_sampler(frozen.number)
                trial = self._try(optuna.trial.Trial, self.study, frozen._trial_id)
                begun = self._begin(trial)
                if begun is not None:
                    found.append(begun)
        return found

    def is_ready(self) -> bool:
        """Say whether the next trial can be drawn: of a population, whether the generation before its own has ended."""
        from optuna.trial import TrialState

        population = self._spec.population
        if population is None:
            return True
        begun = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
        generation, _ = population.place(len(begun))
        return all(record_of(trial) is not None for trial in begun[: generation * population.size])

    def draw(self) -> Begun | None:
        """Return the next trial, or None where the spaces hold nothing new.

        A draw that the settings refuse is put back; one that repeats an earlier trial takes its figures, since the same
        settings and seed train to the same weights.
        """
        for _ in range(_MOST_DRAWS):
            self._seed_sampler(len(self.trials()))
            begun = self._begin(self._try(self.study.ask))
            if begun is not None:
                return begun
        return None

    def _begin(self, trial: Trial) -> Begun | None:
        # Signed before anything else: a trial of a shared study that nobody has signed is nobody's to go on with.
        self._try(trial.set_user_attr, _DRIVER, self._spec.token)
        parent = None if self._spec.population is None else self._breed(trial)
        starts = is_start(trial)
        outside = starts and point(self._base, self._spec.searched) is None
        values = {} if outside else self._suggest(trial)
        begun = Begun(
            number=trial.number,
            values=values,
            is_start=starts,
            outside=outside,
            given_up=trial.user_attrs.get(_GIVEN_UP),
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
                    figures=record.figures if record and record.ending == "complete" else {},
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fixed values, which are meant
            for one in self._spec.searched:
                if one.condition is None or one.condition.holds({**flat, **values}):
                    values[one.key] = self._try(_suggest_one, trial, one)
        return values

    def _same_as(self, begun: Begun) -> tuple[int, Record | None] | None:
        from optuna.trial import TrialState

        if begun.outside:
            return None
        for other in self.trials():
            if other.number == begun.number or other.state == TrialState.WAITING or dict(other.params) != begun.values:
                continue
            record = record_of(other)
            if other.state == TrialState.RUNNING:
                # Of two that are left half-way with the same values the first goes on.
                if other.number < begun.number and _DRIVER in other.user_attrs:
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
        if trial.user_attrs.get(_GIVEN_UP) is not None:
            return True
        step = self._note(trial, percent, value)
        # The pruner is asked in any case: by that it notes the values that later trials are measured by.
        given_up = bool(self._try(trial.should_prune))
        # At its end there is nothing left to be saved; and what the best is compared with has to come to its end.
        if not given_up or step >= 100 or is_start(trial):
            return False
        # Asked again after a kill the pruner would let it go on: it takes the rung for one that was passed.
        self._try(trial.set_user_attr, _GIVEN_UP, percent)
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
        before = bool(trial.user_attrs.get(_BLOCKS))
        self._try(trial.set_user_attr, _BLOCKS, True)
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
        if record.ending in ("complete", "repeated") and values is not None and not begun.outside:
            # One outside of the spaces is none to a sampler: they take their space from the trials there are.
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


def _suggest_one(trial: Trial, one: Dimension) -> Any:
    if isinstance(one.space, Choice):
        return trial.suggest_categorical(one.key, one.space.values)
    if one.whole:
        return trial.suggest_int(one.key, int(one.space.low), int(one.space.high), log=one.space.log)
    return trial.suggest_float(one.key, one.space.low, one.space.high, log=one.space.log)
