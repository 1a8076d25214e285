"""One entry of the promotions' log: who decided what about which version, when, why, and on what figures."""

from __future__ import annotations

import datetime
import getpass
import os
import secrets
from typing import Any, Literal

from pydantic import Field

from vesalius.platform.config import Settings

FORMAT = 1
Kind = Literal["promoted", "kept back", "rolled back", "moved", "adopted"]
CROWNING: frozenset[str] = frozenset({"promoted", "rolled back", "moved", "adopted"})
"""Kinds that say who is champion from then on."""

_LONGEST_NAME = 128
LONGEST_REASON = 2000


class Attachment(Settings):
    """A file that goes with a record.

    Attributes:
        path: among the artefacts of ``run_id``.
        sha256: of its bytes.
    """

    path: str
    sha256: str


class PromotionRecord(Settings):
    """An entry of the log. Entries are appended and never changed.

    Attributes:
        format: of the entry.
        kind: ``promoted``, ``kept back`` (refused by a gate), ``rolled back``, ``moved`` (somebody moved the alias
            without us; found later), or ``adopted`` (champions from before there was a log).
        name: of the registered model.
        version: that became champion, or was kept back; empty where an alias was found removed.
        champion_version: champion before; empty where there was none.
        follows: number of the entry that had made that one champion; 0 where there was none. An entry that follows
            another one than the last of its time has no effect: somebody was faster.
        life: when the registered model was made, milliseconds since 1970: one that is deleted and made again under the
            same name begins anew.
        token: of this entry alone, by which a repeated request is known.
        at: time, UTC, ISO 8601.
        by: who; see :func:`current_user`.
        why: in their words.
        sentence: what happened, in ours.
        run_id: of the version, in MLflow; its artefacts hold the attachments.
        model_digest: of the version.
        champion_digest: of the champion before.
        cohort_digest: of the store with the gate split.
        gates_digest: of the gates' settings, complete.
        code_version: of the Vesalius that decided.
        promotion: all that was decided on; see :class:`vesalius.platform.registry.Promotion`.
        attachments: by name: ``record.json``, ``card.json``, ``card.md``.
        line: of ``adopted``: the champions until then.
    """

    format: int = FORMAT
    kind: Kind
    name: str
    version: str = ""
    champion_version: str = ""
    follows: int = 0
    life: int = 0
    token: str = Field(default_factory=lambda: secrets.token_hex(8))
    at: str = Field(default_factory=lambda: now())
    by: str = Field(default_factory=lambda: current_user())
    why: str = ""
    sentence: str = ""
    run_id: str = ""
    model_digest: str = ""
    champion_digest: str = ""
    cohort_digest: str = ""
    gates_digest: str = ""
    code_version: str = ""
    promotion: dict[str, Any] = Field(default_factory=dict)
    attachments: dict[str, Attachment] = Field(default_factory=dict)
    line: tuple[str, ...] = ()


class Entry(Settings):
    """A record in its place.

    Attributes:
        number: its place in the log, given by the server.
        record: what it says.
        overtaken: it has no effect, as somebody else's came first.
    """

    number: int
    record: PromotionRecord
    overtaken: bool = False


def now() -> str:
    """Return the time, UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def current_user() -> str:
    """Return who is asking: ``VESALIUS_USER``, else the user that MLflow knows, else the system's.

    It is what the process says of itself. Where it must be proven, the server's log of who signed in is the witness.
    """
    for variable in ("VESALIUS_USER", "MLFLOW_TRACKING_USERNAME"):
        if name := one_line(os.environ.get(variable, ""), _LONGEST_NAME):
            return name
    try:
        return one_line(getpass.getuser(), _LONGEST_NAME)
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def one_line(text: str, longest: int) -> str:
    """Return text without line breaks and control characters, cut to a length."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:longest]
