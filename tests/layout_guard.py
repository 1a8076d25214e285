"""Guard the one rule that keeps a source root called ``platform/`` safe.

With an ``__init__.py`` directly inside a top-level folder, inside any ``*/vesalius/``, or in ``tests/`` or
``tests/platform/``, Python's own ``platform`` module is hidden as soon as the checkout is on ``sys.path``, and Ray
does not start. Run by the pre-commit hook, by ``make check`` and by the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOTS = ("platform", "methods", "datasets", "tuning", "infra")


def offenders(root: Path) -> list[Path]:
    """Return the files below ``root`` that break the rule."""
    forbidden = [root / folder / "__init__.py" for folder in (*ROOTS, "tests", "tests/platform")]
    forbidden += [root / folder / "vesalius" / "__init__.py" for folder in ROOTS]
    forbidden += [root / folder / "__init__.py" for folder in ("", "vesalius")]
    return [path for path in forbidden if path.exists()]


if __name__ == "__main__":
    found = offenders(Path(__file__).resolve().parent.parent)
    for path in found:
        print(f"{path}: remove it; it hides Python's own 'platform' module", file=sys.stderr)
    sys.exit(1 if found else 0)
