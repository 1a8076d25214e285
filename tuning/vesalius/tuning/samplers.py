"""Samplers and pruners of Optuna, by name."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError
from vesalius.platform.tables import TableEntry, lookup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAMPLERS: dict[str, TableEntry] = {
    "tpe": TableEntry(
        path="optuna.samplers:TPESampler", summary="tree-structured Parzen estimator, all settings together (default)"
    ),
    "random": TableEntry(path="optuna.samplers:RandomSampler", summary="independent draws"),
    "gp": TableEntry(path="optuna.samplers:GPSampler", summary="Gaussian process; some tenths of a second a trial"),
    "cmaes": TableEntry(path="optuna.samplers:CmaEsSampler", summary="covariance matrix adaptation; numbers only"),
    "nsgaii": TableEntry(
        path="optuna.samplers:NSGAIISampler",
        summary="genetic, for several objectives; generations of a quarter of the trials, 4 to 50",
    ),
    "qmc": TableEntry(path="optuna.samplers:QMCSampler", summary="quasi-random draws that fill the space evenly"),
}

PRUNERS: dict[str, TableEntry] = {
    "asha": TableEntry(
        path="optuna.pruners:SuccessiveHalvingPruner",
        summary="asynchronous successive halving: the best third goes on at two ninths and at two thirds of training",
    ),
    "median": TableEntry(
        path="optuna.pruners:MedianPruner", summary="what lies below the median of the trials before it is stopped"
    ),
    "none": TableEntry(path="optuna.pruners:NopPruner", summary="every trial is trained to its end"),
}

_PRUNER_OPTIONS: dict[str, dict[str, Any]] = {
    # In hundredths of a trial's training, which is how trials report. The second of nine passes: at the first the order
    # of trials said nothing of their order at the end (docs/studies.md).
    "asha": {"min_resource": 22, "reduction_factor": 3},
    # Four trials with a pass there: what was learnt from an earlier study has none.
    "median": {"n_startup_trials": 4, "n_warmup_steps": 20, "n_min_trials": 4},
    "none": {},
}
_FIRST = {"asha": "min_resource", "median": "n_warmup_steps"}

VALIDATIONS = 9
"""Validation passes of a trial that may be stopped: the second and the sixth of them stand at the rungs."""


LEARNING = ("tpe", "gp")
"""Samplers that learn from any finished trial; genetic ones and CMA-ES learn from those that they have drawn."""

_REQUIRES = {"cmaes": "cmaes"}


def check_sampler(name: str, *, shared: bool, num_objectives: int = 1) -> None:
    """Say now what a sampler would say in the middle of a study.

    Args:
        name: of the sampler.
        shared: whether others may write to the study's storage.
        num_objectives: of the study.

    Raises:
        SettingError: no such sampler, its package is missing, it has no use for several objectives, or it would run
            code that others can put there.
    """
    lookup(SAMPLERS, name, "sampler")
    if num_objectives > 1 and name == "cmaes":
        raise SettingError("sampler 'cmaes' is for one objective: give one --objective, or use nsgaii, tpe or gp")
    if shared and name == "cmaes":
        raise SettingError(
            "sampler 'cmaes' keeps its state as a pickle in the study's storage, by which whoever writes to --storage "
            "runs code here: leave --storage out, or use tpe or gp"
        )
    package = _REQUIRES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise SettingError(f"sampler '{name}' needs the package {package}: pip install {package}, or use tpe")


def make_sampler(name: str, seed: int, *, study_seed: int, trials: int) -> Any:
    """Return a sampler; its state but for its seed lies in the study's storage.

    Args:
        name: of the sampler.
        seed: of one trial's draw.
        study_seed: of the whole study, for what has one order of draws.
        trials: that the study is to have.

    Raises:
        SettingError: no such sampler.
    """
    kind = lookup(SAMPLERS, name, "sampler")
    options: dict[str, Any] = {"seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls experimental what it has had for years
        if name == "qmc":  # points of one scrambled Sobol sequence
            alone = lookup(SAMPLERS, "random", "sampler")(seed=seed)
            return _counting_trials(kind)(seed=study_seed, scramble=True, independent_sampler=alone)
        if name == "nsgaii":  # the first generation is random, and the default of 50 is many a whole study
            options["population_size"] = min(max(trials // 4, 4), 50)
        return kind(**options)


def _counting_trials(kind: type[BaseSampler]) -> Any:
    """Return a quasi-random sampler that takes the sequence's point of a trial's number.

    Optuna's counts its draws in the storage: a trial that a kill has left half-drawn would go on with the next point.
    """

    class OfNumber(kind):  # type: ignore[misc, valid-type]
        _number = 0

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> Any:
            self._number = max(0, trial.number - 1)  # the first one is the start, which is not drawn
            return super().sample_relative(study, trial, search_space)

        def _find_sample_id(self, study: Study, search_space: dict[str, Any]) -> int:
            return self._number

    return OfNumber


def given(values: Mapping[str, Any]) -> BaseSampler:
    """Return a sampler that draws values that are known."""
    from optuna.samplers import BaseSampler

    class Given(BaseSampler):
        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
            return values[param_name]

    return Given()


def check_pruner(text: str) -> None:
    """Say before a study begins what is wrong with ``NAME`` or ``NAME:FIRST``.

    Raises:
        SettingError: no such pruner, or no hundredth of a training that it could first stop trials at.
    """
    _parsed(text)


def make_pruner(text: str) -> Any:
    """Return a pruner by ``NAME``, or ``NAME:FIRST`` with the hundredth of a training at which it first stops trials.

    It keeps no state but what trials have reported.

    Raises:
        SettingError: see :func:`check_pruner`.
    """
    name, options = _parsed(text)
    return lookup(PRUNERS, name, "pruner")(**options)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    name, separator, first = text.partition(":")
    if name not in PRUNERS:
        raise SettingError(f"unknown pruner '{name}': the known ones are {', '.join(PRUNERS)}")
    options = dict(_PRUNER_OPTIONS[name])
    if not separator:
        return name, options
    if name not in _FIRST or not first.isdecimal() or not 1 <= int(first) <= 99:
        raise SettingError(
            f"--pruner {text}: expected a hundredth of a trial's training from 1 to 99 behind {' or '.join(_FIRST)}, "
            "such as asha:33"
        )
    return name, options | {_FIRST[name]: int(first)}
