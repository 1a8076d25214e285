"""A trained model at work on single files: prepare as its cohort was, score, and bring the answer home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vesalius.datasets.prepare import prepare_file
from vesalius.infra.pictures import draw_score
from vesalius.methods import METHODS
from vesalius.platform.contracts import Score, Volume
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.models import load_model
from vesalius.platform.scoring import score_volume, write_native
from vesalius.platform.store import SubjectArrays, require_space

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vesalius.platform.contracts import Method
    from vesalius.platform.models import ModelCard
    from vesalius.platform.scoring import ScoreStore
    from vesalius.platform.store import CohortStore, SubjectRecord


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A scored file.

    Attributes:
        record: of the prepared volume, with the way back to the file.
        arrays: the prepared volume.
        score: the method's answer on the prepared grid.
        seconds: of scoring, preparation excluded.
        card: of the model.
    """

    record: SubjectRecord
    arrays: SubjectArrays
    score: Score
    seconds: float
    card: ModelCard

    @property
    def threshold(self) -> float | None:
        """The model's threshold over all voxels, where it has one."""
        found = self.card.thresholds.get("all")
        return None if found is None else found.value

    @property
    def anomalous_ml(self) -> float | None:
        """Millilitres at or above the threshold, without the components that are too small for it."""
        found = self.card.thresholds.get("all")
        if found is None:
            return None
        voxel_ml = float(np.prod(self.record.spacing_mm)) / 1000.0
        # Thresholds are chosen on maps as they are kept, in float16: the same rounding decides here.
        anomalous = found.segment(self.score.map.to(torch.float16).numpy())
        return round(int(np.count_nonzero(anomalous)) * voxel_ml, 3)


def score_files(model: Path, files: Sequence[Path], *, brain_mask: Path | None = None, device: str = "cpu") -> Answer:
    """Score one volume from its files, one a channel in the order of the model's channels. Writes nothing.

    Raises:
        ModelError: the model is missing or damaged, or is of another grid.
        SettingError: there are more or fewer files than channels.
        VolumeError: a file cannot be read or holds no usable image.
    """
    method, card = load_model(model, METHODS, device)
    return score_with(method, card, files, brain_mask=brain_mask, device=device)


def score_with(
    method: Method, card: ModelCard, files: Sequence[Path], *, brain_mask: Path | None = None, device: str = "cpu"
) -> Answer:
    """Score one volume with a model that is loaded already; see :func:`score_files`."""
    record, arrays = prepare_files(card, files, any_grid=method.any_grid, brain_mask=brain_mask)
    score, seconds = score_volume(method, volume_from(record, arrays), device)
    return Answer(record=record, arrays=arrays, score=score, seconds=seconds, card=card)


def prepare_files(
    card: ModelCard, files: Sequence[Path], *, any_grid: bool, brain_mask: Path | None = None
) -> tuple[SubjectRecord, SubjectArrays]:
    """Bring one volume's files through a model's recipe.

    Args:
        card: of the model.
        files: one a channel, in the order of the model's channels.
        any_grid: whether its method takes volumes of any grid.
        brain_mask: on the first file's grid.

    Raises:
        SettingError: there are more or fewer files than channels.
        VolumeError: a file cannot be read or holds no usable image, or is not of the model's grid.
    """
    channels = card.cohort.channels
    if len(files) != len(channels):
        raise SettingError(
            f"the model takes {len(channels)} image(s) ({', '.join(channels)}) and {len(files)} were given: "
            "give one file for each, in this order"
        )
    record, arrays = prepare_file(dict(zip(channels, files, strict=True)), card.recipe, brain_mask)
    if record.shape != card.cohort.grid and not any_grid:
        raise VolumeError(
            f"{files[0]} becomes a grid of {_grid(record.shape)} and the model was trained on "
            f"{_grid(card.cohort.grid)}: "
            "give a volume like those of its cohort, or a model whose recipe fixes the grid"
        )
    return record, arrays


