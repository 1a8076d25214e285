"""Files that go with a record of the log: the record in full, and the model card of that day."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.platform.errors import ModelError
from vesalius.platform.registry.records import Attachment, PromotionRecord
from vesalius.platform.store.space import space_errors
from vesalius.platform.tracking import answering

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST_BYTES = 16 * 2**20
_PATH = re.compile(r"promotions/[A-Za-z0-9][A-Za-z0-9._-]*/[0-9a-f]{16}/[a-z]+\.(?:json|md)")


def attach_files(
    mlflow: Any, uri: str, record: PromotionRecord, run_id: str, files: Mapping[str, str]
) -> PromotionRecord:
    """Keep files among the artefacts of a tracked run, in a folder of the record's own; nothing there is overwritten.

    Args:
        mlflow: the client.
        uri: of the tracking store.
        record: that they go with.
        run_id: of the version, in MLflow.
        files: texts by name.

    Returns:
        The record, which names them with their SHA-256.

    Raises:
        ModelError: the server does not take them.
    """
    place = f"promotions/{record.name}/{record.token}"
    with (
        answering(uri, f"keep the record of the promotion of '{record.name}'", ModelError),
        tempfile.TemporaryDirectory() as scratch,
        space_errors(Path(scratch)),
    ):
        for name, text in files.items():
            (Path(scratch) / name).write_bytes(text.encode())
        mlflow.log_artifacts(run_id, scratch, place)
    known = {
        name: Attachment(path=f"{place}/{name}", sha256=hashlib.sha256(text.encode()).hexdigest())
        for name, text in files.items()
    }
    return record.model_copy(update={"run_id": run_id, "attachments": known})


def read_attachment(mlflow: Any, uri: str, record: PromotionRecord, name: str) -> str | None:
    """Return a file of a record, or None where it has none of that name.

    Exactly that file is fetched, and taken only if it is what the record names by its SHA-256.

    Raises:
        ModelError: it cannot be fetched, is too large, or is another file.
    """
    attachment = record.attachments.get(name)
    if attachment is None:
        return None
    if not _PATH.fullmatch(attachment.path) or not re.fullmatch(r"[0-9a-f]{32}", record.run_id):
        raise ModelError(f"the record of the promotion of '{record.name}' leads elsewhere: it is damaged")
    with (
        answering(uri, f"fetch {name} of the promotion of '{record.name}'", ModelError),
        tempfile.TemporaryDirectory() as scratch,
        space_errors(Path(scratch)),
    ):
        from mlflow.artifacts import download_artifacts

        found = Path(
            download_artifacts(run_id=record.run_id, artifact_path=attachment.path, dst_path=scratch, tracking_uri=uri)
        )
        if not found.is_file() or found.stat().st_size > _LARGEST_BYTES:
            raise ModelError(f"{name} of the promotion of '{record.name}' is no file of a card's size: it is damaged")
        payload = found.read_bytes()
    if hashlib.sha256(payload).hexdigest() != attachment.sha256:
        raise ModelError(
            f"{name} of the promotion of '{record.name}' is not the file that was recorded (its SHA-256 differs)"
        )
    return payload.decode()
