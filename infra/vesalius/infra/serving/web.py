"""Routes, and what stands before them: who may ask, by which name, and that every answer is in words."""

from __future__ import annotations

import logging
from pathlib import PurePath
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from vesalius.infra.serving import answering
from vesalius.infra.serving.guarding import Guard
from vesalius.infra.serving.refusals import Gone, Refusal, refusal_of_disk
from vesalius.infra.serving.uploads import Body, swallow

if TYPE_CHECKING:
    from vesalius.infra.serving.service import Answered, Service

_HIDDEN = {"subjects"}
_log = logging.getLogger("ray.serve")


def create_app(service: Service, token_sha256: str | None) -> FastAPI:
    """Return the ASGI application.

    Args:
        service: does the work.
        token_sha256: of the token that requests bear; None serves whoever asks.
    """
    app = FastAPI(title="Vesalius", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_state(app, service, with_token=token_sha256 is not None)
    _add_scoring(app, service)
    _add_results(app, service)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return refusal_answer(refusal)

    @app.exception_handler(OSError)
    async def disk_failed(_: Request, error: OSError) -> Response:
        if error.errno is None:  # no word of the operating system's: a defect
            raise error
        _log.error("the disk failed: %s", error)
        return refusal_answer(refusal_of_disk(error))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        sentences = {
            404: f"there is nothing at {request.url.path[:80]}",
            405: f"{request.method[:16]} is not done at {request.url.path[:80]}",
        }
        answer = error_answer(error.status_code, sentences.get(error.status_code, str(error.detail)[:200]))
        answer.headers.update(error.headers or {})
        return answer

    app.add_middleware(Guard, token_sha256=token_sha256, hosts=service.settings.hosts, requests=service.requests)
    return app


def error_answer(status: int, sentence: str) -> JSONResponse:
    """Return ``{"error": sentence}``."""
    return JSONResponse({"error": sentence}, status)


def refusal_answer(refusal: Refusal) -> JSONResponse:
    """Return a refusal as an answer."""
    answer = error_answer(refusal.status, refusal.sentence)
    if refusal.retry_seconds is not None:
        answer.headers["Retry-After"] = str(refusal.retry_seconds)
    if refusal.status in (408, 413):
        # What is left of the body is not read: the connection cannot be used again.
        answer.headers["Connection"] = "close"
    return answer


def _add_state(app: FastAPI, service: Service, *, with_token: bool) -> None:
    from vesalius.infra.pages.serving import serving_page

    page, policy = serving_page(with_token=with_token)

    @app.get("/")
    async def upload_page() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"alive": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        version = service.follower.present
        return JSONResponse({"ready": True, "model": version.describe()})

    @app.get("/metrics")
    async def metrics() -> Response:
        from vesalius.infra.serving.exporting import node_metrics

        return Response(await node_metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model")
    async def model() -> Response:
        version = service.follower.present
        card = version.card.model_dump(mode="json")
        card["cohort"] = {
            **{key: value for key, value in card["cohort"].items() if key not in _HIDDEN},
            "num_subjects": len(version.card.cohort.subjects),
        }
        if isinstance(card["recipe"].get("reference"), str):  # it may be a path, which is no one's affair here
            card["recipe"]["reference"] = PurePath(card["recipe"]["reference"]).name
        return JSONResponse(
            {
                **version.describe(),
                "follows": service.follower.shown,
                "switched": service.follower.switched,
                "problem": service.follower.problem or None,
                "channels": list(version.card.cohort.channels),
                "card": card,
            }
        )

    @app.post("/v1/reload")
    async def reload() -> Response:
        found = await service.follower.look()
        return JSONResponse(found, 200 if found["problem"] is None else 503)


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        body = Body(request.receive)
        kind = answering.kind_wanted(request.headers.get("accept", ""), request.query_params.get("answer"))
        try:
            if kind is None:
                raise Refusal(400, f"answer is none of {', '.join(answering.KINDS)}: leave it out, or take one of them")
            answered = await service.score(request.headers, body)
            return await _sent(service, answered, kind)
        except Gone:
            return Response(status_code=499)
        except Exception:  # whatever it is, the client is still sending, and hears of it only afterwards
            await swallow(body)
            raise


async def _sent(service: Service, answered: Answered, kind: str) -> Response:
    headers = {
        "X-Vesalius-Model": "".join(
            one if one.isascii() and one.isprintable() else "?" for one in answered.version.name
        ),
        "X-Vesalius-Version": answered.version.label,
        "X-Vesalius-Digest": answered.version.digest,
        "X-Vesalius-Image-Score": repr(answered.answer.score.image_score),
    }
    if kind == "json":
        _, document = await service.in_thread(lambda: service.results.add(answered.answer, answered.document))
        return JSONResponse(document, headers=headers)
    nifti = await service.in_thread(lambda: answering.map_file(answered.answer, service.scratch.path))
    if kind == "map":
        headers["Content-Disposition"] = 'attachment; filename="map.nii.gz"'
        return Response(nifti, media_type=answering.NIFTI, headers=headers)
    body, media_type = answering.both(answered.document, nifti)
    return Response(body, media_type=media_type, headers=headers)


def _add_results(app: FastAPI, service: Service) -> None:
    @app.get("/v1/results/{name}")
    async def result(name: str) -> Response:
        return JSONResponse(dict(service.results.get(name).document))

    @app.delete("/v1/results/{name}")
    async def forget(name: str) -> Response:
        service.results.remove(name)
        return Response(status_code=204)

    @app.get("/v1/results/{name}/map.nii.gz")
    async def result_map(name: str) -> Response:
        kept = service.results.get(name)
        nifti = await service.in_thread(lambda: answering.map_file(kept.whole(), service.scratch.path))
        headers = {"Content-Disposition": 'attachment; filename="map.nii.gz"'}
        return Response(nifti, media_type=answering.NIFTI, headers=headers)

    @app.get("/v1/results/{name}/view")
    async def result_view(name: str) -> Response:
        kept = service.results.get(name)
        body = await service.in_thread(lambda: answering.view(kept.whole()))
        return Response(body, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"})
