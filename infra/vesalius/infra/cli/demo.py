"""``vesalius demo``: everything once, small."""

from pathlib import Path
from typing import Annotated

import typer

from vesalius.infra.cli.options import JsonOption, absolute
from vesalius.infra.console import Terminal


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the cohort, the runs and the picture.")] = Path("demo"),
    workers: Annotated[int, typer.Option(min=0, help="Ray Train workers; 0 trains in this process.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Make a small cohort of phantoms, train three methods on it, and show what they find.

    Takes some minutes on two CPU cores; a second run reuses what the first one finished.
    """
    with Terminal(as_json, resume_hint="run the same command again: what is finished is kept") as terminal:
        from vesalius.infra.demo import run_demo

        run_demo(terminal, absolute(out), num_workers=workers)
