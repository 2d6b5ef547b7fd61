"""`tritonpress tune`: what it refuses, and how it tunes a served repository under load."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import yaml
from tiny_builds import write_other_sources
from tiny_sources import write_task
from tritonpress_client import ServerUnreachableError
from tritonpress_generator import builds, cli, switching
from tritonpress_generator.build import build
from tritonpress_generator.journal import Journal
from tritonpress_generator.progress import Progress
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.bench import Bench, bench
from tritonpress_generator.tune.load import Traffic
from tritonpress_generator.tune.session import Session, TuneConfig
from tritonpress_server import Settings, TritonServer
from tunings import of_steps


@pytest.fixture
def tuned(tiny_repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_repository, folder)
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--p99-ms", "0"], "--p99-ms must be a number above 0, got 0"),
        (["--p99-ms", "nan"], "--p99-ms must be a number above 0, got nan"),
        (["--p99-ms", "50", "--budget-minutes", "-1"], "--budget-minutes must be a number above 0, got -1"),
        (["--p99-ms", "50", "--cores", "0"], "--cores must be 1 or more, got 0"),
        (["--p99-ms", "50", "--scenario", "missing.yaml"], "scenario missing.yaml: cannot be read"),
        (["--p99-ms", "50", "--scenario", "other.yaml"], "asks 'other', which is no workload of"),
        (["--p99-ms", "50", "--server", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--p99-ms", "50", "--work", "other.yaml"], "--work other.yaml: must be a folder that can be written, "),
    ],
)
def test_refuses_what_cannot_be_tuned(
    tuned: Path,
    tmp_path: Path,
    options: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = {"requests": [{"workload": "classification", "model": "other", "queries": "a.tsv"}]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    assert cli.main(["tune", str(tuned), *options]) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("work", ["tuned", "."])
def test_refuses_to_work_where_a_server_looks_for_models(
    tuned: Path, work: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tuned)
    there = sorted(path.name for path in tuned.iterdir())
    assert cli.main(["tune", ".", "--p99-ms", "50", "--budget-minutes", "0.01", "--work", work]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "--work must lie outside of the repository ., in which every folder is a model to a server" in said
    assert f"got {work};" in said
    assert sorted(path.name for path in tuned.iterdir()) == there


def test_refuses_files_that_have_changed(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = builds.workloads(tuned)
    step = next(iter(builds.read_manifest(tuned, name)["steps"].values()))
    with (tuned / step / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert cli.main(["tune", str(tuned), "--p99-ms", "50", "--work", str(tmp_path / "work")]) == 2
    assert f"{step}/config.pbtxt has changed" in capsys.readouterr().err


def test_refuses_a_build_that_could_not_be_switched(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    path = tuned / name / f"manifest.{builds.served(tuned, name)}.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["ensemble"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.main(["tune", str(tuned), "--p99-ms", "50", "--work", str(tmp_path / "work")]) == 2
    assert "builds cannot be switched; build it again" in capsys.readouterr().err


def test_a_pending_plan_is_in_the_way_of_those_alone_who_ask_it(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    source = write_task(tmp_path, "classification")
    recipe = yaml.safe_load(source.read_text(encoding="utf-8")) | {"name": "on_a_gpu", "graph": []}
    recipe |= {"engine": "tensorrt", "serve": {"max_batch_size": 4, "max_length": 16, "lengths": [16]}}
    source.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    build(source, tuned)
    requests = Traffic.golden({name: builds.read_manifest(tuned, name)}, tmp_path).requests
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump({"requests": requests}), encoding="utf-8")
    command = ["tune", str(tuned), "--p99-ms", "50", "--work", str(tmp_path / "work")]
    assert cli.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "on_a_gpu: its plan is pending; run" in said and "or give a --scenario that does not ask it" in said
    asked = ["--scenario", str(tmp_path / "scenario.yaml")]
    assert cli.main([*command, *asked, "--server", "127.0.0.1:1"]) == 2
    assert "no Triton server answers at 127.0.0.1:1" in capsys.readouterr().err
    with bench(tuned, turning.read_configs(tuned, builds.read_manifest(tuned, name), name), []) as served:
        assert served.url


def test_refuses_a_server_that_takes_no_orders(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TritonServer(tuned, settings=Settings(model_control="none", drain_s=0)) as server:
        command = ["tune", str(tuned), "--p99-ms", "50", "--budget-minutes", "0.01", "--work", str(tmp_path / "work")]
        assert cli.main([*command, "--server", server.grpc_url]) == 2
    assert f"--server {server.grpc_url}: must take orders" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_server_that_is_away_is_no_measurement(tmp_path: Path) -> None:
    configs, knobs = of_steps("tokenizer", "engine")
    requests = tmp_path / "queries.jsonl"
    requests.write_text('{"query": "red"}\n', encoding="utf-8")
    scenario = [{"workload": "recommendation", "model": "w", "queries": str(requests)}]
    journal = Journal(tmp_path / "journal.jsonl")
    # It went away behind the warm-up.
    journal.put("most", {"what": "most"}, {"per_s": 100.0, "seconds": 0.0})
    session = Session(
        TuneConfig(p99_ms=50.0),
        knobs,
        Traffic(scenario, {}, "a test"),
        journal,
        Bench("127.0.0.1:1", configs, knobs),
        Progress(shown=False),
        began=time.monotonic(),
    )
    with pytest.raises(ServerUnreachableError, match=r"no Triton server answers at 127\.0\.0\.1:1"):
        session.run()
    assert len((tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.slow
def test_tunes_under_load_and_goes_on_where_it_was(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    command = ["tune", str(tuned), "--p99-ms", "500", "--budget-minutes", "2", "--work", str(tmp_path / "work")]
    before = (tuned / name / "config.pbtxt").read_bytes()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "as it is" in said and "kept" in said
    assert (tuned / name / "config.pbtxt").read_bytes() == before
    page = (tmp_path / "work" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "as it is" in page
    (journal,) = (tmp_path / "work").glob("*.jsonl")
    *lines, last = journal.read_text(encoding="utf-8").splitlines()
    # A kill in the middle of a line: what follows is measured again, what came before is not.
    journal.write_text("\n".join([*lines, last[:20]]), encoding="utf-8")
    assert cli.main(command) == 0
    again = journal.read_text(encoding="utf-8").splitlines()
    assert lines and again[: len(lines)] == lines
    assert json.loads(again[len(lines)])["result"] != json.loads(last)["result"]


@pytest.mark.slow
def test_says_what_binds_where_nothing_keeps_the_limit(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(tuned), "--p99-ms", "0.05", "--budget-minutes", "2", "--work", str(tmp_path / "work")]
    assert cli.main(command) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "p99 must stay within 0.05 ms" in said and "what binds there is" in said
    assert not (tmp_path / "work" / "report.html").exists()


@pytest.mark.slow
def test_says_that_another_build_was_promoted_meanwhile(
    tuned: Path, tiny_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    build(write_other_sources(tiny_sources, tmp_path / "other"), tuned, canary=True)
    before, there = builds.served(tuned, name), {row["build"] for row in builds.listing(tuned, name)}
    work, ended = tmp_path / "work", threading.Event()
    scenario = tmp_path / "scenario.yaml"
    requests = Traffic.golden({name: builds.read_manifest(tuned, name)}, tmp_path).requests
    # How busy the machine is decides nothing here.
    limits = {"cpu_share": 100.0, "lag_share": 100.0}
    scenario.write_text(yaml.safe_dump({"requests": requests, "generator": limits}), encoding="utf-8")
    command = ["tune", str(tuned), "--p99-ms", "2000", "--budget-minutes", "2", "--work", str(work)]

    def promote() -> None:
        # What is in the journal was measured: the search has begun.
        while not list(work.glob("*.jsonl")) and not ended.is_set():
            time.sleep(0.1)
        switching.promote(tuned, name)

    promoting = threading.Thread(target=promote)
    promoting.start()
    try:
        status = cli.main([*command, "--scenario", str(scenario)])
    finally:
        ended.set()
        promoting.join()
    assert status == 2
    assert f"{name}: must serve build {before}, which was tuned" in capsys.readouterr().err.strip().splitlines()[-1]
    assert {row["build"] for row in builds.listing(tuned, name)} == there
