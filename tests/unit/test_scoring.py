"""Scoring: resumable, deterministic, never silently wrong, and back in the file's own space."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from vesalius.platform.cluster import scoring as splits
from vesalius.platform.cluster.queueing import ShortOfMemory
from vesalius.platform.contracts import CohortFacts, Effort, Method, MethodSettings, Score, Volume
from vesalius.platform.errors import CohortError, DivergenceError, ModelError, SettingError, StoreError
from vesalius.platform.evaluation import Threshold
from vesalius.platform.geometry import as_matrix, canonical, grid_affine, resample
from vesalius.platform.models import ModelCard
from vesalius.platform.scoring import (
    ScoreInfo,
    ScoreStore,
    native_labels,
    native_map,
    score_store,
    score_volume,
    score_volumes,
    volume_of,
    write_native,
)
from vesalius.platform.store import CohortStore, SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Stage

INFO = ScoreInfo(method="toy", model_digest="m1", cohort_digest="", store="", split="test")


class ToySettings(MethodSettings):
    """None."""


class Toy(Method):
    """Scores by distance from a constant, with noise keyed by content as a method must draw it."""

    settings_type: ClassVar[type[MethodSettings]] = ToySettings

    def __init__(self, settings: MethodSettings, cohort: CohortFacts) -> None:
        super().__init__(settings, cohort)
        self.level = torch.nn.Parameter(torch.tensor(0.5))
        self.dropout = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.Dropout(0.5)
        self.calls: list[list[str]] = []
        self.most: int | None = None
        self.change: Callable[[Score], Score] = lambda score: score

    def stages(self) -> Sequence[Stage]:
        return []

    def capacity(self) -> int | None:
        return self.most

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.calls.append([volume.subject_id for volume in volumes])
        scores = []
        for volume in volumes:
            noise = torch.randn(volume.shape, generator=volume.generator("noise")).to(volume.image.device)
            values = (self.dropout(volume.image) - self.level).abs().sum(0) + 0.01 * noise
            scores.append(
                self.change(
                    Score(
                        map=values if effort == "full" else values.round(),
                        image_score=float(values.max()),
                        restoration=volume.image * 0 + self.level,
                        extras={"spread": noise},
                    )
                )
            )
        return scores


@pytest.fixture
def toy(toy_store: CohortStore) -> Toy:
    return Toy(ToySettings(), toy_store.facts())


def maps(scores: ScoreStore) -> dict[str, bytes]:
    return {record.subject_id: scores.map(record.subject_id).tobytes() for record in scores.records}


def test_a_split_is_scored_and_kept(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    seen: list[tuple[int, int, str]] = []
    scores = score_store(
        toy, toy_store, "test", tmp_path / "s", info=INFO, progress=lambda *where: seen.append(where), batch_volumes=3
    )
    names = [record.subject_id for record in toy_store.subjects("test")]
    assert [record.subject_id for record in scores.records] == names
    told = [(index + 1, 4, name) for index, name in enumerate(names)]
    # A batch is told before it begins, each of its subjects when it is kept.
    assert seen == [(0, 4, f"{names[0]} and 2 more"), *told[:3], (3, 4, names[3]), told[3]]
    assert toy.calls == [names[:3], names[3:]]
    assert (scores.info.split, scores.info.cohort_digest) == ("test", toy_store.digest)
    assert maps(ScoreStore.open(tmp_path / "s")) == maps(scores)


def test_what_is_read_is_what_the_method_said(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    scores = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    for record in toy_store.subjects("test"):
        name = record.subject_id
        score, seconds = score_volume(toy, volume_of(toy_store, record))
        assert seconds > 0
        np.testing.assert_array_equal(scores.map(name), score.map.numpy().astype(np.float16))
        restoration = scores.restoration(name)
        assert restoration is not None
        assert restoration.dtype == np.float16
        np.testing.assert_array_equal(restoration, np.full((1, *record.shape), 0.5))
        np.testing.assert_array_equal(scores.extra(name, "spread"), score.extras["spread"].numpy().astype(np.float16))
        kept = scores.record(name)
        assert kept.image_score == score.image_score
        assert (kept.has_lesion, kept.shape, kept.affine, kept.restoration, kept.extras) == (
            record.has_lesion,
            record.shape,
            record.affine,
            True,
            ("spread",),
        )
    with pytest.raises(StoreError, match="no extra map 'spred'"):
        scores.extra("test-00", "spred")
    with pytest.raises(StoreError, match="no scores of subject 'train-00'"):
        scores.map("train-00")


def test_a_method_without_restoration(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    toy.change = lambda score: Score(map=score.map, image_score=score.image_score)
    scores = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    assert scores.restoration("test-00") is None
    assert scores.record("test-00").extras == ()


def test_scoring_is_deterministic_and_a_volume_alone_equals_it_among_others(
    tmp_path: Path, toy_store: CohortStore, toy: Toy
) -> None:
    together = score_store(toy, toy_store, "test", tmp_path / "a", info=INFO, batch_volumes=4)
    torch.manual_seed(123)  # the global generator must not matter
    alone = score_store(toy, toy_store, "test", tmp_path / "b", info=INFO, batch_volumes=1)
    assert maps(together) == maps(alone)


def test_modes_come_back_and_dropout_is_off(toy_store: CohortStore, toy: Toy) -> None:
    toy.train()
    toy.frozen.eval()
    volume = volume_of(toy_store, toy_store.record("test-00"))
    first, second = (score_volume(toy, volume)[0].map for _ in range(2))
    assert torch.equal(first, second)
    assert (toy.training, toy.dropout.training, toy.frozen.training) == (True, True, False)


def test_seconds_are_the_calls_duration_shared_out(
    monkeypatch: pytest.MonkeyPatch, toy_store: CohortStore, toy: Toy
) -> None:
    ticks = iter([100.0, 106.0])
    monkeypatch.setattr("vesalius.platform.scoring.volumes.time.perf_counter", lambda: next(ticks))
    volumes = [volume_of(toy_store, record) for record in toy_store.subjects("test")[:3]]
    assert score_volumes(toy, volumes)[1] == 2.0


def test_capacity_limits_a_call(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    toy.most = 2
    score_store(toy, toy_store, "test", tmp_path / "s", info=INFO, batch_volumes=16)
    assert [len(call) for call in toy.calls] == [2, 2]
    toy.calls.clear()
    toy.most = 3
    score_store(toy, toy_store, "test", tmp_path / "own", info=INFO)
    assert [len(call) for call in toy.calls] == [3, 1], "a method that says how many it takes gets as many"
    with pytest.raises(SettingError, match="batch_volumes is 0"):
        score_store(toy, toy_store, "test", tmp_path / "t", info=INFO, batch_volumes=0)


def test_volumes_of_different_shapes_share_a_call(tmp_path: Path, toy: Toy) -> None:
    store = CohortStore.create(tmp_path / "c", recipe={"name": "shapes"}, channels=("T1w",))
    shapes = {"a": (4, 4, 4), "b": (4, 4, 4), "c": (5, 4, 4), "d": (4, 4, 4)}
    with store.lock():
        records = []
        for name, shape in shapes.items():
            arrays = SubjectArrays(image=np.ones((1, *shape), np.float32), brain=np.ones(shape, bool))
            records.append(store.write(stored(name, shape), arrays))
        store.commit(records)
    scores = score_store(toy, store, "test", tmp_path / "s", info=INFO)
    assert toy.calls == [["a", "b", "c", "d"]]
    assert {name: scores.map(name).shape for name in shapes} == shapes


# ---- resuming and reusing


def test_a_finished_scoring_is_reused(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    before = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    toy.calls.clear()
    notes: list[str] = []
    again = score_store(
        toy, toy_store, "test", tmp_path / "s", info=INFO, progress=lambda done, total, note: notes.append(note)
    )
    assert toy.calls == []
    assert notes == ["all scored before"]
    assert again.records == before.records
    # Filed under another run, reached by another path: still the same model on the same voxels.
    score_store(toy, toy_store, "test", tmp_path / "s", info=INFO.model_copy(update={"run_id": "champion"}))
    assert toy.calls == []


@pytest.mark.parametrize("change", ["model", "split", "effort"])
def test_other_scores_replace_those_that_stand(tmp_path: Path, toy_store: CohortStore, toy: Toy, change: str) -> None:
    before = maps(score_store(toy, toy_store, "test", tmp_path / "s", info=INFO))
    toy.level.data += 0.25
    info = INFO.model_copy(update={"model_digest": "m2"}) if change == "model" else INFO
    split = "gate" if change == "split" else "test"
    after = score_store(
        toy, toy_store, split, tmp_path / "s", info=info, effort="quick" if change == "effort" else "full"
    )
    assert {record.subject_id for record in after.records} == {r.subject_id for r in toy_store.subjects(split)}
    assert not set(maps(after).values()) & set(before.values())
    assert {path.name for path in (tmp_path / "s" / "subjects").iterdir() if path.is_dir()} == set(maps(after))


def test_a_part_is_extended_to_the_whole(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    part = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO, subjects=["test-02"])
    assert [record.subject_id for record in part.records] == ["test-02"]
    toy.calls.clear()
    score_store(toy, toy_store, "test", tmp_path / "s", info=INFO, batch_volumes=1)
    assert toy.calls == [["test-00"], ["test-01"], ["test-03"]]
    with pytest.raises(CohortError, match="'train-00' is not in the split 'test'"):
        score_store(toy, toy_store, "test", tmp_path / "s", info=INFO, subjects=["train-00"])
    with pytest.raises(CohortError, match="no subject in the split 'tset', only in gate, test, train, validation"):
        score_store(toy, toy_store, "tset", tmp_path / "t", info=INFO)
    assert not (tmp_path / "t").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_scoring import INFO, Toy, ToySettings
from vesalius.platform.scoring import maps, score_store
from vesalius.platform.store import CohortStore

store = CohortStore.open(Path({store!r}))
written = 0
plain = maps.write_files

def write_files(folder, files):
    global written
    written += 1
    plain(folder, files)
    if written > {subjects}:
        os.kill(os.getpid(), signal.SIGKILL)  # all is written aside, the subject is not yet there

maps.write_files = write_files
score_store(Toy(ToySettings(), store.facts()), store, "test", Path({out!r}), info=INFO, batch_volumes=2)
"""


