"""Registered models: versions, gates, a champion, and the log of how it became that.

MLflow is imported when it is first needed.

::

    versions.py     versions registered and listed        packing.py, fetching.py   what MLflow keeps, and the way back
    gate.py         the gate split                        gates/                    what is asked on it
    promotion.py    a candidate before the gates          outcome.py                what became of it
    champions.py    rollback                              records.py, log.py        who, when, why; in an order all see
    line.py         champions by the log                  settling.py               aliases and tags follow it
    attachments.py  the card of that day                  standing.py               how it all stands, for who looks
"""

from vesalius.platform.registry.champions import Rollback, rollback
from vesalius.platform.registry.fetching import fetched_version, follows_alias, resolve, version_of
from vesalius.platform.registry.gates import Gates, Lineage, Verdict, default_gates_text, read_gates
from vesalius.platform.registry.log import Standing
from vesalius.platform.registry.outcome import Promotion
from vesalius.platform.registry.packing import pack_brain
from vesalius.platform.registry.promotion import promote
from vesalius.platform.registry.records import Entry, PromotionRecord
from vesalius.platform.registry.standing import attachment_of, list_names, settle_aliases, standing_of
from vesalius.platform.registry.versions import VersionFacts, history, register

__all__ = [
    "Entry",
    "Gates",
    "Lineage",
    "Promotion",
    "PromotionRecord",
    "Rollback",
    "Standing",
    "Verdict",
    "VersionFacts",
    "attachment_of",
    "default_gates_text",
    "fetched_version",
    "follows_alias",
    "history",
    "list_names",
    "pack_brain",
    "promote",
    "read_gates",
    "register",
    "resolve",
    "rollback",
    "settle_aliases",
    "standing_of",
    "version_of",
]
