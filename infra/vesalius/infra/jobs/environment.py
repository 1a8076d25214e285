"""Whether a cluster can run this code: its Python, its packages, and the folders that it sees.

Ray says its own version over HTTP. The rest is asked by a job of a second that imports the standard library alone.
Its answer is kept as long as the cluster's session lasts; that something is not there, or is of another version, is
asked again: with Redis a session outlives its head, and what is installed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import secrets
import shlex
import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vesalius.infra.services.credentials import keep
from vesalius.platform.config import Settings
from vesalius.platform.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vesalius.infra.jobs.cluster import Cluster

_SAID = "vesalius-report "
_PROBE_SECONDS = 120.0
_EXACT = ("ray", "torch")
"""Packages whose versions must be the same: what one pickles or computes the other takes up."""

_CODE = """
import importlib.metadata as m, json, os, platform, sys
names, paths, proof = json.loads(sys.argv[1])
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
def same():
    try: return open(proof[0]).read() == proof[1]
    except OSError: return False
print("vesalius-report " + json.dumps({
    "python": platform.python_version(), "packages": {n: version(n) for n in names},
    "paths": {p: os.path.exists(p) for p in paths}, "sees_home": same()}))
"""


class Report(Settings):
    """What a cluster says of itself.

    Attributes:
        python: version.
        packages: versions by name; None is not installed.
        paths: those asked about, and whether they are there.
        sees_home: whether it reads the very home that this side writes, and not one that is called alike.
    """

    python: str
    packages: dict[str, str | None]
    paths: dict[str, bool] = Field(default_factory=dict)
    sees_home: bool = False


def report(cluster: Cluster, folder: Path, paths: Sequence[str], *, home: Path) -> Report:
    """Return what a cluster says of itself, and of some paths.

    Args:
        cluster: to be asked.
        folder: where answers are kept.
        paths: absolute.
        home: of this side.

    Raises:
        JobError: it does not answer.
    """
    name = hashlib.sha256(f"{cluster.address} {cluster.session} {home}".encode()).hexdigest()[:16]
    kept = folder / f"{name}.json"
    found: Report | None = None
    with contextlib.suppress(OSError, ValueError):
        found = Report.model_validate_json(kept.read_text())
    # What was not there may have come since, the home too, and what was of another version may not be so any more.
    if (
        found is not None
        and found.sees_home
        and all(found.paths.get(path) for path in paths)
        and set(found.packages) >= set(_names())
        and not _differences(found)
    ):
        return found
    # Another process may ask at the same time, and takes its own proof away.
    fresh = _ask(cluster, paths, kept.with_suffix(f".{secrets.token_hex(4)}.proof"))
    before = {} if found is None else found.paths
    fresh = fresh.model_copy(update={"paths": {**before, **fresh.paths}})
    keep(kept, fresh.model_dump_json(indent=1))
    return fresh


def check_versions(found: Report, address: str) -> dict[str, str]:
    """Return the versions of a cluster that can run this code.

    Raises:
        JobError: Python, Ray, torch or vesalius are others there, or a requirement is not met; names both versions.
    """
    wrong = _differences(found)
    if wrong:
        raise JobError(
            f"the cluster at {address} cannot run this code: {'; '.join(wrong)}; bring both to the same versions, "
            "nothing was submitted"
        )
    known = {name: version for name, version in found.packages.items() if version is not None}
    return {"python": found.python, **known}


def check_ray(version: str, address: str) -> None:
    """Refuse a cluster of another Ray before anything is asked of it.

    Raises:
        JobError: names both versions.
    """
    here = importlib.metadata.version("ray")
    if version != here:
        raise JobError(
            f"the cluster at {address} runs Ray {version} and this is Ray {here}: bring both to the same version, "
            "nothing was submitted"
        )


def _differences(found: Report) -> list[str]:
    """Return what a cluster has in other versions than it must be, each with both of them."""
    from packaging.requirements import Requirement

    wrong = []
    ours, theirs = platform.python_version(), found.python
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        wrong.append(f"Python is {theirs} there and {ours} here")
    for name in _EXACT:
        there, here = found.packages.get(name), importlib.metadata.version(name)
        if there is None or _public(there) != _public(here):
            wrong.append(f"{name} is {there or 'not installed'} there and {here} here")
    there, here = found.packages.get("vesalius"), importlib.metadata.version("vesalius")
    if there is not None and _public(there) != _public(here):  # where it is not installed the wheel brings it
        wrong.append(f"vesalius is {there} there and {here} here")
    for text in _requirements():
        requirement = Requirement(text)
        there = found.packages.get(requirement.name)
        if requirement.name in _EXACT:
            continue
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            here = importlib.metadata.version(requirement.name)
            wrong.append(f"{requirement.name} is {there or 'not installed'} there and {here} here")
    return wrong


def _ask(cluster: Cluster, paths: Sequence[str], proof: Path) -> Report:
    nonce = hashlib.sha256(f"{cluster.session} {time.time_ns()}".encode()).hexdigest()
    keep(proof, nonce)
    asked = json.dumps([_names(), list(paths), [str(proof), nonce]])
    try:
        log = cluster.run_briefly(f"python -c {shlex.quote(_CODE)} {shlex.quote(asked)}", _PROBE_SECONDS)
    finally:
        proof.unlink(missing_ok=True)
    for line in log.splitlines():
        if line.startswith(_SAID):
            document: Mapping[str, Any] = json.loads(line.removeprefix(_SAID))
            return Report.model_validate(document)
    last = (log.strip().splitlines() or ["no word"])[-1][:200]
    raise JobError(
        f"the cluster at {cluster.address} does not say what it has installed ({last}): is Python on its path?"
    )


def _names() -> list[str]:
    from packaging.requirements import Requirement

    return sorted({"vesalius", *_EXACT, *(Requirement(text).name for text in _requirements())})


def _requirements() -> list[str]:
    return [text for text in importlib.metadata.requires("vesalius") or [] if "extra ==" not in text]


def _public(version: str) -> str:
    return version.partition("+")[0]  # the same torch for another device is the same torch
