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

import contextlib
import errno
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vesalius.platform.config import Settings
from vesalius.platform.errors import RunError
from vesalius.platform.store.files import file_digest, folder_digests, sync_folder, write_file
from vesalius.platform.store.space import space_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
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
        steps: steps of each finished stage that its weights stand for: of the best, where one was chosen.
        seconds: wall time spent in each stage.
        learnt: names of the weights that are no longer what the method was built with, at the end of a stage; None in
            its middle. What else there is belongs to later stages and is as the run's own settings have it.
        inherited: of the finished stages, those that another run has trained.
    """

    stage_index: int = 0
    stage: str = ""
    step: int = 0
    finished_stages: tuple[str, ...] = ()
    best: Best | None = None
    steps: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    learnt: tuple[str, ...] | None = None
    inherited: tuple[str, ...] = ()


def checkpoint_name(stage_index: int, step: int) -> str:
    """Return the name of the checkpoint before ``step`` of a stage; names sort by time."""
    return f"{stage_index:04d}-{step:08d}"


def _is_end(name: str) -> bool:
    """Say whether a checkpoint is of a stage's end: these are never dropped, even while somebody reads them."""
    return name.endswith("-00000000")


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
        finished: tuple[str, ...] = ()
        for name in filter(_is_end, self.names()):
            finished = self.state(name).finished_stages
            if finished and finished[-1] == stage:
                return name
        raise RunError(
            f"{self.folder.parent.name} has no finished stage '{stage}': "
            + (f"finished are {', '.join(finished)}" if finished else "none is finished")
        )

    def begin_after(self, stage: str, names: Sequence[str]) -> str:
        """Return the checkpoint of :meth:`end_of` for a run of another method's or other settings' stages.

        Args:
            stage: that it is to start after.
            names: of its own stages.

        Raises:
            RunError: there is no such stage here or there, or other stages come before it.
        """
        if stage not in names:
            raise RunError(f"this method has no stage '{stage}': its stages are {', '.join(names)}")
        end = self.end_of(stage)
        before = self.state(end).finished_stages
        own = tuple(names[: list(names).index(stage) + 1])
        if before != own:
            raise RunError(
                f"checkpoint {self.folder / end} was reached by the stages {', '.join(before)}, which are "
                f"{', '.join(own)} here: start from a run of the same stages"
            )
        return end

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
            RunError: the file is missing, damaged or of another method.
        """
        path = self.folder / name / "weights.safetensors"
        with _reading(path):
            method.load_state_dict(load_file(path))

    def learnt(self, name: str, method: Method) -> dict[str, torch.Tensor]:
        """Return what the finished stages have learnt, by name; it fits ``method``, of which all else stays as built.

        Raises:
            RunError: the file is missing, damaged, of another method, or does not say what was learnt.
        """
        learnt = self.state(name).learnt
        if learnt is None:
            raise RunError(
                f"checkpoint {self.folder / name} does not say what its stages have learnt: it is of an earlier "
                "version, train its run anew"
            )
        own = method.state_dict()
        path = self.folder / name / "weights.safetensors"
        with _reading(path):
            kept = load_file(path)
            found = {key: kept[key] for key in learnt}
            others = [key for key, value in found.items() if key not in own or own[key].shape != value.shape]
            if others:
                raise ValueError(f"{others[0]} is of another shape")
            return found

    def weights_digest(self, name: str) -> str:
        """Return the SHA-256 of a checkpoint's weights.

        Raises:
            RunError: the file is missing.
        """
        path = self.folder / name / "weights.safetensors"
        with _reading(path):
            return file_digest(path)

    def load_optimizers(self, name: str, optimizers: Mapping[str, Optimizer]) -> None:
        """Load the state of a stage's optimisers.

        Learning rates, moments and whatever else is set stay what the optimisers were built with: a run may go on
        under other settings than its checkpoint was made under.

        Raises:
            RunError: a file is missing, damaged or of another stage.
        """
        folder = self.folder / name
        with _reading(folder / "optimizers.safetensors"):
            tensors = load_file(folder / "optimizers.safetensors")
            kept = json.loads((folder / "state.json").read_text())["optimizers"]
            for key, optimizer in optimizers.items():
                _unpack(key, optimizer, tensors, kept[key])

    def save(self, state: State, method: Method, optimizers: Mapping[str, Optimizer]) -> str:
        """Write a checkpoint and drop the ones no longer needed; returns its name.

        Raises:
            DiskSpaceError: there is no room; the checkpoints before this one stand untouched.
        """
        name = checkpoint_name(state.stage_index, state.step)
        # A whole one of this name can only come from the same step: of this run before it was broken off, or of
        # the validation pass just now. It is the same content, and never out of reach if it is left alone.
        if not (self.folder / name).exists():
            self._write(name, state, method, optimizers)
        if state.best is not None:
            self._point_at_best(state.best)
        self._drop(state.best)
        return name

    def adopt(self, other: Checkpoints, name: str, weights_sha256: str) -> None:
        """Take over another run's checkpoint, to go on from; what of this run comes after it is left alone.

        The best so far and the ends of stages come too, since a later stage may build on them. Files are linked where
        the disk allows it: a checkpoint is never changed.

        Args:
            other: of a run that has paused.
            name: of the checkpoint.
            weights_sha256: of its weights, as they were when it was chosen.

        Raises:
            RunError: it is missing, or its weights are others.
        """
        last = self.last()
        if last is not None and last >= name:
            return
        if other.weights_digest(name) != weights_sha256:
            raise RunError(
                f"checkpoint {other.folder / name} has other weights than when it was chosen to go on from: put it "
                "back, or begin anew"
            )
        best = other.state(name).best
        wanted = [one for one in other.names() if one < name and _is_end(one)]
        wanted += [best.checkpoint] if best is not None and best.checkpoint != name else []
        # It comes last: until it stands, all of this is done once more.
        for one in dict.fromkeys([*wanted, name]):
            if not (self.folder / one).exists():
                self._link(other.folder / one)
        if best is not None:
            self._point_at_best(best)

    def _link(self, source: Path) -> None:
        with self._aside(source.name) as aside, _reading(source):
            for path in source.iterdir():
                try:
                    (aside / path.name).hardlink_to(path)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(path, aside / path.name)

    def sweep(self) -> None:
        """Remove what a killed process left half-written; call before writing, from the one process that writes."""
        for partial in self.folder.glob(".*.partial"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)

    def _write(self, name: str, state: State, method: Method, optimizers: Mapping[str, Optimizer]) -> None:
        with self._aside(name) as aside:
            weights = {k: v.detach().cpu().contiguous().clone() for k, v in method.state_dict().items()}
            save_file(weights, aside / "weights.safetensors")
            tensors, kept = _pack(optimizers)
            save_file(tensors, aside / "optimizers.safetensors")
            text = json.dumps({"state": state.model_dump(mode="json"), "optimizers": kept}, indent=1)
            (aside / "state.json").write_text(text)

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        """Give a folder to be filled, which then gets its name, or goes again where that fails."""
        aside = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                yield aside
                # On the disk before it gets its name: a loss of power must not leave a whole name on half a file.
                folder_digests(aside, sync=True)
                aside.rename(self.folder / name)
                sync_folder(self.folder)
        except BaseException:  # an interrupt too must leave nothing half-written
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _point_at_best(self, best: Best) -> None:
        with _writing(self.folder):
            write_file(self.folder / "best.json", best.model_dump_json(indent=1).encode(), self.folder)

    def _drop(self, best: Best | None) -> None:
        names = self.names()
        keep = {*names[-2:], *(one for one in names if _is_end(one)), *([best.checkpoint] if best else [])}
        for name in set(names) - keep:
            shutil.rmtree(self.folder / name, ignore_errors=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of a checkpoint's file that it is missing, damaged or of something else."""
    go_on = f"remove {path.parent} to go on from the one before"
    try:
        yield
    except FileNotFoundError:
        raise RunError(f"checkpoint file {path} is missing: {go_on}") from None
    except SafetensorError:
        raise RunError(f"checkpoint file {path} is damaged: {go_on}") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"checkpoint file {path} does not fit this method or stage ({reason}): {go_on}") from None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a full disk into one sentence, also where safetensors reports it in its own words."""
    with space_errors(folder):
        try:
            yield
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space" in str(error):
                raise OSError(errno.ENOSPC, "no space left") from error
            raise


def _unpack(key: str, optimizer: Optimizer, tensors: Mapping[str, torch.Tensor], kept: Mapping[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in kept["state"].items()}
    for path, tensor in tensors.items():
        owner, index, name = path.rsplit("/", 2)  # a slash may stand in the optimiser's name
        if owner == key:
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
        kept[name] = {"state": plain}
    return tensors, kept
