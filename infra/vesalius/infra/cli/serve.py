"""``vesalius serve``: a model behind HTTP."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from vesalius.infra.cli.options import DeviceOption, HomeOption, JsonOption, absolute, home_folder
from vesalius.infra.console import Terminal


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@champion, a run, or a model's folder.")],
    host: Annotated[str, typer.Option(help="Address to bind; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File that holds the token requests must bear [default: $VESALIUS_SERVE_TOKEN, if set]."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A further name the server may be called by; may be given several times.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=256, help="Processes that score.")] = 1,
    cpus: Annotated[
        float | None, typer.Option(min=0.1, help="Cores of each of them [default: what is free, shared out].")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs, or a share of one, of each of them.")] = 0.0,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Volumes scored in one call, at most [default: 4 on a GPU, 1 on a CPU]."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once; more are sent away with 503.")] = 32,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload, in MB.")] = 512,
    max_voxels: Annotated[int, typer.Option(min=8, help="Voxels of an image, at most.")] = 1 << 27,
    upload_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an upload may take.")] = 180,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds from the last byte of an upload to its answer.")] = 600,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at where an alias points.")] = 10.0,
    device: DeviceOption = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a MODEL: POST a volume to /v1/score, or open the address in a browser.

    A .nii, a .nii.gz or a .zip of a DICOM series comes in; the score comes back as JSON, and the map as .nii.gz in the
    volume's own space. The model's recipe is applied as `vesalius score` applies it. When the alias moves, the new
    version is loaded beside the old one and takes over without a lost request. Ctrl-C ends it.
    """
    with Terminal(as_json) as terminal:
        from vesalius.infra import tables
        from vesalius.infra.pipeline import device_name
        from vesalius.infra.services.addresses import is_loopback
        from vesalius.infra.serving.running import serving, until_told, with_hosts
        from vesalius.infra.serving.settings import TOKEN_VARIABLE, Limits, ServingSettings
        from vesalius.infra.serving.tokens import token_digest
        from vesalius.infra.serving.versions import find_version
        from vesalius.platform.config import validate

        where = home_folder(home)
        digest = token_digest(absolute(token_file) if token_file else None)
        settings = validate(
            ServingSettings,
            {
                "model": _pinned_place(model),
                "home": str(where),
                "device": device,
                "replicas": replicas,
                "gpus": gpus or (1.0 if device_name(device) == "cuda" else 0.0),
                "batch": batch,
                "poll_seconds": poll,
                "token_sha256": digest,
                "without_token": digest is None and is_loopback(host),
                "limits": Limits(
                    upload_bytes=max_upload_mb << 20,
                    unpacked_bytes=max(max_upload_mb << 20, 8 * max_voxels),
                    voxels=max_voxels,
                    idle_seconds=min(15.0, upload_timeout),
                    upload_seconds=upload_timeout,
                    score_seconds=timeout,
                    queue=queue,
                ),
            },
            "serve",
        )
        settings = with_hosts(settings, host, allowed=tuple(allowed_host or ()))
        find_version(settings.model, where)  # what is not there is said before a runtime is started
        os.environ.pop(TOKEN_VARIABLE, None)  # Ray's processes take over what stands here, and need the digest alone
        with contextlib.ExitStack() as stack:
            with terminal.progress("starting") as progress:
                server = stack.enter_context(serving(settings, host, port, cpus=cpus, progress=progress))
            document = {
                "address": server.address,
                "model": server.model,
                "token": digest is not None,
                "process": os.getpid(),
            }
            version = server.model["version"] or server.model["digest"][:12]
            rows = [
                ("address", server.address),
                ("model", f"{server.model['name']}, version {version}"),
                ("token", "asked for" if digest else "none: this machine alone can reach it"),
                ("try", f"curl --data-binary @volume.nii.gz {server.address}/v1/score"),
            ]
            terminal.result(document, tables.key_values(rows))
            terminal.say("Ctrl-C ends the server")
            until_told(server)
            terminal.say("ending: what is under way is answered first")


def _pinned_place(model: str) -> str:
    """Return a folder's absolute path: the server's processes stand in folders of their own."""
    return (
        str(absolute(Path(model))) if not model.startswith("models:") and Path(model).expanduser().is_dir() else model
    )
