"""The image, Compose and the autoscaler's file: what a linter and a parser can find without a registry or a daemon."""

from __future__ import annotations

import copy
import json
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "infra" / "docker"
INSTRUCTIONS = {
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
}
SERVICE_KEYS = {
    "build",
    "cap_add",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "entrypoint",
    "environment",
    "healthcheck",
    "image",
    "logging",
    "network_mode",
    "networks",
    "ports",
    "read_only",
    "restart",
    "secrets",
    "security_opt",
    "shm_size",
    "tmpfs",
    "user",
    "volumes",
}
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def _image_faults(text: str) -> Iterator[str]:
    instructions = _instructions(text)
    yield from (f"no instruction {name}" for name, _ in instructions if name not in INSTRUCTIONS)
    stages: list[str] = []
    for value in (value for name, value in instructions if name == "FROM"):
        image, _, stage = value.partition(" AS ")
        if image not in ("${DEVICE}", *stages) and not re.fullmatch(r"[a-z/]+:[0-9][\w.-]*(@sha256:\w{64})?", image):
            yield f"{image} is not pinned"
        stages.append(stage)
    last = instructions[max(place for place, (name, _) in enumerate(instructions) if name == "FROM") :]
    users = [value for name, value in last if name == "USER"]
    if not users or users[-1].split(":")[0] in ("0", "root"):
        yield "runs as root"
    if not any(name == "HEALTHCHECK" and value != "NONE" for name, value in last):
        yield "nobody asks whether it is well"
    yield from ("fetches from a URL" for name, value in instructions if name == "ADD" or "curl " in value)
    for name, value in instructions:
        if name in ("ARG", "ENV") and re.search(r"(PASSWORD|SECRET|TOKEN)\w*=", value):
            yield f"a secret in a layer: {value}"
        if name == "RUN" and "pip install" in value and not ("--constraint" in value or "==" in value):
            yield "installs what nobody has pinned"


def test_the_image_is_sound() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert list(_image_faults(text)) == []
    for pinned in ("build", "hatchling"):
        assert f"{pinned}=={CONSTRAINTS[pinned]}" in text
    bases = re.findall(r"rayproject/ray:([\w.-]+)", text)
    assert bases == [f"{CONSTRAINTS['ray']}-py311-cpu", f"{CONSTRAINTS['ray']}-py311-cu128"]
    assert f"ARG VERSION={VERSION}" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("USER 1000:100", "USER root", "root"),
        ("HEALTHCHECK --interval", "LABEL x", "well"),
        ("ray:2.60.0-py311-cpu", "ray:latest", "pinned"),
        ("--constraint /constraints.txt", "", "nobody has pinned"),
        ("ARG VERSION=0.1.0", "ARG PASSWORD=secret", "a secret"),
        ("WORKDIR /source", "ADD https://example.org/x /x", "URL"),
        ("WORKDIR /source", "WORKDIRR /source", "no instruction"),
    ],
)
def test_a_bad_image_is_found(old: str, new: str, said: str) -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert old in text
    assert any(said in fault for fault in _image_faults(text.replace(old, new)))


def test_the_linter_of_images_has_no_word() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("no hadolint on this machine")
    done = subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_build_is_handed_nothing_but_sources() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source.removeprefix("./")
        for name, value in _instructions((DOCKER / "Dockerfile").read_text())
        if name == "COPY"
        for source in value.split()[:-1]
    }
    assert copied | {"constraints.txt"} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def _compose_faults(compose: dict[str, Any]) -> Iterator[str]:
    for name, service in compose["services"].items():
        yield from (f"{name}: no key {key}" for key in set(service) - SERVICE_KEYS)
        if service.get("read_only") is not True or service.get("cap_drop") != ["ALL"]:
            yield f"{name}: has rights that it does not need"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: may gain rights"
        if service.get("user", "0").startswith("0") and service.get("network_mode") != "none":
            yield f"{name}: runs as root"
        if not re.fullmatch(r"[a-z]+:[0-9][\w.-]*", service["image"]):
            yield f"{name}: {service['image']} is not pinned"
        yield from (
            f"{name}: {port} is open to others" for port in service.get("ports", []) if port[:10] != "127.0.0.1:"
        )
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|KEY", variable) and not re.search("_(FILE|PATH)$", variable):
                yield f"{name}: {variable}={value} is seen by `docker inspect`"
        yield from (f"{name}: no secret {one}" for one in set(service.get("secrets", [])) - set(compose["secrets"]))
        yield from (
            f"{name}: no service {one}" for one in set(service.get("depends_on", {})) - set(compose["services"])
        )
        for volume in service.get("volumes", []):
            if volume["type"] == "volume" and volume["source"] not in compose["volumes"]:
                yield f"{name}: no volume {volume['source']}"
            if volume["type"] == "bind" and not (DOCKER / volume["source"]).exists():
                yield f"{name}: {volume['source']} is not there"
        probed = service.get("healthcheck", {}).get("test") or service["image"].startswith("vesalius:")
        if not probed:
            yield f"{name}: nobody asks whether it is well"


