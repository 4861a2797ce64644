"""DeBERTaV3's tokenizer against sentencepiece itself: the same ids, offsets that point at the text."""

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_backbone import train_sentencepiece
from task_configs import REAL_DATA, needs_real_data, task_config
from tokenizers import Regex, normalizers

from adalora_repro.errors import InputError
from adalora_repro.models import backbone_tokenizer
from adalora_repro.tasks import sources, toy_text
from adalora_repro.tasks.squad import Task
from adalora_repro.training import kept

TEXTS = [
    "The bridge is 5 km long and 2½ lanes wide… it was built in 1990–95 (naïve café Straße Ωmega).",
    "Brand™ and brand® cost €5²/₃; ﬁne ﬂow of oﬃce; Ａ-road № 5, Ⅳ and ㎞ per ℃ “quoted” ‘so’ e.g. 10′ 5″ ± 3×4 ÷ 2",
]
AWKWARD = "½¼¾²³¹™®©…№ⅣⅷﬁﬂﬀﬃＡｂ３％㎞℃℡ªº·«»“”‘’–—‐‑\u00a0\u2003\u2009\u202f\u3000\u200b\u200c\u200d\u2060\ufeff\u00ad"
AWKWARD += "\u2028\u2029\u0085\t\n\r\x01\x1f\x7f\u200e\u200f\ufffd▁éüñßøĳǆΩΌабв日本ｶ한😀★①⑩⁵₃ﷺ"


