"""What trainings have in common in a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tritonpress_generator.recipe_text import Settings

TRAINING = "training"
"""The folder beside what `finetune` writes, in which a run that was killed is gone on with."""
STATE, BOARD = "state", "tensorboard"
"""What lies there: files of that name, and a folder."""
Precision = Literal["fp16", "fp8"]


class LoraConfig(Settings):
    """Low-rank adapters on every linear layer of the encoder. Source: Hu et al. 2022, "LoRA"."""

    rank: int = Field(default=16, ge=1, le=1024)
    """The inner width of the low-rank products."""
    alpha: float = Field(default=32, gt=0)
    """The adapters' products are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what adapters take in, in training."""
    written: Precision = "fp16"
    """In what the adapter is written; `fp8` (E4M3) takes half the bytes and rounds each product's part by 3 %."""


class TrainingConfig(Settings):
    """What every training has in common."""

    lora: LoraConfig | None = None
    """Trains adapters and the head alone; default: all weights."""
    epochs: float = Field(default=2.0, gt=0)
    """How often every example is seen."""
    batch_size: int = Field(default=16, ge=1)
    """Examples of an optimiser's step, over all processes and accumulation steps."""
    accumulation_steps: int = Field(default=1, ge=1)
    """In how many parts a process computes its share of a batch, to save memory."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """The highest, at the end of the warm-up; falls linearly to 0."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """The share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, decoupled from the gradient."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """To which the gradient's norm is clipped."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of the encoder and its head, in place of the checkpoint's own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products and activations; `auto`: bf16 where the machine computes in it."""
    evaluations: int = Field(default=4, ge=1)
    """How often the model is evaluated on the way, evenly spread; the last time at the end."""
    patience: int | None = Field(default=None, ge=1)
    """After how many evaluations without a better one training stops; default: never."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Fixes the order of the examples, dropout, and what begins at random."""


class FinetuneConfig(TrainingConfig):
    """What every task's fine-tuning has in common."""

    max_length: int | None = Field(default=None, ge=8)
    """The most tokens of a sequence in training; default: `serve.max_length`."""
