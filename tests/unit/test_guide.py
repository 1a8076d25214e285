"""What the guide tells to type is taken: by the parser, and by what is checked before a job is submitted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from vesalius.infra.cli.app import app
from vesalius.infra.jobs import environment, submission
from vesalius.infra.jobs.command import read_command
from vesalius.infra.jobs.records import JobBook

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


def _submissions() -> list[list[str]]:
    """Return the words after ``vesalius submit`` of each such line of the guide."""
    text = GUIDE.read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"\bvesalius submit (.+)", text)]


def test_the_guide_submits_to_each_kind_of_cluster() -> None:
    addressed = [words for words in _submissions() if "--address" in words]
    assert len(_submissions()) >= 3
    assert len(addressed) >= 2


@pytest.mark.parametrize("words", _submissions(), ids=" ".join)
def test_a_submission_of_the_guide_is_taken(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    group: Any = typer.main.get_command(app)
    names = group.context_settings["help_option_names"]
    with group.commands["submit"].make_context("vesalius submit", words, help_option_names=names) as context:
        given = context.params
    command = read_command(given["command"], workers=given["workers"], gpus=given["gpus"], home=tmp_path)
    is_elsewhere = given["address"] is not None  # a cluster of other machines, which sees nothing of this one

    def report(_: Any, __: Path, paths: list[str], *, home: Path) -> environment.Report:
        seen = {path: not is_elsewhere or not Path(path).is_relative_to(home) for path in paths}
        return environment.Report(python="", packages={}, paths=seen, sees_home=not is_elsewhere)

    monkeypatch.setattr(environment, "report", report)
    monkeypatch.setattr(environment, "check_versions", lambda *_: {})
    cluster: Any = SimpleNamespace(address=given["address"])
    submission._checked(cluster, JobBook(tmp_path), command, tmp_path, given["remote_home"])
