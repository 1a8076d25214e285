"""A paper's table, row by row, with ours beside what it printed."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from vesalius.infra import tables
from vesalius.infra.reproduce.budget import parse_budget
from vesalius.infra.reproduce.cohort import check_request, facts_of, grid_of, make_cohorts
from vesalius.infra.reproduce.gallery import draw_table
from vesalius.infra.reproduce.kept import write_json, write_text
from vesalius.infra.reproduce.levels import SPLIT, Drawn
from vesalius.infra.reproduce.protocol import load_protocol
from vesalius.infra.reproduce.running import Conditions, Judged, Outcome, run_row
from vesalius.infra.reproduce.side_by_side import run_rows
from vesalius.infra.tables.reproduction import SECONDS, markdown
from vesalius.platform import cluster
from vesalius.platform.errors import RowsFailedError, SettingError
from vesalius.platform.training import choose_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.datasets.phantom import CohortSettings
    from vesalius.infra.console import Terminal
    from vesalius.infra.pipeline import ThresholdRule
    from vesalius.infra.reproduce.cohort import Cohorts, DataRequest
    from vesalius.infra.reproduce.levels import Level, Section
    from vesalius.infra.reproduce.protocol import Protocol


def reproduce(
    terminal: Terminal,
    paper: str | Protocol,
    out: Path,
    request: DataRequest,
    *,
    labels: Sequence[str] = (),
    budget: str | None = None,
    home: Path | None = None,
    at_once: int = 1,
    num_workers: int = 0,
    device: str = "auto",
    threads: int | None = None,
    phantom: CohortSettings | None = None,
    small: str | None = "demo",
) -> None:
    """Reproduce a paper's table below ``out``; what an earlier call finished is found and reused.

    Args:
        terminal: where progress and the result are written.
        paper: its name, or a protocol of one's own.
        out: folder for the cohort, the choices of settings, ``PAPER.json``, ``PAPER.md`` and ``PAPER.png``.
        request: the data.
        labels: rows of the table; none takes all. The trivial baselines come with any of them.
        budget: time for each row, training and scoring; None takes the paper's settings as they stand.
        home: of the runs; None keeps them below ``out``.
        at_once: rows side by side, each in a process of its own; the cores are shared out among them.
        num_workers: Ray Train workers; 0 trains without Ray.
        device: cpu, cuda or auto.
        threads: of CPU, of one worker; None shares out the machine's cores.
        phantom: other phantoms than the protocol's.
        small: the preset that is scaled to the budget; None keeps the paper's settings as far as they can be kept and
            cuts the epochs alone.

    Raises:
        SettingError: an unknown paper or row, a budget that is none, data that are none.
        RowsFailedError: a row failed; the result is written by then.
    """
    started = time.monotonic()
    protocol = load_protocol(paper) if isinstance(paper, str) else paper
    rows = (*protocol.choose(labels), *protocol.trivial())
    seconds = None if budget is None else parse_budget(budget)
    if at_once > 1 and num_workers:
        raise SettingError("--at-once shares this machine out by rows and --workers by a row's samples: give one")
    check_request(request)
    choose_device(_checked(device), "--device")
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file: give a folder")
    at_once = min(at_once, len(rows))
    finer = next((row.finer for row in rows if row.finer is not None), None)
    num_tasks = min(4, cluster.available_cores()) if num_workers else 0
    with contextlib.ExitStack() as stack:
        if num_workers:
            terminal.say("starting Ray")
            stack.enter_context(cluster.session())
        cohorts = make_cohorts(terminal, protocol, out, request, finer=finer, phantom=phantom, num_tasks=num_tasks)
        level = cohorts.level
        if level is not None:
            rows = level.rows(rows)
            if level.instead is not None:
                terminal.warn(level.instead)  # before hours are spent on it
        conditions = Conditions(
            protocol=protocol,
            cohorts=cohorts,
            home=home or out / "home",
            out=out,
            budget_seconds=seconds,
            num_workers=num_workers,
            device=device,
            threads=threads or (max(1, cluster.available_cores() // at_once) if at_once > 1 else None),
            small=small,
            at_once=at_once,
        )
        found = (
            run_rows(terminal, rows, conditions)
            if at_once > 1
            else (run_row(terminal, row, conditions) for row in rows)
        )
        done: dict[str, Judged] = {}
        for one in found:
            done[one.row.label] = one
            # As soon as a row is done it can be read, whatever becomes of the others.
            judged = [done.get(row.label) or Judged(row=row, outcome=Outcome()) for row in rows]
            write_json(out / f"{protocol.name}.json", _document(protocol, cohorts, judged, conditions))
    document = _document(protocol, cohorts, judged, conditions)
    # Before anything is drawn: a picture that fails must not take the figures of hours with it.
    document["markdown"] = str(out / f"{protocol.name}.md")
    write_text(out / f"{protocol.name}.md", markdown(document, protocol.voxel_set))
    write_json(out / f"{protocol.name}.json", document)
    picture = draw_table(
        cohorts.reference,
        judged,
        out / f"{protocol.name}.png",
        voxel_set=protocol.voxel_set,
        title=f"{protocol.title.partition(',')[0]}, {protocol.table}: restorations and maps of the {SPLIT} split",
        caption="Each method learnt from healthy subjects only. Left of a pair the restoration, right the map; "
        f"threshold: {said_of(conditions.rule)}.",
        level=level,
    )
    document["picture"] = None if picture is None else str(picture)
    if level is not None:
        to_draw = [Drawn(label=one.row.label, found=one.level) for one in judged if one.level is not None]
        drawn = level.draw(to_draw, out) if to_draw else {}
        document["pictures"] = {name: str(path) for name, path in drawn.items()}
    document["seconds"] = round(time.monotonic() - started, 1)
    write_json(out / f"{protocol.name}.json", document)
    terminal.result(document, *_say(document, out / f"{protocol.name}.json"))
    failed = [one for one in judged if one.outcome.error is not None]
    if failed:
        said = "; ".join(f"{one.row.label}: {one.outcome.error}" for one in failed)
        raise RowsFailedError(f"{len(failed)} of {len(judged)} rows failed: {said}")


def said_of(rule: ThresholdRule) -> str:
    """Return a rule in a few words."""
    quantile = 0.98 if rule.quantile is None else rule.quantile
    of = "" if rule.subjects is None else f" of {rule.subjects} subjects at most"
    said = f"the {quantile:g} quantile of healthy {rule.split} voxels{of}"
    if rule.policy != "quantile":
        best = f"the best Dice on {rule.split}"
        said = best if rule.policy == "best_dice" else f"{best}, or where nothing is outlined there {said}"
    if rule.min_component > 1:
        said += f", components of fewer than {rule.min_component} voxels dropped"
    return said


def said_of_code(shape: tuple[int, ...]) -> str:
    """Return a code's shape as papers print it, its channels last: 16 x 16 x 64."""
    channels, *plane = shape
    return " x ".join(str(num) for num in (*plane, channels))


