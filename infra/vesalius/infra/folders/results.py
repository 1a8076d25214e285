"""What is kept of a scored volume: a folder that is whole or absent, and that knows what it was made of.

::

    OUT/<name>/result.json                   figures, digests of what it was made of and of every other file; see below
    OUT/<name>/<name>_map.nii.gz ...         as from ``vesalius score FILE``
    OUT/.partial/                            what is being written, and what has been replaced

A folder is written aside and renamed. ``result.json`` names the volume's files and the model by digests: a result is
taken again only where both are still the same and all of its files are what they were. No path stands in it: folders
may be moved, and a row says where things lie when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.datasets.files import file_sha256
from vesalius.infra.application import describe_answer, write_answer
from vesalius.platform.config import digest
from vesalius.platform.errors import StoreError
from vesalius.platform.store import space_errors
from vesalius.platform.store.files import sync_folder

if TYPE_CHECKING:
    from vesalius.infra.application import Answer
    from vesalius.infra.folders.cases import Case
    from vesalius.platform.models import ModelCard

_NAME = "result.json"
_PARTIAL = ".partial"
_FORMAT = 2


def key_of(case: Case, card: ModelCard) -> str:
    """Return the digest of what decides a result: the model with its thresholds and recipe, and the files' bytes.

    Raises:
        VolumeError: a file cannot be read.
    """
    made_of: list[Any] = [card.digest, card.recipe, {name: one.value for name, one in card.thresholds.items()}]
    for path in case.files:
        inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        made_of.append([[str(one.relative_to(path.parent)), file_sha256(one)] for one in inside])
    return digest(made_of)


def kept_result(out: Path, case: Case, key: str) -> dict[str, Any] | None:
    """Return the row of a result that was made of the same and whose files are what they were, else None."""
    folder = out / case.name
    try:
        document = json.loads((folder / _NAME).read_bytes())
        if document["format"] != _FORMAT or document["key"] != key:
            return None
        sound = all(_sha256(folder / file) == sha256 for file, sha256 in document["files"].items())
        row = _row(out, case, document["figures"], document["written"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return row if sound else None


def keep_result(out: Path, case: Case, key: str, answer: Answer) -> dict[str, Any]:
    """Write a result and return its row.

    Raises:
        StoreError: a folder of that name holds something else.
        DiskSpaceError: there is no room.
    """
    final, aside = out / case.name, out / _PARTIAL / f"{case.name}.{uuid.uuid4().hex}"
    replaced = aside.with_name(f"{aside.name}.replaced")
    if final.exists() and not (final / _NAME).is_file():
        raise StoreError(f"{final} exists and is no result of this command: move it away, or give another --out")
    try:
        with space_errors(out):
            aside.mkdir(parents=True)
            written = write_answer(answer, aside, case.name)
            names = {kind: Path(path).name for kind, path in written.items()}
            warnings = [_without_paths(said, case) for said in answer.record.notes.get("warnings", [])]
            figures = {**describe_answer(answer), "warnings": warnings}
            sums = {name: _sha256(aside / name) for name in names.values()}
            document = {"format": _FORMAT, "key": key, "figures": figures, "written": names, "files": sums}
            with (aside / _NAME).open("w") as file:
                json.dump(document, file, indent=1, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(aside)
            if final.exists():
                os.rename(final, replaced)  # a folder that is half removed would be nobody's result
            os.rename(aside, final)
            sync_folder(out)
    finally:
        for path in (aside, replaced):
            shutil.rmtree(path, ignore_errors=True)
    return _row(out, case, figures, names)


def clear_partial(out: Path) -> None:
    """Remove what a killed run was writing or replacing. Call as the one who writes to ``out``."""
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)


def _row(out: Path, case: Case, figures: dict[str, Any], written: dict[str, str]) -> dict[str, Any]:
    return {
        "name": case.name,
        "files": [str(path) for path in case.files],
        **figures,
        "written": {kind: str(out / case.name / name) for kind, name in written.items()},
    }


def _without_paths(sentence: str, case: Case) -> str:
    for path in case.files:
        sentence = sentence.replace(str(path), path.name)
    return sentence


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
