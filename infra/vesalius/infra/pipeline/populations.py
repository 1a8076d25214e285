"""A study that is a population: what was asked for, and where its generations end."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from vesalius.platform.errors import SettingError, StudyError
from vesalius.platform.training import Pause, is_judged, pause_at, stage_steps, stage_subjects
from vesalius.tuning import Population

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vesalius.infra.pipeline.beginning import StudyRequest
    from vesalius.platform.contracts import Method, MethodSettings
    from vesalius.platform.store import CohortStore
    from vesalius.tuning import StudySpec

_OWN = {
    "trials": "it has members x generations of them",
    "sampler": "members are perturbed, not sampled",
    "pruner": "the worst are replaced, not stopped",
    "start_from": "its members go on from one another's checkpoints",
    "learn_from": "its first generation is the start and draws from the spaces",
    "storage": "a member goes on from a checkpoint of another one, which lies in one driver's home",
}


def choose_population(request: StudyRequest) -> Population | None:
    """Return the population that is asked for, or None where none is.

    Raises:
        SettingError: a number is missing or too small, or something was given that a population decides.
    """
    size, generations = request.population, request.generations
    if size is None and generations is None:
        return None
    if size is None or generations is None:
        raise SettingError(
            "--population and --generations go together: give both, such as --population 8 --generations 5"
        )
    if size < 1 or generations < 2:
        raise SettingError(
            f"--population is {size} and --generations {generations}: expected 1 member or more, and 2 generations or "
            "more"
        )
    for name, why in _OWN.items():
        if name in request.model_fields_set and getattr(request, name):
            flag = "from" if name == "start_from" else name.replace("_", "-")
            raise SettingError(f"--{flag} does not go with --population: {why}; leave it out")
    return Population(size=size, generations=generations)


def require_criterion(criterion: str | None, objectives: Sequence[str]) -> None:
    """Check that a validation pass says something of the one objective.

    Raises:
        SettingError: it does not.
    """
    if criterion is None:
        raise SettingError(
            f"--population compares members by a validation pass, which says nothing of {' and '.join(objectives)}: "
            "give one --objective that it is a measure of, such as average_precision or healthy_image_score"
        )


def refuse_more_trials(spec: StudySpec) -> None:
    """Refuse another number of trials of a population.

    Raises:
        SettingError: it is one.
    """
    if spec.population is not None:
        raise SettingError(
            f"study '{spec.name}' is a population, whose generations part its training: it has {spec.trials} trials, "
            "leave --trials out"
        )


def refuse_seeds(spec: StudySpec) -> None:
    """Refuse to train the best of a population again, and to judge what such trainings come to.

    Raises:
        StudyError: it is one.
    """
    if spec.population is not None:
        raise StudyError(
            f"study '{spec.name}' is a population, whose best was trained with settings that changed on its way by "
            "choices among members, which no single run repeats: begin it again with another training.seed"
        )


def check_generations(kind: type[Method], settings: MethodSettings, store: CohortStore, population: Population) -> str:
    """Check that each generation has steps of its own.

    Returns:
        A sentence where members are not compared after each generation; else nothing.

    Raises:
        SettingError: the training has too few steps.
    """
    with torch.random.fork_rng(devices=[]):
        method = kind(settings, store.facts(any_grid=kind.any_grid))
    stages = method.stages()
    steps = [stage_steps(stage, len(stage_subjects(stage, store, method.cohort)), method.cohort) for stage in stages]
    shares = [population.until(number * population.size) for number in range(population.generations)]
    pauses = [pause_at(share, stages, steps) for share in shares]
    if any(one >= other for one, other in itertools.pairwise([Pause(0, 0), *pauses])):
        taken = ", ".join(f"{stage.name} {num}" for stage, num in zip(stages, steps, strict=True))
        raise SettingError(
            f"--generations {population.generations}: the training's steps ({taken}) do not part into so many, since "
            "a stage without an optimiser is not parted: give fewer generations"
        )
    judged = sum(is_judged(one, stages) for one in pauses[:-1])
    if judged == len(pauses) - 1:
        return ""
    first = next((stage.name for stage in stages if stage.selectable), None)
    until = "none of its stages" if first is None else f"nothing before its stage '{first}'"
    return (
        f"members are compared at {judged} of {len(pauses) - 1} pauses, since the method can score {until}: at the "
        "others only what failed is replaced"
    )
