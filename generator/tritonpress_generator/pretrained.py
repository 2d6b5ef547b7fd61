"""Loads a checkpoint's model, its adapter merged in, and its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer

from tritonpress_generator.checkpoint import ADAPTER, Checkpoint, tensor_names
from tritonpress_generator.errors import InputError

_OF_ADAPTER = "base_model.model."
"""What peft writes before the names of an adapted model's tensors."""
_NOT_AN_ENCODER = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models of other kinds raise where they are asked as an encoder is."""


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
    from tritonpress_generator.exchange import exchange_attention

    # A head of other labels is made anew; an encoder of another size is refused.
    resized = new_head or checkpoint.adapter is not None
    model, made = _from_pretrained(checkpoint, auto_class, settings or {}, resized=resized)
    _check_made(checkpoint, model, made, auto_class, new_head=new_head)
    if checkpoint.adapter is not None:
        model = merged(model, checkpoint.adapter)
    _check_encoder(checkpoint, model)
    if attention is not None:
        exchange_attention(encoder_of(model), attention)
    return model.eval()


def _from_pretrained(
    checkpoint: Checkpoint, auto_class: str, settings: Mapping[str, Any], *, resized: bool
) -> tuple[Any, set[str]]:
    """Returns the model, and the names of its tensors that were made of random numbers."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.adapter or checkpoint.folder)
        for name, value in settings.items():
            setattr(config, name, value)
        model, loading = getattr(transformers, auto_class).from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=resized,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as exc:
        raise InputError(
            f"checkpoint {checkpoint.source}: cannot be loaded ({' '.join(str(exc).split())[:300]}); "
            "the files must be a whole BERT-family encoder in Hugging Face's format"
        ) from exc
    return model, set(loading["missing_keys"]) | {name for name, *_ in loading["mismatched_keys"]}


def _check_made(checkpoint: Checkpoint, model: Any, made: set[str], auto_class: str, *, new_head: bool) -> None:
    """Refuses a model of which more was `made` of random numbers than may be.

    Of an encoder, only the pooler may be: what was trained without one (masked language models, sentence encoders)
    has none, and its task does not read it. Of a task's model, what is trained, or what comes with the adapter.
    """
    prefix = f"{model.base_model_prefix}."
    missing = made - {key for key in made if key.startswith("pooler.") and auto_class == "AutoModel"}
    if checkpoint.adapter is not None:
        missing -= {name.removeprefix(_OF_ADAPTER) for name in tensor_names(checkpoint.adapter / ADAPTER)}
    if auto_class != "AutoModel":
        heads = {key for key in missing if f"{prefix}pooler." in key or not key.startswith(prefix)}
        if new_head:
            missing -= heads
        elif heads:
            raise InputError(
                f"checkpoint {checkpoint.source}: must have the task's head, {min(heads)} is missing; "
                "give one that was fine-tuned for the task (tritonpress finetune makes one)"
            )
    if missing:
        raise InputError(
            f"checkpoint {checkpoint.source}: the weights must hold the whole encoder, {len(missing)} of its tensors "
            f"are missing or of another shape ({min(missing)} first); config.json and the weights must be of one model"
        )


def _check_encoder(checkpoint: Checkpoint, model: Any) -> None:
    """Refuses a model that does not read token ids, or whose weights are not numbers."""
    import torch

    from tritonpress_generator.token_states import token_states

    tokens = torch.ones((2, 3), dtype=torch.int64)
    try:
        with torch.inference_mode():
            token_states(encoder_of(model), tokens, tokens)
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


def encoder_of(model: Any) -> Any:
    """Returns the encoder of a `transformers` model: itself, or what its head reads."""
    return getattr(model, model.base_model_prefix, model)


def merged(model: Any, adapter: Path) -> Any:
    """Returns `model` with the adapter's products added to its weights, and the adapter's head.

    Raises:
        InputError: The adapter is of another model, or no adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict

    given = tensor_names(adapter / ADAPTER)
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, adapter)
            wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
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
