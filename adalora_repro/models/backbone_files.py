"""The files of a saved backbone: checked before a library reads them, hashed for the identity of a run.

It loads no weights, so that a plan can check the files. ``backbones.load_model`` checks what needs the model itself:
names, shapes and values of the weights.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from adalora_repro.errors import InputError, first_line
from adalora_repro.records import digests
from adalora_repro.records.validation import not_a_file

#: where transformers looks for weights, in order: it reads the first that exists
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
#: all files that define the model and its tokenizer
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.txt", "*.codes", "*.tiktoken")
LFS_POINTER = b"version https://git-lfs"


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that identify a saved model and its tokenizer, independent of their folder.

    Raises:
        InputError: as in ``check``.
    """
    check(folder)
    paths = sorted(path for pattern in PATTERNS for path in folder.glob(pattern) if not path.is_dir())
    files = "\n".join(f"{path.name} {digests.of_file(path)}" for path in paths)
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def check(folder: Path) -> None:
    """Checks that the folder holds a model whose files can be read and are complete according to their headers.

    Raises:
        InputError: there is no such folder, or no weights or config.json in it; a file is a named pipe or a device, a
            Git LFS pointer, or truncated; an index names a file that is missing. The message names the file.
    """
    try:
        paths = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
    except OSError as error:
        raise InputError(f"backbone.path={folder} is not a folder with a model: {error.strerror}") from None
    for path in paths:
        try:
            if kind := not_a_file(path.stat().st_mode):
                raise InputError(f"{path}: {kind}, not a file")
            if _start(path, len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(f"{path} is a pointer to a large file, not the file itself: git lfs pull")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
    names = {path.name for path in paths}
    if not names & set(WEIGHTS):
        raise InputError(f"backbone.path={folder} is not a folder with a model (model.safetensors, pytorch_model.bin)")
    if "config.json" not in names:
        raise InputError(f"backbone.path={folder} is not a folder with a model: config.json is missing")
    if "adapter_config.json" in names:  # transformers would load it too
        raise InputError(f"{folder}/adapter_config.json: the folder also holds an adapter; merge it or move it away")
    for path in weight_files(folder):
        _check_weights(path)


def weight_files(folder: Path) -> list[Path]:
    """The files from which transformers reads the weights: one, or those that an index names.

    Raises:
        InputError: an index cannot be read, or names a file that is missing.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None or path.suffix != ".json":
        return [] if path is None else [path]
    try:
        shards = [folder / name for name in sorted(set(json.loads(path.read_bytes())["weight_map"].values()))]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not an index of weight files") from None
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise InputError(f"{path} names {missing[0]}, which is missing")
    return shards


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _check_weights(path: Path) -> None:
    """Checks that the file is complete.

    safetensors compares the length of the file with its header. A PyTorch file is a ZIP archive, whose directory is at
    its end; the older format is a pickle, and only loading it shows whether it is complete.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np"):
                return
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated, or not a safetensors file ({first_line(error)})") from None
    if not zipfile.is_zipfile(path) and _start(path, 1) != b"\x80":
        raise InputError(f"{path} is truncated, or not a PyTorch weight file")
