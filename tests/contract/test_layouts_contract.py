"""The contract suite, over every layout in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vesalius.datasets import LAYOUTS
from vesalius.datasets.ingest import IngestReport, ingest
from vesalius.datasets.recipes import as_is, centered
from vesalius.platform.tables import resolve
from vesalius.platform.testing.layouts import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def take_in(layout: Any, root: Path, store: Path, *, modalities: Sequence[str]) -> IngestReport:
    # Registration of ellipsoids proves nothing and takes seconds: a coarse grid without it.
    recipe = as_is() if layout.default_recipe == "as_is" else centered(10.0)
    return ingest(layout, root, store, recipe=recipe, modalities=modalities)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, check: Callable[[Any, Any, Path], None], tmp_path: Path) -> None:
    check(resolve(LAYOUTS[name].path)(), take_in, tmp_path)
