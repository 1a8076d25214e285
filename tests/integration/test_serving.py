"""A server answers as ``vesalius score`` does, for one or for many at once, and loses nothing while versions change."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.parser import BytesParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.infra.cli.app import app
from vesalius.infra.serving.testing.hostile_archives import packed
from vesalius.infra.serving.testing.hostile_requests import raw
from vesalius.infra.serving.testing.hostile_volumes import good
from vesalius.infra.serving.testing.server import AFFINE, head, make_model, served, write_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vesalius.infra.serving.testing.server import Served

# The warnings are MLflow's and Ray's own.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

NAME = "brain"
METHODS = "vesalius.methods:METHODS"
TOKEN = "a-token-of-tests-0123456789"
FIGURES = ("method", "image_score", "threshold", "anomalous_ml", "highest")


@dataclass(frozen=True)
class Registry:
    folder: Path
    home: Path
    models: dict[str, Path]

    def point(self, version: str) -> None:
        """Make a version the champion."""
        from vesalius.platform.tracking import client, tracking_uri

        client(tracking_uri(self.home)).set_registered_model_alias(NAME, "champion", version)

    def by_command_line(self, model: object, *files: Path) -> tuple[dict[str, Any], Any]:
        """Return the document and the map's voxels of ``vesalius score``."""
        out = self.folder / f"scored-{len(list(self.folder.glob('scored-*')))}"
        command = ["score", model, *files, "--out", out, "--home", self.home, "--device", "cpu", "--json"]
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        return document, nibabel.Nifti1Image.from_filename(document["written"]["map"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    from vesalius.platform.registry import register

    folder = tmp_path_factory.mktemp("serving")
    home = folder / "server" / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        models = {}
        for mean in (1.0, 0.8):
            model = make_model(folder / f"model-{mean}", mean=mean)
            models[register(model, NAME, home=home, methods=METHODS).version] = model
        made = Registry(folder, home, models)
        made.point("1")
        yield made


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[Served]:
    left_out = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    model = f"models:/{NAME}@champion"
    with served(registry.folder / "server", model, "--batch", "4", environment=environment) as running:
        yield running


def voxels(content: bytes) -> tuple[Any, Any]:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return np.asarray(image.dataobj), image.affine


def test_answers_are_those_of_the_command_line_bit_for_bit(server: Served, registry: Registry, tmp_path: Path) -> None:
    file = write_head(tmp_path / "patient_T1w.nii.gz", 3)
    document, expected = registry.by_command_line(f"models:/{NAME}/1", file)
    answer = server.json("/v1/score", file.read_bytes())
    assert {key: answer[key] for key in FIGURES} == {key: document[key] for key in FIGURES}
    assert answer["highest"] > answer["threshold"]
    assert answer["anomalous_ml"] > 0
    assert answer["model"]["version"] == "1"
    status, _, content = server.ask(answer["result"]["map"])
    assert status == 200
    maps = [voxels(content)]
    status, headers, content = server.ask("/v1/score", file.read_bytes(), Accept="application/x-nifti")
    assert (status, headers["content-type"], headers["x-vesalius-version"]) == (200, "application/x-nifti", "1")
    assert float(headers["x-vesalius-image-score"]) == document["image_score"]
    maps.append(voxels(content))
    status, headers, content = server.ask("/v1/score", good(head(3), AFFINE), Accept="multipart/mixed")
    head_of_it = b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n"
    message: Any = BytesParser().parsebytes(head_of_it + content)
    parts = {part.get_filename(): part.get_payload(decode=True) for part in message.get_payload()}
    assert json.loads(parts["score.json"])["image_score"] == document["image_score"]
    maps.append(voxels(parts["map.nii.gz"]))
    for found, affine in maps:
        np.testing.assert_array_equal(found, np.asarray(expected.dataobj))
        np.testing.assert_array_equal(affine, expected.affine)


def test_the_command_that_the_server_names_is_answered(server: Served, tmp_path: Path) -> None:
    """``curl --data-binary`` says of every file that it is a form."""
    body = write_head(tmp_path / "patient_T1w.nii.gz", 3).read_bytes()
    expected = server.json("/v1/score", body)
    answer = server.json("/v1/score", body, **{"Content-Type": "application/x-www-form-urlencoded"})
    assert {key: answer[key] for key in FIGURES} == {key: expected[key] for key in FIGURES}
    curl = shutil.which("curl")
    if curl is not None:
        words = ["-q", "--noproxy", "*", "--silent", "--data-binary", f"@{tmp_path}/patient_T1w.nii.gz"]
        command = [curl, *words, f"{server.address}/v1/score"]
        said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        assert {key: said[key] for key in FIGURES} == {key: expected[key] for key in FIGURES}


def test_a_zip_of_a_series_is_scored_as_its_folder(server: Served, registry: Registry, tmp_path: Path) -> None:
    plan = SeriesPlan(
        places_mm=[4.0 * index for index in range(16)], size=(18, 20), pixel_mm=(4.0, 4.0), tags={"Modality": "MR"}
    )
    files = write_series(tmp_path / "study", plan, lambda points: 40.0 + points[..., 0] + 2 * points[..., 1])
    document, expected = registry.by_command_line(f"models:/{NAME}/1", tmp_path / "study")
    body = packed({f"a/{path.name}": path.read_bytes() for path in files})
    answer = server.json("/v1/score", body, **{"Content-Type": "application/zip"})
    assert {key: answer[key] for key in FIGURES} == {key: document[key] for key in FIGURES}
    found, _ = voxels(server.ask(answer["result"]["map"])[2])
    np.testing.assert_array_equal(found, np.asarray(expected.dataobj))


def test_many_at_once_are_scored_together_and_bad_ones_harm_none(server: Served) -> None:
    bodies = [good(head(number), AFFINE) for number in range(12)]
    alone = [server.json("/v1/score", body)["image_score"] for body in bodies]
    bad = [body[:-9] for body in bodies[:4]]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda body: server.ask("/v1/score", body), [*bodies, *bad]))
    assert [status for status, _, _ in answers] == [200] * 12 + [422] * 4
    documents = [json.loads(content) for _, _, content in answers[:12]]
    assert [document["image_score"] for document in documents] == alone
    assert max(document["together"] for document in documents) > 1
    assert len({document["result"]["id"] for document in documents}) == 12


