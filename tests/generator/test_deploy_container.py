"""What the container runs, run here: its command line, its health check, its unpacking, its packed environment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from importlib.metadata import distribution
from pathlib import Path

import promql_parser
import pytest
import tritonclient.grpc as triton
import yaml
from containers import ADMIN, GUARDED, TOKEN, asked, commands, health, running
from deployments import deploy, filled, use_index, write_repository
from tiny_sources import write_recipe
from tritonclient.utils import InferenceServerException
from tritonpress_generator import cli
from tritonpress_generator.deploy.image import UNPACK_PACKAGES
from tritonpress_generator.packing.__main__ import main as unpack
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.repository import read_manifest
from tritonpress_server import TritonServer


def test_the_container_s_command_serves_what_tritonpress_serve_does(
    tiny_repository: Path, tiny_server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    out = deploy(tiny_repository, tmp_path / "out")
    command, args = commands(out)
    assert command == args
    with running(command, tiny_repository, tmp_path) as ports:
        mine = triton.InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
        serve = triton.InferenceServerClient(tiny_server.grpc_url)
        models = [model.name for model in serve.get_model_repository_index().models]
        assert [model.name for model in mine.get_model_repository_index(headers=ADMIN).models] == models
        for ask in (mine.get_model_repository_index, mine.get_inference_statistics, lambda: mine.load_model(models[0])):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask()
        assert len(models) == 4
        for model in models:
            configs = [client.get_model_config(model).SerializeToString(deterministic=True) for client in (mine, serve)]
            assert configs[0] == configs[1]
        answers = [client.infer("recommendation", [asked()]).as_numpy("ITEM_ID") for client in (mine, serve)]
        assert answers[0].tolist() == answers[1].tolist()
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics") as response:
            text = response.read().decode()
    _check_metrics(out, text)
    assert health(ports["http"]) == 1


def test_a_server_starts_anew_after_two_promotes(
    tiny_sources: Path, tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that was written for the first build serves the third, when nothing is left of the first."""
    use_index(tmp_path / "index", monkeypatch)
    repository = Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))
    first = read_manifest(repository, "recommendation")["steps"].values()
    command, _ = commands(deploy(repository, tmp_path / "out"))
    sources = Path(shutil.copytree(tiny_sources, tmp_path / "sources"))
    for batch in (4, 2):
        serve = {"max_batch_size": batch, "max_length": 48, "lengths": "exact", "steps": "ensemble"}
        recipe = write_recipe(sources, graph=["fuse"], serve=serve)
        for arguments in (
            ["build", recipe, "--out", repository, "--canary"],
            ["promote", repository, "recommendation"],
        ):
            assert cli.main([str(argument) for argument in arguments]) == 0
    assert not [step for step in first if (repository / step).exists()]
    with running(command, repository, tmp_path) as ports:
        client = triton.InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
        assert client.get_model_config("recommendation").config.max_batch_size == 2
        assert client.infer("recommendation", [asked()]).as_numpy("ITEM_ID").shape == (1, 10)