def test_compose_is_sound() -> None:
    compose = _compose()
    assert list(_compose_faults(compose)) == []
    assert {service["image"] for service in compose["services"].values() if "vesalius" in service["image"]} == {
        f"vesalius:{VERSION}-cpu"
    }


def test_the_studies_that_are_shown_are_those_that_are_made() -> None:
    services = _compose()["services"]
    scripts = {name: "\n".join(service.get("entrypoint", [])) for name, service in services.items()}
    for name in ("head", "worker"):
        password = "$$(cat /run/secrets/studies_password)"
        assert f'STORAGE="postgresql+psycopg://studies:{password}@postgres:5432/studies"' in scripts[name]
        assert "studies_password" in services[name]["secrets"]
    dashboard = services["optuna-dashboard"]
    assert "postgresql+psycopg://studies@postgres:5432/studies" in dashboard["command"][0]
    assert dashboard["secrets"] == ["studies_password"], "it has no login, and needs nothing else of the database"
    assert "studies_password" in services["postgres"]["secrets"]


@pytest.mark.parametrize(
    ("service", "key", "value", "said"),
    [
        ("head", "ports", ["8265:8265"], "open to others"),
        ("mlflow", "environment", {"MLFLOW_AUTH_ADMIN_PASSWORD": "x"}, "docker inspect"),
        ("worker", "user", "0:0", "root"),
        ("worker", "image", "vesalius:latest", "pinned"),
        ("postgres", "cap_drop", [], "rights"),
        ("postgres", "comand", [], "no key"),
        ("mlflow", "secrets", ["other"], "no secret"),
        ("mlflow", "depends_on", {"database": {}}, "no service"),
    ],
)
def test_a_bad_compose_file_is_found(service: str, key: str, value: object, said: str) -> None:
    compose = copy.deepcopy(_compose())
    compose["services"][service][key] = value
    assert any(said in fault for fault in _compose_faults(compose))


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    script = shutil.copy(DOCKER / "secrets.sh", tmp_path)
    for _ in range(2):
        subprocess.run(["sh", script], check=True, capture_output=True, timeout=60)
        kept = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(kept) == {Path(secret["file"]).name for secret in _compose()["secrets"].values()}
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in kept.values())
    assert len(set(kept.values())) == len(kept)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    first = kept
    subprocess.run(["sh", script], check=True, capture_output=True, timeout=60)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == first
    assert "/infra/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_autoscalers_file_is_one_that_ray_takes() -> None:
    ray = pytest.importorskip("ray")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    text = (ROOT / "infra" / "autoscaler" / "machines.yaml").read_text()
    config = yaml.safe_load(text)
    assert list(jsonschema.Draft7Validator(schema).iter_errors(config)) == []
    assert list(jsonschema.Draft7Validator(schema).iter_errors({**config, "max_worker": 2}))
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    assert config["docker"]["image"].endswith(f"/vesalius:{VERSION}-cuda")
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in text


def _variables() -> Iterator[str]:
    for path in (*(ROOT / "infra" / "kuberay").rglob("*.yaml"), DOCKER / "compose.yaml", DOCKER / "Dockerfile"):
        text = path.read_text()
        yield from re.findall(r"name: ([A-Z][A-Z0-9_]{3,})\b", text)
        yield from re.findall(r"^\s+([A-Z][A-Z0-9_]{3,})[:=]", text, re.MULTILINE)
    yield from re.findall(r"--env=([A-Z_]+)=", (ROOT / "infra" / "autoscaler" / "machines.yaml").read_text())


def test_every_variable_that_is_set_is_read_by_somebody() -> None:
    import importlib.util

    def text_of(package: str, *files: str) -> str:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return "".join((Path(spec.origin).parent / file).read_text() for file in files)

    ours = "".join(path.read_text() for root in ("platform", "infra", "tuning") for path in (ROOT / root).rglob("*.py"))
    theirs = {
        "MLFLOW_": text_of("mlflow", "environment_variables.py", "server/auth/__init__.py"),
        "RAY_": text_of("ray", "_common/usage/usage_constants.py", "exceptions.py")
        + text_of("ray._private.authentication", "authentication_token_setup.py"),
        "AWS_": text_of("botocore", "configprovider.py", "credentials.py", "session.py"),
    }
    # Of PostgreSQL, its image, pip, Python and matplotlib.
    known = {"PGPASSWORD", "PGDATA", "PYTHONDONTWRITEBYTECODE", "MPLBACKEND", "MPLCONFIGDIR", "PIP_EXTRA_INDEX_URL"}
    known |= {f"POSTGRES_{name}" for name in ("USER", "DB", "PASSWORD_FILE", "INITDB_ARGS")}
    known |= {"ARTIFACTS"}  # stands in the command line of MLflow's pod
    found = set(_variables())
    assert {"VESALIUS_HOME", "MLFLOW_AUTH_ADMIN_PASSWORD", "AWS_ENDPOINT_URL", "RAY_AUTH_MODE"} <= found
    for name in sorted(found - known):
        prefix = name[: name.index("_") + 1]
        assert f'"{name}"' in theirs.get(prefix, ours) or name in theirs.get(prefix, ours), name
