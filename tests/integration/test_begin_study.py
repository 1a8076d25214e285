"""How a study begins, or does not: what is refused leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine.default import DefaultDialect
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.tuning.storage import VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return tmp_path / "home"


def refused(home: Path, store: CohortStore, *arguments: object) -> str:
    """Return the sentence of a study that does not begin, and of which nothing is left."""
    result = call(home, store, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*"))
    return " ".join(result.stderr.split())


def call(home: Path, store: CohortStore, *arguments: object) -> Any:
    base = ("tune", "intensity_threshold", store.path, "--space", "smoothing=1,3", "--set", "training.device=cpu")
    return CliRunner().invoke(app, [str(one) for one in (*base, "--home", home, "--trials", 1, *arguments)])


def test_a_password_is_asked_of_the_environment_before_anything_is_made(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy.engine.URL.get_dialect", lambda url: DefaultDialect)
    monkeypatch.setattr(DefaultDialect, "import_dbapi", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    said = refused(home, toy_store, "--storage", "postgresql://me:se/cret@host/db", "--name", "shared")
    assert f"set {VARIABLE} to the whole address" in said
    assert "cret" not in said