def _check_metrics(out: Path, text: str) -> None:
    """Every metric and label that rules and dashboard ask for is among those that the server gives."""
    given = {name: set(re.findall(r'(\w+)="', labels)) for name, labels in re.findall(r"^(nv_\w+)\{(.*)\}", text, re.M)}
    given |= {name: set() for name in re.findall(r"^(nv_\w+) ", text, re.M)}
    rules = yaml.safe_load((out / "compose" / "rules.yaml").read_text())
    board = json.loads((out / "compose" / "grafana" / "dashboards" / "tritonpress.json").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = 0
    for expression in expressions:
        for name, labels in selectors(promql_parser.parse(filled(expression))):
            # Where the response cache is on.
            if not name.startswith("nv_cache_"):
                assert name in given
                assert labels <= given[name]
                asked += 1
    assert asked > 30


def selectors(expression: object) -> list[tuple[str, set[str]]]:
    """Returns the metrics that an expression reads, each with the labels that it picks by."""
    found = re.findall(r"\b(nv_\w+)(?:\{([^}]*)\})?", str(expression))
    return [(name, set(re.findall(r'(\w+)\s*[=!]~?"', labels))) for name, labels in found]


def test_the_image_unpacks_a_bundle_with_its_packages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(tmp_path / "index", monkeypatch)
    repository = write_repository(tmp_path / "model_repo")
    out = deploy(repository, tmp_path / "out", "--bundle=gs://models/b")
    lines = (out / "image" / "requirements.txt").read_text().splitlines()[1:]
    installed = {line.partition("==")[0] for line in lines}
    assert installed == {*UNPACK_PACKAGES, "onnxruntime", "tokenizers"}
    python = tmp_path / "python"
    python.mkdir()
    (python / "tritonpress_generator").symlink_to(out / "image" / "tritonpress_generator")
    for package in UNPACK_PACKAGES:
        installed_as = distribution(package)
        for part in {file.parts[0] for file in installed_as.files or []} - {"..", "__pycache__"}:
            if not (python / part).exists():
                (python / part).symlink_to(str(installed_as.locate_file(part)))
    pack(repository, tmp_path / "bundle")
    deployment = yaml.safe_load((out / "kubernetes" / "base" / "deployment.yaml").read_text())
    (*program, _, _) = deployment["spec"]["template"]["spec"]["initContainers"][1]["command"]
    command = [sys.executable, "-S", *program[1:], str(tmp_path / "bundle"), str(tmp_path / "unpacked")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(python), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    for path in repository.rglob("*"):
        if path.is_file():
            assert (tmp_path / "unpacked" / path.relative_to(repository)).read_bytes() == path.read_bytes()
    data = bytearray((tmp_path / "bundle").read_bytes())
    data[100] ^= 1
    (tmp_path / "bundle").write_bytes(data)
    done = subprocess.run([*command[:-1], str(tmp_path / "again")], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert not (tmp_path / "again").exists()


def test_an_init_container_that_is_run_again_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Kubernetes does in the same pod: the folder is as the first run left it, or as a run that was killed did."""
    folder, bundle = tmp_path / "models" / "repository", tmp_path / "bundle"
    folder.parent.mkdir()
    for files in (1, 1, 2):
        repository = write_repository(tmp_path / f"model_repo_{files}", files=files)
        pack(repository, bundle)
        if folder.exists():
            (folder.parent / ".repository.new" / "tree").mkdir(parents=True)
        assert unpack(str(bundle), str(folder)) == 0
        assert contents(folder) == contents(repository)
        assert [path.name for path in folder.parent.iterdir()] == ["repository"]
    capsys.readouterr()
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert unpack(str(bundle), str(folder)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(folder) == contents(repository)
    assert [path.name for path in folder.parent.iterdir()] == ["repository"]


def test_an_init_container_takes_the_bundle_that_was_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    repository = write_repository(tmp_path / "model_repo")
    pack(repository, tmp_path / "bundle")
    sha256 = hashlib.sha256((tmp_path / "bundle").read_bytes()).hexdigest()
    out = deploy(repository, tmp_path / "out", "--bundle=gs://models/b", f"--bundle-sha256={sha256}")
    assert "--bundle-sha256" not in capsys.readouterr().out
    deployment = yaml.safe_load((out / "kubernetes" / "base" / "deployment.yaml").read_text())
    *_, given = deployment["spec"]["template"]["spec"]["initContainers"][1]["command"]
    assert given == sha256
    pack(write_repository(tmp_path / "another", files=2), tmp_path / "another.bundle")
    assert unpack(str(tmp_path / "another.bundle"), str(tmp_path / "unpacked"), given) == 2
    said = capsys.readouterr().err
    assert f"must be the bundle of sha256 {sha256}, has " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "unpacked").exists()
    assert unpack(str(tmp_path / "bundle"), str(tmp_path / "unpacked"), given) == 0
    assert contents(tmp_path / "unpacked") == contents(repository)
    assert unpack(str(tmp_path / "absent"), str(tmp_path / "unpacked"), given) == 2
    deploy(repository, tmp_path / "untied", "--bundle=gs://models/b")
    assert "note: pods take whatever bundle lies at gs://models/b; give --bundle-sha256" in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_python_steps_run_in_a_packed_environment(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As conda-pack makes it, with nothing in it but what says that it was entered.
    (tmp_path / "activate").write_text("export TRITONPRESS_ENVIRONMENT=packed\n")
    environment = tmp_path / "env.tar.gz"
    with tarfile.open(environment, "w:gz") as archive:
        archive.add(tmp_path / "activate", "bin/activate")
    out = deploy(tiny_repository, tmp_path / "out", f"--execution-env={environment}")
    assert not (out / "image" / "requirements.txt").exists()
    assert "PYTHONPATH" not in (out / "image" / "Dockerfile").read_text()
    assert (out / "image" / "execution_env.tar.gz").read_bytes() == environment.read_bytes()
    stack = yaml.safe_load((out / "compose" / "compose.yaml").read_text())
    copied = (out / "compose" / stack["services"]["triton"]["volumes"][0]["source"]).resolve()
    steps = sorted(copied.glob("*/configs/container.pbtxt"))
    assert [step.parents[1].name.rsplit("_", 1)[0] for step in steps] == [
        "recommendation_postprocessing",
        "recommendation_tokenizer",
    ]
    for step in steps:
        text = step.read_text()
        assert 'string_value: "/opt/tritonpress/execution_env.tar.gz"' in text
        step.write_text(text.replace("/opt/tritonpress/execution_env.tar.gz", str(environment)))
    command, _ = commands(out)
    with running(command, copied, tmp_path) as ports:
        client = triton.InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
        config = client.get_model_config(steps[0].parents[1].name, as_json=True)["config"]
        assert config["parameters"]["EXECUTION_ENV_PATH"]["string_value"] == str(environment)
        assert client.infer("recommendation", [asked()]).as_numpy("ITEM_ID").shape == (1, 10)
        entered = [stub for stub in Path("/proc").glob("[0-9]*/environ") if b"ENVIRONMENT=packed" in _read(stub)]
        assert len(entered) >= len(steps)


@pytest.mark.parametrize(
    ("content", "rule"),
    [(None, "cannot be read"), ("", "must hold one token"), ("two words of a token", "must hold one token")],
)
def test_a_container_without_a_token_does_not_start(tmp_path: Path, content: str | None, rule: str) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    command = [sys.executable, "-S", GUARDED, tmp_path / "token", "echo", "started"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert rule in done.stderr


def test_the_token_stands_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    command = [sys.executable, "-S", GUARDED, tmp_path / "token", "echo", "a=@TOKEN@", "$HOME", "b c"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"a={TOKEN} $HOME b c\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or is not ours
        return b""


@pytest.mark.slow
def test_the_index_s_wheels_have_the_hashes(tiny_repository: Path, tmp_path: Path) -> None:
    out = deploy(tiny_repository, tmp_path / "out", "--bundle=gs://models/b")
    requirements = out / "image" / "requirements.txt"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + [
        "--platform=manylinux2014_x86_64"
    ]
    command += ["--python-version=3.12", f"--dest={tmp_path / 'wheels'}", f"--requirement={requirements}"]
    subprocess.run(command, check=True)
    assert len(list((tmp_path / "wheels").iterdir())) == len(requirements.read_text().splitlines()) - 1
    requirements.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", requirements.read_text()))
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
