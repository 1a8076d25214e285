"""``vesalius train``: learn a method on a cohort, or go on with a broken-off run."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vesalius.infra.cli.options import HomeOption, JsonOption, SetOption, home_folder, place
from vesalius.infra.console import Terminal


def train(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="See `vesalius methods`.", show_default=False)
    ] = None,
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A cohort store: a folder or a URL.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named settings of the method to start from (default: paper)")
    ] = None,
    assignments: SetOption = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray Train workers; 0 trains in this process, without Ray (default: 1)"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run (default: method, time, a few letters)")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this run where it was broken off.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN@STAGE",
            help="Start after another run's finished stage. What its stages up to there read must be set alike; after "
            "its last stage nothing is trained, and the model is written with other settings of scoring.",
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Say what it would take in memory and time, by some steps, and train nothing."),
    ] = False,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment the run is tracked under (default: vesalius)")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train METHOD on STORE, fit its threshold on the validation split, and keep the model.

    Settings are `method.KEY` (see `vesalius methods METHOD`) and `training.KEY` (seed, precision, checkpoint_every,
    ...). A run that was stopped or killed goes on, bit for bit, with --resume RUN.

    Memory is a matter of training.checkpoint_activations, training.micro_batch_size (gradients accumulate) and
    training.precision; --estimate says beforehand what they give, on one worker: `vesalius train f_anogan cohort
    --estimate --set training.checkpoint_activations=true`.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import pipeline, tables
        from vesalius.infra.pipeline.tracked import await_server_as_job
        from vesalius.platform.errors import SettingError
        from vesalius.platform.runs import find_run

        if estimate:
            beside: dict[str, object] = {
                "--resume": resume,
                "--from": start_from,
                "--name": name,
                "--workers": workers,
                "--experiment": experiment,
            }
            clashing = [flag for flag, value in beside.items() if value is not None]
            if clashing:
                named = ", ".join(clashing)
                raise SettingError(f"--estimate creates no run and looks at one worker: leave out {named}")
            if method is None or store is None:
                raise SettingError("name a method and a store, as in `vesalius train f_anogan STORE --estimate`")
            terminal.say("some steps of each stage and one scoring, in a process of their own")
            found = pipeline.forecast(method, place(store), preset=preset or "paper", assignments=assignments or [])
            foreseen = pipeline.describe_forecast(found)
            terminal.result(foreseen, tables.forecast(foreseen))
            return
        folder = home_folder(home)
        given = {
            "method": method,
            "store": store,
            "preset": preset,
            "assignments": assignments,
            "workers": workers,
            "name": name,
            "start_from": start_from,
            "experiment": experiment,
            "resume": resume,
        }
        check_given(given)
        if resume is not None:
            run = find_run(folder, resume)
        else:
            begin = functools.partial(
                pipeline.start_run,
                str(method),
                place(str(store)),
                home=folder,
                preset=preset or "paper",
                assignments=assignments or [],
                num_workers=1 if workers is None else workers,
                name=name,
                start_from=start_from,
                experiment=experiment or "vesalius",
            )
            run = await_server_as_job(begin)
        terminal.resume_hint = f"vesalius train --resume {run.run_id}"
        terminal.say(f"run {run.run_id}")
        with terminal.progress("training") as progress:
            pipeline.train(run, progress=progress)
        with terminal.progress("threshold") as progress:
            card = pipeline.fit_thresholds(run, progress=progress)
        document = pipeline.describe_run(run, card)
        rows = [(key, value) for key, value in document.items() if not isinstance(value, dict)]
        rows.append(("seconds", ", ".join(f"{stage} {spent:.1f}" for stage, spent in document["seconds"].items())))
        rows += [
            (f"threshold ({voxels})", f"{value['value']:.6g}, {value['policy']} on {value['split']}")
            for voxels, value in document["thresholds"].items()
        ]
        terminal.result(document, tables.key_values(rows), f"\nNext: vesalius evaluate {run.run_id}")


def check_given(values: Mapping[str, Any]) -> bool:
    """Check that arguments go together; return whether they go on with a run.

    Args:
        values: by parameter; what is None or absent was not given.

    Raises:
        SettingError: they do not.
    """
    from vesalius.platform.errors import SettingError

    if values.get("resume") is None:
        if values.get("method") is None or values.get("store") is None:
            raise SettingError(
                "name a method and a store, as in `vesalius train implicit_field STORE`, or use --resume RUN"
            )
        return False
    flags = {
        "method": "METHOD",
        "preset": "--preset",
        "assignments": "--set",
        "workers": "--workers",
        "name": "--name",
        "start_from": "--from",
        "experiment": "--experiment",
    }
    extra = [flag for key, flag in flags.items() if values.get(key) not in (None, [], ())]
    if extra:
        raise SettingError(f"--resume goes on with the run's own settings: leave out {', '.join(extra)}")
    return True
