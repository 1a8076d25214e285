"""The Serve application: for ``serve run``, a Serve config file, or KubeRay's RayService.

::

    applications:
      - name: vesalius
        import_path: vesalius.infra.serving.application:build
        args: {model: "models:/brain@champion", device: cuda, gpus: 1, token_file: /etc/vesalius/token}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from vesalius.infra.serving.scorer import Scorer
from vesalius.infra.serving.settings import INGRESS_CPUS, ServingSettings, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application

_INGRESS_REQUESTS = 2048
"""Far more than are admitted: who is one too many is told so by us, in words, and not by Serve."""


class Ingress:
    """The Serve deployment that requests reach."""

    async def __init__(self, settings: dict[str, Any], scorer: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        from vesalius.infra.serving.service import Service
        from vesalius.infra.serving.tokens import expected_digest

        known = ServingSettings.model_validate(settings)
        self._token_sha256 = expected_digest(known)
        self._service = Service(known, scorer)
        self._service.begin()

    def __serve_build_asgi_app__(self) -> Any:
        from vesalius.infra.serving.web import create_app

        return create_app(self._service, self._token_sha256)

    async def end(self, seconds: float) -> int:
        """Take no more requests in; return how many are still under way when none is, or after so many seconds."""
        return await self._service.requests.end(seconds)

    async def __del__(self) -> None:
        await self._service.close()


def build(args: Mapping[str, Any]) -> Application:
    """Return the application.

    Args:
        args: :class:`ServingSettings`, by name.

    Raises:
        SettingError: one of them is unknown or cannot be.
    """
    settings = settings_of(args)
    dumped = settings.model_dump(mode="json")
    scorer = serve.deployment(
        Scorer,
        name="scorer",
        num_replicas=settings.replicas,
        # Those of a batch that waits, beside those of the one that is scored.
        max_ongoing_requests=2 * settings.batch_on("cuda" if settings.gpus or settings.device == "cuda" else "cpu") + 2,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=settings.limits.score_seconds,
    ).bind(dumped)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        # One: it keeps the answers, and a switch of versions is one moment for all requests.
        num_replicas=1,
        max_ongoing_requests=_INGRESS_REQUESTS,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        graceful_shutdown_timeout_s=settings.limits.score_seconds,
    )
    application: Application = ingress.bind(dumped, scorer)
    return application
