"""Audit the dependencies: pinned, installed as pinned, under licences that were read, none known to be bad.

Run by ``make check``, without a network: what it holds the packages to stands in ``infra/security/dependencies.toml``.
``make audit`` asks an advisory service as well (``--online``), with pip-audit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.metadata import Distribution

ROOT = Path(__file__).resolve().parent.parent
ADVICE = "see infra/security/dependencies.toml"


def pins(text: str) -> dict[str, Version]:
    """Return the pinned version of each package of a constraints file.

    Raises:
        ValueError: a line pins nothing.
    """
    found: dict[str, Version] = {}
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        if line:
            name, sign, version = line.partition("==")
            if not sign:
                raise ValueError(f"constraints.txt: '{line}' pins nothing: expected name==version")
            found[canonicalize_name(name)] = Version(version)
    return found


def closure(project: Mapping[str, Any]) -> dict[str, Distribution | None]:
    """Return all that a project needs here, by name, its extras included; None is what is not installed."""
    extras = project.get("optional-dependencies", {}).values()
    waiting = [Requirement(text) for group in (project["dependencies"], *extras) for text in group]
    found: dict[str, Distribution | None] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = {"", *requirement.extras} - {extra for extra in ("", *requirement.extras) if (name, extra) in seen}
        seen |= {(name, extra) for extra in wanted}
        try:
            found[name] = distribution(requirement.name)
        except PackageNotFoundError:
            found[name] = None
            continue
        for text in found[name].requires or [] if wanted else []:  # type: ignore[union-attr]
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in wanted):
                waiting.append(further)
    return found


def licences(found: Distribution) -> set[str]:
    """Return a package's licences as its metadata state them: an expression's parts, or classifiers, or one line."""
    metadata: Any = found.metadata  # an email's message, of which typeshed tells a part
    if expression := metadata.get("License-Expression"):
        return set(re.split(r" (?:AND|OR) ", re.sub(r"[()]", "", expression)))
    classified = [name for name in metadata.get_all("Classifier") or [] if name.startswith("License :: ")]
    named = {name.rpartition(" :: ")[2] for name in classified} - {"OSI Approved", "DFSG approved"}
    if named:
        return named
    first = (metadata.get("License") or "").strip().partition("\n")[0]
    return {first or "not stated"}


def faults(
    needed: Mapping[str, Distribution | None], pinned: Mapping[str, Version], rules: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with the dependencies, a sentence each."""
    allowed, reviewed = set(rules["licences"]["allowed"]), rules["licences"]["reviewed"]
    for name, found in sorted(needed.items()):
        if name not in pinned and name not in rules["unpinned"]:
            yield f"{name} is needed and not pinned in constraints.txt"
        if found is None:
            yield f"{name} is needed and not installed: run `make setup`"
            continue
        here = Version(found.version)
        if name in pinned and Version(here.public) != Version(pinned[name].public):
            yield f"{name} is installed as {here} and pinned as {pinned[name]}: run `make setup`"
        stated = licences(found)
        if not stated <= allowed and reviewed.get(name) not in stated:
            yield f"{name} is under {' and '.join(sorted(stated))}, which nobody has allowed: {ADVICE}"
    yield from (f"{name} was reviewed and is needed no more: {ADVICE}" for name in set(reviewed) - set(needed))
    for bad in rules["known_bad"]:
        name = canonicalize_name(bad["name"])
        installed = needed.get(name)
        # What is not pinned is what happens to be installed.
        version = pinned.get(name) or (None if installed is None else Version(installed.version))
        if version is not None and SpecifierSet(bad["versions"], prereleases=True).contains(version):
            yield f"{bad['name']} {version} is known to be bad ({bad['id']}): {bad['why']}"


def online() -> int:
    """Ask an advisory service of every pinned package; say so where none answers."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps"]
    command += ["--disable-pip", "--progress-spinner", "off", "--timeout", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"ConnectionError|ServiceError|Could not reach|Max retries", done.stderr):
        print("no advisory service answers: only what is known here was checked", file=sys.stderr)
        return 0
    print(done.stdout + done.stderr, end="", file=sys.stderr if done.returncode else sys.stdout)
    return done.returncode


def main() -> int:
    """Audit this checkout; 1 where something is wrong."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rules = tomllib.loads((ROOT / "infra" / "security" / "dependencies.toml").read_text())
    try:
        found = list(faults(closure(project), pins((ROOT / "constraints.txt").read_text()), rules))
    except ValueError as error:
        found = [str(error)]
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        return 1
    return online() if "--online" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
