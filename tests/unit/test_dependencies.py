"""The audit of the dependencies: it passes on this checkout, and it finds what is wrong."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from packaging.version import Version

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
RULES: dict[str, Any] = {
    "unpinned": ["pip"],
    "licences": {"allowed": ["MIT", "Apache-2.0"], "reviewed": {}},
    "known_bad": [{"name": "One", "versions": "<2", "id": "CVE-0", "why": "it is bad"}],
}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dependency_audit", ROOT / "tests" / "dependency_audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package(version: str = "2.0", licence: str | None = "MIT", *classifiers: str) -> Any:
    metadata = Message()
    if licence is not None:
        metadata["License-Expression"] = licence
    for classifier in classifiers:
        metadata["Classifier"] = classifier
    return SimpleNamespace(version=version, metadata=metadata, requires=[])


def test_this_checkout_passes(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["dependency_audit.py"])
    assert audit.main() == 0


def test_the_whole_closure_is_looked_at(audit: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = audit.closure(project)
    assert {"torch", "ray", "aiohttp", "markupsafe", "botocore", "ruff"} <= set(needed)
    assert len(needed) > 150


@pytest.mark.parametrize(
    ("package", "pinned", "said"),
    [
        (_package(), {"one": "2.0"}, None),
        (_package("2.0+cpu"), {"one": "2.0"}, None),
        (_package(), {}, "is needed and not pinned"),
        (None, {"one": "2.0"}, "not installed"),
        (_package("2.1"), {"one": "2.0"}, "installed as 2.1 and pinned as 2.0"),
        (_package("1.9"), {"one": "1.9"}, r"known to be bad \(CVE-0\): it is bad"),
        (_package(licence="AGPL-3.0-only"), {"one": "2.0"}, "under AGPL-3.0-only"),
        (_package(licence="MIT AND (GPL-3.0-only OR Apache-2.0)"), {"one": "2.0"}, "under Apache-2.0 and GPL-3.0-only"),
        (_package("2.0", None, "License :: OSI Approved :: MIT", "License :: OSI Approved"), {"one": "2.0"}, None),
        (_package("2.0", None, "License :: OSI Approved :: GPL"), {"one": "2.0"}, "under GPL"),
        (_package("2.0", None), {"one": "2.0"}, "under not stated"),
    ],
)
def test_what_is_wrong_is_found(audit: ModuleType, package: Any, pinned: dict[str, str], said: str | None) -> None:
    found = list(audit.faults({"one": package}, {name: Version(text) for name, text in pinned.items()}, RULES))
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(said, found[0]), found


def test_what_is_not_pinned_must_not_be_bad_either(audit: ModuleType) -> None:
    rules = {**RULES, "unpinned": ["one"]}
    assert list(audit.faults({"one": _package("2.0")}, {}, rules)) == []
    assert "one 1.9 is known to be bad" in next(audit.faults({"one": _package("1.9")}, {}, rules)).lower()


def test_a_licence_that_was_reviewed_passes_until_it_changes(audit: ModuleType) -> None:
    rules = {**RULES, "licences": {"allowed": ["MIT"], "reviewed": {"one": "GPLv2"}}}
    pinned = {"one": Version("2.0")}
    assert list(audit.faults({"one": _package(licence="GPLv2")}, pinned, rules)) == []
    assert list(audit.faults({"one": _package(licence="AGPL-3.0-only")}, pinned, rules))
    assert "needed no more" in next(audit.faults({}, {}, rules))


def test_a_line_that_pins_nothing_is_named(audit: ModuleType) -> None:
    with pytest.raises(ValueError, match="'torch>=2' pins nothing"):
        audit.pins("numpy==2.0  # why\n\ntorch>=2\n")


@pytest.mark.parametrize(
    ("code", "stderr", "expected", "word"),
    [
        (0, "No known vulnerabilities found", 0, "No known"),
        (1, "Found 1 known vulnerability in 1 package", 1, "Found 1"),
        (1, "requests.exceptions.ConnectionError: Max retries exceeded", 0, "no advisory service answers"),
    ],
)
def test_where_no_service_answers_that_is_said(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    stderr: str,
    expected: int,
    word: str,
) -> None:
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code, "", stderr))
    assert audit.online() == expected
    said = capsys.readouterr()
    assert word in said.out + said.err


def test_what_is_guaranteed_is_tested() -> None:
    """The tests that SECURITY.md names are there; those of a part that this version lacks come with it."""
    parts = {"test_hostile_requests.py": "serving", "test_services.py": "services"}
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for file, function in named:
        part = parts.get(Path(file).name)
        if part is not None and not (ROOT / "infra" / "vesalius" / "infra" / part).is_dir():
            continue
        assert (ROOT / file).is_file(), file
        assert not function or f"def {function}(" in (ROOT / file).read_text(), f"{file}::{function}"
