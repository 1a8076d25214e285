"""Run folders: found by name, never overwritten, damage named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vesalius.platform.errors import RunError
from vesalius.platform.runs import Progressed, RunSpec, create_run, find_run, home, list_runs, new_run_id


def _spec(run_id: str, created: str = "2026-01-01T00:00:00Z") -> RunSpec:
    settings = {"width": 3, "inner": {"a": 1}}
    return RunSpec(run_id=run_id, method="m", settings=settings, store="/s", cohort_digest="d", created=created)


def test_a_run_is_written_once_and_found_again(tmp_path: Path) -> None:
    run = create_run(tmp_path, _spec("first"))
    assert find_run(tmp_path, "first").spec == _spec("first")
    assert run.state == "created"
    run.set_state("finished")
    run.set_progress(Progressed(stage="a", step=1, num_steps=2, overall=1, total=2))
    assert find_run(tmp_path, "first").state == "finished"
    assert find_run(tmp_path, "first").progress.stage == "a"
    with pytest.raises(RunError, match="exists already: go on with `vesalius train --resume first`"):
        create_run(tmp_path, _spec("first"))


def test_a_missing_run_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is none yet"):
        find_run(tmp_path, "x")
    create_run(tmp_path, _spec("implicit-1"))
    create_run(tmp_path, _spec("atlas-2", created="2026-01-02T00:00:00Z"))
    with pytest.raises(RunError, match="did you mean 'implicit-1'"):
        find_run(tmp_path, "implicit-2")
    with pytest.raises(RunError, match="the latest is 'atlas-2'"):
        find_run(tmp_path, "zzzzz")
    assert [run.run_id for run in list_runs(tmp_path)] == ["implicit-1", "atlas-2"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a b", "a\n"])
def test_a_run_id_is_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError):
        create_run(tmp_path, _spec(name))
    with pytest.raises(RunError):
        find_run(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path: Path) -> None:
    run = create_run(tmp_path, _spec("r"))
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is missing or damaged"):
        _ = find_run(tmp_path, "r").spec
    (run.path / "state.json").write_text("{")
    assert run.state == "created"
    create_run(tmp_path, _spec("whole"))
    with pytest.raises(RunError, match=r"no run 'x' in .*: the latest is 'whole'"):
        find_run(tmp_path, "x")
    (run.path / "run.json").write_text('{"run_id": 1}')
    assert [one.run_id for one in list_runs(tmp_path)] == ["whole"]


def test_flat_settings_have_dotted_keys() -> None:
    flat = _spec("r").flat()
    assert flat["method"] == "m"
    assert flat["method.inner.a"] == 1
    assert flat["training.seed"] == 0


def test_home_is_what_was_given_else_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESALIUS_HOME", str(tmp_path / "e"))
    assert home() == tmp_path / "e"
    assert home(tmp_path / "g") == tmp_path / "g"
    monkeypatch.delenv("VESALIUS_HOME")
    assert home() == Path.home() / ".vesalius"


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = {new_run_id("atlas") for _ in range(50)}
    assert len(ids) > 45
    assert all(run_id.startswith("atlas-2") for run_id in ids)
