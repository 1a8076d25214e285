"""What a study is asked to be: the options of ``vesalius tune`` and the keys of a study file, put together."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.infra.cli.options import absolute, place

if TYPE_CHECKING:
    from vesalius.infra.pipeline import StudyRequest


def check_given(values: Mapping[str, Any]) -> None:
    """Check arguments as far as that can be done without a cluster or the study's folder.

    Args:
        values: by parameter; what is None or absent was not given.

    Raises:
        SettingError: one is unknown or does not fit.
    """
    from vesalius.infra import pipeline
    from vesalius.infra.reproduce.budget import parse_budget
    from vesalius.platform.store import CohortStore
    from vesalius.tuning import check_pruner, check_sampler, objective

    if values.get("budget") is not None:
        parse_budget(values["budget"])
    given = options_given(values)
    if values.get("resume") is not None:
        return
    request = read_request(given, values.get("file"))
    for one in request.objective:
        objective(one)
    if request.pruner is not None:
        check_pruner(request.pruner)
    check_sampler(request.sampler, shared=request.storage is not None)
    if not request.start_from:
        texts = [f"{key}={value}" for key, value in request.set.items() if isinstance(value, str | int | float)]
        pipeline.choose_settings(request.method, request.preset or "paper", texts)
    if request.store and Path(request.store).exists():
        CohortStore.open(request.store)


def options_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given by the keys of a study file."""
    renamed = {"start_from": "from", "spaces": "space", "objectives": "objective", "assignments": "set"}
    known = (
        *("method", "store", "start_from", "trials", "population", "generations", "spaces", "objectives", "lesions"),
        *("preset", "assignments", "sampler", "pruner", "concurrent", "workers", "cpus", "gpus", "seed", "storage"),
        *("name", "learn_from"),
    )
    given = {renamed.get(key, key): values.get(key) for key in known}
    given["store"] = None if given["store"] is None else place(given["store"])
    given["space"] = _spaces(given["space"])
    given["set"] = _assigned(given["set"])
    given["lesions"] = None if given["lesions"] is None else str(absolute(given["lesions"]))
    for key in ("objective", "learn_from"):
        given[key] = tuple(given[key] or ()) or None
    return {key: value for key, value in given.items() if value is not None}


def read_request(given: dict[str, Any], file: Path | None) -> "StudyRequest":
    """Return what is asked for: a file's keys, and over them the options; spaces and settings join the file's."""
    from vesalius.infra import pipeline
    from vesalius.platform.config import validate
    from vesalius.platform.errors import SettingError
    from vesalius.tuning import full_key, read_study_file

    said: dict[str, Any] = {} if file is None else read_study_file(absolute(file))
    for key in ("objective", "learn_from"):
        if isinstance(said.get(key), str):
            said[key] = (said[key],)
    if isinstance(said.get("store"), str) and "store" not in given:
        given["store"] = place(said["store"])
    joined = {**said, **given}
    for group in ("set", "space"):
        if isinstance(said.get(group), dict) and group in given:
            replaced = {full_key(key) for key in given[group]}
            joined[group] = {key: one for key, one in said[group].items() if full_key(str(key)) not in replaced}
            joined[group] |= given[group]
    for key, shown in (("method", "METHOD"), ("store", "STORE")):
        if key not in joined and "from" not in joined:
            raise SettingError(
                f"{shown} is missing: name a method and a store, as in `vesalius tune implicit_field STORE`, or "
                "use --from RUN or --resume STUDY"
            )
    if "store" in joined:
        joined["store"] = str(joined["store"])
    return validate(pipeline.StudyRequest, joined, "the study" if file is None else str(file))


def at_services(request: "StudyRequest", home: Path) -> "StudyRequest":
    """Return a request whose study is kept with the home's services, where there are some and it says nothing else."""
    from vesalius.infra import services

    # cmaes pickles its state into the storage and is refused where others can write to that.
    if request.storage is not None or request.sampler == "cmaes":
        return request
    return request.model_copy(update={"storage": services.study_storage(home)})


def _spaces(texts: list[str] | None) -> dict[str, Any] | None:
    from vesalius.platform.errors import SettingError

    if not texts:
        return None
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key.strip() or (separator and not value.strip()):
            raise SettingError(f"--space '{text}': expected KEY=SPACE, such as num_classes=4..16")
        if key.strip() in found:
            raise SettingError(f"--space gives '{key.strip()}' twice: give it once")
        found[key.strip()] = value if separator else None
    return found


def _assigned(assignments: list[str] | None) -> dict[str, Any] | None:
    from vesalius.platform.config import parse_assignments

    return dict(parse_assignments(assignments)) if assignments else None
