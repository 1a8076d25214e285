"""The version of a model that is served: found by its name, pinned to what it was then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.methods import METHODS
from vesalius.platform import registry
from vesalius.platform.models import CARD_FILE, read_card
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from vesalius.platform.models import ModelCard


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """A model's version.

    Attributes:
        name: registered name; the run's or folder's where it is not registered.
        version: number in the registry, empty where it is not registered.
        reference: by which any machine finds this very version.
        folder: where it lies on this machine.
        card: of the model.
        any_grid: whether its method takes volumes of any grid.
    """

    name: str
    version: str
    reference: str
    folder: Path
    card: ModelCard
    any_grid: bool

    @property
    def digest(self) -> str:
        """What decides its scores."""
        return self.card.digest

    @property
    def label(self) -> str:
        """What it is called in an answer's header and in a log."""
        return self.version or self.digest[:12]

    def describe(self) -> dict[str, Any]:
        """Return what every answer says of the version that computed it."""
        return {"name": self.name, "version": self.version or None, "digest": self.digest}


def find_version(reference: str, home: Path) -> ServedVersion:
    """Find what a reference means now; a registered version is fetched where it is not here yet.

    Raises:
        ModelError: there is no such model, or it is damaged.
        RunError: there is no such run, or the registry does not answer.
    """
    folder = registry.resolve(reference, home=home)
    card = read_card(folder)
    registered = registry.fetched_version(reference, folder)
    # Of a folder its name is told, and not where it lies.
    unregistered = (folder.parent if folder.name == "model" else folder).name
    name, version = registered if registered is not None else (unregistered, "")
    return ServedVersion(
        name=name,
        version=version,
        reference=reference if registered is None else f"models:/{name}/{version}",
        folder=folder,
        card=card,
        any_grid=lookup(METHODS, card.method, "method").any_grid,
    )


def folder_of(reference: str, folder: str, home: Path) -> Path:
    """Return where a pinned version lies on this machine; it is fetched where it is not here.

    Args:
        reference: pinned.
        folder: where it lies on the machine that found it.
        home: of this machine.
    """
    path = Path(folder)
    return path if (path / CARD_FILE).is_file() else registry.resolve(reference, home=home)
