"""gRPC with TLS in what `tritonpress deploy` writes: where the certificates lie, and the command that takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from certificates import write_certificates
from containers import commands, health, running
from deployments import deploy, objects, use_index, write_repository
from tritonpress_client import Options, Recommender, Tls, TritonpressError
from tritonpress_generator.deploy import deploy as write
from tritonpress_generator.deploy.settings import Settings
from tritonpress_generator.errors import InputError

FOLDER = "/run/tritonpress-tls"
FILES = {"server": ["tls.crt", "tls.key"], "mutual": ["tls.crt", "tls.key", "ca.crt"]}


def test_the_container_s_command_asks_both_sides_for_a_certificate(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    command, args = commands(deploy(tiny_repository, tmp_path / "out", "--grpc-tls=mutual"))
    assert command == args
    pem = write_certificates(tmp_path)
    files = (pem.server, pem.server_key, pem.ca)
    secrets = {f"{FOLDER}/{name}": path for name, path in zip(FILES["mutual"], files, strict=True)}
    ca = pem.ca.read_bytes()
    both = Tls(ca=ca, certificate=pem.client.read_bytes(), key=pem.client_key.read_bytes())
    with running(command, tiny_repository, tmp_path, secrets) as ports:
        assert health(ports["http"]) == 0
        url = f"127.0.0.1:{ports['grpc']}"
        with Recommender(url, options=Options(tls=both), timeout_s=20) as known:
            assert len(known.recommend("red lamp")) == 10
        for tls in (None, Tls(ca=ca)):
            with Recommender(url, options=Options(tls=tls), timeout_s=2) as unknown, pytest.raises(TritonpressError):
                unknown.recommend("red lamp")


@pytest.mark.parametrize("kind", FILES)
def test_secrets_have_the_certificates(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(tmp_path / "index", monkeypatch)
    out = deploy(write_repository(tmp_path / "model_repo"), tmp_path / "out", f"--grpc-tls={kind}")
    pods = [entry for entry in objects(out / "kubernetes") if entry["kind"] == "Deployment"]
    pod = pods[0]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (volume,) = [v["secret"] for v in pod["volumes"] if v["name"] == "grpc-tls"]
    assert volume["secretName"] == "tritonpress-grpc-tls"
    assert [(item["key"], item["path"]) for item in volume["items"]] == [(name, name) for name in FILES[kind]]
    (mount,) = [m for m in server["volumeMounts"] if m["name"] == "grpc-tls"]
    assert mount == {"name": "grpc-tls", "mountPath": FOLDER, "readOnly": True}
    named = {option.partition("=")[2] for option in server["args"] if FOLDER in option}
    assert named == {f"{FOLDER}/{name}" for name in FILES[kind]}
    assert ("--grpc-use-ssl-mutual=1" in server["args"]) == (kind == "mutual")
    (service,) = [entry for entry in objects(out / "kubernetes" / "base") if entry["kind"] == "Service"]
    assert service["spec"]["ports"][0]["appProtocol"] == "https"

    stack = yaml.safe_load((out / "compose" / "compose.yaml").read_text())
    given = {entry["target"]: entry["source"] for entry in stack["services"]["triton"]["secrets"]}
    files = {target: Path(stack["secrets"][source]["file"]).name for target, source in given.items()}
    assert files == {f"{FOLDER}/{name}": name for name in FILES[kind]} | {"/run/tritonpress/admin_token": "admin_token"}


def test_without_it_nothing_asks_for_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(tmp_path / "index", monkeypatch)
    out = deploy(write_repository(tmp_path / "model_repo"), tmp_path / "out")
    for path in [out / "image" / "Dockerfile", *(out / "kubernetes").rglob("*.yaml")]:
        assert "ssl" not in path.read_text()
        assert "tls" not in path.read_text()


def test_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--grpc-tls must be one of server, mutual, got 'both'"):
        write(tmp_path, tmp_path / "out", Settings(grpc_tls="both"))
