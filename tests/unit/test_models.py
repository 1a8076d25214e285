"""Models on disk: what is written comes back bit for bit; what is damaged or hostile is refused and never run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import safetensors.torch
import torch
from torch import Tensor

from vesalius.platform.contracts import CohortFacts, Effort, Method, MethodSettings, Score, Stage, TableEntry, Volume
from vesalius.platform.errors import DiskSpaceError, ModelError
from vesalius.platform.evaluation import Threshold
from vesalius.platform.models import (
    CARD_FILE,
    WEIGHTS_FILE,
    ModelCard,
    load_model,
    model_digest,
    read_card,
    save_model,
    update_card,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AFFINE = ((2.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
COHORT = CohortFacts(
    subjects=("a", "b"), grid=(3, 4, 5), spacing_mm=(2.0, 2.0, 2.0), affine=AFFINE, channels=("T1w",), digest="d" * 64
)


class LinesSettings(MethodSettings):
    width: int = 4
    levels: tuple[float, ...] = (0.1, 0.5)


class Lines(Method):
    """Weights tied in two places, a buffer of whole numbers, a scalar buffer, a code a subject."""

    settings_type: ClassVar[type[MethodSettings]] = LinesSettings
    settings: LinesSettings

    def __init__(self, settings: LinesSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.first = torch.nn.Linear(settings.width, settings.width)
        self.tied = torch.nn.Linear(settings.width, settings.width, bias=False)
        self.tied.weight = self.first.weight
        self.codes = torch.nn.Parameter(torch.randn(len(cohort.subjects), settings.width))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("level", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def stages(self) -> Sequence[Stage]:
        return ()

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        return [Score(map=volume.image[0], image_score=0.0) for volume in volumes]


METHODS: dict[str, TableEntry] = {}


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    # The table names places to import; this module is put where the import looks.
    monkeypatch.setitem(sys.modules, "models_under_test", sys.modules[__name__])
    monkeypatch.setitem(METHODS, "lines", TableEntry(path="models_under_test:Lines", summary="a toy"))


def _method(seed: int = 0) -> Lines:
    torch.manual_seed(seed)
    method = Lines(LinesSettings(), COHORT)
    method.get_buffer("counts").copy_(torch.tensor([1, 2**40, -3]))
    method.get_buffer("level").fill_(1 / 3)
    return method


def _card(method: Method, **changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "method": "lines",
        "settings": method.settings.model_dump(mode="json"),
        "cohort": method.cohort,
        "recipe": {"name": "toy", "spacing_mm": [2, 2, 2]},
        "run_id": "run-1",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return ModelCard(**{**values, **changes})


def _rewrite(folder: Path, **changes: Any) -> None:
    path = folder / CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    method = _method()
    written = save_model(tmp_path / "model", method, _card(method))
    loaded, card = load_model(tmp_path / "model", METHODS)
    assert card == written
    assert loaded.settings == method.settings
    assert loaded.cohort == method.cohort
    state, expected = loaded.state_dict(), method.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_files_are_one_of_tensors_and_one_of_json(tmp_path: Path) -> None:
    method = _method()
    card = save_model(tmp_path, method, _card(method))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD_FILE, WEIGHTS_FILE]
    payload = (tmp_path / WEIGHTS_FILE).read_bytes()
    assert hashlib.sha256(payload).hexdigest() == card.weights_sha256
    assert set(safetensors.torch.load(payload)) == set(method.state_dict())
    assert json.loads((tmp_path / CARD_FILE).read_text())["cohort"]["digest"] == COHORT.digest


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    method = _method()
    save_model(tmp_path, method, _card(method))
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    load_model(tmp_path, METHODS)
    assert torch.equal(torch.randn(3), expected)


def test_the_digest_is_of_what_decides_scores(tmp_path: Path) -> None:
    one, other = _method(0), _method(1)
    save_model(tmp_path / "one", one, _card(one))
    save_model(tmp_path / "again", _method(0), _card(one, run_id="another", metrics={"auroc": 0.9}))
    save_model(tmp_path / "other", other, _card(other))
    assert model_digest(tmp_path / "one") == model_digest(tmp_path / "again")
    assert model_digest(tmp_path / "one") != model_digest(tmp_path / "other")
    threshold = Threshold(value=0.25, policy="best_dice", split="validation", voxel_set="all")
    update_card(tmp_path / "one", thresholds={"all": threshold})
    assert model_digest(tmp_path / "one") == model_digest(tmp_path / "again")


def test_a_card_is_changed_in_place(tmp_path: Path) -> None:
    method = _method()
    save_model(tmp_path, method, _card(method))
    threshold = Threshold(value=0.25, policy="best_dice", split="validation", voxel_set="all")
    update_card(tmp_path, thresholds={"all": threshold}, metrics={"average_precision": 0.5, "image_auroc": None})
    _, card = load_model(tmp_path, METHODS)
    assert card.thresholds == {"all": threshold}
    assert card.metrics == {"average_precision": 0.5, "image_auroc": None}
    with pytest.raises(ModelError, match=r"settings of .* cannot be changed"):
        update_card(tmp_path, settings={})
    with pytest.raises(ModelError, match="metrics"):
        update_card(tmp_path, metrics={"auroc": float("nan")})
    assert read_card(tmp_path) == card


def test_a_card_of_another_method_is_not_written(tmp_path: Path) -> None:
    method = _method()
    with pytest.raises(ModelError, match="is not that of the method"):
        save_model(tmp_path / "model", method, _card(method, settings={"width": 5, "levels": []}))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / CARD_FILE).unlink(), "holds no model"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), "weights.safetensors cannot be read"),
        (lambda f: (f / CARD_FILE).write_text("{"), "is not JSON"),
        (lambda f: (f / CARD_FILE).write_bytes(b"\xff\xfe\x00"), "is not JSON"),
        (lambda f: (f / CARD_FILE).write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / CARD_FILE).write_text("[]"), "is of format None"),
        (lambda f: _rewrite(f, format=2), "is of format 2 and this version reads 1"),
        (lambda f: _rewrite(f, extra=1), "extra"),
        (lambda f: _rewrite(f, cohort={}), "cohort.subjects"),
        (lambda f: _rewrite(f, method="line"), "unknown method 'line': did you mean 'lines'?"),
        (lambda f: _rewrite(f, settings={"width": "wide", "levels": []}), "width"),
        (lambda f: _rewrite(f, settings={"width": 5, "levels": []}), "does not fit the method 'lines'.*size mismatch"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-8]), "its SHA-256 differs"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    method = _method()
    save_model(tmp_path, method, _card(method))
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path, METHODS)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    method = _method()
    save_model(tmp_path, method, _card(method))
    tensors: dict[str, Tensor] = safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
    tensors["stranger"] = tensors.pop("codes")
    payload = safetensors.torch.save(tensors)
    (tmp_path / WEIGHTS_FILE).write_bytes(payload)
    _rewrite(tmp_path, weights_sha256=hashlib.sha256(payload).hexdigest())
    with pytest.raises(ModelError, match=r"Missing key.*codes.*Unexpected key.*stranger"):
        load_model(tmp_path, METHODS)


class _Bomb:
    """Unpickled, it makes the file it names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    # Without this, the next test would pass with a bomb that could never go off.
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "gone-off")))
    assert (tmp_path / "gone-off").exists()


