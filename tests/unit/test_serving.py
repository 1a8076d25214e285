"""What a server does with a request, without Ray: an application in this process, and a scorer that plays a part."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vesalius.infra.serving.archives import unpack
from vesalius.infra.serving.jobs import Job, Pinned, Scored
from vesalius.infra.serving.refusals import Refusal
from vesalius.infra.serving.running import with_hosts
from vesalius.infra.serving.scratch import Scratch
from vesalius.infra.serving.settings import TOKEN_VARIABLE, Limits, ServingSettings
from vesalius.infra.serving.testing.hostile_archives import packed
from vesalius.infra.serving.testing.hostile_volumes import good
from vesalius.infra.serving.testing.in_process import BODY, ask, sentence, serve
from vesalius.infra.serving.testing.server import AFFINE, head, make_model
from vesalius.infra.serving.tokens import bears, expected_digest, token_digest
from vesalius.platform.errors import DivergenceError, SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from vesalius.infra.serving.service import Service


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_volume_is_scored(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        status, headers, content = await ask(app, "/v1/score", BODY)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'")
        document = json.loads(content)
        assert document["image_score"] > document["threshold"] > 0
        assert document["model"]["name"] == model.parent.name

    assert serve(model, talk).calls == [False]


def test_a_dead_scorer_is_asked_again_alone_and_not_for_ever(model: Path) -> None:
    from ray.exceptions import ActorDiedError

    async def talk(app: Any, service: Service) -> None:
        assert (await ask(app, "/v1/score", BODY))[0] == 200
        status, headers, content = await ask(app, "/v1/score", BODY)
        assert status == 503
        assert "ended each of 3 times" in sentence(content)
        assert headers["retry-after"] == "30"

    died = [ActorDiedError() for _ in range(4)]
    assert serve(model, talk, died[0], None, *died[1:]).calls == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("act", "status", "said"),
    [
        (Scored(error=DivergenceError("its map holds NaN")), 422, "its map holds NaN"),
        (Scored(error="RuntimeError"), 500, "the method failed at this volume (RuntimeError)"),
        (60.0, 504, "was not scored within 4 s"),
    ],
)
def test_what_goes_wrong_at_the_scorer_is_said(model: Path, act: Any, status: int, said: str) -> None:
    async def talk(app: Any, service: Service) -> None:
        found, _, content = await ask(app, "/v1/score", BODY)
        assert found == status
        assert said in sentence(content)
        assert (await ask(app, "/v1/score", BODY))[0] == 200

    serve(model, talk, act, limits=Limits(score_seconds=4.0))


def test_bodies_are_counted_and_timed_while_they_come(model: Path) -> None:
    limits = Limits(upload_bytes=len(BODY), idle_seconds=0.2, upload_seconds=0.6)

    def piece(body: bytes, more: bool = True) -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": more}

    async def talk(app: Any, service: Service) -> None:
        for pieces, status, said in (
            ([piece(BODY), piece(b"1", False)], 413, "too large"),
            ([piece(BODY[:9]), 5.0], 408, "too slowly"),
            ([part for _ in range(9) for part in (piece(b"x"), 0.1)], 408, "within 0.6 s"),
        ):
            begun = time.monotonic()
            found, headers, content = await ask(app, "/v1/score", pieces=pieces)
            assert (found, said in sentence(content)) == (status, True)
            assert headers["connection"] == "close"
            assert time.monotonic() - begun < 5
        found, _, content = await ask(app, "/v1/score", BODY, content_length=str(10**12))
        assert (found, "1,000,000,000,000 bytes" in sentence(content)) == (413, True)
        gone = [piece(BODY[:9]), {"type": "http.disconnect"}]
        assert (await ask(app, "/v1/score", pieces=gone))[0] == 499
        assert (await ask(app, "/v1/score", pieces=[piece(BODY[:99]), piece(BODY[99:], False)]))[0] == 200

    serve(model, talk, limits=limits)


def test_who_is_one_too_many_is_sent_away(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        first = asyncio.ensure_future(ask(app, "/v1/score", BODY))
        await asyncio.sleep(0.1)
        status, headers, content = await ask(app, "/v1/score", BODY)
        assert (status, "1 requests are under way" in sentence(content)) == (503, True)
        assert int(headers["retry-after"]) >= 1
        assert (await ask(app, "/healthz", method="GET"))[0] == 200
        assert (await first)[0] == 200
        assert (await ask(app, "/v1/score", BODY))[0] == 200

    serve(model, talk, 0.5, limits=Limits(queue=1))


def test_tokens_names_and_origins_are_checked(model: Path) -> None:
    import hashlib

    token = "0123456789abcdef"

    async def talk(app: Any, service: Service) -> None:
        for given in ("", f"Bearer {token[:-1]}", f"Basic {token}", token, f"Bearer {token} x"):
            status, _, content = await ask(app, "/v1/score", BODY, authorization=given)
            assert (status, "no valid token" in sentence(content)) == (401, True)
        bearing = {"authorization": f"bearer {token}"}
        assert (await ask(app, "/v1/score", BODY, **bearing))[0] == 200
        assert (await ask(app, "/v1/model", method="GET"))[0] == 401
        for path in ("/", "/healthz", "/readyz"):
            assert (await ask(app, path, method="GET"))[0] == 200
        for origin in ("http://evil.example", "null", "http://[", "http://127.0.0.1:1"):
            assert (await ask(app, "/v1/score", BODY, origin=origin, **bearing))[0] == 403
        assert (await ask(app, "/v1/score", BODY, origin="http://127.0.0.1:8000", **bearing))[0] == 200
        assert (await ask(app, "/v1/model", method="GET", host="evil.example", **bearing))[0] == 421
        assert (await ask(app, "/v1/model", method="GET", host="LocalHost:1", **bearing))[0] == 200
        assert (await ask(app, "/", method="GET", host="evil.example"))[0] == 421
        for path in ("/healthz", "/readyz"):  # a load balancer asks by an address
            assert (await ask(app, path, method="GET", host="10.0.0.7:8000"))[0] == 200

    serve(model, talk, token=hashlib.sha256(token.encode()).hexdigest(), hosts=("localhost", "127.0.0.1"))


def test_sentences_do_not_tell_where_things_lie(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        for body in (BODY[:200], BODY[:-9], good(head(0)[:5], AFFINE), packed({"a.dcm": b"junk"})):
            status, _, content = await ask(app, "/v1/score", body)
            assert status == 422
            said = sentence(content)
            assert str(service.scratch.path) not in said
            assert said.startswith(("the image", "the archive")), said

    serve(model, talk)


def test_results_are_given_up_by_age_and_number(model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        names = [json.loads((await ask(app, "/v1/score", BODY))[2])["result"]["id"] for _ in range(3)]
        found = [(await ask(app, f"/v1/results/{name}", method="GET"))[0] for name in names]
        assert found == [404, 200, 200]
        assert len(list((service.scratch.path / "results").iterdir())) == 2
        await asyncio.sleep(1.1)
        assert (await ask(app, f"/v1/results/{names[2]}/view", method="GET"))[0] == 404
        assert list((service.scratch.path / "results").iterdir()) == []

    serve(model, talk, keep=2, keep_seconds=1.0)


def test_a_thread_that_outlives_its_request_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vesalius.infra.serving import service as module

    held, prepare = threading.Event(), module._prepare

    def slow(upload: Any, *others: Any) -> Any:
        held.wait(10)
        upload.images[0].parent.mkdir(exist_ok=True)
        (upload.images[0].parent / "late").write_bytes(b"x")
        return prepare(upload, *others)

    monkeypatch.setattr(module, "_prepare", slow)

    async def talk(app: Any, service: Service) -> None:
        assert (await ask(app, "/v1/score", BODY))[0] == 504
        held.set()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not list((service.scratch.path / "uploads").iterdir()):
                return

    serve(model, talk, limits=Limits(score_seconds=0.3))


def test_a_server_without_its_model_is_alive_and_not_ready(tmp_path: Path, model: Path) -> None:
    async def talk(app: Any, service: Service) -> None:
        service.follower._present = None
        assert (await ask(app, "/healthz", method="GET"))[0] == 200
        for path, method in (("/readyz", "GET"), ("/v1/model", "GET"), ("/v1/score", "POST")):
            status, _, content = await ask(app, path, method=method)
            assert (status, "no model is loaded yet" in sentence(content)) == (503, True)

    serve(model, talk)


def test_what_others_can_reach_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    settings = ServingSettings(model="m", without_token=True)
    assert "localhost" in with_hosts(settings, "127.0.0.1", allowed=()).hosts
    for host in ("0.0.0.0", "192.168.1.7", "::", "machine.example"):
        with pytest.raises(SettingError, match="there is no token"):
            with_hosts(settings, host, allowed=())
    with pytest.raises(SettingError, match="the server has no token"):
        expected_digest(ServingSettings(model="m"))
    file = tmp_path / "token"
    for text, mode, said in (
        ("short", 0o600, "holds no token"),
        ("with a space in it, long", 0o600, "holds no token"),
        ("0123456789abcdefö", 0o600, "holds no token"),
        ("0123456789abcdef", 0o644, "may be read by everyone"),
    ):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(SettingError, match=said):
            token_digest(file)
    file.chmod(0o600)
    found = token_digest(file)
    assert found is not None
    assert expected_digest(ServingSettings(model="m", token_file=str(file))) == found
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef")
    assert token_digest(None) == found
    assert bears("Bearer 0123456789abcdef", found)
    assert not bears("Bearer 0123456789abcdeF", found)
    with pytest.raises(SettingError, match="cannot be read"):
        token_digest(tmp_path / "none")


def test_archives_unpack_by_number(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(packed({"deep/er/ö.dcm": b"one", "b.dcm": b"two", "folder/": b""}))
    unpack(archive, tmp_path / "out", Limits())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "file-0001": b"one",
        "file-0002": b"two",
    }
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    archive.write_bytes(packed({"a": bytes(20_000), "b": bytes(20_000)}))
    with pytest.raises(Refusal, match="unpacks to 40,000 bytes"):
        unpack(archive, tmp_path / "more", Limits(unpacked_bytes=30_000))


def test_what_a_killed_server_left_is_cleared(tmp_path: Path) -> None:
    parent = tmp_path / "serving"
    living = Scratch(parent)
    dead = Scratch(parent)
    (dead.path / "uploads").mkdir()
    (dead.path / "uploads" / "image-0").write_bytes(b"x")
    os.close(dead._descriptor)  # as the operating system does when a process dies
    third = Scratch(parent)
    assert living.path.exists()
    assert third.path.exists()
    assert not dead.path.exists()
    living.close()
    third.close()
    assert list(parent.iterdir()) == []
    parent.chmod(0o755)
    with pytest.raises(SettingError, match="is not this user's alone"):
        Scratch(parent)


def test_a_job_travels_unchanged() -> None:
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    image.flags.writeable = False
    job = Job(
        pinned=Pinned(reference="r", folder="f", digest="d"),
        image=image,
        brain=image[0] > 3,
        head=None,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0)),
    )
    volume = job.volume()
    volume.image.add_(1)
    assert float(volume.image[0, 0, 0, 0]) == 1
    assert image[0, 0, 0, 0] == 0


@pytest.mark.filterwarnings("ignore")  # Ray Serve's own, when it is imported
@pytest.mark.parametrize(
    ("args", "ongoing"),
    [({}, 4), ({"gpus": 1}, 10), ({"device": "cuda"}, 10), ({"device": "cuda", "batch": 2}, 6)],
)
def test_a_scorer_has_room_for_a_batch_that_waits(args: dict[str, object], ongoing: int) -> None:
    from vesalius.infra.serving.application import build

    application = build({"model": "m", "without_token": True, **args})
    _, scorer = application._bound_deployment.init_args
    assert scorer._bound_deployment.max_ongoing_requests == ongoing


@pytest.mark.filterwarnings("ignore")  # Ray Serve's own, when it is imported
def test_an_application_is_built_from_plain_arguments() -> None:
    from vesalius.infra.serving.application import build

    assert build({"model": "models:/brain@champion", "without_token": True, "limits": {"queue": 4}}) is not None
    for args, said in (
        ({"model": "m", "replica": 2}, "did you mean 'replicas'"),
        ({}, "model"),
        ({"model": "m", "limits": {"queues": 4}}, "did you mean"),
        ({"model": "m", "without_token": True, "token_file": "t"}, "take one of them"),
    ):
        with pytest.raises(SettingError, match=said):
            build(args)


def test_what_cannot_be_served_is_said_before_anything_starts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from typer.testing import CliRunner

    from vesalius.infra.cli.app import app as verbs

    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    home = ("--home", str(tmp_path / "home"), "--device", "cpu", "--json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["no-such-run"], "no-such-run"),
            ([str(model), "--host", "0.0.0.0"], "there is no token"),
            ([str(model), "--port", port], "cannot be bound"),
            ([str(model), "--token-file", str(tmp_path / "none")], "cannot be read"),
            ([str(tmp_path)], "holds no model"),
        ):
            done = CliRunner().invoke(verbs, ["serve", *arguments, *home])
            assert done.exit_code == 2, (arguments, done.output)
            assert said in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("accept", "query", "kind"),
    [
        ("*/*", None, "json"),
        ("application/x-nifti", None, "map"),
        ("text/html, multipart/mixed;q=0.9", None, "both"),
        ("application/x-nifti", "json", "json"),
        ("", "map", "map"),
        ("", "xml", None),
    ],
)
def test_an_answer_is_of_the_kind_asked_for(accept: str, query: str | None, kind: str | None) -> None:
    from vesalius.infra.serving.answering import kind_wanted

    assert kind_wanted(accept, query) == kind
