"""Checkpoints: safetensors and JSON, a folder each, committed by one rename.

::

    checkpoints/
      0001-00000500/      stage index, then the step that comes next
        weights.safetensors    parameters and buffers of the method
        optimizers.safetensors tensors of the stage's optimisers
        state.json             where the run stands, and what the tensors cannot hold
      best.json           which checkpoint is the best so far, written last

A folder named like a checkpoint is whole: it is written aside and renamed. Kept are the last two, the best, and
the one at the end of each stage (for ``--from RUN@STAGE``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from vesalius.platform.config import Settings
from vesalius.platform.errors import DiskSpaceError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.optim import Optimizer

    from vesalius.platform.contracts import Method

_NAME = re.compile(r"^(\d{4})-(\d{8})$")


class Best(Settings):
    """The best state so far.

    Attributes:
        checkpoint: name of the checkpoint folder.
        criterion: what was compared, higher is better.
        value: its value.
        stage: name of the stage.
        step: steps of the stage done.
    """

    checkpoint: str
    criterion: str
    value: float
    stage: str
    step: int


class State(Settings):
    """Where a run stands.

    Attributes:
        stage_index: the stage to go on in.
        stage: its name; empty when every stage is done.
        step: the step to go on with.
        finished_stages: names of the stages done, in order.
        best: the best so far.
        seconds: wall time spent in each stage.
    """

    stage_index: int = 0
    stage: str = ""
    step: int = 0
    finished_stages: tuple[str, ...] = ()
    best: Best | None = None
    seconds: dict[str, float] = Field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run. One process writes (rank 0); any may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if _NAME.match(p.name))

    def last(self) -> str | None:
        """Return the newest checkpoint, or None where there is none yet."""
        names = self.names()
        return names[-1] if names else None

    def best(self) -> Best | None:
        """Return the best state so far, or None where no validation has been made."""
        path = self.folder / "best.json"
        return Best.model_validate_json(path.read_text()) if path.is_file() else None

    def end_of(self, stage: str) -> str:
        """Return the checkpoint written when ``stage`` had finished.

        Raises:
            RunError: the run has not finished such a stage.
        """
        finished: list[str] = []
        for name in self.names():
            state = self.state(name)
            if state.finished_stages and state.finished_stages[-1] == stage and state.step == 0:
                return name
            finished = list(state.finished_stages) or finished
        raise RunError(
            f"{self.folder.parent.name} has no finished stage '{stage}': "
            + (f"finished are {', '.join(finished)}" if finished else "none is finished")
        )

    def state(self, name: str) -> State:
        """Read where the run stood at a checkpoint.

        Raises:
            RunError: the checkpoint is missing or damaged.
        """
        path = self.folder / name / "state.json"
        try:
            return State.model_validate(json.loads(path.read_text())["state"])
        except (OSError, ValueError, KeyError):
            raise RunError(f"checkpoint {path.parent} cannot be read: remove it to go on from the one before") from None

    def load_weights(self, name: str, method: Method) -> None:
        """Load parameters and buffers into ``method``.

        Raises:
            RunError: the file is damaged or of another method.
        """
        path = self.folder / name / "weights.safetensors"
        try:
            method.load_state_dict(load_file(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(f"checkpoint {path} does not fit the method: {str(error).splitlines()[0]}") from None
        except Exception as error:  # safetensors raises its own type for a damaged file
            if type(error).__name__ != "SafetensorError":
                raise
            raise RunError(f"checkpoint {path} is damaged: remove it to go on from the one before") from None

    def load_optimizers(self, name: str, optimizers: Mapping[str, Optimizer]) -> None:
        """Load the state of a stage's optimisers."""
        folder = self.folder / name
        tensors = load_file(folder / "optimizers.safetensors")
        kept = json.loads((folder / "state.json").read_text())["optimizers"]
        for key, optimizer in optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for index, values in kept[key]["state"].items():
                state[int(index)] = dict(values)
            for path, tensor in tensors.items():
                owner, index, name_of = path.split("/", 2)
                if owner == key:
                    state.setdefault(int(index), {})[name_of] = tensor
            groups = optimizer.state_dict()["param_groups"]
            for group, saved in zip(groups, kept[key]["groups"], strict=True):
                group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def save(self, state: State, method: Method, optimizers: Mapping[str, Optimizer]) -> str:
        """Write a checkpoint and drop the ones no longer needed; returns its name.

        Raises:
            DiskSpaceError: there is no room; the checkpoints before this one stand untouched.
        """
        name = f"{state.stage_index:04d}-{state.step:08d}"
        # A whole one of this name can only come from the same step: of this run before it was broken off, or of
        # the validation pass just now. It is the same content, and never out of reach if it is left alone.
        if not (self.folder / name).exists():
            self._write(name, state, method, optimizers)
        if state.best is not None:
            self._point_at_best(state.best)
        self._drop(state.best)
        return name

    def _write(self, name: str, state: State, method: Method, optimizers: Mapping[str, Optimizer]) -> None:
        aside = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            weights = {k: v.detach().cpu().contiguous().clone() for k, v in method.state_dict().items()}
            save_file(weights, aside / "weights.safetensors")
            tensors, kept = _pack(optimizers)
            save_file(tensors, aside / "optimizers.safetensors")
            text = json.dumps({"state": state.model_dump(mode="json"), "optimizers": kept}, indent=1)
            (aside / "state.json").write_text(text)
            aside.rename(self.folder / name)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if error.errno == 28:  # ENOSPC
                raise DiskSpaceError(
                    f"no space left for a checkpoint in {self.folder}: free some and resume; the last one stands"
                ) from None
            raise
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            if type(error).__name__ == "SafetensorError" and "No space" in str(error):
                raise DiskSpaceError(
                    f"no space left for a checkpoint in {self.folder}: free some and resume; the last one stands"
                ) from None
            raise

    def _point_at_best(self, best: Best) -> None:
        aside = self.folder / ".best.json.partial"
        aside.write_text(best.model_dump_json(indent=1))
        aside.replace(self.folder / "best.json")

    def _drop(self, best: Best | None) -> None:
        names = self.names()
        ends = {name for name in names if name.endswith("-00000000")}
        keep = {*names[-2:], *ends, *([best.checkpoint] if best else [])}
        for name in set(names) - keep:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _pack(optimizers: Mapping[str, Optimizer]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    kept: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            plain[str(index)] = {}
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}/{index}/{key}"] = value.detach().cpu().contiguous()
                else:
                    plain[str(index)][key] = value
        groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        kept[name] = {"state": plain, "groups": groups}
    return tensors, kept
