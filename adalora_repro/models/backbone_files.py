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
from adalora_repro.records.validation import not_a_file

#: where transformers looks for weights, in order: it reads the first that exists
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
#: all files that define the model and its tokenizer
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.txt", "*.codes", "*.tiktoken")
GIB = 2**30
MOST_BYTES = {".safetensors": 256 * GIB, ".bin": 256 * GIB}  # by the name's suffix
MOST_BYTES_TEXT = GIB  # of any other file: the largest tokenizer.json has about 30 MB
MOST_BYTES_CONFIG = 2**24
POINTERS = {b"version https://git-lfs": "git lfs pull", b"/annex/objects/": "git annex get"}


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that identify a saved model and its tokenizer, independent of their folder.

    Raises:
        InputError: as in ``check``.
    """
    check(folder)
    digests = []
    for path in _read_files(folder):
        with path.open("rb") as file:
            digests.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def check(folder: Path) -> None:
    """Checks that the folder holds a model whose files can be read and are complete according to their headers.

    Raises:
        InputError: there is no such folder, or no weights in it; a file is a named pipe or a device, absurdly large, a
            Git LFS pointer, or truncated; an index names a file that is missing. The message names the file.
    """
    try:
        names = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
    except OSError as error:
        raise InputError(f"backbone.path={folder} is not a folder with a model: {error.strerror}") from None
    for path in names:
        _check_regular(path)
    for path in _read_files(folder):
        _check_content(path)
    if not any((folder / name).exists() for name in WEIGHTS) and not [*folder.glob("*.safetensors")]:
        raise InputError(f"backbone.path={folder} is not a folder with a model (model.safetensors, pytorch_model.bin)")
    if not (folder / "config.json").exists():
        raise InputError(f"backbone.path={folder} is not a folder with a model: config.json is missing")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder / 'adapter_config.json'}: the folder also holds an adapter; merge it or move it away"
        )
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
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        shards = [folder / name for name in names]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not an index of weight files") from None
    for name, shard in zip(names, shards, strict=True):
        if Path(name).name != name:
            raise InputError(f"{path} names a file outside the folder: {name}")
        if not shard.exists():
            raise InputError(f"{path} names {name}, which is missing")
    return shards


def _read_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern) if not path.is_dir())


def _check_regular(path: Path) -> None:
    try:
        kind = not_a_file(path.stat().st_mode)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if kind:
        raise InputError(f"{path}: {kind}, not a file")


def _check_content(path: Path) -> None:
    most = MOST_BYTES_CONFIG if path.name == "config.json" else MOST_BYTES.get(path.suffix, MOST_BYTES_TEXT)
    size = path.stat().st_size
    if size > most:
        raise InputError(f"{path} has {size:,} bytes, more than such a file can have ({most:,})")
    start = _start(path, 64)
    for mark, command in POINTERS.items():
        if start.startswith(mark):
            raise InputError(f"{path} is a pointer to a large file, not the file itself: {command}")


def _start(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


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
    start = _start(path, 4)
    if start[:1] == b"\x80":  # a pickle
        return
    try:
        if start != b"PK\x03\x04":
            raise zipfile.BadZipFile
        with zipfile.ZipFile(path):
            pass
    except (zipfile.BadZipFile, OSError, ValueError):
        raise InputError(f"{path} is truncated, or not a PyTorch weight file") from None
