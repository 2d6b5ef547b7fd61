"""What is generated is what its readers take: Kubernetes' schemas, compose's, hadolint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from deployments import STAMP, deploy, objects, use_index, write_repository

KUBERNETES = ("1.30", "1.37")
"""The least that docs/deploy.md asks for, and the newest whose schemas there are."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "deploy.md"
PLAN = {
    "schema": "tritonpress-plan/1",
    "demand": {"p99_ms": 40.0, "survive": "zone", "peak_per_s": 100.0},
    "kubernetes": {"min_replicas": 3, "max_replicas": 6, "metric": "…", "target_us": 1234.5},
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A repository for a CPU, from a volume; one for a GPU, by a bucket, a plan and mutual TLS; each deployed."""
    folder = tmp_path_factory.mktemp("deploy")
    with pytest.MonkeyPatch.context() as patch:
        use_index(folder / "index", patch)
        cpu = write_repository(folder / "cpu")
        gpu = write_repository(folder / "gpu", stamps={"model.plan": STAMP})
        engine = next(path.name for path in gpu.iterdir() if "_engine_" in path.name)
        (folder / "plan.json").write_text(json.dumps({**PLAN, "service": {"model": engine}}))
        options = ["--bundle=s3://models/today.bundle", "--image=registry.example/t", f"--plan={folder / 'plan.json'}"]
        options.append("--grpc-tls=mutual")
        yield {"cpu": deploy(cpu, folder / "cpu-out"), "gpu": deploy(gpu, folder / "gpu-out", *options)}


@pytest.fixture(params=["cpu", "gpu"])
def out(request: pytest.FixtureRequest, deployed: dict[str, Path]) -> Path:
    """One of the folders, and then the other."""
    return deployed[request.param]


def validate(entry: dict[str, Any], versions: Sequence[str] = KUBERNETES) -> None:
    with warnings.catch_warnings():
        # The package's own use of an older name of its reader of resources.
        warnings.simplefilter("ignore", DeprecationWarning)
        for version in versions:
            kubernetes_validate.validate(entry, version, strict=True)


def test_kubernetes_takes_the_base(out: Path) -> None:
    entries = objects(out / "kubernetes" / "base")
    for entry in entries:
        validate(entry)
    assert {entry["kind"] for entry in entries} == {
        "Namespace", "ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget",
        "NetworkPolicy",
    }  # fmt: skip
    misspelt = next(entry for entry in entries if entry["kind"] == "Deployment")
    misspelt["spec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(misspelt)


def test_kubernetes_of_before_does_not_take_it(out: Path) -> None:
    """The wait before a server ends is what came last."""
    deployment = next(entry for entry in objects(out / "kubernetes" / "base") if entry["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError, match="sleep"):
        validate(deployment, ["1.28"])
    assert f"Kubernetes {KUBERNETES[0]}" in DOCUMENT.read_text()


def test_every_kustomization_lists_files_that_are_there(out: Path) -> None:
    paths = sorted(out.rglob("kustomization.yaml"))
    for path in paths:
        entry = yaml.safe_load(path.read_text())
        listed = [*entry["resources"], *(patch["path"] for patch in entry.get("patches", []))]
        assert all((path.parent / name).exists() for name in listed)
        own = {file.name for file in path.parent.glob("*.yaml")} - {path.name}
        assert own == {name for name in listed if not name.startswith("..")}
    expected = {"base", "cpu", "prometheus-operator"} if "cpu" in out.name else {"base", "gpu", "mig"}
    assert {path.parent.name for path in paths} >= expected


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="builds overlays with kubectl, which is not installed")
def test_kustomize_builds_the_overlays(out: Path) -> None:
    for overlay in sorted((out / "kubernetes" / "overlays").iterdir()):
        built = kustomized(overlay)
        for entry in built:
            validate(entry)
        pod = next(entry for entry in built if entry["kind"] == "Deployment")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"].keys() > {"memory"}
        assert "tritonserver" in container["args"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="builds overlays with kubectl, which is not installed")
def test_kustomize_builds_what_the_document_says_of_the_operator(out: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"(?:^    .*\n)*^    components: .*\n", DOCUMENT.read_text(), re.MULTILINE)
    overlays = sorted(path.name for path in (out / "kubernetes" / "overlays").iterdir())
    shutil.copytree(out, tmp_path / "deployment")
    text = textwrap.dedent(block).replace("overlays/cpu", f"overlays/{overlays[0]}")
    (tmp_path / "kustomization.yaml").write_text(text)
    built = kustomized(tmp_path)
    added = {entry["kind"]: entry for entry in built}
    assert added.keys() >= {"Deployment", "PodMonitor", "PrometheusRule", "ConfigMap"}
    assert {entry["metadata"].get("namespace") for entry in built if entry["kind"] != "Namespace"} == {"tritonpress"}
    labels = added["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= added["PodMonitor"]["spec"]["selector"]["matchLabels"].items()
    validate(added["ConfigMap"])


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """Returns the objects that Kustomize makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_servers_are_found_by_their_labels(out: Path) -> None:
    kinds = {entry["kind"]: entry for entry in objects(out / "kubernetes" / "base")}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert labels >= kinds["Service"]["spec"]["selector"].items()
    for kind, key in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert labels >= kinds[kind]["spec"][key]["matchLabels"].items()
    assert kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    names = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} <= set(names)
    mounted = {
        mount["name"] for c in (*pod["containers"], *pod.get("initContainers", [])) for mount in c["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_no_container_may_do_more_than_it_must(out: Path) -> None:
    pod = next(e for e in objects(out / "kubernetes") if e["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert not rights["allowPrivilegeEscalation"]
        assert "sh" not in " ".join(container.get("command", [])).split()
    stack = yaml.safe_load((out / "compose" / "compose.yaml").read_text())
    for service in stack["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"])


def test_figures_of_the_plan_are_the_autoscaler_s(deployed: dict[str, Path]) -> None:
    kinds = {entry["kind"]: entry for entry in objects(deployed["gpu"] / "kubernetes" / "base")}
    spec = kinds["HorizontalPodAutoscaler"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 6)
    pods = spec["metrics"][0]["pods"]
    assert pods["target"]["averageValue"] == "1234"
    adapter = yaml.safe_load((deployed["gpu"] / "kubernetes" / "prometheus-adapter.yaml").read_text())
    assert adapter["rules"][0]["name"]["as"] == pods["metric"]["name"]
    spread = kinds["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread[0] | {"labelSelector": None} == {
        "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": None, "matchLabelKeys": ["pod-template-hash"],
    }  # fmt: skip
    rules = yaml.safe_load((deployed["gpu"] / "compose" / "rules.yaml").read_text())
    assert "tritonpress:p99_us > bool 40000" in [rule["expr"] for rule in rules["groups"][0]["rules"]]


def test_a_plan_binds_the_release_and_the_kind_of_gpu(deployed: dict[str, Path]) -> None:
    gpu = deployed["gpu"]
    assert "FROM nvcr.io/nvidia/tritonserver:24.10-py3" in (gpu / "image" / "Dockerfile").read_text()
    patch = yaml.safe_load((gpu / "kubernetes" / "overlays" / "mig" / "deployment.yaml").read_text())
    pod = patch["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": "1"}
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [(e["key"].split(".")[-1], e["values"]) for e in term["matchExpressions"]] == [
        ("major", ["8"]),
        ("minor", ["0"]),
    ]


def test_a_bundle_is_fetched_unpacked_and_served(deployed: dict[str, Path]) -> None:
    pod = next(e for e in objects(deployed["gpu"] / "kubernetes") if e["kind"] == "Deployment")["spec"]["template"][
        "spec"
    ]
    fetch, unpack = pod["initContainers"]
    (server,) = pod["containers"]
    assert fetch["command"][-2] == "s3://models/today.bundle"
    assert fetch["command"][-1] == unpack["command"][-2]
    assert unpack["image"] == server["image"]
    assert f"--model-repository={unpack['command'][-1]}" in server["args"]
    cpu = next(e for e in objects(deployed["cpu"] / "kubernetes") if e["kind"] == "Deployment")
    volume = cpu["spec"]["template"]["spec"]["volumes"][0]
    assert volume["persistentVolumeClaim"] == {"claimName": "tritonpress-repository", "readOnly": True}


def test_compose_takes_its_file(out: Path) -> None:
    path = out / "compose" / "compose.yaml"
    stack = compose_spec.PyCompose.from_yaml(path.read_text())
    stack.validate()
    content = yaml.safe_load(path.read_text())
    assert set(stack.service_names()) == set(content["services"])
    for service in content["services"].values():
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or (path.parent / volume["source"]).exists()
        named = {entry["source"] if isinstance(entry, dict) else entry for entry in service.get("secrets", [])}
        assert named <= set(content["secrets"])
    assert (path.parent / content["services"]["triton"]["build"]["context"] / "Dockerfile").exists()
    with pytest.raises(ValueError, match="healthchek"):
        compose_spec.PyCompose.from_yaml(path.read_text().replace("healthcheck:", "healthchek:"))


def test_the_admin_token_is_a_secret_s(deployed: dict[str, Path], tmp_path: Path) -> None:
    for out in deployed.values():
        kinds = {entry["kind"]: entry for entry in objects(out / "kubernetes" / "base")}
        pod = kinds["Deployment"]["spec"]["template"]["spec"]
        (server,) = pod["containers"]
        (program, file), command = server["args"][1:3], server["args"][3:]
        assert program == "/opt/tritonpress/guarded.py"
        assert command[0] == "tritonserver"
        guard = "model-repository,statistics,shared-memory,trace,logging:tritonpress-admin=@TOKEN@"
        assert command[-2:] == [f"--grpc-restricted-protocol={guard}", f"--http-restricted-api={guard}"]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "admin-token"]
        assert volume["secret"]["secretName"] == "tritonpress-admin"
        (mount,) = [mount for mount in server["volumeMounts"] if mount["name"] == volume["name"]]
        assert f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}" == file
        assert mount["readOnly"]
        assert [
            c for c in pod.get("initContainers", []) if any(m["name"] == volume["name"] for m in c["volumeMounts"])
        ] == []
        stack = yaml.safe_load((out / "compose" / "compose.yaml").read_text())
        (given,) = [entry for entry in stack["services"]["triton"]["secrets"] if entry["target"] == file]
        assert stack["secrets"][given["source"]] == {"file": "./secrets/admin_token"}
        assert "Secret" not in kinds


def test_without_a_token_nothing_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(tmp_path / "index", monkeypatch)
    out = deploy(write_repository(tmp_path / "model_repo"), tmp_path / "out", "--no-admin-token")
    for path in out.rglob("*"):
        assert path.is_dir() or not re.search("admin.token|-restricted-|guarded", path.read_text())
    pod = next(e for e in objects(out / "kubernetes") if e["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][0] == "tritonserver"


def test_hadolint_takes_the_dockerfile(out: Path, tmp_path: Path) -> None:
    path = out / "image" / "Dockerfile"
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(re.sub(r"tritonserver:\S+", "tritonserver", path.read_text(), count=1))
    unpinned = subprocess.run(["hadolint", str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert "DL3006" in unpinned.stdout


def test_the_bill_of_materials_is_of_what_is_installed(out: Path) -> None:
    bill = json.loads((out / "sbom.cdx.json").read_text())
    base, *packages = bill["components"]
    assert f"{base['name']}:{base['version']}" == json.loads((out / "deploy.json").read_text())["base_image"]
    lines = (out / "image" / "requirements.txt").read_text().splitlines()[1:]
    assert [f"{p['name']}=={p['version']} --hash=sha256:{p['hashes'][0]['content']}" for p in packages] == lines


def test_the_image_is_root_s_and_nobody_s(out: Path) -> None:
    lines = (out / "image" / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001:10001"]
    assert all(line.split(" ", 1)[1].startswith("[") for line in lines if line.startswith(("RUN", "CMD")))
    copied = [line.split()[1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert {path.name for path in (out / "image").iterdir()} - {"Dockerfile"} == set(copied)


def test_deploying_again_changes_nothing_and_a_new_build_is_a_new_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    repository = write_repository(tmp_path / "model_repo")
    out = deploy(repository, tmp_path / "out")
    first = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    ports = json.loads((out / "deploy.json").read_text())["ports"]
    same = [f"--{endpoint}-port={port}" for endpoint, port in ports.items()]
    deploy(repository, out, *same)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == first
    write_repository(repository, files=2)
    deploy(repository, out, *same)
    deployment = out / "kubernetes" / "base" / "deployment.yaml"
    templates = [yaml.safe_load(text)["spec"]["template"] for text in (first[deployment], deployment.read_bytes())]
    assert templates[0]["metadata"]["annotations"] != templates[1]["metadata"]["annotations"]
    assert templates[0]["spec"]["containers"][0]["image"] != templates[1]["spec"]["containers"][0]["image"]


def test_what_a_later_switch_takes_from_a_server_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    repository = write_repository(tmp_path / "model_repo")
    deploy(repository, tmp_path / "before")
    assert "by name" not in capsys.readouterr().out
    write_repository(repository, files=2, canary=True)
    deploy(repository, tmp_path / "out")
    assert "note: servers ask for classification_canary by name, and do not start without" in capsys.readouterr().out
