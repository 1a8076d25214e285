"""The manifests of Kubernetes: rendered as they would be applied, then held to schemas and to rules of our own."""

from __future__ import annotations

import copy
import functools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
OVERLAYS = ("cpu", "gpu", "train-cpu", "train-gpu")
VERSIONS = ("1.30", "1.34")
# Ports that belong to no container of ours: DNS, HTTPS, Kubernetes' API, Ray's agent on each node.
FOREIGN_PORTS = {53, 443, 6443, 52365}
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Documents = list[dict[str, Any]]


@functools.cache
def _rendered(overlay: str) -> Documents:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine: the overlays cannot be rendered")
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _render(overlay: str) -> Documents:
    return copy.deepcopy(_rendered(overlay))


def _clusters(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if document["kind"] in ("RayCluster", "RayJob", "RayService"):
        spec = document["spec"]
        yield spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def _pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template with a name for the message."""
    name = f"{document['kind']}/{document['metadata']['name']}"
    if document["kind"] in ("Deployment", "StatefulSet"):
        yield name, document["spec"]["template"]
    for cluster in _clusters(document):
        yield f"{name} head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]


def _faults(documents: Documents) -> list[str]:
    """Return what is wrong, a sentence each."""
    found = [fault for document in documents for fault in (*_schema_faults(document), *_pod_faults(document))]
    return found + _reference_faults(documents) + _network_faults(documents)


def _schema_faults(document: dict[str, Any]) -> tuple[str, ...]:
    return _schema_faults_of(json.dumps(document))


@functools.lru_cache(maxsize=256)
def _schema_faults_of(text: str) -> tuple[str, ...]:
    document = json.loads(text)
    name = _key(document)
    checked = [(name, document)]
    found = []
    if document["apiVersion"].startswith("ray.io/"):
        schema = json.loads((KUBERAY / "schema.json").read_text())
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
        found += [f"{name}: {error.json_path}: {error.message[:300]}" for error in errors]
        checked = [
            (place, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]})
            for place, template in _pods(document)
        ]
    for place, resource in checked:
        for version in VERSIONS:
            errors = _validator(resource["kind"], resource["apiVersion"], version).iter_errors(resource)
            found += [f"{place}: not of Kubernetes {version}: {error.message[:300]}" for error in errors]
    return tuple(found)


@functools.cache
def _validator(kind: str, api_version: str, version: str) -> jsonschema.Draft202012Validator:
    """Return what holds a resource to the strict schema of a version of Kubernetes."""
    group, _, number = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], number) if part)
    schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{name}.json", version)
    registry = Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _definitions(version: str) -> Registry[Any]:
    place = f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json"
    return Resource.from_contents(schema_contents(place, version)) @ Registry()


def _pod_faults(document: dict[str, Any]) -> Iterator[str]:
    for place, template in _pods(document):
        pod = template["spec"]
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{place}: runs as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{place}: no seccomp profile"
        asks_api = place.endswith(" head")  # the autoscaler beside it does
        if not asks_api and pod.get("automountServiceAccountToken") is not False:
            yield f"{place}: is handed a token of Kubernetes' API"
        for container in pod["containers"] + pod.get("initContainers", []):
            yield from (f"{place}: {fault}" for fault in _container_faults(container, document["kind"]))
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        if mounts != {volume["name"] for volume in pod.get("volumes", [])} | _claimed(document):
            yield f"{place}: what is mounted is not what there is"


def _claimed(document: dict[str, Any]) -> set[str]:
    return {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}


def _container_faults(container: dict[str, Any], kind: str) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "it may gain rights"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "it keeps capabilities"
    if not re.fullmatch(r"[a-z0-9./-]+:[0-9][\w.-]*(@sha256:[0-9a-f]{64})?", container["image"]):
        yield f"its image {container['image']} is not pinned"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or not {"cpu", "memory"} <= set(resources.get("requests", {})):
        yield "it asks for no memory or core, or has no limit"
    if kind in ("Deployment", "StatefulSet") and not {"readinessProbe", "livenessProbe"} <= set(container):
        yield "nobody probes it"
    for variable in container.get("env", []):
        is_secret = re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable["name"]) and not variable["name"].endswith("_FILE")
        if is_secret and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"{variable['name']} is not by reference to a Secret"
    said = " ".join([*container.get("command", []), *container.get("args", [])])
    if re.search(r"://[^/@ ]+:[^/@ ]+@", said):
        yield "a password stands on its command line"


def _reference_faults(documents: Documents) -> list[str]:
    found = [f"{key} stands twice" for key, number in Counter(map(_key, documents)).items() if number > 1]
    maps = {d["metadata"]["name"]: set(d["data"]) for d in documents if d["kind"] == "ConfigMap"}
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    whole = any(d["kind"] == "Namespace" for d in documents)  # a job alone refers to what another overlay made
    guide = (ROOT / "docs" / "deployment.md").read_text()
    for place, reference in _references(documents):
        match reference:
            case {"configMapKeyRef": {"optional": True}}:
                pass
            case {"configMapKeyRef": {"name": name, "key": key}} if whole and key not in maps.get(name, ()):
                found.append(f"{place}: no {key} in a ConfigMap {name}")
            case {"configMap": {"name": name}} if whole and name not in maps:
                found.append(f"{place}: no ConfigMap {name}")
            case {"persistentVolumeClaim": {"claimName": name}} if whole and name not in claims:
                found.append(f"{place}: no claim {name}")
            case {"secretKeyRef": {"name": name, "key": key}} if not re.search(rf"{name}\b.*--from-\S+={key}=", guide):
                found.append(f"{place}: docs/deployment.md does not say how to make {key} of the Secret {name}")
            case {"secret": {"secretName": name}} if f"generic {name} " not in guide:
                found.append(f"{place}: docs/deployment.md does not say how to make the Secret {name}")
    for document in documents:
        if document["kind"] == "Service":
            found += _service_faults(document, documents)
    return found


def _key(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _references(tree: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if "kind" in tree and "metadata" in tree:
            place = _key(tree)
        yield place, tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _references(part, place)


def _service_faults(service: dict[str, Any], documents: Documents) -> Iterator[str]:
    for document in documents:
        for _, template in _pods(document):
            if service["spec"]["selector"].items() <= template.get("metadata", {}).get("labels", {}).items():
                ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
                targets = {port["targetPort"] for port in service["spec"]["ports"]}
                yield from (f"{_key(service)}: no port {target}" for target in targets - ports)
                return
    yield f"{_key(service)}: selects no pod"


def _network_faults(documents: Documents) -> list[str]:
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    if not policies:
        return []
    found = []
    refusal = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(policy["spec"] == refusal for policy in policies):
        found.append("what no policy names is allowed")
    ports = {
        port["containerPort"]
        for document in documents
        for _, template in _pods(document)
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for policy in policies:
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])):
            named = {port["port"] for port in rule.get("ports", [])}
            found += [f"{_key(policy)}: nobody listens on {port}" for port in named - ports - FOREIGN_PORTS]
            if not rule:
                found.append(f"{_key(policy)}: a rule allows all")
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                found.append(f"{_key(policy)}: whoever likes may come in")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_sound(overlay: str) -> None:
    assert _faults(_render(overlay)) == []


def _part(kind: str, name: str) -> Callable[[Documents], dict[str, Any]]:
    def find(documents: Documents) -> dict[str, Any]:
        (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
        return found

    return find


_cluster = _part("RayCluster", "vesalius")
_mlflow = _part("Deployment", "mlflow")


def _change(part: Callable[[Documents], dict[str, Any]], path: str, value: object) -> Callable[[Documents], None]:
    """Return what sets a value at a dotted path, or takes it away where the value is Ellipsis."""

    def change(documents: Documents) -> None:
        *way, last = path.split(".")
        tree: Any = part(documents)
        for step in way:
            tree = tree[int(step) if step.isdigit() else step]
        key = int(last) if last.isdigit() else last
        if value is ...:
            del tree[key]
        else:
            tree[key] = value

    return change


_HEAD = "spec.headGroupSpec.template.spec"
_SERVER = "spec.template.spec"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change(_cluster, "spec.enableInTreeAutoscalling", True), "enableInTreeAutoscalling"),
        (_change(_cluster, "spec.authOptions", ...), "authOptions"),
        (_change(_cluster, "spec.authOptions.mode", "disabled"), "token"),
        (_change(_cluster, "spec.headGroupSpec.rayStartParams.num-cpus", "4"), "'0' was expected"),
        (_change(_cluster, "spec.workerGroupSpecs.0.maxReplicas", "8"), "maxReplicas"),
        (_change(_cluster, "spec.gcsFaultToleranceOptions.redisPassword", {"value": "secret"}), "redisPassword"),
        (_change(_cluster, f"{_HEAD}.containers.0.imag", "x"), "imag"),
        (_change(_cluster, f"{_HEAD}.containers.0.image", "vesalius:latest"), "not pinned"),
        (_change(_cluster, f"{_HEAD}.securityContext.runAsNonRoot", False), "runs as root"),
        (_change(_cluster, f"{_HEAD}.containers.0.securityContext.capabilities", {"add": ["ALL"]}), "capabilities"),
        (_change(_cluster, f"{_HEAD}.containers.0.resources.limits", {}), "no limit"),
        (_change(_cluster, f"{_HEAD}.volumes.0.persistentVolumeClaim.claimName", "hom"), "no claim hom"),
        (_change(_cluster, f"{_HEAD}.containers.0.volumeMounts.0.name", "hom"), "mounted"),
        (_change(_mlflow, f"{_SERVER}.automountServiceAccountToken", ...), "token of Kubernetes"),
        (_change(_mlflow, f"{_SERVER}.containers.0.livenessProbe", ...), "nobody probes"),
        (_change(_mlflow, f"{_SERVER}.containers.0.readinessProbe.httpGet.port", ...), "not of Kubernetes"),
        (_change(_mlflow, f"{_SERVER}.containers.0.env.1", {"name": "PGPASSWORD", "value": "x"}), "by reference"),
        (_change(_mlflow, f"{_SERVER}.containers.0.args.1", "--uri=postgresql://u:p@h/d"), "command line"),
        (_change(_mlflow, f"{_SERVER}.containers.0.ports.0.name", "web"), "no port http"),
        (_change(_mlflow, f"{_SERVER}.containers.0.env.0.valueFrom.configMapKeyRef.key", "artefacts"), "no artefacts"),
        (_change(_mlflow, "spec.template.metadata.labels", {"app.kubernetes.io/name": "m"}), "selects no pod"),
        (_change(_part("NetworkPolicy", "refuse-all"), "spec.policyTypes", ["Ingress"]), "what no policy names"),
        (_change(_part("NetworkPolicy", "mlflow"), "spec.ingress.0.ports.0.port", 5001), "nobody listens on 5001"),
        (_change(_part("NetworkPolicy", "postgres"), "spec.ingress.0.from", ...), "whoever likes"),
        (lambda documents: documents.append(copy.deepcopy(documents[0])), "stands twice"),
    ],
)
def test_a_broken_manifest_is_found(change: Callable[[Documents], None], said: str) -> None:
    documents = _render("gpu")
    change(documents)
    assert any(said in fault for fault in _faults(documents)), _faults(documents)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_versions_are_those_that_were_tested(overlay: str) -> None:
    documents = _render(overlay)
    device = "cuda" if overlay.endswith("gpu") else "cpu"
    for document in documents:
        for cluster in _clusters(document):
            assert cluster["rayVersion"] == CONSTRAINTS["ray"]
        for _, template in _pods(document):
            for container in template["spec"]["containers"]:
                if container["image"].split(":")[0].endswith("vesalius"):
                    assert container["image"].endswith(f":{VERSION}-{device}")


def test_every_part_of_a_cluster_is_described_once() -> None:
    documents = _render("gpu")
    ours = _cluster(documents)["spec"]
    assert _part("RayService", "scoring")(documents)["spec"]["rayClusterConfig"] == ours
    assert _part("RayJob", "train-brain-1")(_render("train-cpu"))["spec"]["rayClusterSpec"] == {
        **_cluster(_render("cpu"))["spec"]
    }
    assert [group["groupName"] for group in ours["workerGroupSpecs"]] == ["cpu", "gpu"]
    assert not any(document["kind"] == "RayCluster" for document in _render("train-gpu"))


def test_the_command_of_the_job_is_one_that_the_command_line_takes() -> None:
    import typer

    from vesalius.infra.cli.app import app

    entrypoint = _part("RayJob", "train-brain-1")(_render("train-cpu"))["spec"]["entrypoint"]
    commands = re.findall(r"exec vesalius ([^;]+);", entrypoint)
    assert len(commands) == 2
    for command in commands:
        verb, *arguments = shlex.split(command)
        parser = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
        with parser.make_context(verb, arguments):
            pass
        with pytest.raises(Exception, match="No such option"):
            parser.make_context(verb, [*arguments, "--no-such-option"])


def test_the_server_of_the_service_can_be_built() -> None:
    pytest.importorskip("vesalius.infra.serving.application", reason="this version has no server")
    from ray.serve.schema import ServeDeploySchema

    from vesalius.infra.serving.settings import ServingSettings  # type: ignore[import-not-found,unused-ignore]

    text = _part("RayService", "scoring")(_render("cpu"))["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert config.http_options.port == 8000
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    ServingSettings.model_validate(application.args)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_cluster_is_told_to_grow_to_is_what_it_may(overlay: str) -> None:
    clusters = [cluster for document in _render(overlay) for cluster in _clusters(document)]
    assert clusters
    for cluster in clusters:
        most = {"CPU": 0, "GPU": 0}
        for group in cluster["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            most["CPU"] += group["maxReplicas"] * int(limits["cpu"])
            most["GPU"] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
        expected = ",".join(f"{name}={amount}" for name, amount in most.items() if amount)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            told = [one["value"] for one in container["env"] if one["name"] == "VESALIUS_GROWS_TO"]
            assert told == [expected]


def test_what_is_written_in_two_places_is_the_same() -> None:
    platform = KUBERAY / "platform"
    (databases,) = (d for d in yaml.safe_load_all((platform / "postgres.yaml").read_text()) if d["kind"] == "ConfigMap")
    # Compose makes the role of the studies as well; on Kubernetes whoever runs studies does, as the guide says.
    made = [
        re.findall(r"CREATE DATABASE (\w+)", text)
        for text in (databases["data"]["databases.sql"], (ROOT / "infra/docker/postgres/databases.sql").read_text())
    ]
    assert made[0] == made[1] == ["users", "studies"]
    maps = {d["metadata"]["name"]: d["data"] for d in yaml.safe_load_all((platform / "settings.yaml").read_text())}
    plain = (ROOT / "infra/docker/basic_auth.ini").read_text()
    assert _settings(maps["mlflow-settings"]["basic_auth.ini"]) == _settings(plain)


def _settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith(";")]
