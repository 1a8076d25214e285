"""Answers that can be fetched for a while: maps on the disk, under names that no one can guess."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vesalius.infra.serving.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.infra.application import Answer

_ID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A kept answer.

    Attributes:
        answer: without voxels.
        document: its JSON.
        folder: of its voxels.
        num_bytes: on the disk.
        until: by the monotonic clock.
    """

    answer: Answer
    document: Mapping[str, Any]
    folder: Path
    num_bytes: int
    until: float

    def whole(self) -> Answer:
        """Return the answer with its voxels, read from the disk.

        Raises:
            Refusal: it was removed at this moment.
            OSError: the disk failed.
        """
        try:
            image, found = np.load(self.folder / "image.npy"), np.load(self.folder / "map.npy")
        except FileNotFoundError:
            raise Refusal(404, _GONE) from None
        arrays = replace(self.answer.arrays, image=image)
        return replace(self.answer, arrays=arrays, score=replace(self.answer.score, map=torch.from_numpy(found)))


_GONE = "there is no such result: results are kept for a while only; send the volume again"


class Results:
    """Kept answers, the oldest given up first. Safe from any thread."""

    def __init__(self, root: Path, *, keep_seconds: float, keep: int, keep_bytes: int = 4 << 30) -> None:
        self._root = root
        self._root.mkdir(mode=0o700)
        self._keep_seconds = keep_seconds
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, answer: Answer, document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Keep an answer; return its id and its document, which now says where it is.

        Raises:
            OSError: the disk does not take it.
        """
        name = secrets.token_urlsafe(16)
        folder = self._root / name
        folder.mkdir(mode=0o700)
        score_map = answer.score.map.numpy()
        try:
            np.save(folder / "image.npy", answer.arrays.image[:1], allow_pickle=False)
            np.save(folder / "map.npy", score_map, allow_pickle=False)
        except BaseException:  # nobody would know of half an answer, and so nobody would remove it
            shutil.rmtree(folder, ignore_errors=True)
            raise
        place = f"/v1/results/{name}"
        links = {"id": name, "map": f"{place}/map.nii.gz", "view": f"{place}/view", "seconds": self._keep_seconds}
        whole = {**document, "result": links}
        nothing = np.zeros((0, 0, 0, 0), np.float32)
        kept = Kept(
            answer=replace(
                answer,
                arrays=replace(answer.arrays, image=nothing, brain=np.zeros((0, 0, 0), np.bool_), head=None),
                score=replace(answer.score, map=torch.zeros(0)),
            ),
            document=whole,
            folder=folder,
            num_bytes=int(answer.arrays.image[:1].nbytes + score_map.nbytes),
            until=time.monotonic() + self._keep_seconds,
        )
        with self._lock:
            self._kept[name] = kept
        self.sweep()
        return name, whole

    def get(self, name: str) -> Kept:
        """Return a kept answer.

        Raises:
            Refusal: there is none of that id, or not any more.
        """
        self.sweep()
        with self._lock:
            kept = self._kept.get(name) if _ID.fullmatch(name) else None
        if kept is None:
            raise Refusal(404, _GONE)
        return kept

    def remove(self, name: str) -> None:
        """Give up a kept answer.

        Raises:
            Refusal: there is none of that id.
        """
        kept = self.get(name)
        with self._lock:
            self._kept.pop(name, None)
        shutil.rmtree(kept.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Give up what is too old or too much; the newest always stays."""
        now = time.monotonic()
        with self._lock:
            total = sum(kept.num_bytes for kept in self._kept.values())
            dropped = []
            for name, kept in list(self._kept.items()):
                too_much = (len(self._kept) > self._keep or total > self._keep_bytes) and len(self._kept) > 1
                if kept.until > now and not too_much:
                    break
                dropped.append(self._kept.pop(name).folder)
                total -= kept.num_bytes
        for folder in dropped:
            shutil.rmtree(folder, ignore_errors=True)
