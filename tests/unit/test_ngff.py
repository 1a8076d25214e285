"""The store as OME-Zarr: valid to an independent reader, voxels and millimetres found by the OME metadata alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from ome_zarr_models.v05.image import Image
from pydantic import ValidationError

from vesalius.platform.contracts import Score
from vesalius.platform.errors import ModelError, StoreError, VolumeError
from vesalius.platform.scoring import ScoreInfo, ScoreRecord, ScoreStore
from vesalius.platform.store import ChunkSettings, CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.store.arrays import write_array, write_group
from vesalius.platform.store.files import folder_digests
from vesalius.platform.store.manifest import write_manifest
from vesalius.platform.store.records import IDENTITY
from vesalius.platform.testing.store_cases import SHAPE, add, example_case

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CHANNELS = ("T1w", "FLAIR")


def rotated(degrees: float) -> NDArray[np.float64]:
    """Return an affine of 1.5 x 1.5 x 2 mm voxels turned about the vertical axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.5, 2.0])
    affine[:3, 3] = (-20.0, 11.0, 3.0)
    return affine


def written(folder: Path, arrays: SubjectArrays | None = None, **changes: Any) -> zarr.Group:
    """Write the example subject with changes and open its group as any Zarr reader would."""
    store = CohortStore.create(folder / "store", recipe={"name": "ngff"}, channels=CHANNELS)
    record, example = example_case(1, CHANNELS)
    add(store, [(record.model_copy(update=changes), arrays or example)])
    assert store.check() == []
    return zarr.open_group(folder / "store" / "subjects" / "sub-01", mode="r")


def followed(group: zarr.Group) -> tuple[NDArray[Any], list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Return what the OME metadata leads to: the array, the axes' names, scale and translation. Nothing of ours."""
    ome: Any = group.attrs["ome"]
    multiscale = ome["multiscales"][0]
    dataset = multiscale["datasets"][0]
    array = group[dataset["path"]]
    assert isinstance(array, zarr.Array)
    scale, translation = dataset["coordinateTransformations"]
    assert (scale["type"], translation["type"]) == ("scale", "translation")
    assert [axis.get("unit") for axis in multiscale["axes"][-3:]] == ["millimeter"] * 3
    names = [axis["name"] for axis in multiscale["axes"]]
    assert list(array.metadata.dimension_names or ()) == names  # type: ignore[union-attr]  # Zarr v3 metadata has them
    return np.asarray(array[...]), names, np.array(scale["scale"]), np.array(translation["translation"])


def legend_of(group: zarr.Group, role: str) -> Any:
    ome: Any = group[f"labels/{role}"].attrs["ome"]
    return ome["image-label"]


def test_an_independent_reader_finds_image_and_labels_valid(tmp_path: Path) -> None:
    group = written(tmp_path)
    image = Image.from_zarr(group)
    assert image.ome_zarr_version == "0.5"
    assert image.labels is not None
    assert sorted(image.labels.label_paths) == ["brain", "head", "lesion", "structures"]
    for role in image.labels.label_paths:
        label = image.labels.get_image_labels_group(role)
        assert label.ome_attributes.image_label is not None
        assert label.ome_attributes.image_label.source is not None


def test_an_independent_reader_refuses_metadata_that_are_wrong(tmp_path: Path) -> None:
    """The reader above would see it if they were."""
    written(tmp_path)
    path = tmp_path / "store" / "subjects" / "sub-01" / "zarr.json"
    tree = json.loads(path.read_text())
    tree["attributes"]["ome"]["multiscales"][0]["axes"][0]["name"] = "channel"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="dimension names"):
        Image.from_zarr(zarr.open_group(path.parent, mode="r"))