@pytest.mark.parametrize("method_name", ["os:system", "models_under_test:Lines", "__import__('os').system('true')"])
def test_a_hostile_model_runs_nothing(tmp_path: Path, method_name: str) -> None:
    method = _method()
    folder = tmp_path / "model"
    save_model(folder, method, _card(method))
    _rewrite(folder, method=method_name)
    with pytest.raises(ModelError, match=re.escape(f"unknown method '{method_name}'")):
        load_model(folder, METHODS)


@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_in_place_of_the_weights_is_not_unpickled(tmp_path: Path, known: bool) -> None:
    method = _method()
    folder = tmp_path / "model"
    save_model(folder, method, _card(method))
    payload = pickle.dumps({"weights": _Bomb(tmp_path / "gone-off")})
    (folder / WEIGHTS_FILE).write_bytes(payload)
    if known:  # the hostile author also writes the card
        _rewrite(folder, weights_sha256=hashlib.sha256(payload).hexdigest())
    with pytest.raises(ModelError, match="not a safetensors file" if known else "SHA-256 differs"):
        load_model(folder, METHODS)
    assert not (tmp_path / "gone-off").exists()


def test_a_full_disk_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = _method()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskSpaceError, match="full"):
        save_model(tmp_path, method, _card(method))
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _method(0), _method(1)
    save_model(tmp_path, first, _card(first))
    real, calls = os.fsync, []

    def killed_at_the_card(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", killed_at_the_card)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, second, _card(second))
    # New weights stand there; an old card beside them would have made a model of two halves.
    with pytest.raises(ModelError, match="holds no model"):
        load_model(tmp_path, METHODS)


def test_models_are_read_without_mlflow() -> None:
    code = "import sys, vesalius.platform.models; sys.exit('mlflow' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