def deberta(folder: Path) -> Any:
    """``backbone.path``'s tokenizer as a run gets it, without checking a configuration, which the folder lacks."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backbone_tokenizer.restore_character_map(tokenizer, folder)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    rows = toy_text.generate("rte", "train", {"train": 300, "validation": 10}, 0)
    train_sentencepiece(
        path, [text for row in rows for text in row.values() if isinstance(text, str)] + TEXTS * 40, 400
    )
    (path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "vocab_type": "spm"}), encoding="utf-8"
    )
    (path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def oracle(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(str(folder / "spm.model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return deberta(folder)


def assert_same(tokenizer: Any, oracle: sentencepiece.SentencePieceProcessor, texts: list[str]) -> None:
    """Ids, and the text they are made of: pieces unknown to this small vocabulary would hide a difference.

    Two ways to cut a text may have the same score ("bbb" as b bb or bb b), to the rounding of 32 bits: a tie, which
    each library breaks in its own way. The pieces of both then make the same text.
    """
    tied = 0
    assert len(texts) > 0
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    normalizer = tokenizer.backend_tokenizer.normalizer
    for text, own, wanted, form in zip(texts, ids, oracle.encode(texts), oracle.normalize(texts), strict=True):
        if own != wanted:
            tied += 1
            assert oracle.decode(own) == oracle.decode(wanted), repr(text)
            scores = [sum(map(oracle.get_score, ids)) for ids in (own, wanted)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-2), repr(text)
        assert normalizer.normalize_str(text) == form.replace("▁", " ").removeprefix(" "), repr(text)
    assert tied <= len(texts) / 100


def test_ids_are_sentencepiece_s_on_awkward_strings(tokenizer: Any, oracle: Any) -> None:
    drawn = random.Random(0)
    texts = [
        f"{before}{character}{after}" for character in AWKWARD for before in ("", "a ") for after in ("", "b", " b")
    ]
    joined = AWKWARD.translate(dict.fromkeys(map(ord, "\u200c\u200d"))) + "abc   "  # see restore_character_map
    texts += ["".join(drawn.choices(joined, k=drawn.randint(1, 12))) for _ in range(400)]
    texts += [*TEXTS, "", " ", "   ", "a  b", " a ", "\ta\r\n\r\nb "]
    texts += ["cafe\u0301 nai\u0308ve", "™\ufe0f ❤\ufe0f 👩\u200d🚀"]
    assert len(texts) > 700
    assert_same(tokenizer, oracle, texts)


def test_transformers_alone_loses_them(folder: Path, oracle: Any) -> None:
    """If this fails, the map need not be restored: remove the row in docs/deviations.md."""
    bare = transformers.AutoTokenizer.from_pretrained(folder)
    text = "a 2½ b™"
    assert bare(text, add_special_tokens=False)["input_ids"] != oracle.encode(text)


@needs_real_data
def test_ids_are_sentencepiece_s_on_a_sample_of_the_local_rows(tokenizer: Any, oracle: Any) -> None:
    texts: list[str] = []
    for path in sorted(REAL_DATA.rglob("validation*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(400), strict=False)]
        texts += [value for row in rows for value in row.values() if isinstance(value, str)]
    texts = list(dict.fromkeys(texts))
    chosen = [text for text in texts if not text.isascii()][:1000] + texts[:500]
    assert_same(tokenizer, oracle, chosen)


# Offsets


@settings(max_examples=40)
@given(st.text(AWKWARD + " ab", max_size=8), st.text(AWKWARD + " ab", max_size=8), st.text(AWKWARD, max_size=2))
@example("\x01", "", "")  # removed at the start, where no character comes before it
@example("\x01\x02 ", "", "")
@example("ﷺ", "…", "²")
def test_answers_are_where_they_were(tokenizer: Any, before: str, behind: str, end: str) -> None:
    """A word of the answer, alone between blanks, whatever is around it."""
    answer = f"bridge{end}x"
    context = f"{before} {answer} {behind}"
    start = len(before) + 1
    task = Task(task_config("squad", task__max_length=64, task__stride=8))
    task._tokenizer = tokenizer
    rows = {"id": ["a"], "question": ["how long"], "context": [context]}
    rows["answers"] = [{"text": [answer], "answer_start": [start]}]
    for split in (sources.TRAIN, "validation"):
        windows = task.encode(rows, [0], split)
        if split == sources.TRAIN:
            first, last = windows["start"][0], windows["end"][0]
            assert first > 0
        else:
            first, last = first - windows["first"][0], last - windows["first"][0]
            found = context[windows["starts"][0][first] : windows["ends"][0][last]]
            assert found.strip() == answer.strip(), (ascii(context), ascii(found))


# Where the map comes from


def test_a_map_is_taken_from_spm_model_or_an_older_tokenizer_json_or_missed(folder: Path, tmp_path: Path) -> None:
    whole = deberta(folder)
    whole.save_pretrained(tmp_path / "older")  # with the map, as transformers 4 wrote it; spm.model is not saved
    bare = deberta(tmp_path / "older")
    assert bare("㎞ 2½")["input_ids"] == whole("㎞ 2½")["input_ids"]
    assert bare.unk_token_id not in bare("㎞ 2½")["input_ids"]
    assert backbone_tokenizer.notes(bare) == []
    shutil.copytree(tmp_path / "older", tmp_path / "merged")
    config = transformers.DebertaV2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "merged")
    settings = "{task: {name: sst2, auto_model: AutoModelForSequenceClassification}, method: {name: lora}, "
    settings += "backbone: {name: own, architecture: {model_type: deberta-v2}}}"
    (tmp_path / "merged" / kept.CONFIG).write_text(settings, encoding="utf-8")
    assert kept.load(tmp_path / "merged")[1]("㎞ 2½")["input_ids"] == whole("㎞ 2½")["input_ids"]

    shutil.copytree(tmp_path / "older", tmp_path / "both")
    saved = json.loads((tmp_path / "both" / "tokenizer.json").read_text(encoding="utf-8"))
    saved["normalizer"] = {"type": "NFC"}
    (tmp_path / "both" / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    lost = deberta(tmp_path / "both")
    assert lost.unk_token_id in lost("㎞")["input_ids"]
    (note,) = backbone_tokenizer.notes(lost)
    assert "its spm.model is missing" in note
    assert "[UNK]" in note

    shutil.copy(folder / "spm.model", tmp_path / "both")
    assert deberta(tmp_path / "both")("㎞ 2½")["input_ids"] == whole("㎞ 2½")["input_ids"]


def test_lower_case_comes_before_the_map(folder: Path, tmp_path: Path, oracle: Any) -> None:
    lower = Path(shutil.copytree(folder, tmp_path / "lower"))
    (lower / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "vocab_type": "spm"}), encoding="utf-8"
    )
    text = "THE ™ Bridge"
    assert deberta(lower)(text, add_special_tokens=False)["input_ids"] == oracle.encode(text.lower())


# Checks


def test_what_cannot_be_the_backbone_s_tokenizer(tokenizer: Any, folder: Path) -> None:
    size = len(tokenizer)

    def refusal(changed: Any, **architecture: int) -> str:
        with pytest.raises(InputError) as refused:
            backbone_tokenizer.check(changed, {"vocab_size": size} | architecture, "here")
        return str(refused.value)

    backbone_tokenizer.check(tokenizer, {"vocab_size": size, "pad_token_id": 0}, "here")
    backbone_tokenizer.check(tokenizer, {"vocab_size": 4 * size}, "here")
    assert "is not this model's" in refusal(tokenizer, vocab_size=4 * size + 1)
    assert f"has ids up to {size - 1}, the embedding {size - 1} rows" in refusal(tokenizer, vocab_size=size - 1)
    assert "has the pad token 0, the model 1" in refusal(tokenizer, pad_token_id=1)
    assert "has the eos token 2, the model 1" in refusal(tokenizer, eos_token_id=1)
    unknown = deberta(folder)
    unknown.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "☃")
    assert "does not know ordinary words: the, of, and, to, in become [UNK]" in refusal(unknown)
    for name in ("pad", "cls", "sep"):
        without = deberta(folder)
        setattr(without, f"{name}_token", None)
        assert f"has no {name} token" in refusal(without)