def test_a_marked_voxel_lies_at_its_millimetres_by_the_ome_metadata_alone(tmp_path: Path) -> None:
    record, example = example_case(1, CHANNELS)
    image = np.zeros_like(example.image)
    marked = (1, 6, 2, 9)
    image[marked] = 5.0
    lesion = np.zeros(SHAPE, dtype=np.bool_)
    lesion[marked[1:]] = True
    group = written(tmp_path, SubjectArrays(image=image, brain=example.brain, lesion=lesion))
    expected = np.asarray(record.affine) @ (*marked[1:], 1)
    found, names, scale, translation = followed(group)
    assert names == ["c", "x", "y", "z"]
    place = np.argwhere(found == 5.0)
    assert place.tolist() == [list(marked)]
    assert np.array_equal((place[0] * scale + translation)[1:], expected[:3])
    ome: Any = group.attrs["ome"]
    assert ome["omero"]["channels"][place[0][0]]["label"] == "FLAIR"
    label = group["labels/lesion"]
    assert isinstance(label, zarr.Group)
    found, names, scale, translation = followed(label)
    assert names == ["x", "y", "z"]
    assert np.array_equal(np.argwhere(found)[0] * scale + translation, expected[:3])


def test_every_array_is_reached_by_the_ome_metadata_alone(tmp_path: Path) -> None:
    _, example = example_case(1, CHANNELS)
    group = written(tmp_path)
    assert np.array_equal(followed(group)[0], example.image)
    listing: Any = group["labels"].attrs["ome"]
    for role in listing["labels"]:
        label = group[f"labels/{role}"]
        assert isinstance(label, zarr.Group)
        assert np.array_equal(followed(label)[0], np.asarray(getattr(example, role)).astype(np.int64))


def test_an_oblique_grid_keeps_its_centre_and_its_whole_affine(tmp_path: Path) -> None:
    affine = rotated(20.0)
    group = written(tmp_path, affine=tuple(tuple(row) for row in affine.tolist()))
    _, _, scale, translation = followed(group)
    assert np.allclose(scale[1:], (1.5, 1.5, 2.0), rtol=0, atol=1e-12)
    centre = (np.array(SHAPE) - 1) / 2
    assert np.allclose(centre * scale[1:] + translation[1:], (affine @ (*centre, 1))[:3], rtol=0, atol=1e-9)
    ours: Any = group.attrs["vesalius"]
    assert np.array_equal(ours["record"]["affine"], affine)


def test_axes_that_run_elsewhere_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    affine = rotated(0.0) @ np.diag([-1.0, 1.0, 1.0, 1.0])
    with pytest.raises(VolumeError, match="subject sub-01: its axes run LAS and not RAS"):
        written(tmp_path, affine=tuple(tuple(row) for row in affine.tolist()))
    store = tmp_path / "store"
    assert [entry.name for entry in (store / "subjects").iterdir()] == ["zarr.json"]
    assert not list((store / ".partial").iterdir())


def test_orientation_stands_at_every_spatial_axis_and_at_no_other(tmp_path: Path) -> None:
    ome: Any = written(tmp_path).attrs["ome"]
    channel, *space = ome["multiscales"][0]["axes"]
    assert "orientation" not in channel
    assert [axis["orientation"]["value"] for axis in space] == [
        "left-to-right",
        "posterior-to-anterior",
        "inferior-to-superior",
    ]


def test_windows_show_the_brain(tmp_path: Path) -> None:
    """Air and a single bright voxel do not move the window; a constant channel still has one."""
    _, example = example_case(1, CHANNELS)
    random = np.random.default_rng(0)
    image = np.zeros_like(example.image)
    image[0, example.brain] = random.uniform(100, 200, example.brain.sum())
    image[0][tuple(np.argwhere(example.brain)[0])] = 9000.0
    group = written(tmp_path, SubjectArrays(image=image, brain=example.brain))
    ome: Any = group.attrs["ome"]
    first, second = (channel["window"] for channel in ome["omero"]["channels"])
    inside = image[0][example.brain]
    assert (first["min"], first["max"]) == (0.0, 9000.0)
    assert np.allclose((first["start"], first["end"]), np.percentile(inside, (1, 99)), rtol=0, atol=1e-6)
    assert first["end"] < 210
    assert second["start"] < second["end"]
    assert [channel["active"] for channel in ome["omero"]["channels"]] == [True, False]


