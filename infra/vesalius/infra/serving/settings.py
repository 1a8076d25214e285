"""What a server may be told."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from vesalius.platform.config import Settings, validate
from vesalius.platform.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_VARIABLE = "VESALIUS_SERVE_TOKEN"
INGRESS_CPUS = 0.1
"""Next to nothing, and yet more than a head has that is told to compute nothing."""


class Limits(Settings):
    """What one request may cost.

    Attributes:
        upload_bytes: of a request's body.
        unpacked_bytes: of what an upload unpacks to.
        voxels: of one image, as it comes and as the recipe makes it.
        entries: of a zip archive.
        ratio: unpacked bytes for each packed one of a zip archive.
        idle_seconds: without a byte of the body.
        upload_seconds: for the whole body.
        score_seconds: from the last byte to the answer.
        queue: requests at once, from the first byte of an upload to its answer; more are sent away with 503.
    """

    upload_bytes: int = Field(512 << 20, ge=1024)
    unpacked_bytes: int = Field(1 << 30, ge=1024)
    voxels: int = Field(1 << 27, ge=8)
    entries: int = Field(5000, ge=1, le=60_000)
    ratio: float = Field(200.0, ge=2)
    idle_seconds: float = Field(15.0, gt=0)
    upload_seconds: float = Field(180.0, gt=0)
    score_seconds: float = Field(600.0, gt=0)
    queue: int = Field(32, ge=1, le=1024)


GPU_BATCH = 4
"""Volumes that a scorer on a GPU scores in one call, unless it is told otherwise."""


class ServingSettings(Settings):
    """How a model is served; also the arguments of :func:`vesalius.infra.serving.application.build`.

    Attributes:
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run, or a model's folder.
        home: folder of runs and fetched models; ``$VESALIUS_HOME`` or ``~/.vesalius`` where None.
        device: cpu, cuda or auto, of the scorers.
        replicas: scorers.
        cpus: cores that each scorer reserves.
        gpus: GPUs, or a share of one, that each scorer reserves.
        batch: volumes scored in one call of the method at most; never more than the method's own capacity. Where None,
            :data:`GPU_BATCH` on a GPU and one on a CPU, where volumes take as long together as apart: one by one, the
            first is answered sooner, and what comes next is prepared meanwhile.
        batch_seconds: how long the first volume of a batch waits for others.
        preparations: volumes prepared at once.
        poll_seconds: how often the alias is looked at.
        token_sha256: of the token that requests must bear; the token itself travels nowhere.
        token_file: a file that holds the token, read where the ingress runs; else ``$VESALIUS_SERVE_TOKEN``.
        without_token: serve whoever asks: on loopback, or behind something that checks who asks.
        hosts: names (without port) a request may call the server by; any where empty and a token is asked for.
        keep_seconds: how long an answer's map can be fetched.
        keep: answers kept at most.
        limits: of one request.
    """

    model: str = Field(min_length=1)
    home: str | None = None
    device: str = "auto"
    replicas: int = Field(1, ge=1, le=256)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    batch: int | None = Field(None, ge=1, le=256)
    batch_seconds: float = Field(0.005, ge=0, le=10)
    preparations: int = Field(2, ge=1, le=64)
    poll_seconds: float = Field(10.0, gt=0)
    token_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    token_file: str | None = None
    without_token: bool = False
    hosts: tuple[str, ...] = ()
    keep_seconds: float = Field(900.0, gt=0)
    keep: int = Field(32, ge=1, le=10_000)
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> ServingSettings:
        if self.without_token and (self.token_sha256 or self.token_file):
            raise ValueError("without_token serves whoever asks, and a token is given: take one of them")
        return self

    def batch_on(self, device: str) -> int:
        """Return how many volumes one call of the method takes at most on a device, ``cuda`` or ``cpu``."""
        return self.batch or (GPU_BATCH if device == "cuda" else 1)

    @property
    def home_folder(self) -> Path:
        """The folder of runs and models."""
        from vesalius.platform import runs

        return runs.home(None if self.home is None else Path(os.path.abspath(Path(self.home).expanduser())))


def settings_of(args: Mapping[str, Any]) -> ServingSettings:
    """Return settings from plain arguments, as a Serve config file has them.

    Raises:
        SettingError: one of them is unknown (the message names the nearest known one) or cannot be.
    """
    limits = args.get("limits")
    parts: list[tuple[str, type[Settings], Mapping[str, Any]]] = [
        ("", ServingSettings, args),
        ("limits.", Limits, limits if isinstance(limits, dict) else {}),
    ]
    for prefix, kind, values in parts:
        for name in values:
            if name not in kind.model_fields:
                near = difflib.get_close_matches(str(name), list(kind.model_fields), n=1, cutoff=0.5)
                hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known are {', '.join(kind.model_fields)}"
                raise SettingError(f"serving: unknown setting '{prefix}{name}': {hint}")
    return validate(ServingSettings, dict(args), "serving")
