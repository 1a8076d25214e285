"""The house as it must stand: no file that hides Python's platform module, floors that hold, one distribution."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layout_guard", ROOT / "tests" / "layout_guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_hides_the_standard_platform_module(guard: ModuleType) -> None:
    assert guard.offenders(ROOT) == []
    assert hasattr(platform, "python_version")
    # The checkout itself first on the path is the case that breaks.
    code = "import platform, vesalius.platform.errors; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == platform.system()


@pytest.mark.parametrize("place", ["platform", "tests", "platform/vesalius", "tests/platform", "infra"])
def test_the_guard_sees_an_offender(guard: ModuleType, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "__init__.py").touch()
    assert guard.offenders(tmp_path) == [tmp_path / place / "__init__.py"]


def test_every_source_root_is_part_of_the_distribution(guard: ModuleType) -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["dev-mode-dirs"] == list(guard.ROOTS)
    assert build["targets"]["wheel"]["packages"] == [f"{root}/vesalius" for root in guard.ROOTS]
    for root in guard.ROOTS:
        assert (ROOT / root / "vesalius" / root / "__init__.py").is_file()
        assert (ROOT / root / "vesalius" / root / "py.typed").is_file()


def test_the_floors_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_document_has_a_place_left_to_fill_in() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert len(documents) > 20
    assert [path.name for path in documents if "@@" in path.read_text(encoding="utf-8")] == []