def test_labels_are_named_and_told_apart(tmp_path: Path) -> None:
    group = written(tmp_path, structures={"ventricles": 1, "cortex": 255, "ribbon": 255})
    legend = legend_of(group, "structures")
    assert legend["properties"] == [
        {"label-value": 1, "name": "ventricles"},
        {"label-value": 255, "name": "cortex, ribbon"},
    ]
    colors = [tuple(color["rgba"]) for color in legend["colors"]]
    assert len(set(colors)) == 2
    masks = [legend_of(group, role)["colors"][0]["rgba"] for role in ("brain", "head", "lesion")]
    assert len({tuple(rgba) for rgba in masks}) == 3


def test_labels_without_names_have_colours_all_the_same(tmp_path: Path) -> None:
    _, example = example_case(1, CHANNELS)
    several = np.zeros(SHAPE, dtype=np.uint16)
    several[0, 0, :3] = (3, 700, 700)
    cases: list[tuple[NDArray[np.uint16], list[int]]] = [(several, [0, 3, 700]), (np.zeros_like(several), [0])]
    for number, (labels, values) in enumerate(cases):
        arrays = SubjectArrays(image=example.image, brain=example.brain, structures=labels)
        group = written(tmp_path / str(number), arrays, structures={})
        Image.from_zarr(group)
        legend = legend_of(group, "structures")
        assert [color["label-value"] for color in legend["colors"]] == values
        assert "properties" not in legend


# ---- maps of a run


def scored(folder: Path, **changes: Any) -> zarr.Group:
    """Write the scores of the example subject and open its group as any Zarr reader would."""
    record, _ = example_case(1, CHANNELS)
    kept = {name: getattr(record, name) for name in ("channels", "shape", "spacing_mm", "affine", "source")}
    score_record = ScoreRecord(
        subject_id="sub-01", image_score=1.0, seconds=0.1, has_lesion=True, **{**kept, **changes}
    )
    random = torch.Generator().manual_seed(0)
    values = torch.rand(SHAPE, generator=random)
    values[MARKED] = 7.0
    restoration = torch.rand((2, *SHAPE), generator=random)
    restoration[(1, *MARKED)] = 7.0
    spread = torch.zeros(SHAPE)
    spread[MARKED] = 7.0
    info = ScoreInfo(method="m", model_digest="0", cohort_digest="0", store="", split="test")
    score = Score(map=values, image_score=1.0, restoration=restoration, extras={"spread": spread})
    with ScoreStore.writing(folder / "scores", info) as scores:
        scores.write(score_record, score)
        scores.finish()
    return zarr.open_group(folder / "scores" / "subjects" / "sub-01", mode="r")


MARKED = (6, 2, 5)


@pytest.mark.parametrize(
    ("path", "axes", "labels"),
    [
        ("", ["x", "y", "z"], ["map"]),
        ("restoration", ["c", "x", "y", "z"], ["T1w", "FLAIR"]),
        ("extras/spread", ["x", "y", "z"], ["spread"]),
    ],
)
def test_maps_of_a_run_are_images_in_millimetres_too(
    tmp_path: Path, path: str, axes: list[str], labels: list[str]
) -> None:
    scored(tmp_path)
    group = zarr.open_group(tmp_path / "scores" / "subjects" / "sub-01" / path, mode="r")
    assert Image.from_zarr(group).ome_zarr_version == "0.5"
    found, names, scale, translation = followed(group)
    assert names == axes
    assert found.dtype == np.float32, "neuroglancer reads no float16"
    assert np.array_equal(found, found.astype(np.float16))
    lead = len(axes) - 3
    place = np.argwhere(found == 7.0)
    assert place.tolist() == [[1] * lead + list(MARKED)]
    expected = np.asarray(example_case(1, CHANNELS)[0].affine) @ (*MARKED, 1)
    assert np.array_equal((place[0] * scale + translation)[lead:], expected[:3])
    ome: Any = group.attrs["ome"]
    channels = ome["omero"]["channels"]
    assert [channel["label"] for channel in channels] == labels
    assert all(channel["window"]["start"] < channel["window"]["end"] for channel in channels)
    everything = zarr.open_group(tmp_path / "scores" / "subjects", mode="r").members(max_depth=None)
    assert sorted(name for name, _ in everything) == [
        "sub-01",
        "sub-01/extras",
        "sub-01/extras/spread",
        "sub-01/extras/spread/0",
        "sub-01/map",
        "sub-01/restoration",
        "sub-01/restoration/0",
    ]