@pytest.mark.parametrize(
    "subjects", [pytest.param(0, marks=pytest.mark.long), 1, pytest.param(3, marks=pytest.mark.long)]
)
def test_killed_while_writing_it_goes_on_and_ends_the_same(
    tmp_path: Path, toy_store: CohortStore, toy: Toy, subjects: int
) -> None:
    unbroken = score_store(toy, toy_store, "test", tmp_path / "unbroken", info=INFO, batch_volumes=2)
    out = tmp_path / "s"
    script = KILLED.format(
        folder=str(Path(__file__).parent), store=str(toy_store.path), out=str(out), subjects=subjects
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with pytest.raises(StoreError, match="broken off or is under way"):
        ScoreStore.open(out)
    toy.calls.clear()
    seen: list[int] = []
    resumed = score_store(
        toy, toy_store, "test", out, info=INFO, batch_volumes=2, progress=lambda done, *_: seen.append(done)
    )
    # The same volumes are scored together as without the kill; what was written is neither written nor counted again.
    assert toy.calls == [["test-00", "test-01"], ["test-02", "test-03"]][subjects // 2 :]
    assert list(dict.fromkeys(seen)) == list(range(subjects, 5))
    assert maps(resumed) == maps(unbroken)
    assert not (out / ".partial").exists()


def test_a_damaged_manifest_is_written_anew_and_nothing_scored_again(
    tmp_path: Path, toy_store: CohortStore, toy: Toy
) -> None:
    before = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    manifest = tmp_path / "s" / "scores.json"
    content = json.loads(manifest.read_text())
    content["records"][0]["image_score"] = 12345.0
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="broken off"):
        ScoreStore.open(tmp_path / "s")
    toy.calls.clear()
    assert score_store(toy, toy_store, "test", tmp_path / "s", info=INFO).records == before.records
    assert toy.calls == []


def test_a_map_that_cannot_be_read_says_so(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    scores = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    chunk = tmp_path / "s" / "subjects" / "test-01" / "map" / "c.0.0.0"
    whole = chunk.read_bytes()
    chunk.unlink()
    # Zarr reads what is not there as zeros.
    with pytest.raises(StoreError, match=r"map does not hold what was scored: .* score the split again"):
        scores.map("test-01")
    chunk.write_bytes(whole)
    scores.map("test-01")
    for path in (tmp_path / "s" / "subjects" / "test-00" / "map").rglob("*"):
        if path.is_file():
            path.write_bytes(b"?")
    with pytest.raises(StoreError, match=r"map cannot be read .* score the split again"):
        scores.map("test-00")


def test_what_is_no_score_store_is_not_touched(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not a score store"):
        score_store(toy, toy_store, "test", foreign, info=INFO)
    assert (foreign / "chapter.txt").read_text() == "years of work"
    digest = toy_store.digest
    with pytest.raises(StoreError, match="not a score store"):
        score_store(toy, toy_store, "test", toy_store.path, info=INFO)
    assert CohortStore.open(toy_store.path).digest == digest
    assert toy_store.check() == []
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        score_store(toy, toy_store, "test", file, info=INFO)
    with pytest.raises(StoreError, match="holds no scores"):
        ScoreStore.open(toy_store.path)
    with pytest.raises(StoreError, match="holds no scores"):
        ScoreStore.open(tmp_path / "nowhere")


def test_one_writer_at_a_time(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    with (
        ScoreStore.writing(tmp_path / "s", INFO),
        pytest.raises(StoreError, match="is being written by process"),
    ):
        score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)


# ---- never silently wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": lambda m: m.index_fill(0, torch.tensor([0]), torch.nan)}, "map of subject test-00 holds NaN"),
        ({"map": lambda m: m / 0}, "map of subject test-00 holds NaN or infinite"),
        ({"map": lambda m: m * 0 + 7e4}, "toy: its anomaly map of subject test-00 reaches 7e.04, beyond the 65504"),
        ({"restoration": lambda r: r * torch.inf}, "restoration of subject test-00 holds NaN"),
        ({"restoration": lambda r: r * 0 - 7e4}, "toy: its restoration of subject test-00 reaches"),
        ({"image_score": lambda _: float("nan")}, "image score of subject test-00 is nan"),
    ],
)
def test_a_score_that_cannot_be_kept_stops_and_names_method_and_subject(
    tmp_path: Path, toy_store: CohortStore, toy: Toy, change: dict[str, Callable[[Any], Any]], message: str
) -> None:
    def changed(score: Score) -> Score:
        values = {name: getattr(score, name) for name in ("map", "image_score", "restoration")}
        return Score(**{**values, **{name: function(values[name]) for name, function in change.items()}})

    toy.change = changed
    with pytest.raises(DivergenceError, match=message):
        score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    with pytest.raises(StoreError):
        ScoreStore.open(tmp_path / "s")
    assert not list((tmp_path / "s" / "subjects").glob("test-*"))


def test_rounding_up_to_the_largest_float16_is_no_overflow(tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    toy.change = lambda score: Score(map=score.map * 0 + 65510.0, image_score=0.0)
    scores = score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    assert (scores.map("test-00") == 65504).all()


def test_another_shape_or_number_of_scores_is_refused(toy_store: CohortStore, toy: Toy) -> None:
    volume = volume_of(toy_store, toy_store.record("test-00"))
    toy.change = lambda score: Score(map=score.map[1:], image_score=0.0)
    with pytest.raises(ModelError, match=r"Toy: its map of subject test-00 has shape \(11, 10, 8\), expected"):
        score_volume(toy, volume)
    toy.change = lambda score: Score(map=score.map, image_score=0.0, restoration=score.map)
    with pytest.raises(ModelError, match="its restoration of subject test-00"):
        score_volume(toy, volume)
    toy.score = lambda volumes, effort: []  # type: ignore[method-assign, assignment, misc]  # breaking it is the test
    with pytest.raises(ModelError, match="0 scores for 1 volumes"):
        score_volume(toy, volume)


def test_millilitres_are_counted_on_the_map_as_it_would_be_kept(toy_store: CohortStore) -> None:
    from vesalius.infra.application import Answer

    record = toy_store.subjects("test")[0]
    arrays = SubjectArrays(image=toy_store.image(record.subject_id), brain=toy_store.brain(record.subject_id))
    score_map = torch.zeros(record.shape)
    score_map[0, 0, :3] = torch.tensor([0.49999, 0.5, 0.4])  # the first is 0.5 in float16
    threshold = Threshold(value=0.5, policy="best_dice", split="validation", voxel_set="all")
    card = ModelCard(
        method="toy", settings={}, cohort=toy_store.facts(), recipe=toy_store.recipe, thresholds={"all": threshold}
    )
    answer = Answer(record=record, arrays=arrays, score=Score(map=score_map, image_score=0.5), seconds=0.0, card=card)
    assert answer.anomalous_ml == pytest.approx(2 * 8 / 1000)


def test_no_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_store: CohortStore, toy: Toy) -> None:
    from vesalius.platform.errors import DiskSpaceError

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("vesalius.platform.store.space.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match="are needed"):
        score_store(toy, toy_store, "test", tmp_path / "s", info=INFO)
    assert toy.calls == []


# ---- the way home


def stored(name: str, shape: tuple[int, int, int], **changes: Any) -> SubjectRecord:
    affine = as_matrix(grid_affine(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    facts = {"split": "test", "channels": ("T1w",), "spacing_mm": (1.0,) * 3, "affine": affine, **changes}
    return SubjectRecord(subject_id=name, shape=shape, **facts)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    """Return a smooth volume without any symmetry that could hide a flip."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(1 + ndimage.gaussian_filter(noise, 2.0) * 10, dtype=np.float32)


# Left to right stored backwards, axes permuted, anisotropic, and a slight rotation on top.
ANGLE = 0.1
ROTATION = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0, 3], [np.sin(ANGLE), np.cos(ANGLE), 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]]
)
FILES = {
    "ras": np.diag([1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "permuted": np.array([[0, 0, 1.5, -9], [-1.0, 0, 0, 8], [0, 1.2, 0, 4], [0, 0, 0, 1]]),
    "oblique": ROTATION @ np.diag([-1.0, 1.1, 1.3, 1.0]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("registered", [False, True])
def test_a_map_lies_on_the_file_it_came_from(tmp_path: Path, name: str, registered: bool) -> None:
    """Prepare a file as ingest does, score it by its own intensity, and overlay the written map on the file."""
    shape = (24, 26, 22)
    original = blobs(shape)
    path = tmp_path / "in.nii.gz"
    nibabel.save(nibabel.Nifti1Image(original, FILES[name]), path)
    source_affine = nibabel.load(path).affine
    to_source = np.eye(4)
    if registered:
        to_source[:3, :3] = np.diag([1.05, 0.95, 1.0]) @ ROTATION[:3, :3]
        to_source[:3, 3] = [2.0, -1.0, 0.5]
    array, affine = canonical(original, source_affine)
    center = np.linalg.solve(to_source, affine @ [*((np.array(array.shape) - 1) / 2), 1.0])[:3]
    grid = (44, 44, 44)
    target = grid_affine(grid, (1.0, 1.0, 1.0), (center[0], center[1], center[2]))
    prepared = resample(array, affine, grid, target, to_source=to_source)
    facts = SourceFacts(
        files={"T1w": "in.nii.gz"},
        sha256={},
        shape=shape,
        affine=as_matrix(source_affine),
        to_source=as_matrix(to_source),
    )
    record = stored("a", grid, affine=as_matrix(target), source=facts)
    write_native(tmp_path / "map.nii.gz", prepared.astype(np.float16), record)
    overlay = nibabel.load(tmp_path / "map.nii.gz")
    assert overlay.shape == shape
    np.testing.assert_allclose(overlay.affine, source_affine, atol=1e-5)
    inner = (slice(3, -3),) * 3
    found, expected = overlay.get_fdata()[inner].ravel(), original[inner].ravel()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
    # Any flip or shift by a voxel is clearly worse: the check can fail.
    shifted = np.roll(overlay.get_fdata(), 2, axis=0)[inner].ravel()
    assert np.corrcoef(shifted, expected)[0, 1] < 0.9


def test_a_map_lies_on_a_real_brain(tmp_path: Path, real_data: Path) -> None:
    path = sorted(real_data.glob("ds002748/**/*_T1w.nii*"))[0]
    image = nibabel.load(path)
    original = np.asarray(image.dataobj, dtype=np.float32)
    array, affine = canonical(original, image.affine)
    extent = np.array(array.shape) * np.linalg.norm(affine[:3, :3], axis=0)
    center = (affine @ [*((np.array(array.shape) - 1) / 2), 1.0])[:3]
    grid = tuple(int(size) for size in np.ceil(extent / 2) + 8)
    target = grid_affine(grid, (2.0, 2.0, 2.0), tuple(center))  # type: ignore[arg-type]  # three entries
    facts = SourceFacts(files={"T1w": path.name}, sha256={}, shape=original.shape, affine=as_matrix(image.affine))
    prepared = resample(ndimage.gaussian_filter(array, 1.0), affine, grid, target)  # type: ignore[arg-type]  # three entries
    record = stored("a", grid, affine=as_matrix(target), source=facts)  # type: ignore[arg-type]  # three entries
    write_native(tmp_path / "map.nii.gz", prepared / prepared.max(), record)
    overlay = nibabel.load(tmp_path / "map.nii.gz")
    assert overlay.shape == original.shape
    np.testing.assert_allclose(overlay.affine, image.affine, atol=1e-4)
    found = overlay.get_fdata().ravel()
    assert np.corrcoef(found, original.ravel())[0, 1] > 0.93
    for axis in range(3):  # turned over, a head no longer lies on itself
        assert np.corrcoef(found, np.flip(original, axis).ravel())[0, 1] < 0.9


def test_where_the_stored_grid_does_not_reach_nothing_was_found() -> None:
    facts = SourceFacts(files={}, sha256={}, shape=(10, 10, 10), affine=as_matrix(np.eye(4)))
    target = np.eye(4)
    target[:3, 3] = 3.0
    record = stored("a", (4, 4, 4), affine=as_matrix(target), source=facts)
    values = np.random.default_rng(0).uniform(-3, -1, (4, 4, 4)).astype(np.float16)
    native, affine = native_map(values, record)
    assert affine == facts.affine
    np.testing.assert_array_equal(native[3:7, 3:7, 3:7], values)
    outside = np.ones(native.shape, dtype=bool)
    outside[3:7, 3:7, 3:7] = False
    assert (native[outside] == values.min()).all()


def test_a_map_on_a_coarser_grid_reaches_half_a_voxel_beyond_its_outermost_centres() -> None:
    """As a mask of the same grid does: a ring of one more voxel would be findings that nobody made."""
    fine, coarse = np.eye(4), np.diag([4.0, 4.0, 4.0, 1.0])
    fine[:3, 3], coarse[:3, 3] = 0.5, 6.0  # the coarse grid covers 4 to 16 mm, the file 0 to 20 mm
    facts = SourceFacts(files={}, sha256={}, shape=(20, 20, 20), affine=as_matrix(fine))
    record = stored("a", (3, 3, 3), affine=as_matrix(coarse), source=facts)
    values = np.ones((3, 3, 3), dtype=np.float16)
    values[1, 1, 1] = 0.0
    native, _ = native_map(values, record)
    mask, _ = native_labels(np.ones((3, 3, 3), dtype=bool), record)
    assert np.flatnonzero(mask[:, 10, 10]).tolist() == list(range(4, 16))
    assert np.flatnonzero(native[:, 4, 4]).tolist() == list(range(4, 16))
    assert (native[mask == 0] == 0).all()


def test_a_subject_without_a_file_keeps_its_grid() -> None:
    record = stored("a", (4, 4, 4))
    values = np.arange(64, dtype=np.float16).reshape(4, 4, 4)
    native, affine = native_map(values, record)
    np.testing.assert_array_equal(native, values)
    assert affine == record.affine


def test_a_scored_map_goes_home_without_the_cohort(tmp_path: Path, toy: Toy) -> None:
    """The score's record carries the geometry: a moved or deleted cohort does not strand its maps."""
    facts = SourceFacts(files={"T1w": "x.nii"}, sha256={}, shape=(6, 4, 5), affine=as_matrix(np.eye(4)))
    store = CohortStore.create(tmp_path / "c", recipe={"name": "home"}, channels=("T1w",))
    record = stored("a", (6, 4, 5), affine=as_matrix(np.eye(4)), source=facts)
    image = np.random.default_rng(0).random((1, 6, 4, 5), np.float32)
    with store.lock():
        store.commit([store.write(record, SubjectArrays(image=image, brain=np.ones((6, 4, 5), bool)))])
    scores = score_store(toy, store, "test", tmp_path / "s", info=INFO)
    native, affine = native_map(scores.map("a"), scores.record("a"))
    np.testing.assert_array_equal(native, scores.map("a"))
    assert affine == facts.affine


@pytest.mark.gpu
def test_on_a_device_maps_come_back_and_agree(toy_store: CohortStore, toy: Toy) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume = volume_of(toy_store, toy_store.record("test-00"))
    here, _ = score_volume(toy, volume, "cpu")
    there, seconds = score_volume(toy, volume, "cuda")
    assert there.map.device.type == "cpu"
    assert seconds > 0
    torch.testing.assert_close(here.map, there.map)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", ""])
def test_a_record_that_leads_elsewhere_is_not_read(name: str) -> None:
    from pydantic import ValidationError

    from vesalius.platform.scoring.records import ScoreRecord

    facts = {"image_score": 0.5, "seconds": 0.1, "has_lesion": False, "channels": ["T1w"], "shape": [4, 4, 4]}
    facts |= {"spacing_mm": [1, 1, 1], "affine": np.eye(4).tolist()}
    assert ScoreRecord.model_validate({**facts, "subject_id": "sub-01"}).subject_id == "sub-01"
    with pytest.raises(ValidationError, match="cannot be a subject id"):
        ScoreRecord.model_validate({**facts, "subject_id": name})


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_worker_that_is_short_of_memory_says_so_beside_what_it_has_scored(
    toy_store: CohortStore, toy: Toy, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    large, *others = names = [record.subject_id for record in toy_store.subjects("test")]

    def score(volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        if len(volumes) > 1 or volumes[0].subject_id == large:
            raise error
        return Toy.score(toy, volumes, effort=effort)

    monkeypatch.setattr(splits, "load_model", lambda *_: (toy, SimpleNamespace(method="toy")))
    monkeypatch.setattr(splits, "resolve", lambda _: {})
    monkeypatch.setattr(toy, "score", score)
    work = splits.SplitWork(model=Path("model"), methods="", store=toy_store.path, device="cpu")()
    short = work(names)
    assert isinstance(short, ShortOfMemory)
    assert [(one.subject_id, bool(one.problem), one.score is None) for one in short.result] == [
        (large, True, True),
        *((name, False, False) for name in others),
    ]
    whole = work(others)
    assert isinstance(whole, list), "what could be scored one by one is not tried again"
    assert not any(one.problem for one in whole)


@pytest.mark.parametrize(("error", "is_short"), [(MemoryError(), True), (torch.OutOfMemoryError("CUDA"), False)])
def test_a_gpu_of_its_own_that_is_too_small_is_no_reason_for_fewer_workers(
    toy_store: CohortStore, toy: Toy, monkeypatch: pytest.MonkeyPatch, error: Exception, is_short: bool
) -> None:
    def score(*_: object, **__: object) -> Sequence[Score]:
        raise error

    monkeypatch.setattr(splits, "load_model", lambda *_: (toy, SimpleNamespace(method="toy")))
    monkeypatch.setattr(splits, "resolve", lambda _: {})
    monkeypatch.setattr(splits, "score_volumes", score)
    work = splits.SplitWork(model=Path("model"), methods="", store=toy_store.path, device="cuda")()
    assert isinstance(work([toy_store.subjects("test")[0].subject_id]), ShortOfMemory) is is_short
