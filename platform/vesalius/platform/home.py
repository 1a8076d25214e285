"""The folder of runs, models, tracking and services. Apart from them, so that asking for it imports nothing else."""

from __future__ import annotations

import os
from pathlib import Path


def home(path: Path | None = None) -> Path:
    """Return where runs, tracking and locks live: ``path``, else ``$VESALIUS_HOME``, else ``~/.vesalius``."""
    chosen = path or Path(os.environ.get("VESALIUS_HOME") or Path.home() / ".vesalius")
    return chosen.expanduser().absolute()
