"""``vesalius tune``: search a method's settings on a cohort, or go on with a broken-off study."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vesalius.infra.cli.asking import at_services, options_given, read_request
from vesalius.infra.cli.options import HomeOption, JsonOption, SetOption, home_folder
from vesalius.infra.console import Terminal

if TYPE_CHECKING:
    from vesalius.tuning import Driven, StudyFolder


def tune(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="See `vesalius methods`.", show_default=False)
    ] = None,
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A cohort store: a folder or a URL.", show_default=False)
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STAGE]",
            help="Start every trial after a run's finished stage, with its method, store and settings (leave METHOD "
            "and STORE out), and search what later stages and scoring read. RUN alone is after its last stage: nothing "
            "is trained, and restoration, windows and the like are searched on the validation split.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many in all (default: 20)")] = None,
    population: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Population-based training instead: so many members train side by side, each generation from where "
            "the last one paused, the worst fifth from the best fifth's checkpoints with settings perturbed. Searches "
            "settings that may change in mid-training.",
        ),
    ] = None,
    generations: Annotated[
        int | None, typer.Option(min=2, help="Of a population: equal parts that the training is cut into.")
    ] = None,
    spaces: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="KEY=SPACE",
            help="Search a setting: num_classes=4..16, prior_sigma=log:1e-3..1, latent_dim=64,128,256; KEY alone takes "
            "the method's own space. Ends with ` if OTHER=VALUE` where it goes with another setting's value. Without "
            "any, all that the method declares. A number stands for a list of that one: restoration.steps=200,700.",
        ),
    ] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="On validation: average_precision, best_dice, auroc (brain/... inside the brain), image_auroc, "
            "healthy_image_score, seconds_per_volume, training_seconds, peak_memory. Several give a front.",
        ),
    ] = None,
    lesions: Annotated[
        Path | None,
        typer.Option(help="Lesion masks in MNI space to set into validation volumes, where nobody outlined lesions."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from (default: paper)")] = None,
    assignments: SetOption = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random, gp, cmaes, nsgaii or qmc (default: tpe)")] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="asha, median or none: stops trials by their validation passes (default: asha where it can); asha:33 "
            "does not before 33 hundredths of a training, where nothing is learnt earlier. Passes are compared by the "
            "share of a trial's own training that is done, and made in each ninth of it unless training.validations "
            "says otherwise; where epochs are searched leave training.validate_every unset."
        ),
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Trials side by side (default: as many as fit)")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers of one trial (default: 1)")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of a trial of one worker (default: 1)")] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a trial of one worker; 0.5 shares one (default: what there is)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler (default: 0)")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for this call, such as 2h; what is under way then goes on with --resume."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database that several drivers share: postgresql://USER@HOST/DATABASE (default: a file beside the "
            "study). A password is kept nowhere: the variable VESALIUS_STUDY_STORAGE holds the whole address, here as "
            "with --resume."
        ),
    ] = None,
    learn_from: Annotated[
        list[str] | None,
        typer.Option(
            "--learn-from",
            metavar="STUDY",
            help="Learn from an earlier study of METHOD, tracked in MLflow or kept here (repeatable). Its trials teach "
            "the sampler where their figures are comparable: same cohort, same settings but for what is searched. Else "
            "its best three run right after the start.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="YAML, or Python that assigns `study`; options beside it win.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study (default: method, date, a few letters)")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Go on with this study where it was broken off.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search METHOD's settings on STORE: train many trials, judge them on the validation split, learn from each.

    The first trial has the settings that the study starts from, the paper's unless --preset or --set say otherwise. A
    trial that fails (memory, divergence) is a failed trial with its reason. Gate and test subjects are never seen.
    Stages that trials have in common are trained once; --from RUN trains none and searches how a trained run scores.
    Killed at whatever moment, `vesalius tune --resume STUDY` goes on: no finished trial is run again, none is lost.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import pipeline
        from vesalius.infra.cli.study import show_study
        from vesalius.infra.reproduce.budget import parse_budget
        from vesalius.tuning import drive, find_study

        folder = home_folder(home)
        seconds = None if budget is None else parse_budget(budget)
        given = options_given(
            {
                "method": method,
                "store": store,
                "start_from": start_from,
                "trials": trials,
                "population": population,
                "generations": generations,
                "spaces": spaces,
                "objectives": objectives,
                "lesions": lesions,
                "preset": preset,
                "assignments": assignments,
                "sampler": sampler,
                "pruner": pruner,
                "concurrent": concurrent,
                "workers": workers,
                "cpus": cpus,
                "gpus": gpus,
                "seed": seed,
                "storage": storage,
                "name": name,
                "learn_from": learn_from,
            }
        )
        if resume is not None:
            study = _resumed(find_study(folder, resume), given, file, folder)
        else:
            request = at_services(read_request(given, file), folder)
            with terminal.progress("lesions") as progress:
                study = pipeline.begin_study(request, home=folder, say=terminal.warn, progress=progress)
        spec = study.spec
        if spec.concurrent > spec.trials and resume is None:
            terminal.say(f"{spec.trials} trials and room for {spec.concurrent} side by side")
        terminal.resume_hint = f"vesalius tune --resume {spec.name}"
        terminal.say(f"study {spec.name}: {_described(study)}")
        with pipeline.tracked_study(study, folder) as parent, terminal.progress("trials") as progress:
            driven = drive(
                study,
                pipeline.base_of(spec),
                pipeline.TrialTrainer(folder, parent),
                budget_seconds=seconds,
                progress=progress,
            )
        if driven.is_exhausted:
            terminal.warn("the spaces hold nothing that was not tried: widen them for more trials")
        elif driven.is_over and not driven.is_finished:
            terminal.say(f"the time is over; to go on: {terminal.resume_hint}")
        for said in _about_others(driven, study):
            terminal.warn(said)
        show_study(terminal, study, finished=driven.is_finished, seconds=round(driven.seconds, 2))


def _about_others(driven: "Driven", study: "StudyFolder") -> list[str]:
    """Return sentences on other drivers of a shared study, and on the folder that this one was copied from."""
    from vesalius.infra.tables import as_time

    said = []
    others, name = driven.elsewhere, study.spec.name
    if driven.is_copy:
        said.append(f"{study.path} is a copy: what is under way where it was copied from is left to that folder")
    if others.alive and not driven.is_finished:
        said.append(f"trials under way at other drivers: {others.alive}; the study is finished when they are")
    if others.silent:
        said.append(
            f"trials of drivers not heard of: {others.silent}, the last one {as_time(others.seconds)} ago; they do "
            f"not count as under way, and go on with `vesalius tune --resume {name}` where they were begun"
        )
    return said


def _resumed(study: "StudyFolder", given: dict[str, Any], file: Path | None, home: Path) -> "StudyFolder":
    """Return a study to be gone on with, its number of trials and how many run side by side changed where given."""
    from vesalius.infra import pipeline
    from vesalius.platform.errors import SettingError

    fixed = {
        "from": "--from",
        "preset": "--preset",
        "set": "--set",
        "lesions": "--lesions",
        "population": "--population",
        "generations": "--generations",
        "sampler": "--sampler",
        "pruner": "--pruner",
        "workers": "--workers",
        "seed": "--seed",
        "storage": "--storage",
        "name": "--name",
        "learn_from": "--learn-from",
    }
    extra = [flag for key, flag in fixed.items() if key in given] + ([] if file is None else ["--file"])
    if extra:
        raise SettingError(f"--resume goes on with the study's own settings: leave out {', '.join(extra)}")
    pipeline.check_resumed(study, given, home)
    pipeline.change_study(study, {key: given[key] for key in ("trials", "concurrent", "cpus", "gpus") if key in given})
    return study


def _described(study: "StudyFolder") -> str:
    spec = study.spec
    searched = ", ".join(f"{one.key.removeprefix('method.')}={one.text()}" for one in spec.searched)
    judged = " and ".join(spec.objectives)
    known = Counter(one.study for one in spec.learnt if one.is_known)
    learnt = "".join(f"; learnt from {number} trial{'s' * (number > 1)} of {name}" for name, number in known.items())
    how = f"{spec.sampler}, {spec.pruner}"
    if spec.population is not None:
        how = f"{spec.population.generations} generations of {spec.population.size}"
    said = f"{spec.trials} trials, {spec.concurrent} side by side, {how}; {searched}; by {judged}{learnt}"
    return said if spec.start is None else f"{said}; after {spec.start.text}"
