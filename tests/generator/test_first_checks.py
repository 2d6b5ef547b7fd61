"""What is wrong in a command, a recipe or a path is said before what computes is imported, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_sources import LABELS, items, queries, write_jsonl, write_recipe
from unprivileged import NOT_ALL

COMPUTES = ("torch", "transformers", "peft", "optuna", "onnx", "onnxruntime", "openvino", "nncf")
OF_ENGINES = {"onnx", "onnxruntime"}
RECIPES = ("build", "search", "finetune", "distill", "evaluate")
# What is imported decides how long it takes, and unlike a time it is the same on every machine.
PROGRAM = f"""
import json, sys
from tritonpress_generator.cli import main

done = [(main(command), [name for name in {COMPUTES} if name in sys.modules]) for command in json.loads(sys.argv[1])]
print(json.dumps(done))
"""


def sources(folder: Path) -> Path:
    """Returns `folder` with all that a recipe names, none of which is a model."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "config.json").write_text("{}")
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"")
    write_jsonl(folder / "catalogue.jsonl", items())
    write_jsonl(folder / "queries.jsonl", queries())
    (folder / "texts.tsv").write_text("text\tlabel\n" + "".join(f"a lamp\t{label}\n" for label in LABELS))
    return folder


def refused(folder: Path, commands: list[tuple[list[object], str]]) -> list[set[str]]:
    """Returns what of `COMPUTES` was imported when each of `commands`, in turn, was refused with its message."""
    arguments = json.dumps([[str(argument) for argument in command] for command, _ in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=True, cwd=folder
    )
    lines, results = done.stderr.splitlines(), json.loads(done.stdout)
    for (command, message), line, (status, _) in zip(commands, lines, results, strict=True):
        assert status == 2
        assert line.startswith(f"tritonpress {command[0]}: ")
        assert message in line
    return [set(imported) for _, imported in results]


def recipe_of(folder: Path, name: str, **changes: object) -> Path:
    """Returns the path of a recipe that has a training and passes, with top-level keys changed."""
    whole: dict[str, object] = {
        "passes": [{"crop": {"layers": 1}}, "distill"],
        "data": {"train": ["queries.jsonl"], "validation": ["queries.jsonl"]},
    }
    return write_recipe(folder, **whole | changes).rename(folder / f"{name}.yaml")


def test_wrong_recipe_is_refused_before_what_computes_is_imported(tmp_path: Path) -> None:
    folder = sources(tmp_path / "sources")
    (folder / "list.yaml").write_text("- 1\n")
    os.mkfifo(folder / "pipe")
    serve = {"max_batch_size": 8, "max_length": 48}
    wrong: list[tuple[Path, str]] = [
        (folder / "nothing.yaml", "nothing.yaml: cannot be read"),
        # Which nobody writes to: to read it would be to wait for ever.
        (folder / "pipe", "pipe: must be a file"),
        (folder / "list.yaml", "must be a mapping"),
        (recipe_of(folder, "key", serv={}), "serv: unknown key"),
        (recipe_of(folder, "serve", serve={"max_batch_sise": 4}), "serve.max_batch_sise: unknown key"),
        (recipe_of(folder, "type", gate={"dataset": 1, "metric": "ndcg@10"}), "gate.dataset: input should be a valid"),
        (recipe_of(folder, "task", task="translation"), "task: unknown word 'translation'"),
        (recipe_of(folder, "engine", engine="onnx"), "engine: unknown word 'onnx'"),
        (recipe_of(folder, "pass", passes=["distil"]), "passes[0]: unknown word 'distil'; did you mean 'distill'?"),
        (recipe_of(folder, "graph", graph=["fuse", "quantise"]), "graph[1]: unknown word 'quantise'"),
        (recipe_of(folder, "steps", serve=serve | {"steps": "double"}), "serve.steps: unknown word 'double'"),
        (recipe_of(folder, "lengths", serve=serve | {"lengths": "raged"}), "serve.lengths: unknown word 'raged'"),
        (recipe_of(folder, "search", search={"trails": 3}), "search.trails: unknown key"),
        (
            recipe_of(folder, "space", search={"space": {"precisions": [["fuze"]]}}),
            "search.space.precisions[0][0]: unknown word 'fuze'",
        ),
    ]
    commands = [([command, path], message) for command in RECIPES for path, message in wrong]
    assert refused(tmp_path, commands) == [set()] * len(commands)


def test_wrong_argument_and_file_that_is_not_there_are_refused_before_what_computes_is_imported(tmp_path: Path) -> None:
    folder = sources(tmp_path / "sources")
    file = tmp_path / "file"
    file.write_text("")
    good = recipe_of(folder, "good")
    unasked = recipe_of(folder, "unasked", gate={"dataset": "none.jsonl", "metric": "ndcg@10"})
    uncatalogued = recipe_of(folder, "uncatalogued", task={"recommendation": {"catalogue": "no.jsonl"}})
    unfound = recipe_of(folder, "unfound", checkpoint={"source": "./none"})
    searched = recipe_of(folder, "searched")
    (folder / "searched.search").write_text("")
    samples = recipe_of(folder, "samples", serve={"samples": "none.txt"})
    plain = recipe_of(folder, "plain", data=None, passes=[])
    elsewhere = recipe_of(folder, "elsewhere", data={"train": ["none.jsonl"], "validation": ["queries.jsonl"]})
    commands: list[tuple[list[object], str]] = [
        *(([command, uncatalogued], "no.jsonl: cannot be read") for command in RECIPES if command != "finetune"),
        *(([command, unfound], "no folder") for command in RECIPES),
        *(
            ([command, unasked], "none.jsonl: cannot be read ([Errno 2]")
            for command in RECIPES
            if command != "finetune"
        ),
        *(([command, elsewhere], "must have the file none.jsonl") for command in ("search", "finetune", "distill")),
        *(([command, good, "--data", "none"], "--data none: must be the folder") for command in RECIPES),
        *(
            ([command, good, "--out", out], "must be a folder that can be written")
            for command in ("build", "search", "finetune", "distill")
            for out in (file, file / "new")
        ),
        *(
            ([command, good, "--out", folder], f"must be a new folder, or one of an earlier {command}, has other files")
            for command in ("finetune", "distill")
        ),
        (["search", searched], f"{folder / 'searched.search'}: must be a folder that can be written"),
        *(
            ([command, good, "--work", file], f"--work {file}: must be a folder that can be written")
            for command in ("build", "search", "distill")
        ),
        (["evaluate", good, "--target", "engine", "--work", file], "must be a folder that can be written"),
        *(([command, samples], "none.txt: cannot be read") for command in ("build", "search")),
        (["build", good, "--canary"], "build it without --canary"),
        (["finetune", plain], "must have 'data'"),
        (["distill", plain], "must have distill"),
        (["distill", good, "--out", "same", "--work", "./same"], "--out same: must not be --work"),
        (["evaluate", good, "--target", "onxx"], "--target: must be torch, onnx, engine or HOST:PORT"),
        (["evaluate", good, "--dataset", "none.jsonl"], "none.jsonl: cannot be read"),
        (["evaluate", good, "--target", "host:1", "--repository", "none"], "none"),
        (["tune", "none", "--p99-ms", "-1"], "--p99-ms must be a number above 0"),
        (["tune", "none", "--p99-ms", "10"], "repository none: must hold a workload"),
        (["deploy", "none", "--out", "out", "--grpc-port", 9, "--https-port", 9], "must differ from the other ports"),
        (["verify", "none"], "repository none: must hold a workload"),
        (["promote", "none", "name"], "repository none: must hold a workload"),
        (["rollback", "none", "name"], "repository none: must hold a workload"),
        (["pack", "none", "bundle"], "repository none: must be a folder"),
        (["unpack", "none", "folder"], "none: must be a bundle"),
    ]
    assert refused(tmp_path, commands) == [set()] * len(commands)


def test_wrong_settings_are_refused_before_torch_where_their_files_do_without(tmp_path: Path) -> None:
    folder = sources(tmp_path / "sources")
    task: dict[str, object] = {"task": "classification", "gate": {"dataset": "texts.tsv", "metric": "accuracy"}}
    wrong = [
        (recipe_of(folder, "engine", engine={"onnxruntime": {"instance": 2}}), "engine.onnxruntime: instance: unknown"),
        (recipe_of(folder, "graph", graph=[{"quantize": {"sample": 2}}]), "graph[0].quantize: sample: unknown key"),
        # Behind passes, one of which trains.
        (recipe_of(folder, "behind", graph=["fuse", "nncf"], engine="openvino"), "graph[1]: nncf must not come behind"),
        (recipe_of(folder, "lacking", graph=["quantize"], engine="openvino"), "graph: the engine openvino cannot take"),
        (
            recipe_of(folder, "task", **task | {"task": {"classification": {"multilabel": True}}}),
            "task.classification: multilabel: unknown key",
        ),
        (
            recipe_of(folder, "metric", **task | {"gate": {"dataset": "texts.tsv", "metric": "f1"}}),
            "gate.metric: unknown metric 'f1'",
        ),
        (recipe_of(folder, "finetune", **task, finetune={"lr": 1}), "finetune.lr: unknown key"),
    ]
    imported = refused(tmp_path, [([command, path], message) for command in RECIPES for path, message in wrong])
    assert set().union(*imported) <= OF_ENGINES


def test_wrong_settings_are_refused_before_transformers_whose_import_takes_the_most_time(tmp_path: Path) -> None:
    folder = sources(tmp_path / "sources")
    distill: dict[str, object] = {"distill": {"fake_quantize": 7, "lora": {"dropout": 0.1}}}
    wrong = [
        (
            recipe_of(folder, "item", task={"recommendation": {"top_k": 10}}),
            "task.recommendation: catalogue: is missing",
        ),
        (recipe_of(folder, "rate", finetune={"temperature": 0}), "finetune.temperature: input should be greater"),
        (recipe_of(folder, "crop", passes=["distill", {"crop": {"layer": 1}}]), "passes[1].crop: layer: unknown"),
        (recipe_of(folder, "both", passes=["distill", distill]), "passes[1].distill: fake_quantize computes"),
        (recipe_of(folder, "order", passes=[{"sparsify": {"share": 0.5}}, "distill"]), "must not come behind sparsify"),
    ]
    imported = refused(tmp_path, [([command, path], message) for command in RECIPES for path, message in wrong])
    assert set().union(*imported) <= {"torch", *OF_ENGINES}


def test_corpus_that_is_not_there_is_refused_before_what_computes_is_imported(tmp_path: Path) -> None:
    """It is sought in the folder of `--data`, as all that is trained and counted on."""
    folder = sources(tmp_path / "sources")
    (folder / "words.txt").write_text("a lamp\n")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "queries.jsonl", queries())
    passes = [{"crop": {"vocabulary": {"corpus": ["words.txt"]}}}, {"crop": {"layers": 1}}, "distill"]
    recipe = recipe_of(folder, "corpus", passes=passes)
    message = f"passes[0].crop: vocabulary: {folder / 'data'} must have the file words.txt, has not"
    commands: list[list[object]] = [[name, recipe, "--data", folder / "data"] for name in ("build", "distill")]
    commands += [["evaluate", recipe, "--target", "onnx", "--data", folder / "data"]]
    imported = refused(tmp_path, [(command, message) for command in commands])
    assert set().union(*imported) <= OF_ENGINES


