"""Where a study is kept: addresses, passwords, and a storage that was never there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine.default import DefaultDialect

from vesalius.platform.errors import SettingError, StudyError
from vesalius.tuning.storage import VARIABLE, check_address, try_storage, whole_address

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package for every address be there."""
    monkeypatch.setattr("sqlalchemy.engine.URL.get_dialect", lambda url: DefaultDialect)
    monkeypatch.setattr(DefaultDialect, "import_dbapi", lambda: None)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se/cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)
def test_an_address_is_kept_without_its_password(address: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_address(address) == kept
    monkeypatch.setenv(VARIABLE, address)
    assert whole_address(kept) == address
    assert check_address(kept) == kept, "the environment holds the rest"


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("key", ["password", "sslpassword", "PASSWORD"])
def test_a_password_in_the_query_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SettingError, match=r"before the @") as caught:
        check_address(f"postgresql://host/db?user=me&{key}=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["nowhere:/me:se/cret@host", "what://me:se/cret@host/db", "what://h/d?password=secret"]
)
def test_no_refusal_shows_a_password(address: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_address(address)
    assert "secret" not in str(caught.value)
    assert "se/cret" not in str(caught.value)


def test_an_unset_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StudyError, match=f"set {VARIABLE} to the whole address"):
        whole_address("postgresql://me:***@host/db")


def test_a_file_is_kept_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_address("sqlite:///team.db") == f"sqlite:///{tmp_path}/team.db"


def test_a_storage_is_tried_once(tmp_path: Path) -> None:
    try_storage(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(SettingError, match="cannot be opened"):
        try_storage(f"sqlite:///{tmp_path / 'none' / 'a.db'}")
