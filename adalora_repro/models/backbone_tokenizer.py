"""A backbone's tokenizer: checks that it belongs to the model, and restores sentencepiece's character map.

transformers returns a tokenizer without a vocabulary if its files are missing, and one without the character map when
it builds DeBERTaV3's from ``spm.model``. Both silently turn text into [UNK].
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: ordinary words of English, the language of all tasks
WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "with", "that", "on", "by", "it", "as", "at", "from")
LEAST_SHARE = 0.25  # size of the vocabulary / rows of the embedding; below this the tokenizer is another model's
#: transformers builds the normalizer of this class without the map (5.17 to 5.24)
WITHOUT_MAP = "DebertaV2Tokenizer"


def check(
    tokenizer: PreTrainedTokenizerBase,
    architecture: Mapping[str, Any],
    where: str,
    needed: Sequence[str] = ("pad", "cls", "sep"),
) -> None:
    """Checks that the tokenizer fits a model of this architecture.

    Args:
        architecture: ``backbone.architecture``, with ``vocab_size`` and perhaps some ``*_token_id``.
        where: the folder or the name on the hub, for messages.
        needed: the special tokens that it must have.

    Raises:
        InputError: the vocabulary is too small or too large, special tokens are missing or have other ids, or ordinary
            words become [UNK].
    """
    size, rows = len(tokenizer), int(architecture["vocab_size"])
    files = " or ".join(getattr(tokenizer, "vocab_files_names", {}).values()) or "its files"
    where = f"{where}: its tokenizer ({type(tokenizer).__name__})"
    if size < LEAST_SHARE * rows:
        raise InputError(
            f"{where} is not this model's: it has {size:,} tokens, the embedding {rows:,} rows; is {files} missing?"
        )
    ids = {key: getattr(tokenizer, f"{key}_token_id") for key in ("pad", "cls", "sep", "unk", "mask", "bos", "eos")}
    for key in needed:
        if ids.get(key) is None:
            raise InputError(f"{where} has no {key} token")
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise InputError(f"{where} has ids up to {largest:,}, the embedding {rows:,} rows")
    for key, value in ids.items():
        stated = architecture.get(f"{key}_token_id")
        several = stated if isinstance(stated, Sequence) else [stated]  # Llama may end with one of several tokens
        if stated is not None and value is not None and value not in several:
            raise InputError(
                f"{where} has the {key} token {value}, the model {stated} (backbone.architecture.{key}_token_id)"
            )
    pieces = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS}
    lost = [word for word, piece in pieces.items() if not piece or ids["unk"] in piece]
    if len(lost) > len(WORDS) / 2:
        raise InputError(
            f"{where} does not know ordinary words: {', '.join(lost[:5])} become {tokenizer.unk_token}; is {files} "
            "missing?"
        )


def notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a user should know about the tokenizer of a run, one line each."""
    if type(tokenizer).__name__ != WITHOUT_MAP or getattr(tokenizer, "as_sentencepiece", False):
        return []
    return [
        "the tokenizer has no character map, because its spm.model is missing: characters such as ½, ™, … or a "
        "no-break space become [UNK], as they did not when the model was trained"
    ]


def restore_character_map(tokenizer: PreTrainedTokenizerBase, folder: Path | None) -> None:
    """Gives DeBERTaV2's tokenizer the normalizer of its sentencepiece model; leaves other tokenizers unchanged.

    The map (NFKC for DeBERTaV3: ½ is 1⁄2, ™ is TM, a no-break space is a space) is in ``spm.model``, or in a
    ``tokenizer.json`` that an older transformers wrote. With it, ids are sentencepiece's own. One difference remains:
    tokenizers applies the map to a grapheme, sentencepiece to the longest match, so a mark or a joiner after a
    character that the map changes may be lost (½ and a zero-width joiner; a letter with two combining marks).

    Args:
        folder: folder of the tokenizer's files; None if unknown.
    """
    if type(tokenizer).__name__ != WITHOUT_MAP or folder is None:
        return
    if (folder / "spm.model").is_file():
        from transformers.convert_slow_tokenizer import SentencePieceExtractor

        spec = SentencePieceExtractor(str(folder / "spm.model")).proto.normalizer_spec
        character_map, squeezes = bytes(spec.precompiled_charsmap), bool(spec.remove_extra_whitespaces)
    elif saved := _saved_map(folder / "tokenizer.json"):
        character_map, squeezes = saved, True
    else:
        return
    tokenizer.backend_tokenizer.normalizer = _normalizer(
        character_map, squeezes, bool(tokenizer.init_kwargs.get("do_lower_case"))
    )
    tokenizer.as_sentencepiece = True


def _normalizer(character_map: bytes, squeezes: bool, lower: bool) -> Any:
    """sentencepiece's normalization: the map, then no space at either end and no double spaces.

    Args:
        character_map: as compiled by sentencepiece; empty for none.
        squeezes: sentencepiece's ``remove_extra_whitespaces``.
        lower: DeBERTa's ``do_lower_case``, before sentencepiece.
    """
    from tokenizers import Regex, normalizers

    parts: list[Any] = [normalizers.Lowercase()] if lower else []
    if character_map:
        # a character that the map removes is assigned to the character before it in the offsets: without one, all
        # offsets of the text are wrong
        parts += [normalizers.Prepend(" "), normalizers.Precompiled(character_map)]
        parts += [] if squeezes else [normalizers.Replace(Regex("^ "), "")]
    if squeezes:
        parts += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    return normalizers.Sequence(parts)


def _saved_map(path: Path) -> bytes | None:
    """The character map of a ``tokenizer.json``; None if it has none."""
    try:
        normalizer = json.loads(path.read_bytes())["normalizer"] or {}
        parts = normalizer.get("normalizers", [normalizer])
        maps = [part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"]
        return base64.b64decode(maps[0]) if maps else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
