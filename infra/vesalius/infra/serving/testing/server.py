"""A server for tests: a small model, volumes, and ``vesalius serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch

from vesalius.datasets.recipes.general import as_is
from vesalius.methods.intensity_threshold import IntensityThreshold, IntensityThresholdSettings
from vesalius.platform.contracts import CohortFacts
from vesalius.platform.evaluation import Threshold
from vesalius.platform.models import ModelCard, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SHAPE = (20, 18, 16)
# Left-handed, permuted and shifted: voxel axes run to anterior, to left, and upwards.
AFFINE = np.array([[0.0, -4.0, 0.0, 50.0], [4.0, 0.0, 0.0, -70.0], [0.0, 0.0, 4.0, -20.0], [0.0, 0.0, 0.0, 1.0]])
GRID = (18, 20, 16)
# The cube is smaller than the default averaging windows.
SETTINGS = {"smoothing": 1, "map": {"average_pool": 1}}
SECONDS = 120.0
START_SECONDS = 400.0
"""On a machine whose cores are taken, Ray's processes alone need minutes."""


def make_model(
    folder: Path, *, mean: float = 1.0, channels: Sequence[str] = ("T1w",), recipe: Mapping[str, Any] | None = None
) -> Path:
    """Write a model of the baseline that needs no training; ``mean`` decides its maps."""
    cohort = CohortFacts(
        subjects=("a", "b"),
        grid=GRID,
        spacing_mm=(4.0, 4.0, 4.0),
        affine=((4.0, 0, 0, -18.0), (0, 4.0, 0, -70.0), (0, 0, 4.0, -20.0), (0, 0, 0, 1.0)),
        channels=tuple(channels),
        digest="d" * 64,
    )
    method = IntensityThreshold(IntensityThresholdSettings.model_validate(SETTINGS), cohort)
    with torch.no_grad():
        method.mean.fill_(mean)
        method.deviation.fill_(0.3)
    card = ModelCard(
        method="intensity_threshold",
        settings=method.settings.model_dump(mode="json"),
        cohort=cohort,
        recipe=as_is().model_dump(mode="json") if recipe is None else dict(recipe),
        thresholds={"all": Threshold(value=2.0, voxel_set="all", policy="quantile", split="validation", quantile=0.98)},
        run_id="toy",
    )
    save_model(folder, method, card)
    return folder


def head(seed: int) -> NDArray[np.float32]:
    """Return a volume in file space with a bright cube in it."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    image = brain * (1.0 + 0.2 * grid[0] + random.normal(0, 0.03, SHAPE))
    image[8:11, 7:10, 6:9] += 0.8
    written: NDArray[np.float32] = image.astype(np.float32)
    return written


def write_head(path: Path, seed: int = 0) -> Path:
    """Write such a volume."""
    nibabel.Nifti1Image(head(seed), AFFINE).to_filename(path)
    return path


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        document: what the verb printed.
        process: its process.
        log: its stderr.
        scratch: its folder of temporary files.
    """

    address: str
    document: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path
    scratch: Path

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self.address.rpartition(":")[2])

    def ask(
        self, path: str, body: bytes | None = None, /, *, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (in lower case) and body of an answer, whatever its status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.address}{path}", data=body, headers=named, method=method)
        if body is not None and "content-type" not in {name.lower() for name in named}:
            request.add_header("Content-Type", "application/octet-stream")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, _lower(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(error.headers), error.read()

    def json(self, path: str, body: bytes | None = None, /, **headers: str) -> Any:
        """Return an answer's JSON; the status must be 200."""
        status, _, content = self.ask(path, body, **headers)
        assert status == 200, content
        return json.loads(content)

    def tried(self, path: str, body: bytes | None = None, /, **headers: str) -> tuple[int, Any]:
        """Return an answer's status and JSON; 0 and what happened where there is none, which a thread would hide."""
        try:
            status, _, content = self.ask(path, body, **headers)
            return status, json.loads(content)
        except Exception as error:  # a broken line, half an answer, one that is no JSON: none is an answer
            return 0, repr(error)

    def processes(self) -> list[int]:
        """Return the ids of all processes below the server's, its own first."""
        import psutil

        own = psutil.Process(self.process.pid)
        return [own.pid, *(child.pid for child in own.children(recursive=True))]


@contextlib.contextmanager
def served(
    folder: Path, model: str, *options: str, environment: Mapping[str, str] | None = None, poll: float = 0.5
) -> Iterator[Served]:
    """Serve a model by the command line for the while.

    Args:
        folder: for home and log.
        model: as the verb takes it.
        *options: further ones of the verb.
        environment: of its process, in place of this one's; with ``RAY_ADDRESS`` it serves on that cluster.
        poll: seconds between looks at an alias.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Short: Ray's sockets lie below it, and a socket's path may have 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="serve-"))
    log = folder / "serve.log"
    command = [sys.executable, "-c", "from vesalius.infra.cli import main; main()", "serve", model, "--port", "0"]
    command += ["--json", "--home", str(folder / "home"), "--device", "cpu", "--poll", str(poll), *options]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    told = {**(own if environment is None else environment), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=told, start_new_session=True)
    try:
        yield _up(process, log, scratch)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        left = list(scratch.glob("vesalius-serving-*/server-*"))
        shutil.rmtree(scratch, ignore_errors=True)
    assert process.returncode == 0, log.read_text()
    assert left == [], "a server that ends leaves nothing"


def _up(process: subprocess.Popen[bytes], log: Path, scratch: Path) -> Served:
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    text, deadline = b"", time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text += process.stdout.read() or b""
        with contextlib.suppress(ValueError):
            document = json.loads(text)
            assert "address" in document, document
            return Served(document["address"], document, process, log, scratch)
        assert process.poll() is None, text.decode() + log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"the server did not come up: {text!r}{log.read_text()}")


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
