"""What a server does when its disk is full, when it has a defect, when it is to end, and when a scorer cannot load."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import shutil
import socket
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.datasets.dicom.writing import SeriesPlan, write_series
from vesalius.datasets.recipes.general import as_is
from vesalius.infra.serving import answering, running
from vesalius.infra.serving.archives import unpack
from vesalius.infra.serving.checking import checked
from vesalius.infra.serving.jobs import Job, Pinned
from vesalius.infra.serving.refusals import Refusal
from vesalius.infra.serving.running import Running, until_told
from vesalius.infra.serving.settings import TOKEN_VARIABLE, Limits
from vesalius.infra.serving.testing.hostile_archives import packed
from vesalius.infra.serving.testing.in_process import BODY, ask, sentence, serve
from vesalius.infra.serving.testing.server import make_model
from vesalius.infra.serving.uploads import Upload
from vesalius.platform.errors import ModelError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vesalius.infra.serving.service import Service

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def full_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of a name lie on a disk that is full."""
    opened = Path.open

    def onto_a_full_disk(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if self.name.startswith(name) and "x" in mode:
            return open("/dev/full", "wb", buffering=0)
        return opened(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", onto_a_full_disk)


def test_a_disk_that_is_full_is_said_and_nothing_is_left_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assert_full(answer: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, content = answer
        assert (status, headers["retry-after"]) == (503, "60")
        assert sentence(content) == "the server's disk is full: try again later"
        assert headers["x-content-type-options"] == "nosniff"

    async def talk(app: Any, service: Service) -> None:
        saved = np.save
        with monkeypatch.context() as patch:

            def half(path: Any, *arguments: Any, **named: Any) -> None:
                if str(path).endswith("map.npy"):
                    raise FULL
                saved(path, *arguments, **named)

            patch.setattr(np, "save", half)
            assert_full(await ask(app, "/v1/score", BODY))
            assert list((service.scratch.path / "results").iterdir()) == [], "no image of a patient stays"
        with monkeypatch.context() as patch:
            full_behind("image-0", patch)
            assert_full(await ask(app, "/v1/score", BODY))
        answer = json.loads((await ask(app, "/v1/score", BODY))[2])
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> None:
                raise FULL

            patch.setattr(answering, "write_native", fails)
            assert_full(await ask(app, answer["result"]["map"], method="GET"))
            assert_full(await ask(app, "/v1/score?answer=both", BODY))

    serve(model, talk)


@pytest.mark.parametrize("part", ["map.nii.gz", "view"])
def test_an_answer_that_is_removed_while_it_is_fetched_is_no_failure_of_the_disk(
    model: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    async def talk(app: Any, service: Service) -> None:
        place = json.loads((await ask(app, "/v1/score", BODY))[2])["result"]["map"].replace("map.nii.gz", part)
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(np, "load", fails)
            status, _, content = await ask(app, place, method="GET")
            assert (status, sentence(content)) == (
                503,
                "the server's disk failed (Input/output error): try again later",
            )
        get = service.results.get

        def swept(name: str) -> Any:
            kept = get(name)
            shutil.rmtree(kept.folder)
            return kept

        monkeypatch.setattr(service.results, "get", swept)
        status, _, content = await ask(app, place, method="GET")
        assert status == 404
        assert sentence(content).startswith("there is no such result")

    serve(model, talk)


def test_a_full_disk_is_not_the_archive_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a", os.urandom(3 << 20))
    full_behind("file-", monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "out", Limits())


def test_a_defect_is_answered_in_json_and_stays_in_the_log(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(app: Any, service: Service) -> None:
        def defect(*_: Any) -> None:
            raise KeyError("a secret of ours")

        monkeypatch.setattr(answering, "map_file", defect)
        status, headers, content = await ask(app, "/v1/score?answer=map", BODY)
        assert (status, headers["content-type"]) == (500, "application/json")
        assert sentence(content) == "the server failed at this request: its log says more"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert (await ask(app, "/v1/score", BODY))[0] == 200

    serve(model, talk)


def test_answers_are_given_up_when_nobody_asks_any_more(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        service.begin()
        assert (await ask(app, "/v1/score", BODY))[0] == 200
        folder = service.scratch.path / "results"
        assert len(list(folder.iterdir())) == 1
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not list(folder.iterdir()):
                return
        pytest.fail("an image of a patient stays on the disk")

    serve(model, talk, keep_seconds=0.5)


def test_a_server_that_is_to_end_answers_what_is_under_way(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        first = asyncio.ensure_future(ask(app, "/v1/score", BODY))
        await asyncio.sleep(0.1)
        ending = asyncio.ensure_future(service.requests.end(60))
        await asyncio.sleep(0.1)
        for path, method in (("/v1/score", "POST"), ("/readyz", "GET")):
            status, headers, content = await ask(app, path, BODY, method=method)
            assert (status, "is ending" in sentence(content)) == (503, True)
            assert headers["connection"] == "close"
        assert (await ask(app, "/healthz", method="GET"))[0] == 200
        assert not ending.done()
        assert (await first)[0] == 200
        assert await ending == 0

    serve(model, talk, 1.0)


def test_a_server_waits_for_what_is_under_way_for_so_long_and_no_longer(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        first = asyncio.ensure_future(ask(app, "/v1/score", BODY))
        await asyncio.sleep(0.1)
        assert await service.requests.end(0.1) == 1
        assert (await first)[0] == 200

    serve(model, talk, 3.0)


def test_a_version_that_one_scorer_cannot_load_does_not_take_over(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        service.follower._present = None
        service._scorer.others = [None, ModelError("its SHA-256 differs")]
        found = await service.follower.look()
        assert (found["switched"], found["problem"]) == (False, "its SHA-256 differs")
        service._scorer.others = [None, None]
        assert (await service.follower.look())["problem"] is None
        assert (await ask(app, "/v1/score", BODY))[0] == 200

    serve(model, talk)


def test_an_upload_that_was_not_begun_in_time_is_not_begun_later(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.serving import service as module

    held, begun, prepare = threading.Event(), [], module._prepare

    def slow(upload: Any, *others: Any) -> Any:
        begun.append(upload)
        held.wait(10)
        return prepare(upload, *others)

    monkeypatch.setattr(module, "_prepare", slow)

    async def talk(app: Any, service: Service) -> None:
        answers = await asyncio.gather(*(ask(app, "/v1/score", BODY) for _ in range(3)))
        assert [status for status, _, _ in answers] == [504] * 3
        held.set()
        await service.in_thread(lambda: None)  # whatever stood before it in the queue is done
        assert len(begun) == 1

    serve(model, talk, limits=Limits(score_seconds=0.3), preparations=1)


def _job(model: Path) -> Job:
    """Return what an ingress asks a scorer for, of a volume of nothing."""
    from vesalius.infra.serving.versions import find_version

    version = find_version(str(model), model.parent)
    image = np.zeros((1, *version.card.cohort.grid), np.float32)
    return Job(
        pinned=Pinned(reference=version.reference, folder=str(version.folder), digest=version.digest),
        image=image,
        brain=image[0] == 0,
        head=None,
        spacing_mm=version.card.cohort.spacing_mm,
        affine=version.card.cohort.affine,
    )


@pytest.fixture
def no_loop_left() -> Iterator[None]:
    """Ray Serve's queue makes itself an event loop when it is given up outside of one, and leaves that open."""
    yield
    gc.collect()
    with contextlib.suppress(RuntimeError):
        asyncio.get_event_loop_policy().get_event_loop().close()
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("no_loop_left")
@pytest.mark.filterwarnings("ignore")  # Ray Serve's own, when it is imported
@pytest.mark.parametrize(("batch", "together"), [(None, 1), (4, 3)])
def test_a_scorer_on_a_cpu_takes_one_volume_at_a_time_unless_told(
    batch: int | None, together: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vesalius.infra.serving.scorer import Scorer

    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=10))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)

    async def talk() -> None:
        asked = {"model": str(model), "device": "cpu", "without_token": True, "batch": batch, "batch_seconds": 2}
        scorer, job = Scorer(asked), _job(model)
        scored = await asyncio.gather(*(scorer.score(job) for _ in range(3)))
        assert [one.error for one in scored] == [None] * 3
        assert [one.together for one in scored] == [together] * 3

    asyncio.run(talk())


@pytest.mark.usefixtures("no_loop_left")
@pytest.mark.filterwarnings("ignore")  # Ray Serve's own, when it is imported
def test_a_call_that_was_given_up_still_keeps_the_method_to_itself(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vesalius.infra.serving.scorer import Scorer

    job = _job(model)
    held, running_now, most = threading.Event(), [], []
    call = Scorer._call

    def slow(self: Any, *arguments: Any) -> Any:
        running_now.append(1)
        most.append(len(running_now))
        held.wait(10)
        running_now.pop()
        return call(self, *arguments)

    monkeypatch.setattr(Scorer, "_call", slow)

    async def talk() -> None:
        scorer = Scorer({"model": str(model), "device": "cpu", "without_token": True})
        first = asyncio.ensure_future(scorer.score(job, True))
        while not most:
            await asyncio.sleep(0.01)
        first.cancel()
        second = asyncio.ensure_future(scorer.score(job, True))
        assert await scorer.load(job.pinned) is None
        await asyncio.sleep(0.2)
        held.set()
        assert (await second).error is None

    asyncio.run(talk())
    assert most == [1, 1]


def test_a_zip_of_large_voxels_is_held_to_what_the_recipe_makes_of_it(tmp_path: Path) -> None:
    recipe = {**as_is().model_dump(mode="json"), "spacing_mm": [2.0, 2.0, 2.0]}

    def check(places_mm: list[float], pixel_mm: float, limits: Limits) -> None:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        plan = SeriesPlan(places_mm=places_mm, size=(16, 16), pixel_mm=(pixel_mm, pixel_mm), tags={"Modality": "MR"})
        files = write_series(folder / "series", plan, lambda points: 40.0 + points[..., 0])
        archive = folder / "image-0"
        archive.write_bytes(packed({file.name: file.read_bytes() for file in files}))
        checked(Upload(images=(archive,), brain_mask=None, names={archive: "the image"}), recipe, limits)

    even = [20.0 * index for index in range(8)]
    with pytest.raises(Refusal, match=r"would become 2\.05e\+06 voxels by the model's recipe"):
        check(even, 20.0, Limits(voxels=2_000_000))
    check(even, 20.0, Limits(voxels=2_100_000))
    uneven = [0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 14.0, 19.0]  # brought onto a plane each millimetre
    with pytest.raises(Refusal, match="has 16 x 16 x 20 voxels"):
        check(uneven, 1.0, Limits(voxels=16 * 16 * 19))


def test_each_scorer_gets_the_most_that_the_nodes_have() -> None:
    from vesalius.infra.serving.deploying import most_each

    def most(cores: Sequence[float], replicas: int) -> float:
        return most_each([{"CPU": have} for have in cores], replicas, 0)

    assert most([8.0], 1) == 7
    assert most([8.0], 2) == 3
    assert most([1.0], 1) == 0.9
    assert most([1.0], 2) == 0.4
    assert most([8.0, 4.0], 3) == 3
    assert most([2.0, 0.0], 1) == 1
    assert most([0.0, 0.05], 1) == 0
    assert most([], 1) == 0


_MIXED = [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}]
"""A head of many cores and a node of few beside a GPU."""


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "cpus"),
    [
        (_MIXED, 1, 0, 63),
        (_MIXED, 1, 1, 7),
        (_MIXED, 2, 0.5, 3),
        ([{"CPU": 64.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], 3, 1, 7),
    ],
)
def test_a_scorer_with_a_gpu_gets_the_cores_beside_one(
    nodes: list[dict[str, float]], replicas: int, gpus: float, cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vesalius.infra.serving import deploying

    monkeypatch.setattr(
        "ray._private.state.available_resources_per_node", lambda: dict(zip("abcd", nodes, strict=False))
    )
    assert deploying.scorer_cpus(replicas, gpus) == cpus


def test_what_a_cluster_can_never_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.serving import deploying
    from vesalius.infra.serving.settings import ServingSettings

    most = {"CPU": 2.0}
    nodes: list[dict[str, float]] = [{"CPU": 2.0}]
    monkeypatch.setattr(deploying, "capacity", lambda: most)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    deploying.check_room(ServingSettings(model="m", cpus=1.9))
    for asked, said in (
        ({"cpus": 2}, r"1 scorer\(s\) of 2 CPU\(s\) and an ingress of 0\.1 on 2 CPU\(s\): .* --cpus"),
        ({"cpus": 1, "replicas": 2}, "2 scorer"),
        ({"cpus": 1, "gpus": 1}, r"1 GPU\(s\)"),
    ):
        with pytest.raises(RunError, match=said):
            deploying.check_room(ServingSettings.model_validate({"model": "m", **asked}))

    most, nodes = {"CPU": 72.0, "GPU": 1.0}, _MIXED
    with pytest.raises(RunError, match=r"on 72 CPU\(s\) and 1 GPU\(s\) of 2 node\(s\), each scorer on one of them"):
        deploying.check_room(ServingSettings(model="m", cpus=63, gpus=1))
    deploying.check_room(ServingSettings(model="m", cpus=8, gpus=1))  # the ingress has room beside the other
    deploying.check_room(ServingSettings(model="m", cpus=63))
    most = {"CPU": 200.0, "GPU": 3.0}
    deploying.check_room(ServingSettings(model="m", cpus=63, gpus=1))  # on a node to come


def test_a_server_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(running, "_LOST_SECONDS", 0.2)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(RunError, match=r"is gone \(.*refused\): .*serve the model again"):
            until_told(Running(address=place, nearby=place, model={}))


def test_the_token_is_not_left_where_ray_s_processes_would_find_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from vesalius.infra.cli.app import app as verbs

    seen = []

    def begin(settings: Any, *_: Any, **__: Any) -> None:
        seen.append((settings.token_sha256, os.environ.get(TOKEN_VARIABLE)))
        raise RunError("so far and no further")

    monkeypatch.setattr(running, "serving", begin)
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef")
    done = CliRunner().invoke(verbs, ["serve", str(model), "--home", str(tmp_path), "--device", "cpu"])
    assert done.exit_code == 2, done.output
    [(digest, left)] = seen
    assert digest is not None
    assert left is None
