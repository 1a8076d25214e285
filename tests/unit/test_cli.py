"""The command line: quick to start, one result on stdout, one sentence for every failure."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from typer.testing import CliRunner

from vesalius.datasets import LAYOUTS
from vesalius.datasets.layouts.cq500 import FINDINGS, READERS
from vesalius.datasets.recipes import RECIPES
from vesalius.infra.cli import listings
from vesalius.infra.cli.app import VERBS, app
from vesalius.infra.console import INTERRUPTED, Terminal, _lines
from vesalius.methods import METHODS
from vesalius.platform.config import flatten
from vesalius.platform.errors import DivergenceError, SettingError, StoreError
from vesalius.platform.tables import lookup

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

HEAVY = ("torch", "ray", "mlflow", "pandas", "nibabel", "numpy", "scipy", "matplotlib", "SimpleITK", "zarr", "nilearn")
NAMES = [function.__name__ for function, _, _ in VERBS]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# ---- start-up


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['vesalius', *{arguments!r}]\n"
        "from vesalius.infra.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "loaded: []"


def test_help_starts_in_half_a_second() -> None:
    # Processor time, not the clock's: the machine may be busy with something else.
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "--help"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


# ---- help


def test_the_verbs_are_those_that_were_agreed() -> None:
    assert NAMES == [
        "ingest",
        "lesions",
        "check",
        "export",
        "train",
        "tune",
        "study",
        "score",
        "evaluate",
        "promote",
        "registry",
        "card",
        "serve",
        "reproduce",
        "up",
        "status",
        "down",
        "submit",
        "jobs",
        "logs",
        "stop",
        "retry",
        "methods",
        "datasets",
        "demo",
    ]
    assert all(name in call("--help").stdout for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_json_and_a_working_example(name: str) -> None:
    text = plain(call(name, "--help").stdout)
    assert "--json" in text
    example = next(example for function, _, example in VERBS if function.__name__ == name)
    assert f"Example: {example}" in text
    program, verb, *arguments = shlex.split(example)
    assert (program, verb) == ("vesalius", name)
    command: Any = typer.main.get_command(app)
    # Parsing alone: an option that the verb does not have, or a missing argument, is a usage error here.
    with command.commands[verb].make_context(verb, arguments) as context:
        assert context.params


def test_version() -> None:
    assert re.fullmatch(r"vesalius \d+\.\d+\.\d+\S*\n", call("--version").stdout)


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["check"], ["methods", "--no-such-option"]])
def test_usage_errors_end_with_two(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage" in done.stderr


# ---- the two streams


def _speak(body: str, *, as_json: bool = True) -> subprocess.CompletedProcess[str]:
    code = (
        "import os, typer\n"
        "from vesalius.infra.console import Terminal\n"
        "from vesalius.platform.errors import SettingError\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def verb() -> None:\n"
        f"    with Terminal({as_json}) as terminal:\n"
        + "".join(f"        {line}\n" for line in body.splitlines())
        + "app()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_stdout_holds_the_result_alone() -> None:
    done = _speak(
        "print('a library')\nos.write(1, b'a C library\\n')\nterminal.result({'a': [1, None]})\nprint('more')"
    )
    assert json.loads(done.stdout) == {"a": [1, None]}
    assert done.stderr.split("\n") == ["a library", "a C library", "more", ""] or "a C library" in done.stderr
    assert done.returncode == 0


def test_a_failure_is_one_document_and_one_sentence() -> None:
    done = _speak("print('noise')\nraise SettingError('x is wrong:\\n  use y')")
    assert json.loads(done.stdout) == {
        "error": {"kind": "SettingError", "message": "x is wrong: use y", "exit_code": 2}
    }
    assert done.returncode == 2
    assert "error x is wrong: use y\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_after_the_result_adds_no_second_document() -> None:
    done = _speak("terminal.result({'added': 1})\nraise SettingError('one failed')")
    assert json.loads(done.stdout) == {"added": 1}
    assert done.returncode == 2
    assert "error one failed" in done.stderr


def test_a_person_gets_a_table_and_no_document() -> None:
    done = _speak("terminal.result({'a': 1}, 'a is [1/2]')", as_json=False)
    assert done.stdout == "a is [1/2]\n"
    failed = _speak("raise SettingError('[bad] input')", as_json=False)
    assert failed.stdout == ""
    assert failed.stderr == "error [bad] input\n"


def test_a_defect_keeps_its_traceback() -> None:
    done = _speak("raise ZeroDivisionError('a defect')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a defect" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SettingError("k is 0"), 2, "error k is 0"),
        (StoreError("no store"), 2, "error no store"),
        (DivergenceError("loss is NaN in stage 'decoder' at step 3"), 1, "stage 'decoder' at step 3"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped by you; to go on: vesalius train --resume r"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/file"), 2, "no space left on the disk for /x/file"),
        (PermissionError(errno.EACCES, "denied", "/x/file"), 2, "/x/file may not be read or written"),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, Terminal(False, resume_hint="vesalius train --resume r"):
        raise error
    assert caught.value.exit_code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_sparse_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = iter(range(0, 1000))
    monkeypatch.setattr("vesalius.infra.console.time.monotonic", lambda: float(next(clock)))
    report = _lines(Terminal(False).errors, "training")
    for step in range(1, 101):  # one call a second, a line in fifteen
        report(step, 100, "decoder")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 1/100 decoder"
    assert lines[-1] == "training 100/100 decoder"
    assert len(lines) == 1 + 99 // 15 + 1


# ---- listings


def test_methods_lists_the_table() -> None:
    document = json.loads(call("methods", "--json").stdout)
    assert [row["name"] for row in document["methods"]] == list(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_shows_every_setting_with_its_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "describe_memory", lambda *asked: None)  # test_footprint looks at it
    kind = lookup(METHODS, name, "method")
    document = json.loads(call("methods", name, "--json").stdout)
    expected = json.loads(json.dumps(flatten(kind.settings_type())))
    assert {row["key"]: row["default"] for row in document["settings"]} == expected
    assert set(document["presets"]) == set(kind.presets())
    assert document["presets"]["paper"] == {}
    shown = plain(call("methods", name).stdout)
    assert all(key in shown for key in expected)


def test_datasets_lists_layouts_and_recipes() -> None:
    document = json.loads(call("datasets", "--json").stdout)
    assert [row["name"] for row in document["layouts"]] == list(LAYOUTS)
    recipe = json.loads(call("datasets", "mni_affine", "--json").stdout)
    assert {row["key"]: row["default"] for row in recipe["settings"]}["spacing_mm"] == [2.0, 2.0, 2.0]


def test_datasets_says_how_far_readers_agree(tmp_path: Path) -> None:
    """Three scans: all three readers see the first one's bleed, two the second's, none the third's."""
    heads = ["name", *(f"{reader}:{finding}" for reader in READERS for finding in FINDINGS)]
    lines = [",".join(heads)]
    for number, seen in enumerate(((1, 1, 1), (1, 1, 0), (0, 0, 0))):
        votes = [str(seen[reader]) if finding == "ICH" else "0" for reader in range(3) for finding in FINDINGS]
        lines.append(",".join([f"CQ500-CT-{number}", *votes]))
    path = tmp_path / "reads.csv"
    path.write_text("\n".join(lines) + "\n")
    document = json.loads(call("datasets", "cq500", "--reads", path, "--json").stdout)
    assert (document["num_scans"], document["readers"]) == (3, ["R1", "R2", "R3"])
    bleed, *others = document["findings"]
    # P = (1 + 1/3 + 1) / 3 = 7/9, P_e = (5/9)^2 + (4/9)^2 = 41/81: kappa = (63 - 41) / (81 - 41).
    assert bleed["kappa"] == pytest.approx(22 / 40)
    assert bleed["auroc"] == [1.0, 1.0, 0.75]
    assert all(other["kappa"] is None for other in others)
    assert "0.550 1.000 1.000 0.750 0.917" in plain(call("datasets", "cq500", "--reads", path).stdout)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_layout_says_what_to_download_and_what_it_gives(name: str) -> None:
    document = json.loads(call("datasets", name, "--json").stdout)
    assert document["kind"] == "layout"
    assert document["default_recipe"] in RECIPES
    shown = plain(call("datasets", name).stdout)
    words = "".join(shown.split())
    for key in ("tree", "source", "terms", "lesion_mask"):
        assert "".join(document[key].split()) in words, key
    for label in document["labels"]:
        assert label in shown
    assert f"vesalius ingest {name} ROOT STORE" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "implict_field"], "unknown method 'implict_field': did you mean 'implicit_field'?"),
        (["datasets", "ixi", "--reads", "reads.csv"], "--reads goes with cq500"),
        (["datasets", "cq500", "--reads", "reads.csv"], "reads.csv is missing"),
        (["datasets", "bidz"], "unknown layout or recipe 'bidz': did you mean 'bids'?"),
        (["ingest", "bidz", "x", "y"], "unknown layout 'bidz': did you mean 'bids'?"),
        (["ingest", "bids", "x", "y", "--recipe", "mni_afine"], "did you mean 'mni_affine'?"),
        (["ingest", "bids", "x", "y", "--set", "recipe.spacing=2"], "did you mean 'recipe.spacing_mm'?"),
        (["ingest", "bids", "x", "y", "--set", "splits.trian=1"], "did you mean 'splits.train'?"),
        (["ingest", "bids", "x", "y", "--set", "recipe.spacing_mm=thin"], "recipe.spacing_mm"),
    ],
)
def test_did_you_mean(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--resume", "r", "--workers", "0"], "leave out --workers"),
        (["train", "--resume", "r", "--preset", "demo"], "leave out --preset"),
        (["train", "--resume", "r", "--experiment", "x"], "leave out --experiment"),
        (["score", "r", "a.nii.gz", "--store", "s"], "--store goes with --split"),
        (["score", "r", "--split", "test", "--brain-mask", "m.nii.gz"], "--brain-mask goes with a file"),
        (["promote", "--rollback", "--name", "n", "--store", "s"], "--store goes with a run to promote"),
        (["promote", "--rollback", "--name", "n", "--gates", "g.yaml"], "--gates goes with a run to promote"),
        (["promote", "--rollback", "--name", "n", "--dry-run"], "--dry-run goes with a run to promote"),
        (["registry", "brain", "--gates"], "leave NAME and --settle out"),
        (["registry", "--settle"], "--settle goes with NAME alone"),
        (["registry", "brain", "1", "--settle"], "--settle goes with NAME alone"),
        (
            ["lesions", "s", "o", "--masks", "m", "--seed", "1", "--set", "lesions.seed=2"],
            "'lesions.seed' is set twice, by --set and by --seed",
        ),
        (
            ["ingest", "bids", "r", "s", "--test", ".2", "--set", "splits.test=.3"],
            "'splits.test' is set twice, by --set and by --test",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    homeless = arguments[0] in ("lesions", "ingest")
    done = call(*arguments, *([] if homeless else ["--home", tmp_path]))
    assert done.exit_code == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_device_is_named_by_what_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    from vesalius.infra.pipeline import device_name
    from vesalius.platform.training import choose_device

    with pytest.raises(SettingError, match="--device is 'cuda' and this machine has no usable CUDA device"):
        device_name("cuda")
    assert device_name("cuda", num_workers=2) == "cuda", "the workers' machines may have one"
    assert device_name("auto", num_workers=2) == "cpu"
    with pytest.raises(SettingError, match=r"training\.device is 'cuda'"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("method.latent_dmi=64", "did you mean 'method.latent_dim'?"),
        ("latent_dim=64", "did you mean 'method.latent_dim'?"),
        ("training.sede=1", "did you mean 'training.seed'?"),
        ("seed=1", "did you mean 'training.seed'?"),
        ("method.latent_dim=many", "method.latent_dim: input should be a valid integer"),
        ("training.seed=-1", "training.seed: input should be greater than or equal to 0"),
        ("method.latent_dim", "expected key=value"),
        ("method.restoration.stps=[3]", "did you mean 'method.restoration.steps'?"),
    ],
)
def test_train_answers_a_slip_and_writes_nothing(
    assignment: str, words: str, toy_store: CohortStore, tmp_path: Path
) -> None:
    done = call("train", "implicit_field", toy_store.path, "--set", assignment, "--home", tmp_path / "home")
    assert done.exit_code == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_settings_are_the_preset_changed_by_assignments() -> None:
    from vesalius.infra.pipeline import choose_settings

    settings, training = choose_settings("implicit_field", "tiny", ["method.latent_dim=5", "training.seed=3"])
    tiny = lookup(METHODS, "implicit_field", "method").presets()["tiny"]
    assert settings == tiny.model_copy(update={"latent_dim": 5})
    assert training.seed == 3
    with pytest.raises(SettingError, match=r"has no preset 'fast': it has paper, .*tiny"):
        choose_settings("implicit_field", "fast", [])


# ---- check


def test_check_names_what_is_damaged(toy_store: CohortStore, tmp_path: Path) -> None:
    import shutil

    document = json.loads(call("check", toy_store.path, "--json").stdout)
    assert (document["num_subjects"], document["problems"]) == (18, [])
    copy = tmp_path / "copy.zarr"
    shutil.copytree(toy_store.path, copy)
    chunk = max((copy / "subjects" / "test-00" / "image").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(bytes(content))
    done = call("check", copy, "--json")
    assert done.exit_code == 2
    assert "test-00" in json.loads(done.stdout)["problems"][0]
    assert "test-00" in done.stderr
    repaired = json.loads(call("check", copy, "--repair", "--json").stdout)
    assert repaired["dropped"] == ["test-00"]
    assert repaired["num_subjects"] == 17


def test_a_recipe_after_a_paper_is_told_step_by_step() -> None:
    paper = json.loads(call("datasets", "f_anogan_3d_2020", "--json").stdout)
    assert any("[-20, 100] HU" in step["paper"] and "section 2" in step["section"] for step in paper["steps"])
    assert "soft tissue windowing" in plain(call("datasets", "f_anogan_3d_2020").stdout)
