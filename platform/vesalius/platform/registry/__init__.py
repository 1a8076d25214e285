"""Registered models: versions, a gate, a champion. MLflow is imported when it is first needed."""

from vesalius.platform.registry.champions import Rollback, rollback
from vesalius.platform.registry.fetching import follows_alias, resolve, version_of
from vesalius.platform.registry.gate import PromotionSettings
from vesalius.platform.registry.packing import pack_brain
from vesalius.platform.registry.promotion import Promotion, promote
from vesalius.platform.registry.versions import VersionFacts, history, register

__all__ = [
    "Promotion",
    "PromotionSettings",
    "Rollback",
    "VersionFacts",
    "follows_alias",
    "history",
    "pack_brain",
    "promote",
    "register",
    "resolve",
    "rollback",
    "version_of",
]