def _checked(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"--device is '{device}': expected cpu, cuda or auto")
    return device


def _document(protocol: Protocol, cohorts: Cohorts, judged: Sequence[Judged], conditions: Conditions) -> dict[str, Any]:
    level = cohorts.level
    document: dict[str, Any] = {
        "paper": {"name": protocol.name, "title": protocol.title, "table": protocol.table},
        "data": {
            "paper": protocol.data,
            **facts_of(cohorts),
            "reference_grid": {"paper": protocol.reference_grid, "ours": grid_of(cohorts.reference)},
        },
        "evaluation": {
            "rule": conditions.rule.model_dump(mode="json"),
            "said": said_of(conditions.rule),
            "source": protocol.rule_source,
            "split": SPLIT,
            "voxel_set": protocol.voxel_set,
        },
        "budget_seconds": conditions.budget_seconds,
        "home": str(conditions.home),
        "rows": [_row(one, protocol, level, _first_of_its_run(one, judged)) for one in judged],
    }
    if level is not None:
        document["evaluation"]["judged"] = level.said()
        document["sections"] = [section.model_dump(mode="json") for section in _filled(level, document["rows"])]
    return document


def _filled(level: Level, rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Return the tables that hold a figure of ours, as none does of kinds that no image is; all before the first."""
    judged = [row["judged"] for row in rows if row["judged"] is not None]
    return [
        section
        for section in level.sections()
        if not judged or any(figures.get(key) is not None for figures in judged for key, _, _ in section.columns)
    ]


def _first_of_its_run(one: Judged, judged: Sequence[Judged]) -> str | None:
    """Return the label of the first row of the table that is the same run; None where that is the row itself."""
    run = one.outcome.run
    first = next((other.row.label for other in judged if run is not None and other.outcome.run == run), None)
    return None if first == one.row.label else first


def _row(one: Judged, protocol: Protocol, level: Level | None, same_run_as: str | None) -> dict[str, Any]:
    row, outcome = one.row, one.outcome
    choice = outcome.choice
    differs = [*row.differs, *(protocol.differs if row.published is not None else ())]
    code = None if outcome.code_shape is None else said_of_code(outcome.code_shape)
    if row.published is not None and code is not None and row.latent and code != row.latent:
        what = "the code of a slice" if level is None else "the code"
        differs.insert(0, f"{what} is {code}, the paper's {row.latent}")
    document = {
        "label": row.label,
        "latent": {"paper": row.latent, "ours": code},
        "method": row.method,
        "source": row.source,
        "published": None if row.published is None else row.published.model_dump(mode="json"),
        "differs": differs,
        "run": outcome.run,
        "same_run_as": same_run_as,
        "error": outcome.error,
        "scale": None if choice is None else choice.model_dump(mode="json", exclude={"settings"}),
        "settings": None if choice is None else choice.settings,
        "training_minutes": outcome.training_minutes,
        "figures": None
        if one.figures is None
        else {name: figures.model_dump(mode="json") for name, figures in one.figures.items()},
    }
    if level is not None:
        document["judged"] = None if one.level is None else level.numbers(one.level)
        document["level"] = None if one.level is None else one.level.model_dump(mode="json")
    return document


def _say(document: Mapping[str, Any], path: Path) -> list[Any]:
    paper, evaluation = document["paper"], document["evaluation"]
    voxels = {"all": "all voxels", "brain": "voxels inside the brain"}[evaluation["voxel_set"]]
    sections = document.get("sections")
    title = f"{paper['title'].partition(',')[0]}, {paper['table']}; {evaluation['split']} split"
    differs = document["data"]["differs"]
    rows: list[tuple[str, object]] = [
        ("paper's data", document["data"]["paper"]),
        ("ours", document["data"]["ours"]),
        *([("what differs", "; ".join(differs))] if differs else []),
        ("threshold" if sections is None else "judged", evaluation["said" if sections is None else "judged"]),
        ("intervals", "95 %, bootstrap over subjects"),
        ("s", SECONDS),
        ("picture", document["picture"] or "none: no row came to its end"),
        *[(name, path) for name, path in document.get("pictures", {}).items()],
        ("table", document["markdown"]),
        ("figures", path),
        ("took", f"{document['seconds']:.0f} s"),
    ]
    notes = {row["label"]: "; ".join(said) for row in document["rows"] if (said := tables.row_notes(row))}
    if sections is None:
        shown: list[Any] = ["", tables.PaperTable(document["rows"], f"{title}, {voxels}", evaluation["voxel_set"])]
    else:
        shown = [
            part
            for number, section in enumerate(sections)
            for part in (
                "",
                tables.PaperTable(
                    document["rows"],
                    f"{title}. {section['title']}",
                    evaluation["voxel_set"],
                    section["columns"],
                    timed=number == 0,
                ),
            )
        ]
    return [*shown, *([tables.pairs("row", notes)] if notes else []), tables.key_values(rows)]
