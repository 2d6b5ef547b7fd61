"""What cannot be deployed is refused in a line, and nothing that was there is lost."""

from __future__ import annotations

import json
import socket
import tempfile
from pathlib import Path

import pytest
from deployments import PINS, STAMP, deploy, free_ports, refused, use_index, write_repository, write_wheel
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonpress_generator.deploy import overlays, release, requirements, served, tree
from tritonpress_generator.deploy.settings import Settings, check
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans.releases import RELEASES


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for a CPU that nobody changes."""
    return write_repository(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--release=24.13"], "--release: must be a release of NVIDIA's containers such as 24.10, got '24.13'"),
        (["--release=23.05"], "--release must be one whose Python is known here, 24.04 to 26.08, got 23.05; take one"),
        (["--grpc-port=0"], "grpc_port must be in [1, 65535], got 0"),
        (["--grafana-port=65536"], "grafana_port must be in [1, 65535], got 65536"),
        (["--https-port=20001", "--prometheus-port=20001"], "--https-port must differ from the other ports, got 20001"),
        (["--name=Tritonpress"], "--name must be up to 40 letters, digits and hyphens, such as tritonpress, got 'Trit"),
        (["--image=registry.example/t:latest"], "--image must be an image's name without a tag"),
        (["--bundle=s3://models/$(id)"], "--bundle must be s3://BUCKET/KEY or gs://BUCKET/KEY"),
        (["--bundle=https://example.com/b"], "--bundle must be s3://BUCKET/KEY or gs://BUCKET/KEY"),
        (
            ["--bundle=s3://models/b", "--bundle-sha256=ABC"],
            "--bundle-sha256 must be 64 hexadecimal digits, as sha256sum",
        ),
        (["--bundle-sha256=" + "0" * 64], "--bundle-sha256 goes with --bundle; give both, or leave it out"),
        (["--mig=all"], "--mig must be a MIG profile such as 1g.10gb, got 'all'"),
        (["--p99-ms=0"], "--p99-ms must be above 0 and below an hour, got 0"),
        (["--plan=absent.json"], "absent.json: cannot be read (["),
        (["--execution-env=absent.tar.gz"], "--execution-env must be a .tar.gz of conda-pack, got 'absent.tar.gz'"),
    ],
)
def test_options_out_of_range(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, [small, "--out", tmp_path / "out", *free_ports(), *options])
    assert not (tmp_path / "out").exists()


def test_a_port_that_is_taken(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, [small, "--out", tmp_path / "out", *free_ports(), f"--grafana-port={port}"])
    assert f"grafana_port {port} on 127.0.0.1 is in use by another process; stop that one or choose another" in said


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("[]", "`it`: input should be a valid dictionary"),
        ('{"schema": "tritonpress-plan/9"}', "`schema`: input should be 'tritonpress-plan/1'"),
        (
            json.dumps(
                {
                    "schema": "tritonpress-plan/1",
                    "demand": {"p99_ms": 50},
                    "service": {"model": "another_model"},
                    "kubernetes": {"min_replicas": 2, "max_replicas": 4, "target_us": 900},
                }
            ),
            "must be of this repository, is of one with the model another_model; measure this one and plan again",
        ),
    ],
)
def test_a_plan_that_is_none_or_of_another_repository(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str, message: str
) -> None:
    (tmp_path / "plan.json").write_text(plan)
    arguments = [small, "--out", tmp_path / "out", "--plan", tmp_path / "plan.json", *free_ports()]
    assert message in refused(capsys, arguments)


def test_repositories_that_are_not_as_their_manifests_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [tmp_path / "model_repo", "--out", tmp_path / "out", *free_ports()]
    (tmp_path / "model_repo" / "foreign" / "1").mkdir(parents=True)
    assert "must hold a workload with a manifest, has none; run tritonpress build" in refused(capsys, arguments)
    write_repository(tmp_path / "model_repo", files=2)
    (step,) = (tmp_path / "model_repo").glob("classification_model_*")
    (step / "1" / "0.bin").write_bytes(b"changed")
    (step / "1" / "1.bin").unlink()
    said = refused(capsys, arguments)
    assert f"classification: {step.name}/1/0.bin has changed and 1 more; the manifest says otherwise" in said
    next((tmp_path / "model_repo" / "classification").glob("manifest.*.json")).write_text("{")
    assert "cannot be read" in refused(capsys, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pins", [{"--no-index": "1"}, {"numpy": "1.26.4;os"}, {"-r": "1"}, {"numpy@./wheel": "1"}])
def test_a_list_of_packages_is_nothing_but_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pins: dict[str, str]
) -> None:
    write_repository(tmp_path / "model_repo", pins=pins)
    said = refused(capsys, [tmp_path / "model_repo", "--out", tmp_path / "out", *free_ports()])
    assert "/requirements.txt: must have lines NAME==VERSION, has '" in said


def test_packages_of_two_workloads_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_repository(tmp_path / "model_repo", "a")
    write_repository(tmp_path / "model_repo", "b", pins={**PINS, "tokenizers": "0.22.0"})
    said = refused(capsys, [tmp_path / "model_repo", "--out", tmp_path / "out", *free_ports()])
    assert "b needs tokenizers==0.22.0, a needs tokenizers==0.23.3, and a server has one of them" in said


@pytest.mark.parametrize(
    ("stamps", "options", "message"),
    [
        ({}, [], "its plan is pending; run "),
        (
            {"model.plan": STAMP},
            ["--release=25.01"],
            "was built with TensorRT 10.5.0.18; which one Triton 25.01 has is",
        ),
        ({"model.plan": {}}, [], "must have its stamp beside it, model.plan.json; build it again"),
        (
            {"model.plan": {**STAMP, "release": "23.03", "tensorrt": "8.5.3.1"}},
            [],
            "/model.plan was built with TensorRT 8.5.3.1 of release 23.03; build them in nvcr.io/nvidia/tensorrt:26.08",
        ),
    ],
)
def test_plans_that_do_not_fit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stamps: dict[str, dict[str, str]],
    options: list[str],
    message: str,
) -> None:
    write_repository(tmp_path / "model_repo", stamps=stamps)
    assert message in refused(capsys, [tmp_path / "model_repo", "--out", tmp_path / "out", *free_ports(), *options])


def test_plans_for_several_kinds_of_gpu(tmp_path: Path) -> None:
    both = {"model_8.0.plan": STAMP, "model_9.0.plan": {**STAMP, "compute_capability": "9.0"}}
    write_repository(tmp_path / "model_repo", "a", stamps=both)
    write_repository(tmp_path / "model_repo", "b", stamps={"model.plan": {**STAMP, "compute_capability": "9.0"}})
    files = overlays.overlays(served.read(tmp_path / "model_repo"), Settings())
    (term,) = files["gpu/deployment.yaml"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert [expression["values"] for expression in term["matchExpressions"]] == [["9"], ["0"]]
    write_repository(tmp_path / "model_repo", "c", stamps={"model.plan": {**STAMP, "compute_capability": "8.9"}})
    with pytest.raises(InputError, match=r"must be for one kind of GPU, are by compute capability: a_engine_\w+ for 8"):
        overlays.overlays(served.read(tmp_path / "model_repo"), Settings())


def test_a_release_runs_all_plans_or_is_refused() -> None:
    path = Path("a/1/model.plan")
    assert release.choose({}, None) == max(name for name, entry in RELEASES.items() if entry.python)
    assert release.choose({path: STAMP}, None) == "24.10"
    other = {path: STAMP, Path("b/1/model.plan"): {**STAMP, "release": "24.12", "tensorrt": "10.7.0.23"}}
    with pytest.raises(InputError, match=r"no release of Triton's container from 24.04 to 26.08 runs all plans: a/"):
        release.choose(other, None)


def test_hashes_are_those_of_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = use_index(tmp_path, monkeypatch, PINS)
    # Another build of the same version for a newer libc than the container's is passed over.
    write_wheel(tmp_path, "numpy", PINS["numpy"], tag="cp312-cp312-manylinux_2_90_x86_64")
    locked = requirements.lock([f"{name}=={version}" for name, version in PINS.items()], "3.12.3", release="26.08")
    assert [package.licence for package in locked] == ["MIT"] * 3
    text = requirements.text(locked)
    assert text.startswith("# ")
    assert text.splitlines()[1:] == [f"{name}=={PINS[name]} --hash=sha256:{hashes[name]}" for name in sorted(PINS)]


@pytest.mark.parametrize(
    ("package", "python", "message"),
    [
        (
            "onnxruntime==1.32.0",
            "3.10.12",
            "onnxruntime==1.32.0 has no wheel for Python 3.10, which Triton 24.10 has; tak",
        ),
        (
            "absent==1.0",
            "3.12.3",
            "pip's index cannot be reached, or has no absent; take another --release, reach an ind",
        ),
    ],
)
def test_wheels_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, python: str, message: str
) -> None:
    use_index(tmp_path, monkeypatch, {})
    for version, tag in (("1.32.0", "cp312-cp312"), ("1.23.2", "cp310-cp310")):
        write_wheel(tmp_path, "onnxruntime", version, tag=f"{tag}-manylinux_2_28_x86_64")
    with pytest.raises(InputError) as caught:
        requirements.lock([package], python, release="24.10")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_operator_wrote_is_not_lost(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    foreign = refused(capsys, [small, "--out", tmp_path / "own", *free_ports()])
    assert "must be a new folder, or one that tritonpress deploy wrote, has no deploy.json that can be read" in foreign
    out = deploy(small, tmp_path / "out")
    (out / "compose" / "secrets").mkdir()
    (out / "compose" / "secrets" / "tls.key").write_text("secret")
    rules = out / "compose" / "rules.yaml"
    rules.write_text(rules.read_text() + "# mine\n")
    said = refused(capsys, [small, "--out", out, *free_ports()])
    assert f"{rules}: has been changed since tritonpress deploy wrote it, and would be lost; keep the change" in said
    assert rules.read_text().endswith("# mine\n")
    rules.unlink()
    deploy(small, out)
    assert (out / "compose" / "secrets" / "tls.key").read_text() == "secret"


@pytest.mark.parametrize("place", ["deployment", "classification/deployment", "."])
def test_a_place_that_a_server_would_take_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    repository = write_repository(tmp_path / "model_repo")
    before = sorted(repository.rglob("*"))
    said = refused(capsys, [repository, "--out", repository / place, *free_ports()])
    assert "must lie outside of the repository" in said
    assert sorted(repository.rglob("*")) == before


FILES = st.dictionaries(
    st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), st.sampled_from(["old", "new", "third"]), max_size=4
)


@given(first=FILES, edits=FILES, second=FILES)
@settings(max_examples=60, deadline=None)
def test_no_edit_is_ever_lost(first: dict[str, str], edits: dict[str, str], second: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        tree.write(out, first, {})
        for path, text in edits.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text)
        edited = {path: text for path, text in edits.items() if first.get(path) != text}
        lost = {path for path, text in edited.items() if second.get(path) != text and path in {*first, *second}}
        if lost:
            with pytest.raises(InputError, match="has been changed since"):
                tree.write(out, second, {})
            expected = {**first, **edits}
        else:
            tree.write(out, second, {})
            expected = {**{path: text for path, text in edited.items() if path not in first}, **second}
        found = {
            path.relative_to(out).as_posix(): path.read_text()
            for path in out.rglob("*")
            if path.is_file() and path.name != tree.RECORD
        }
        assert found == expected


@given(st.text(max_size=60), st.sampled_from(["name", "image", "bundle", "bundle_sha256", "mig"]))
@settings(max_examples=100)
def test_no_name_means_something_to_a_shell(text: str, option: str) -> None:
    try:
        check(Settings(**{option: text}))
    except InputError as exc:
        assert "\n" not in str(exc)
    else:
        assert not set(text) & set(" \t\n;&|<>$`'\"\\(){}*?[]!#~\x00")
