"""A folder of volumes, each prepared and scored by whichever worker is free; what is done already is found done."""

from __future__ import annotations

import contextlib
import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vesalius.infra.application import score_with
from vesalius.infra.folders.results import clear_partial, keep_result, kept_result, key_of
from vesalius.methods import METHODS
from vesalius.platform.cluster.holding import map_held
from vesalius.platform.cluster.metrics import SCORING_ERRORS, SCORING_SECONDS, VOLUMES_SCORED, count, observe
from vesalius.platform.errors import DiskSpaceError, SettingError, told
from vesalius.platform.models import load_model
from vesalius.platform.progress import silent
from vesalius.platform.store import space_errors
from vesalius.platform.store.files import write_file
from vesalius.platform.store.lock import exclusive
from vesalius.platform.training.memory import is_out_of_shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vesalius.infra.folders.cases import Case
    from vesalius.platform.progress import Progress

_LOCK = ".lock"
TABLE = "scores.csv"
_COLUMNS = ("name", "image_score", "anomalous_ml", "threshold", "highest", "seconds", "error")


@dataclass(frozen=True, kw_only=True)
class FolderWork:
    """What a worker is told, once.

    Attributes:
        model: its folder, which every worker sees.
        out: where results are kept, likewise.
        device: where to score.
    """

    model: Path
    out: Path
    device: str

    def __call__(self) -> Callable[[Case], dict[str, Any]]:
        """Load the model and return what scores a volume and keeps its result."""
        method, card = load_model(self.model, METHODS, self.device)

        def score(case: Case) -> dict[str, Any]:
            key = key_of(case, card)
            row = kept_result(self.out, case, key)
            if row is not None:
                return {**row, "state": "kept"}
            try:
                answer = score_with(method, card, case.files, device=self.device)
            except Exception as error:
                count(SCORING_ERRORS, source="batch", kind=type(error).__name__)
                if is_out_of_shared_memory(error, self.device):
                    raise MemoryError(str(error)) from error  # by this name it is tried again with fewer beside it
                raise
            count(VOLUMES_SCORED, method=card.method, source="batch")
            observe(SCORING_SECONDS, answer.seconds, method=card.method, source="batch")
            return {**keep_result(self.out, case, key, answer), "state": "scored"}

        return score


def score_folder(
    model: Path,
    cases: Sequence[Case],
    out: Path,
    *,
    num_workers: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Score volumes and keep a folder of results for each; a volume that cannot be scored is a row with an ``error``.

    Killed, the same call goes on: what is whole and made of the same is taken as it is. A worker that dies is replaced
    and what it held is tried again. ``out/scores.csv`` holds the rows of all.

    Args:
        model: its folder.
        cases: what to score.
        out: made where it does not exist; one call at a time writes to it.
        num_workers: actors; 0 scores in this process.
        device: cpu or cuda.
        progress: called after each volume.

    Returns:
        A row a volume, in the order of ``cases``.

    Raises:
        SettingError: ``out`` is a file.
        StoreError: another call is writing to it.
        DiskSpaceError: there is no room.
        WorkerLostError: no worker could start.
    """
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file: give a folder for the results")
    with space_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    rows = {case.name: _failed(case, case.problem) for case in cases if case.problem}
    progress(len(rows), len(cases), "")
    with exclusive(out / _LOCK):
        clear_partial(out)
        work = FolderWork(model=model.absolute(), out=out.absolute(), device=device)
        todo = [case for case in cases if not case.problem]
        gpus = 1.0 if device.startswith("cuda") else 0.0
        with contextlib.closing(map_held(work, todo, num_workers=num_workers, num_gpus=gpus)) as outcomes:
            for case, outcome in outcomes:
                if isinstance(outcome, DiskSpaceError):
                    raise outcome  # none of the others would find room either
                rows[case.name] = _failed(case, told(outcome)) if isinstance(outcome, Exception) else outcome
                progress(len(rows), len(cases), case.name)
        clear_partial(out)
        ordered = [rows[case.name] for case in cases]
        write_file(out / TABLE, _table(ordered).encode(), out)
    return ordered


def _failed(case: Case, said: str) -> dict[str, Any]:
    files = [str(path) for path in case.files]
    return {"name": case.name, "files": files, "error": said, "state": "failed"}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    table = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return stream.getvalue()
