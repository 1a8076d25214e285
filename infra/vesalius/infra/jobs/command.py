"""The command that a job runs: read by the command line's own parser, checked, and written out complete.

A typo is refused here in the very words of the verb itself, before anything is submitted. Paths are made absolute, and
what a job trains or drives gets its name, by which it is found again and gone on with.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import SettingError
from vesalius.platform.tracking import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERBS = ("train", "tune", "ingest", "score", "evaluate")
_SCORING = ("score", "evaluate")
_WORKERS = {"train": 1, "tune": 1, "ingest": 0, "score": 0, "evaluate": 0}
"""Workers of each verb where nothing is said of them; 0 computes in the verb itself."""
_STORES = ("store",)
_OURS = {"home": "--home", "as_json": "--json"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A verb with its arguments.

    Attributes:
        verb: its name.
        values: what was given, by parameter.
        words: the verb and its arguments, complete.
        paths: absolute paths that it reads and that must be there, or, of what is to be made, the folder above.
        run: name of the run that it trains, or None.
        study: of the study that it drives, or None.
        cpus: cores that the verb itself needs.
        gpus: GPUs likewise.
    """

    verb: str
    values: Mapping[str, Any]
    words: tuple[str, ...]
    paths: tuple[str, ...] = ()
    run: str | None = None
    study: str | None = None
    cpus: float = 0
    gpus: float = 0


def read_command(words: Sequence[str], *, workers: int | None, gpus: int | None, home: Path) -> Command:
    """Return a command that was given after ``--``, checked as the verb would.

    Args:
        words: the verb and its arguments as given.
        workers: of ``--workers``.
        gpus: of ``--gpus``: of each worker, or of the verb itself.
        home: of runs on this side.

    Raises:
        SettingError: no verb for a job, a value that does not fit, a secret, or something that is given twice.
        RunError, StudyError: a name that none can have.
        typer's UsageError: an option or argument that the verb does not have.
    """
    from vesalius.infra.cli.options import one_of

    if not words:
        raise SettingError("say what the job runs, as in `vesalius submit -- train implicit_field STORE`")
    verb = one_of(words[0], list(VERBS), "verb for a job")
    for word in words:
        if shown(word) != word:
            raise SettingError(
                f"{shown(word)} holds a password, which would be kept with the job and shown by Ray: set it "
                "in the cluster's environment"
            )
    parameters, given = _parsed(verb, words[1:])
    for name, flag in _OURS.items():
        if name in given:
            raise SettingError(f"{flag} goes before the verb, as in `vesalius submit {flag} ... -- {verb} ...`")
    if workers is not None:
        if "workers" not in {one.name for one in parameters}:
            raise SettingError(f"{verb} has no workers: leave --workers out")
        if "workers" in given:
            raise SettingError("--workers is given to submit and to the verb: give it once")
        given["workers"] = workers
    command = Command(verb=verb, values=given, words=())
    command = _with_gpus(command, gpus)
    command = _with_name(command)
    command = _absolute(command)
    _check(command, home)
    return replace(command, words=(verb, *_written(parameters, command.values)))