def volume_from(record: SubjectRecord, arrays: SubjectArrays) -> Volume:
    """Return a prepared volume as methods take it."""
    return Volume(
        subject_id=record.subject_id,
        image=torch.from_numpy(np.ascontiguousarray(arrays.image, dtype=np.float32)),
        brain=torch.from_numpy(np.ascontiguousarray(arrays.brain)),
        spacing_mm=record.spacing_mm,
        affine=record.affine,
        head=None if arrays.head is None else torch.from_numpy(np.ascontiguousarray(arrays.head)),
    )


def describe_answer(answer: Answer) -> dict[str, Any]:
    """Return the figures of an answer as plain JSON: the same from the command line and from a server."""
    return {
        "method": answer.card.method,
        "image_score": answer.score.image_score,
        "seconds": round(answer.seconds, 3),
        "threshold": answer.threshold,
        "anomalous_ml": answer.anomalous_ml,
        "highest": float(answer.score.map.max()),
    }


def stored_answer(store: CohortStore, scores: ScoreStore, card: ModelCard, subject_id: str) -> Answer:
    """Return a subject's answer from finished scores, as if it had just been scored."""
    record = scores.record(subject_id)
    restoration = scores.restoration(subject_id)
    return Answer(
        record=store.record(subject_id),
        arrays=SubjectArrays(image=store.image(subject_id), brain=store.brain(subject_id)),
        score=Score(
            map=torch.from_numpy(scores.map(subject_id).astype(np.float32)),
            image_score=record.image_score,
            restoration=None if restoration is None else torch.from_numpy(restoration.astype(np.float32)),
            extras={
                name: torch.from_numpy(scores.extra(subject_id, name).astype(np.float32)) for name in record.extras
            },
        ),
        seconds=record.seconds,
        card=card,
    )


def write_answer(answer: Answer, folder: Path, stem: str) -> dict[str, str]:
    """Write map, restoration, further maps and picture below ``folder`` and return their paths by kind.

    All but the picture are NIfTI in the input file's own shape and affine; a further map NAME is ``extras_NAME``.

    Raises:
        SettingError: the folder is a file.
        DiskSpaceError: there is no room.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder} is a file: give a folder for the maps")
    require_space(folder, _room(answer))
    folder.mkdir(parents=True, exist_ok=True)
    written = {"map": folder / f"{stem}_map.nii.gz"}
    write_native(written["map"], answer.score.map.numpy(), answer.record)
    if answer.score.restoration is not None:
        for index, channel in enumerate(answer.card.cohort.channels):
            key = "restoration" if len(answer.card.cohort.channels) == 1 else f"restoration_{channel}"
            written[key] = folder / f"{stem}_{key}.nii.gz"
            write_native(written[key], answer.score.restoration[index].numpy(), answer.record)
    for name, values in sorted(answer.score.extras.items()):
        written[f"extras_{name}"] = folder / f"{stem}_extras_{name}.nii.gz"
        write_native(written[f"extras_{name}"], values.numpy(), answer.record)
    written["picture"] = draw_score(
        answer.record,
        answer.arrays,
        answer.score,
        folder / f"{stem}.png",
        title=f"{stem} by {answer.card.method}",
        threshold=answer.threshold,
    )
    return {kind: str(path) for kind, path in written.items()}


def _room(answer: Answer) -> int:
    """Return the bytes that the maps, the restoration and the picture may take, uncompressed."""
    source = answer.record.source
    shape = answer.record.shape if source is None else source.shape
    volumes = 1 + len(answer.score.extras)
    volumes += len(answer.card.cohort.channels) if answer.score.restoration is not None else 0
    return 4 * int(np.prod(shape)) * volumes + 2_000_000


def _grid(shape: tuple[int, int, int]) -> str:
    return " x ".join(str(edge) for edge in shape)