def test_state_results_and_metrics_are_told(server: Served) -> None:
    assert server.json("/healthz") == {"alive": True}
    assert server.json("/readyz")["model"]["name"] == NAME
    model = server.json("/v1/model")
    assert (model["version"], model["follows"], model["channels"]) == ("1", f"models:/{NAME}@champion", ["T1w"])
    assert model["card"]["cohort"]["num_subjects"] == 2
    assert "subjects" not in model["card"]["cohort"]  # whose images it learnt from is no one's affair here
    answer = server.json("/v1/score", good(head(0), AFFINE))
    place = f"/v1/results/{answer['result']['id']}"
    assert server.json(place) == answer
    view = gzip.decompress(server.ask(f"{place}/view")[2])
    length = int.from_bytes(view[:4], "little")
    shown = json.loads(view[4 : 4 + length])
    assert shown["shape"] == [18, 20, 16]
    assert len(view) == 4 + length + 3 * 18 * 20 * 16
    assert np.frombuffer(view, np.uint8, offset=4 + length + 2 * 18 * 20 * 16).max() == 255
    assert server.ask(place, method="DELETE")[0] == 204
    assert server.ask(f"{place}/map.nii.gz")[0] == 404
    deadline = time.monotonic() + 60
    wanted = (
        "ray_vesalius_volumes_scored_total",
        "ray_vesalius_serving_requests_total",
        "ray_vesalius_serving_seconds",
    )
    while time.monotonic() < deadline:
        status, _, content = server.ask("/metrics")
        if status == 200 and all(name in content.decode() for name in wanted):
            break
        time.sleep(1)
    else:
        pytest.fail("the metrics do not hold ours")


