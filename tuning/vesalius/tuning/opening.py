"""A study made in its storage, or found there: on the same terms for all drivers, with what it begins with."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import StudyError
from vesalius.tuning.noted import FROM, START, finished, is_start, record_of
from vesalius.tuning.objectives import OBJECTIVES
from vesalius.tuning.samplers import make_pruner
from vesalius.tuning.spaces import point

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from vesalius.platform.runs import RunSettings
    from vesalius.tuning.spec import Learnt, StudySpec
    from vesalius.tuning.storage import Patience

_TERMS = "vesalius_terms"
_LEARN_FROM = "learn_from"
_JOINING_SECONDS = 20.0


def open_study(
    spec: StudySpec, base: RunSettings, storage: BaseStorage, patience: Patience, *, has_ended: bool
) -> Study:
    """Return a study from its storage, which is made there where it is new.

    Args:
        spec: of the study.
        base: the settings that trials start from.
        storage: of Optuna.
        patience: with a storage that is down.
        has_ended: whether trials of the study have come to their end: the storage must then know of them.

    Raises:
        StudyError: the storage does not answer, holds a study of that name on other terms, or has lost this one.
    """
    import optuna

    directions = [OBJECTIVES[name].direction for name in spec.objectives]
    is_new = spec.name not in [one.study_name for one in patience(storage.get_all_studies)]
    if is_new and has_ended:
        raise StudyError(
            f"the storage {spec.storage} holds nothing of study '{spec.name}', of which trials have ended: put it "
            "back, or begin a new study with another name"
        )
    where: dict[str, Any] = {"storage": storage, "study_name": spec.name, "pruner": make_pruner(spec.pruner)}
    try:
        study: Study = patience(optuna.create_study, directions=directions, **where)
        is_new = True
    except optuna.exceptions.DuplicatedStudyError:  # of drivers that begin at once one alone has made it
        study = patience(optuna.load_study, **where)
        is_new = False
    _agree(study, spec, base, patience, is_new=is_new)
    return study


def put_start(study: Study, spec: StudySpec, base: RunSettings) -> None:
    """Let the next draw be the settings that the study starts from, where no trial is those already."""
    trials = study.get_trials(deepcopy=False)
    # A draw that was closed since nobody had signed it ends without a record.
    if not any(is_start(one) and (not one.state.is_finished() or record_of(one) is not None) for one in trials):
        study.enqueue_trial(point(base, spec.searched) or {}, user_attrs={START: True})


def _agree(study: Study, spec: StudySpec, base: RunSettings, patience: Patience, *, is_new: bool) -> None:
    """Note the study's terms, or compare them with those that are noted."""
    terms = {**spec.terms(), _LEARN_FROM: list(spec.learn_from)}
    noted = _noted(study, patience, wait=spec.shared and not is_new)
    if noted is None:
        _fill(study, spec, base, patience)
        patience(study.set_user_attr, _TERMS, terms)
        return
    noted = json.loads(json.dumps(noted))
    different = [name for name in terms if noted.get(name) != terms[name]]
    if not spec.learn_from:  # what a study learns from, whoever begins it decides
        different = [name for name in different if name != _LEARN_FROM]
    if different:
        names = {
            "cohort_digest": "cohort",
            "searched": "spaces",
            "criterion": "validation criterion",
            "start": "run to start from",
            _LEARN_FROM: "list of studies to learn from",
        }
        raise StudyError(
            f"the study '{spec.name}' in its storage is of another "
            f"{', another '.join(names.get(name, name) for name in different)}: choose another name"
        )


def _noted(study: Study, patience: Patience, *, wait: bool) -> Any:
    """Return the terms that are noted, or None; whoever made the study a moment ago may be about to note them."""
    deadline = time.monotonic() + (_JOINING_SECONDS if wait else 0)
    filled = 0
    while (noted := patience(lambda: study.user_attrs).get(_TERMS)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
        trials = len(patience(study.get_trials, deepcopy=False))
        if trials > filled:  # what there is much to learn from takes its time
            filled, deadline = trials, time.monotonic() + _JOINING_SECONDS
    return noted


def _fill(study: Study, spec: StudySpec, base: RunSettings, patience: Patience) -> None:
    """Put into a study what it begins with: the start, then what it learns. What a kill left of that stays."""
    patience(put_start, study, spec, base)
    for one in spec.learnt:
        patience(_put_learnt, study, spec, one)


def _put_learnt(study: Study, spec: StudySpec, one: Learnt) -> None:
    """Put in a trial of an earlier study, once: a call whose answer was lost may have done so already."""
    if any(trial.user_attrs.get(FROM) == one.source for trial in study.get_trials(deepcopy=False)):
        return
    if one.is_known:
        study.add_trial(finished(one, spec))
    else:
        study.enqueue_trial(one.values, user_attrs={FROM: one.source})
