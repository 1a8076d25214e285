"""How a registered model stands, for whoever looks; and what a killed process left undone, done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.platform.errors import ModelError
from vesalius.platform.registry import log, settling
from vesalius.platform.registry.attachments import read_attachment
from vesalius.platform.registry.champions import alone
from vesalius.platform.registry.versions import LOG_SUFFIX, NAME, check_name
from vesalius.platform.tracking import answering, client, tracking_uri
from vesalius.platform.tracking.connection import shown

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.registry.log import Standing
    from vesalius.platform.registry.records import PromotionRecord


def standing_of(name: str, *, home: Path, uri: str | None = None) -> Standing:
    """Return how a registered model stands: aliases, line of champions, log of promotions. Nothing is written.

    Raises:
        ModelError: there is no such model.
        RunError: nothing answers at ``uri``.
    """
    check_name(name)
    uri = uri or tracking_uri(home)
    return _existing(log.read(client(uri), uri, name), uri)


def list_names(*, home: Path, uri: str | None = None) -> list[str]:
    """Return the names of all registered models, logs of promotions left out.

    Raises:
        RunError: nothing answers at ``uri``.
    """
    uri = uri or tracking_uri(home)
    mlflow = client(uri)
    found: list[str] = []
    token = None
    with answering(uri, "list the registered models", ModelError):
        while True:
            page = mlflow.search_registered_models(max_results=500, page_token=token)
            found += [model.name for model in page if NAME.fullmatch(model.name)]
            token = page.token
            if not token:
                return sorted(name for name in found if not name.endswith(LOG_SUFFIX))


def settle_aliases(name: str, *, home: Path, uri: str | None = None) -> Standing:
    """Bring aliases and tags to what the log says, as the next promotion would; see :mod:`..settling`.

    Marks of killed processes elsewhere are taken away as well, which may take some seconds.

    Raises:
        ModelError: there is no such model.
        RunError: nothing answers at ``uri``.
    """
    check_name(name)
    uri = uri or tracking_uri(home)
    mlflow = client(uri)
    with alone(home, name) as home_id:
        return _existing(settling.settle_wholly(mlflow, uri, name, home_id), uri)


def attachment_of(record: PromotionRecord, name: str, *, home: Path, uri: str | None = None) -> str | None:
    """Return a file that was kept with a record, such as ``card.json``; None where there is none.

    Raises:
        ModelError: it is not what was recorded.
        RunError: nothing answers at ``uri``.
    """
    uri = uri or tracking_uri(home)
    return read_attachment(client(uri), uri, record, name)


def _existing(standing: Standing, uri: str) -> Standing:
    if not standing.exists:
        raise ModelError(
            f"no model '{standing.name}' is registered at {shown(uri)}: promote a run with --name {standing.name}"
        )
    return standing