def test_the_champion_changes_without_a_lost_request(server: Served, registry: Registry) -> None:
    body = good(head(1), AFFINE)
    expected = {"1": server.json("/v1/score", body)["image_score"]}
    answers: list[tuple[float, float, int, Any]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            begun = time.monotonic()
            status, document = server.tried("/v1/score", body)
            answers.append((begun, time.monotonic(), status, document))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    moves = []
    try:
        for version in ("2", "1", "2"):
            time.sleep(2)
            moves.append(time.monotonic())
            registry.point(version)
            _wait_for(lambda wanted=version: server.json("/v1/model")["version"] == wanted)  # type: ignore[misc]
        time.sleep(2)
        assert all(thread.is_alive() for thread in threads)
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert [(status, said) for _, _, status, said in answers if status != 200] == []
    expected["2"] = server.json("/v1/score", body)["image_score"]
    assert expected["1"] != expected["2"]
    for _, _, _, document in answers:
        assert document["image_score"] == expected[document["model"]["version"]]
    # From the first answer of a new version on, no request that begins later is answered by the old one.
    bounds = [*moves, time.monotonic()]
    for (move, until), version in zip(pairwise(bounds), ("2", "1", "2"), strict=True):
        new = [end for begun, end, _, document in answers if begun > move and document["model"]["version"] == version]
        in_time = [
            document["model"]["version"] for begun, end, _, document in answers if begun > min(new) and end < until
        ]
        assert set(in_time) == {version}
    print(f"{len(answers)} answers, none lost; {len(moves)} changes")
    registry.point("1")
    assert server.json("/v1/reload", b"")["model"]["version"] == "1"


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_its_place(server: Served, registry: Registry) -> None:
    from vesalius.platform.registry import register
    from vesalius.platform.tracking import client, tracking_uri

    model = make_model(registry.folder / "damaged", mean=0.6)
    version = register(model, NAME, home=registry.home, methods=METHODS).version
    source = client(tracking_uri(registry.home)).get_model_version(NAME, version).source
    weights = next(Path(unquote(urlsplit(source).path)).rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    registry.point(version)
    status, _, content = server.ask("/v1/reload", b"")
    answer = json.loads(content)
    assert status == 503
    assert "SHA-256 differs" in answer["problem"]
    assert answer["model"]["version"] == "1"
    assert server.json("/v1/score", good(head(0), AFFINE))["model"]["version"] == "1"
    assert server.json("/v1/model")["problem"]
    registry.point("1")
    assert server.json("/v1/reload", b"")["problem"] is None


def test_a_scorer_that_is_killed_is_replaced(server: Served) -> None:
    import psutil

    scorer = next(
        process
        for process in server.processes()
        if any("ServeReplica:vesalius:scorer" in part for part in psutil.Process(process).cmdline())
    )
    os.kill(scorer, 9)
    body = good(head(0), AFFINE)
    answers = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        status, _, content = server.ask("/v1/score", body)
        answers.append((status, content[:200]))
        if status == 200:
            break
        time.sleep(0.5)
    assert answers[-1][0] == 200, answers[-3:]
    assert {status for status, _ in answers} <= {200, 503}, answers
    print(f"after {len(answers) - 1} refusals")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server of a model with two channels that asks for a token and takes one request at a time."""
    folder = tmp_path_factory.mktemp("guarded")
    model = make_model(folder / "two", channels=("T1w", "FLAIR"))
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ("--token-file", str(token), "--queue", "1", "--upload-timeout", "6")
    with served(folder / "server", str(model), *options) as running:
        yield running


def multipart(**files: bytes) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files.items()
    )
    return body + b"--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


def test_a_token_is_asked_for(guarded: Served) -> None:
    body, kind = multipart(T1w=good(head(0), AFFINE), FLAIR=good(head(1), AFFINE))
    for given in (None, "", TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ☠"):
        headers = {**kind, **({} if given is None else {"Authorization": given.encode().decode("latin-1")})}
        status, answer, content = guarded.ask("/v1/score", body, **headers)
        assert status == 401, (given, content)
        assert answer["www-authenticate"] == "Bearer"
        assert TOKEN.encode() not in content
    for path in ("/v1/model", "/metrics", "/v1/results/" + "a" * 22, "/nothing", f"/v1/model?token={TOKEN}"):
        assert guarded.ask(path)[0] == 401
    for path in ("/healthz", "/readyz", "/"):
        assert guarded.ask(path)[0] == 200
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.json("/v1/model", **bearing)["channels"] == ["T1w", "FLAIR"]
    assert guarded.json("/v1/score", body, **kind, **bearing)["image_score"] > 0
    assert TOKEN not in guarded.log.read_text()
    assert TOKEN not in json.dumps(guarded.document)
    import psutil

    assert not any(TOKEN in " ".join(psutil.Process(process).cmdline()) for process in guarded.processes())


def test_parts_are_channels(guarded: Served, tmp_path: Path) -> None:
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    mask = (head(0) > 0.4).astype(np.float32)
    files = {"T1w": good(head(0), AFFINE), "FLAIR": good(head(1), AFFINE), "brain_mask": good(mask, AFFINE)}
    body, kind = multipart(**files)
    answer = guarded.json("/v1/score", body, **kind, **bearing)
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / f"{name}.nii")
        paths[-1].write_bytes(content)
    model = guarded.log.parent.parent / "two"
    command = ["score", model, *paths[:2], "--brain-mask", paths[2], "--out", tmp_path / "out", "--json"]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert {key: answer[key] for key in FIGURES} == {key: document[key] for key in FIGURES}
    body, kind = multipart(T1w=files["T1w"], FLAIRE=files["FLAIR"])
    status, _, content = guarded.ask("/v1/score", body, **kind, **bearing)
    assert (status, json.loads(content)["error"]) == (422, "there is no part 'FLAIRE': did you mean 'FLAIR'?")
    status, _, content = guarded.ask("/v1/score", files["T1w"], **bearing)
    assert status == 422
    assert "the model takes 2 images (T1w, FLAIR)" in json.loads(content)["error"]


def test_who_is_one_too_many_is_told_when_to_come_again(guarded: Served) -> None:
    bearing = {"Authorization": f"Bearer {TOKEN}"}
    slow = raw(
        "POST /v1/score HTTP/1.1",
        "Content-Length: 100000",
        "Content-Type: multipart/form-data; boundary=edge",
        f"Authorization: Bearer {TOKEN}",
        host=f"127.0.0.1:{guarded.port}",
    )
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as line:
        line.sendall(slow + b"--edge\r\n")
        body, kind = multipart(T1w=good(head(0), AFFINE), FLAIR=good(head(1), AFFINE))
        time.sleep(1)
        status, headers, content = guarded.ask("/v1/score", body, **kind, **bearing)
        assert status == 503, content
        assert 1 <= int(headers["retry-after"]) <= 60
        assert guarded.ask("/healthz")[0] == 200
        # The body that does not come is waited for so long and no longer.
        assert line.recv(65536).startswith(b"HTTP/1.1 408")
    assert guarded.json("/v1/score", body, **kind, **bearing)["image_score"] > 0


def test_idle_lines_keep_no_one_out(guarded: Served) -> None:
    lines = [socket.create_connection(("127.0.0.1", guarded.port), timeout=30) for _ in range(200)]
    try:
        for line in lines:
            line.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert guarded.json("/v1/model", Authorization=f"Bearer {TOKEN}")["channels"] == ["T1w", "FLAIR"]
    finally:
        for line in lines:
            line.close()


def _wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
