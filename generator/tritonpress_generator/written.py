"""What a training writes: a checkpoint or an adapter, without anything of this machine."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tritonpress_generator import first_checks
from tritonpress_generator.adapter_precision import in_fp8
from tritonpress_generator.checkpoint import ADAPTER, POOLING, Checkpoint, resolve
from tritonpress_generator.errors import InputError, PlaceError
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import CheckpointConfig
from tritonpress_generator.trainable import Trainable
from tritonpress_generator.training.settings import FinetuneConfig, Precision

if TYPE_CHECKING:
    import peft

_SETTINGS = "tritonpress.json"


def check_folder(out: Path, config: FinetuneConfig) -> None:
    """Refuses a folder in which what is written would lie beside what it is not one with.

    Raises:
        InputError: As `first_checks.check_out`; or `out` has an adapter where a checkpoint is to be written, or the
            reverse.
    """
    first_checks.check_out("finetune", out)
    found = [path.name for path in sorted(out.glob("*.safetensors"))]
    wrong = [name for name in found if (name == ADAPTER) == (config.lora is None)]
    if wrong:
        kind = "an adapter" if config.lora is None else "a whole checkpoint"
        raise InputError(f"--out {out}: has {kind} ({wrong[0]}) of another training; remove it, or give another folder")


def write(
    out: Path,
    trained: Trainable,
    tokenizer: Tokenizer,
    source: Checkpoint,
    chosen: Mapping[str, Any],
    *,
    precision: Precision,
) -> None:
    """Writes the weights with all that is needed to load them, and what was chosen beside them.

    Args:
        out: The folder.
        trained: The weights.
        tokenizer: Of a whole checkpoint; an adapter goes without.
        source: What was trained.
        chosen: By the names under which the task looks for it.
        precision: Of an adapter; a whole checkpoint is in FP32.
    """
    if trained.adapted is None:
        with _weights(out):
            trained.model.save_pretrained(out, safe_serialization=True)
        tokenizer.save(str(out / "tokenizer.json"))
        pooling = source.settings(POOLING)
        (out / POOLING).unlink(missing_ok=True)  # of an earlier run, from another checkpoint
        if pooling:
            (out / POOLING).parent.mkdir(exist_ok=True)
            _write_json(out / POOLING, pooling)
    else:
        write_adapter(out, trained.model, trained.adapted, source, precision=precision)
    _write_json(out / _SETTINGS, chosen)


def write_adapter(out: Path, model: Any, adapted: peft.PeftModel, source: Checkpoint, *, precision: Precision) -> None:
    """Writes an adapter with the config of its model.

    Args:
        out: The folder, which is made if it is not there.
        model: What is adapted.
        adapted: The adapter.
        source: The checkpoint.
        precision: Of the adapter; its head is in FP16.
    """
    import peft

    out.mkdir(parents=True, exist_ok=True)
    settings = copy.deepcopy(adapted.peft_config["default"])
    if not isinstance(settings, peft.LoraConfig):
        raise TypeError("the adapter must be LoRA's")
    state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if precision == "fp8":
        # peft says int, and computes with any number.
        state, settings.lora_alpha = in_fp8(state, settings.lora_alpha)  # type: ignore[assignment]
    else:
        state = {name: tensor.half().cpu() for name, tensor in state.items()}
    with _weights(out):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / ADAPTER)
    settings.base_model_name_or_path = portable(source.source)
    settings.inference_mode = True
    # Sorted, since the order of a set is another in every process.
    settings.target_modules = sorted(settings.target_modules or ())
    settings.save_pretrained(str(out))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)


@contextmanager
def _weights(folder: Path) -> Iterator[None]:
    """Weights that are written meanwhile may be read by whoever may read the other files of `folder`.

    Raises:
        PlaceError: They cannot be written.
    """
    try:
        yield
    except SafetensorError as exc:
        raise PlaceError(
            f"{folder}: weights cannot be written ({exc}); make room, and give the same command again: it goes on from "
            "the last state that was saved"
        ) from exc
    # safetensors makes them their owner's alone.
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~mask)


def _write_json(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def portable(source: str) -> str:
    """Returns a checkpoint's source as others may read it: of a folder of this machine, its name."""
    return Path(source).name if source.startswith(("/", "~")) else source


def read_back(recipe: Recipe, out: Path, config: FinetuneConfig) -> Checkpoint:
    """Returns the checkpoint that was written into `out`, or the recipe's with the adapter that was."""
    folder = str(out.resolve())
    if config.lora is None:
        return resolve(CheckpointConfig(source=folder), base=recipe.folder)
    return resolve(recipe.checkpoint.model_copy(update={"adapter": folder}), base=recipe.folder)