def _parsed(verb: str, words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return a verb's parameters and, by name, what was given of them."""
    import typer.main

    from vesalius.infra.cli.app import app

    group: Any = typer.main.get_command(app)
    names = group.context_settings["help_option_names"]  # as a verb has them from the application
    with group.commands[verb].make_context(f"vesalius {verb}", list(words), help_option_names=names) as context:
        given = {
            name: value
            for name, value in context.params.items()
            if context.get_parameter_source(name).name == "COMMANDLINE"
        }
    return group.commands[verb].params, given


def _with_gpus(command: Command, gpus: int | None) -> Command:
    verb, values = command.verb, dict(command.values)
    # What a verb that waits for its workers reserved, they could not have.
    in_process = values.get("workers", _WORKERS[verb]) == 0
    if verb == "train" and values.get("estimate"):
        raise SettingError("--estimate creates no run: call it here, `vesalius train ... --estimate`")
    command = replace(command, cpus=1.0 if in_process else 0.0)
    if gpus is None:
        return command
    if verb == "ingest":
        raise SettingError("ingest computes on the CPU: leave --gpus out")
    if verb in _SCORING:
        if "device" in values:
            raise SettingError("--gpus and --device both say what to compute on: give one of them")
        values["device"] = "cuda" if gpus else "cpu"
        return replace(command, values=values, gpus=float(gpus) if in_process else 0.0)
    if verb == "tune":
        if "gpus" in values:
            raise SettingError("--gpus is given to submit and to the verb: give it once")
        return replace(command, values={**values, "gpus": float(gpus)})
    if gpus > 1:
        raise SettingError(
            f"--gpus is {gpus}: a worker of train computes on one GPU, so give --workers {gpus} --gpus 1"
        )
    if any(str(one).partition("=")[0].strip() == "training.device" for one in values.get("assignments") or ()):
        raise SettingError("--gpus and training.device both say what to compute on: give one of them")
    if values.get("resume") is not None:
        raise SettingError("--resume goes on with the run's own settings: leave out --gpus")
    device = f"training.device={'cuda' if gpus else 'cpu'}"
    values["assignments"] = [*(values.get("assignments") or ()), device]
    return replace(command, values=values, gpus=float(gpus) if in_process else 0.0)


def _with_name(command: Command) -> Command:
    """Give what is trained or driven its name here, so that it is known before the job starts, and so is the job's."""
    values = dict(command.values)
    if command.verb not in ("train", "tune"):
        return command
    name = values.get("resume") or values.get("name")
    if name is None:
        method = str(values.get("method") or values.get("start_from") or command.verb).partition("@")[0]
        name = values["name"] = _new_name(method)
    if command.verb == "train":
        from vesalius.platform.runs import check_run_name

        check_run_name(name)
        return replace(command, values=values, run=name)
    from vesalius.tuning.folder import check_study_name

    check_study_name(name)
    return replace(command, values=values, study=name)


def _new_name(what: str) -> str:
    import datetime

    text = "".join(one if one.isalnum() or one in "._" else "-" for one in what)[:60].strip("-") or "job"
    return f"{text}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _absolute(command: Command) -> Command:
    """Return a command whose paths are absolute."""
    from vesalius.infra.cli.options import absolute, place

    values, paths = dict(command.values), []
    for name, value in command.values.items():
        if name in _STORES and isinstance(value, str):
            found = place(value)
            values[name] = str(found)
            if isinstance(found, Path):
                # A store that ingest makes need not be there; the folder that it is made in must.
                paths.append(str(found.parent if command.verb == "ingest" else found))
        elif name == "files" and value:
            several = [place(one) for one in value]
            values[name] = [str(one) for one in several]
            paths += [str(one) for one in several if isinstance(one, Path)]
        elif name == "model" and Path(value).expanduser().is_dir():
            values[name] = str(absolute(Path(value)))
            paths.append(values[name])
        elif isinstance(value, Path) or (
            isinstance(value, list | tuple) and any(isinstance(one, Path) for one in value)
        ):
            several = [absolute(one) for one in ([value] if isinstance(value, Path) else value)]
            values[name] = several[0] if isinstance(value, Path) else several
            made = name in ("out", "montage", "picture", "histogram")
            paths += [str(one.parent if made else one) for one in several]
    return replace(command, values=values, paths=tuple(dict.fromkeys(paths)))


def _check(command: Command, home: Path) -> None:
    """Check what the verb would check first, as far as this side can see."""
    values = command.values
    if command.verb == "train":
        _check_training(values, home)
    elif command.verb == "tune":
        from vesalius.infra.cli.asking import check_given

        check_given(values)
    elif command.verb == "ingest":
        from vesalius.infra.cli.ingest import choose_settings

        shares = {split: values.get(split) for split in ("train", "validation", "gate", "test")}
        choose_settings(values["layout"], values.get("recipe"), list(values.get("assignments") or ()), shares)
    elif command.verb == "score":
        from vesalius.infra.cli.score import check_what

        check_what(values.get("files"), values.get("split"), values.get("store"), values.get("brain_mask"))
    else:
        from vesalius.infra.cli.options import one_of

        one_of(values.get("split", "test"), ["train", "validation", "gate", "test"], "split")


def _check_training(values: Mapping[str, Any], home: Path) -> None:
    from vesalius.infra import pipeline
    from vesalius.infra.cli.train import check_given
    from vesalius.platform.runs import check_new_run
    from vesalius.platform.store import CohortStore

    if check_given(values):
        return
    assignments = list(values.get("assignments") or ())
    pipeline.choose_settings(values["method"], values.get("preset") or "paper", assignments)
    if Path(values["store"]).exists():
        CohortStore.open(values["store"])
    check_new_run(home, values["name"])


def _written(parameters: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    """Return arguments as the parser reads them again."""
    options, arguments = [], []
    for one in parameters:
        if one.name not in values:
            continue
        value = values[one.name]
        several = list(value) if isinstance(value, list | tuple) else [value]
        if one.param_type_name == "argument":
            arguments += [str(part) for part in several]
        elif isinstance(value, bool):
            options += [one.opts[-1] if value else one.secondary_opts[-1]]
        else:
            options += [f"{one.opts[-1]}={part}" for part in several]
    return [*options, "--", *arguments] if any(part.startswith("-") for part in arguments) else [*arguments, *options]
