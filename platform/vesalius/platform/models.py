"""A model on disk: one file of tensors and one of JSON. Reading it runs nothing that it holds.

::

    MODEL/
      weights.safetensors   every parameter and buffer of the method, intensity classes and atlases among them
      model.json            the card: method, settings, cohort, recipe, thresholds, metrics; written last

A card names its method by a name in a table that the *reader* supplies. There is no import path in it and no
pickle beside it, so a model from a stranger can be damaged or useless, but it cannot act.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError

from vesalius.platform.config import Settings, digest, validate
from vesalius.platform.contracts import CohortFacts
from vesalius.platform.errors import ModelError, SettingError
from vesalius.platform.evaluation import Threshold
from vesalius.platform.store.space import space_errors
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.contracts import Method, TableEntry

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "model.json"
FORMAT = 1

_LARGEST_CARD_BYTES = 64 * 2**20
_IDENTITY = ("method", "settings", "cohort", "weights_sha256")


class ModelCard(Settings):
    """All that a trained model is, but its tensors.

    Attributes:
        format: of this file.
        method: name in the methods' table.
        settings: the method's settings, complete, as plain JSON.
        cohort: what the method knew of the cohort it was trained on.
        recipe: how the volumes were prepared; a new volume goes through the same.
        thresholds: by voxel set (``all``, ``brain``), fitted on a split that is not test.
        metrics: figures on the split that thresholds were fitted on.
        run_id: the run it came from.
        stage: the last stage trained.
        step: steps of that stage behind these weights.
        created: time of writing, UTC, ISO 8601.
        vesalius_version: the version that wrote it.
        weights_sha256: SHA-256 of the weights' file; filled by :func:`save_model`.
    """

    format: int = FORMAT
    method: str
    settings: dict[str, Any]
    cohort: CohortFacts
    recipe: dict[str, Any]
    thresholds: dict[str, Threshold] = Field(default_factory=dict)
    metrics: dict[str, float | None] = Field(default_factory=dict)
    run_id: str = ""
    stage: str = ""
    step: int = 0
    created: str = ""
    vesalius_version: str = ""
    weights_sha256: str = ""

    @property
    def digest(self) -> str:
        """What decides its scores: method, settings, cohort and weights. Thresholds and metrics do not."""
        return digest({name: self.model_dump(mode="json")[name] for name in _IDENTITY})


def save_model(folder: Path, method: Method, card: ModelCard) -> ModelCard:
    """Write a model; the card comes last, so a folder with a card is whole.

    Args:
        folder: made where it does not exist; a model in it is replaced.
        method: its parameters and persistent buffers are written.
        card: its settings and cohort must be the method's; ``weights_sha256`` is filled in.

    Returns:
        The card as written.

    Raises:
        ModelError: the card is of other settings or another cohort than the method.
        DiskSpaceError: there is no room.
    """
    if card.settings != method.settings.model_dump(mode="json") or card.cohort != method.cohort:
        raise ModelError(f"the card written to {folder} is not that of the method: build both from the same run")
    # Cloned, so that tied weights become two entries: safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in method.state_dict().items()}
    payload = safetensors.torch.save(tensors)
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(payload).hexdigest()})
    with space_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Without a card there is no model: better none for a moment than an old card over new weights.
        (folder / CARD_FILE).unlink(missing_ok=True)
        _write(folder / WEIGHTS_FILE, payload)
        _write(folder / CARD_FILE, _card_bytes(card))
    return card


def update_card(folder: Path, **changes: Any) -> ModelCard:
    """Change fields of a model's card, such as ``thresholds`` and ``metrics``; returns the card as written.

    Raises:
        ModelError: there is no model, a value does not fit, or a field is one that the weights stand for.
    """
    fixed = sorted({"format", *_IDENTITY} & set(changes))
    if fixed:
        raise ModelError(f"{', '.join(fixed)} of {folder} cannot be changed: the weights stand for it; save anew")
    card = read_card(folder)
    try:
        card = ModelCard.model_validate({**card.model_dump(), **changes})
    except ValidationError as error:
        raise ModelError(f"{folder / CARD_FILE}: {_first(error)}") from None
    with space_errors(folder):
        _write(folder / CARD_FILE, _card_bytes(card))
    return card


def read_card(folder: Path) -> ModelCard:
    """Read a model's card, and nothing else.

    Raises:
        ModelError: there is none, or it is damaged or of a later version.
    """
    path = folder / CARD_FILE
    try:
        if path.stat().st_size > _LARGEST_CARD_BYTES:
            raise ModelError(f"{path} is too large to be a model's card: it is damaged; take the model anew")
        value = json.loads(path.read_bytes())
    except OSError:
        raise ModelError(f"{folder} holds no model ({CARD_FILE} is missing): name a finished run's model") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not JSON: it is damaged; take the model anew") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise ModelError(f"{path} is of format {found!r} and this version reads {FORMAT}: update Vesalius")
    try:
        return validate(ModelCard, value, str(path))
    except SettingError as error:
        raise ModelError(f"{error}; the card is damaged: take the model anew") from None


def model_digest(folder: Path) -> str:
    """Return the digest of a model: method, settings, cohort and weights, not thresholds or metrics.

    Raises:
        ModelError: there is no model.
    """
    return read_card(folder).digest


def load_model(
    folder: Path, methods: Mapping[str, TableEntry], device: str | torch.device = "cpu"
) -> tuple[Method, ModelCard]:
    """Read a model: tensors and JSON only. Nothing in the folder is imported, unpickled or run.

    Args:
        folder: as :func:`save_model` left it, or a copy from anywhere.
        methods: the table in which the card's method is looked up.
        device: where the method is put.

    Returns:
        The method in eval mode and frozen, and its card.

    Raises:
        ModelError: the model is missing or damaged, its method is not in the table, or the weights do not fit.
    """
    card = read_card(folder)
    payload = _weights(folder, card)
    try:
        method_type: type[Method] = lookup(methods, card.method, "method")
    except SettingError as error:
        raise ModelError(f"{folder / CARD_FILE}: {error}") from None
    try:
        settings = validate(method_type.settings_type, card.settings, str(folder / CARD_FILE))
    except SettingError as error:
        raise ModelError(f"{error}; the model is of another version of '{card.method}'") from None
    try:
        tensors = safetensors.torch.load(payload)
        # Initial weights are drawn only to be overwritten; the caller's generator must not notice.
        with torch.random.fork_rng(devices=[]):
            method = method_type(settings, card.cohort)
        method.load_state_dict(tensors)
    except safetensors.SafetensorError:
        raise ModelError(f"{folder / WEIGHTS_FILE} is not a safetensors file: take the model anew") from None
    except (RuntimeError, ValueError, KeyError, MemoryError) as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder / WEIGHTS_FILE} does not fit the method '{card.method}': {said}") from None
    method.to(device).eval().requires_grad_(False)
    return method, card


def _weights(folder: Path, card: ModelCard) -> bytes:
    path = folder / WEIGHTS_FILE
    try:
        payload = path.read_bytes()
    except OSError:
        raise ModelError(f"{path} cannot be read: the model is incomplete; take it anew") from None
    if hashlib.sha256(payload).hexdigest() != card.weights_sha256:
        raise ModelError(f"{path} is not the file that {CARD_FILE} was written for (its SHA-256 differs): take it anew")
    return payload


def _card_bytes(card: ModelCard) -> bytes:
    return (json.dumps(card.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def _write(path: Path, payload: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _first(error: ValidationError) -> str:
    item = error.errors()[0]
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {item['msg']}"
