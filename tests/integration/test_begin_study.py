"""How a study begins, or does not: what is refused leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine.default import DefaultDialect
from typer.testing import CliRunner

from vesalius.infra.cli.app import app
from vesalius.infra.pipeline import StudyRequest, begin_study, check_resumed
from vesalius.platform.errors import CohortError
from vesalius.platform.progress import silent
from vesalius.tuning import create_study
from vesalius.tuning.storage import VARIABLE
from vesalius.tuning.testing import toy_spec

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.platform.store import CohortStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Optuna's own


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return tmp_path / "home"


def refused(home: Path, store: CohortStore, *arguments: object) -> str:
    """Return the sentence of a study that does not begin, and of which nothing is left."""
    result = call(home, store, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(home.glob("studies/*"))
    return " ".join(result.stderr.split())


def call(home: Path, store: CohortStore, *arguments: object) -> Any:
    base = ("tune", "intensity_threshold", store.path, "--space", "smoothing=1,3", "--set", "training.device=cpu")
    return CliRunner().invoke(app, [str(one) for one in (*base, "--home", home, "--trials", 1, *arguments)])


def test_a_password_is_asked_of_the_environment_before_anything_is_made(
    toy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy.engine.URL.get_dialect", lambda url: DefaultDialect)
    monkeypatch.setattr(DefaultDialect, "import_dbapi", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    said = refused(home, toy_store, "--storage", "postgresql://me:se/cret@host/db", "--name", "shared")
    assert f"set {VARIABLE} to the whole address" in said
    assert "cret" not in said


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
        ("sqlite://", "is in memory"),
        ("sqlite:///:memory:", "is in memory"),
    ],
)
def test_a_storage_that_was_never_there_is_refused_at_once(
    toy_store: CohortStore, home: Path, address: str, match: str
) -> None:
    assert match in refused(home, toy_store, "--storage", address)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--pruner", "asha", "--objective", "healthy_image_score"], "say nothing of healthy_image_score"),
        (["--objective", "average_precision", "--objective", "average_precision"], "given twice"),
        ([], "the masks are bad"),
    ],
)
def test_lesions_that_come_to_nothing_leave_no_copy(
    healthy_store: CohortStore, home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], match: str
) -> None:
    def plant(store: CohortStore, out: Path, *others: object, **options: object) -> None:
        (out / "half").mkdir(parents=True)
        raise CohortError("the masks are bad")

    monkeypatch.setattr("vesalius.datasets.lesions.plant_lesions", plant)
    assert match in refused(home, healthy_store, "--lesions", home, *arguments)


def test_a_study_goes_on_with_the_cohort_that_lesions_were_set_into(
    toy_store: CohortStore, healthy_store: CohortStore, home: Path
) -> None:
    spec = toy_spec(home, store=str(toy_store.path), cohort_digest=toy_store.digest, source_digest=healthy_store.digest)
    study = create_study(home, spec)
    check_resumed(study, {"store": str(healthy_store.path)}, home)
    check_resumed(study, {"store": str(toy_store.path)}, home)


@pytest.mark.parametrize(
    ("pruner", "chosen", "passes"), [(None, {}, 9), ("none", {}, 4), (None, {"training.validations": 6}, 6)]
)
def test_trials_that_may_be_stopped_have_a_pass_where_the_first_rung_stands(
    toy_store: CohortStore, home: Path, pruner: str | None, chosen: dict[str, int], passes: int
) -> None:
    request = StudyRequest(
        method="implicit_field",
        store=str(toy_store.path),
        preset="tiny",
        set={"training.device": "cpu", **chosen},
        space={"num_classes": "4..6"},
        pruner=pruner,
    )
    study = begin_study(request, home=home, say=print, progress=silent)
    assert study.spec.training.validations == passes