def test_an_extra_map_cannot_leave_its_subject(tmp_path: Path) -> None:
    record = ScoreRecord(
        subject_id="a", image_score=0.0, seconds=0.0, has_lesion=False, channels=("T1w",), shape=SHAPE,
        spacing_mm=(1.0, 1.0, 1.0), affine=IDENTITY,
    )  # fmt: skip
    info = ScoreInfo(method="m", model_digest="0", cohort_digest="0", store="", split="test")
    with ScoreStore.writing(tmp_path / "scores", info) as scores:
        for name in ("../../../elsewhere", "..", "", "a/b", ".hidden"):
            score = Score(map=torch.zeros(SHAPE), image_score=0.0, extras={name: torch.zeros(SHAPE)})
            with pytest.raises(ModelError, match="it calls a further map"):
                scores.write(record, score)
            with pytest.raises(ValidationError, match="cannot name a map"):
                ScoreRecord.model_validate({**record.model_dump(), "extras": (name,)})
    assert {entry.name for entry in tmp_path.iterdir()} == {"scores"}


def test_scores_of_an_older_format_are_named_and_made_anew(tmp_path: Path) -> None:
    scored(tmp_path)
    attributes = tmp_path / "scores" / "zarr.json"
    attributes.write_text(attributes.read_text().replace('"scores": 2', '"scores": 1'))
    with pytest.raises(StoreError, match="holds scores of another version: run the same `vesalius score` again"):
        ScoreStore.open(tmp_path / "scores")
    scored(tmp_path)
    assert ScoreStore.open(tmp_path / "scores").map("sub-01")[MARKED] == 7.0


@pytest.mark.parametrize(("number", "advice"), [(1, "ingest the cohort anew"), (3, "update Vesalius")])
def test_a_store_of_another_format_is_refused_in_one_sentence(tmp_path: Path, number: int, advice: str) -> None:
    store = CohortStore.create(tmp_path / "store", recipe={"name": "ngff"}, channels=CHANNELS)
    other = store._manifest.model_copy(update={"format": number})
    write_manifest(store.path, other, store.path / ".partial")
    with pytest.raises(StoreError, match=f"is of format {number} and this version reads format 2: {advice}$"):
        CohortStore.open(store.path)


def test_a_whole_subject_of_an_older_format_is_not_offered(tmp_path: Path) -> None:
    """A store whose manifest was lost is made anew: what lies there with its arrays elsewhere is not taken in."""
    store = CohortStore.create(tmp_path / "store", recipe={"name": "ngff"}, channels=CHANNELS)
    kept = store.write(*example_case(0, CHANNELS))
    assert store.uncommitted() == [kept]
    folder = store.path / "subjects" / "sub-00"
    shutil.rmtree(folder)
    _, example = example_case(0, CHANNELS)
    write_array(folder / "image", example.image, ChunkSettings())
    for role in ("brain", "head", "lesion", "structures"):
        write_array(folder / role, np.asarray(getattr(example, role)).astype(np.uint16), ChunkSettings())
    listing = {"record": as_json(kept), "files": folder_digests(folder)}
    write_group(folder, {"vesalius": listing}, store.path / ".partial")
    assert store.uncommitted() == []


def as_json(record: SubjectRecord) -> Any:
    return record.model_dump(mode="json")
