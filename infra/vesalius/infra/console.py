"""What a verb says and where: the result on stdout, everything else on stderr.

stdout carries the result alone, a table for a person or, with ``--json``, one JSON document for a program.
Libraries that print (Ray, MLflow, SimpleITK) are turned to stderr for as long as a verb runs. A failure is one
sentence on stderr; with ``--json`` stdout then carries ``{"error": {"kind", "message", "exit_code"}}``, so that
a program always finds exactly one document there (a verb that failed in part, or did not promote, has written its
result by then and adds no second one). The exit code is the same in both modes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from typer import Exit

from vesalius.platform.errors import VesaliusError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from rich.console import RenderableType

    from vesalius.platform.progress import Progress

INTERRUPTED = 130
WIDTH_WITHOUT_TERMINAL = 120
SECONDS_BETWEEN_LINES = 15.0


class Terminal:
    """A verb's two streams, as a context: ``with Terminal(as_json) as terminal: ...``.

    Inside the context a :class:`VesaliusError` becomes its sentence and exit code, and Ctrl-C becomes
    :attr:`resume_hint` and exit code 130. Anything else is a defect and keeps its traceback.

    Attributes:
        as_json: one JSON document on stdout instead of tables.
        resume_hint: what to do after an interruption; a verb sharpens it once it knows its run.
        errors: console on stderr.
    """

    def __init__(self, as_json: bool, resume_hint: str = "run the same command again") -> None:
        self.as_json = as_json
        self.resume_hint = resume_hint
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._result: TextIO = sys.stdout
        self._answered = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Terminal:
        self._result = self._stack.enter_context(_stdout_kept_for_the_result())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None or isinstance(error, Exit):
                return
            sentence, code = _explain(error, self.resume_hint)
            if sentence is None:
                return
            self._fail(type(error).__name__, sentence, code)
        raise Exit(code) from None

    def say(self, text: str) -> None:
        """Write a line for the person watching (stderr)."""
        self.errors.print(text, style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning (stderr)."""
        self.errors.print("warning ", style="bold yellow", end="")
        self.errors.print(text, soft_wrap=True)

    def result(self, document: Mapping[str, Any], *renderables: RenderableType) -> None:
        """Write the result: ``document`` with ``--json``, else ``renderables`` one below the other (stdout)."""
        self._answered = True
        if self.as_json:
            self._result.write(json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")
            self._result.flush()
            return
        console = output_console(self._result)
        for renderable in renderables:
            console.print(renderable, soft_wrap=isinstance(renderable, str))

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Give a ``progress(done, total, note)``: a bar on a terminal, sparse lines elsewhere (both on stderr)."""
        if self.errors.is_terminal:
            with _bar(self.errors, title) as report:
                yield report
        else:
            yield _lines(self.errors, title)

    def _fail(self, kind: str, sentence: str, code: int) -> None:
        label, style = ("interrupted ", "bold yellow") if code == INTERRUPTED else ("error ", "bold red")
        self.errors.print(label, style=style, end="")
        self.errors.print(sentence, soft_wrap=True)
        if self.as_json and not self._answered:
            document = {"error": {"kind": kind, "message": sentence, "exit_code": code}}
            self._result.write(json.dumps(document, indent=2) + "\n")
            self._result.flush()


def output_console(stream: TextIO) -> Console:
    """Return a console for ``stream`` that is wide enough for a table where no terminal says how wide it is."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def _explain(error: BaseException, resume_hint: str) -> tuple[str | None, int]:
    """Return the sentence and the exit code of ``error``; no sentence means it is a defect."""
    if isinstance(error, VesaliusError):
        return " ".join(str(error).split()), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by you; to go on: {resume_hint}", INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None:
        if error.errno == errno.ENOSPC:
            return f"no space left on the disk for {error.filename}: free some, then {resume_hint}", 2
        if isinstance(error, PermissionError):
            return f"{error.filename} may not be read or written by this user: choose another place or its rights", 2
    return None, 1


@contextlib.contextmanager
def _stdout_kept_for_the_result() -> Iterator[TextIO]:
    """Give the true stdout; whatever else is written to stdout, by Python or by C libraries, goes to stderr."""
    sys.stdout.flush()
    try:
        real = sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2
    except (io.UnsupportedOperation, AttributeError):
        real = False
    if not real:
        # In-process callers (tests, notebooks) hand us a stream of their own: there is no descriptor to turn.
        stream = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
        return
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _bar(console: Console, title: str) -> Iterator[Progress]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", style="bold"),
        rich_progress.BarColumn(bar_width=32),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with rich_progress.Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _lines(console: Console, title: str) -> Progress:
    """Say the first, the last, and one line in every fifteen seconds between them."""
    state = {"time": 0.0, "done": -1, "total": -1}

    def report(done: int, total: int, note: str) -> None:
        now = time.monotonic()
        first = state["done"] < 0 or total != state["total"] or done < state["done"]
        last = done >= total and done != state["done"]
        state["done"], state["total"] = done, total
        if first or last or now - state["time"] >= SECONDS_BETWEEN_LINES:
            state["time"] = now
            console.print(f"{title} {done}/{total} {note}".rstrip(), soft_wrap=True)

    return report