def test_folder_to_restore_that_is_not_there_is_refused_before_what_computes_is_imported(tmp_path: Path) -> None:
    """It is sought beside the recipe, wherever the data is."""
    folder = sources(tmp_path / "sources")
    recipe = recipe_of(folder, "restoring", passes=[{"restore": {"folder": "none"}}, "distill"])
    message = f"passes[0].restore: folder: {folder / 'none'} must have the file cuts.json, has not"
    commands: list[list[object]] = [["build", recipe], ["distill", recipe], ["evaluate", recipe, "--target", "onnx"]]
    imported = refused(tmp_path, [(command, message) for command in commands])
    assert set().union(*imported) <= OF_ENGINES


def test_place_that_may_not_be_looked_into_is_a_line(tmp_path: Path) -> None:
    good = recipe_of(sources(tmp_path / "sources"), "good")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    inside = closed / "x"
    denied, unwritable = f"Permission denied: '{inside}", f"must be a folder that can be written, {closed} is none"
    for command, said in (
        (["build", good, "--out", inside], unwritable),
        (["search", good, "--out", inside], unwritable),
        (["build", inside], f"recipe {inside}: cannot be read ("),
        (["build", good, "--data", inside], f"{denied}'; the repository is as it was"),
        (["promote", inside, "w"], denied),
        (["verify", inside], denied),
        (["tune", inside, "--p99-ms", "5"], denied),
    ):
        program = "import sys; from tritonpress_generator.cli import main; sys.exit(main())"
        run = [*NOT_ALL, sys.executable, "-c", program, *map(str, command)]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert said in done.stderr, done.stderr
