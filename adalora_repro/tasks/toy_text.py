"""``data=sample``: English text made by rules for each task, so that everything can be tried with no files, no network.

Rows have the columns of the data set they stand for. A pair of texts is a fact (who did what to whom, where and when)
in two forms, the second perhaps with a detail changed: no single word shows the label. Every method learns it, and the
numbers say nothing about the paper's.

The same settings give the same rows on every machine (``random.Random`` seeded with a text). No text (GLUE: no text or
pair of texts) is in two splits, and none is twice in one. Change ``VERSION`` whenever any row may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any

from adalora_repro.errors import InputError, one_of

VERSION = "4"
Row = dict[str, Any]

WORDS = {
    slot: words.split()
    for slot, words in {
        "who": "Anna Boris Carla David Elena Frank Grace Hugo Irene Jonas Karen Louis Maria Nadia Oscar Paula",
        "surname": "Abbott Becker Castro Dalton Ekberg Fischer Garcia Hansen Ivanov Jensen Keller Lopez",
        "did": "praised helped visited called taught followed hired sued",
        "city": "Berlin Lisbon Vienna Oslo Madrid Dublin Prague Warsaw Athens Boston Chicago Denver Lima Cairo",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "goods": "engines shoes medicines computers chairs batteries bicycles cameras watches toys pianos",
        "firm": "Arcadia Borealis Cobalt Deltron Everline Fontana Granite Helios Ironwood Juniper Kestrel",
        "good": "wonderful moving charming gripping inventive delightful brilliant witty graceful",
        "bad": "dull clumsy tedious shallow lifeless forced bland tiresome hollow",
        "part": "plot acting music dialogue ending cast script humor opening direction",
        "film": "film movie comedy drama thriller documentary sequel romance",
        "noun": "father girl monk queen uncle actress king mother boy aunt",
        "verb": "see admire know take draw forget help call",
    }.items()
}
ACTIVE = ["{who} {did} {whom} in {city} on {day}", "on {day} {who} {did} {whom} in {city}"]
PASSIVE = ["{whom} was {did} by {who} in {city} on {day}", "on {day} {whom} was {did} by {who} in {city}"]
NEVER = "{whom} was never {did} by {who} in {city}"
#: points that STS-B's similarity loses where two facts differ
COSTS = {"did": 1.8, "who": 1.2, "whom": 1.1, "city": 0.6, "day": 0.3}
#: (what a passage says of somebody, question, slot of the answer, which ends the sentence)
PROFILE = [
    ("{name} was born in", "Where was {name} born?", "city"),
    ("For many years {name} worked for", "What company did {name} work for?", "firm"),
    ("Friends say that {name} knew all about", "What did {name} know all about?", "goods"),
    ("The brother of {name} was called", "What was the brother of {name} called?", "who"),
    ("{name} stayed at home every", "On what day did {name} stay at home?", "day"),
]
EVENTS = [  # (what happened, its summary)
    ("A fire broke out in a factory of {firm} in {city} on {day}.", "A factory of {firm} in {city} has burned."),
    ("{firm} said on {day} that it will close its plant in {city}.", "{firm} is to shut its plant in {city}."),
    ("{who} {surname} won the {city} marathon on {day}.", "{who} {surname} has won the marathon in {city}."),
]
REMARKS = [
    "Many people in {city} had talked about it for weeks.",
    "{who} {surname} told reporters that nobody had expected the news.",
    "More details will be given on {day}.",
    "A spokesman for {firm} did not want to comment.",
    "Local shops reported good sales of {goods}.",
]


def check(task: str, sizes: Mapping[str, int]) -> None:
    """Whether the rows asked for can be made.

    Raises:
        InputError: no text for this task, or a split of less than one row.
    """
    if task not in MAKERS:
        raise one_of("task for data=sample", task, MAKERS)
    for split, size in sizes.items():
        if size < 1:
            option = "data.sample_rows" if split == "train" else "data.sample_validation_rows"
            raise InputError(f"{option}={size}: the {split} split needs at least 1 row")


def generate(task: str, split: str, sizes: Mapping[str, int], seed: int) -> list[Row]:
    """The rows of one split.

    Args:
        task: a name of ``MAKERS``.
        split: a key of ``sizes``.
        sizes: rows per split, ``train`` among them. Evaluation splits are made first and in this order, each without
            the texts of those before it: the number of training rows never changes what is evaluated on.
        seed: another seed gives other rows.

    Raises:
        InputError: as ``check``, or more rows asked for than there are different ones.
    """
    check(task, sizes)
    taken: set[tuple[str, ...]] = set()
    rows: dict[str, list[Row]] = {}
    for name in sorted(sizes, key=lambda name: name == "train"):
        rng, misses = Random(f"{VERSION} {task} {name} {seed}"), 0
        made: list[Row] = []
        while len(made) < sizes[name]:
            row = MAKERS[task](rng)
            text = tuple(value for value in row.values() if isinstance(value, str))
            if text in taken:
                misses += 1
                if misses > 1000 + 20 * sizes[name]:
                    raise InputError(f"data=sample has about {len(taken)} different rows of {task}, not {sizes[name]}")
                continue
            taken.add(text)
            made.append(row | ({"idx": len(made)} if "label" in row else {"id": f"sample-{name}-{len(made)}"}))
        rows[name] = made
    return rows[split]


def _fact(rng: Random) -> dict[str, str]:
    fact = {slot: rng.choice(words) for slot, words in WORDS.items()}
    return fact | {"whom": rng.choice([name for name in WORDS["who"] if name != fact["who"]])}


def _other(rng: Random, fact: dict[str, str], slot: str) -> dict[str, str]:
    """The fact with another word in one place."""
    words = WORDS["who" if slot == "whom" else slot]
    return fact | {slot: rng.choice([word for word in words if word not in (fact["who"], fact["whom"], fact[slot])])}


def _sst2(rng: Random) -> Row:
    """Praise, or blame that is denied; blame, or praise that is denied."""
    positive, denied = rng.random() < 0.5, rng.random() < 0.4
    fact = _fact(rng)
    word = ("not at all " if denied else "") + fact["good" if positive != denied else "bad"]
    forms = ["the {part} of this {film} is {word} .", "this {film} is {word} , and so is its {part} ."]
    return {"sentence": rng.choice(forms).format(**fact, word=word), "label": int(positive)}


def _cola(rng: Random) -> Row:
    """Agreement of subject and verb; the number of a noun between them does not count."""
    good, plural, near = rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.5
    noun, other, third = rng.sample(WORDS["noun"], 3)
    subject = f"The {noun}{'s' * plural}" + f" near the {other}{'s' * (not plural)}" * near
    verb = rng.choice(WORDS["verb"]) + "s" * (plural != good)
    return {"sentence": f"{subject} {verb} the {third} on {rng.choice(WORDS['day'])}.", "label": int(good)}


def _pair(rng: Random, columns: tuple[str, str], relations: tuple[str, ...], question: str = "{}.") -> Row:
    """A fact and, in other words, the same, another or its denial; the label is the place in ``relations``."""
    fact = _fact(rng)
    label = rng.randrange(len(relations))
    second = fact
    if relations[label] == "other":  # with roles exchanged, or with another word
        exchanged = fact | {"who": fact["whom"], "whom": fact["who"]}
        second = exchanged if rng.random() < 0.5 else _other(rng, fact, rng.choice(("who", "whom", "city", "day")))
    form = NEVER if relations[label] == "denied" else rng.choice(PASSIVE)
    texts = question.format(rng.choice(ACTIVE).format(**fact)), form.format(**second) + "."
    return dict(zip(columns, texts, strict=True)) | {"label": label}


def _stsb(rng: Random) -> Row:
    """5 for the same fact, less for every part that differs, the verb most."""
    first = second = _fact(rng)
    score = 5.0
    for slot, cost in COSTS.items():
        if rng.random() < 0.45:
            second, score = _other(rng, second, slot), score - cost
    texts = [rng.choice(ACTIVE).format(**fact) + "." for fact in (first, second)]
    return {"sentence1": texts[0], "sentence2": texts[1], "label": abs(round(score, 1))}


def _squad(rng: Random, answerable: float) -> Row:
    """A passage on somebody, and a question whose answer ends one of its sentences, or is left out."""
    fact = _fact(rng)
    name = f"{fact['whom']} {fact['surname']}"
    answered = rng.random() < answerable
    (statement, question, slot), *others = rng.sample(PROFILE, 4)
    sentences = [f"{statement.format(name=name)} {fact[slot]}."] if answered else []
    sentences += [f"{text.format(name=name)} {fact[other]}." for text, _, other in others]
    sentences += [remark.format(**_fact(rng)) for remark in rng.sample(REMARKS, 2)]
    answer = sentences[0]
    rng.shuffle(sentences)
    context = " ".join(sentences)
    start = context.index(answer) + len(answer) - len(fact[slot]) - 1
    answers: Row = {"text": [fact[slot]] if answered else [], "answer_start": [start] if answered else []}
    return {"context": context, "question": question.format(name=name), "answers": answers}


def _report(rng: Random, columns: tuple[str, str], events: int, remarks: int) -> Row:
    """A text of ``events`` reports with ``remarks`` after each, and one summary sentence per event."""
    sentences, summary = [], []
    for event, short in rng.sample(EVENTS, events):
        fact = _fact(rng)
        sentences += [event.format(**fact), *(r.format(**_fact(rng)) for r in rng.sample(REMARKS, remarks))]
        summary.append(short.format(**fact))
    return dict(zip(columns, (" ".join(sentences), "\n".join(summary)), strict=True))


SENTENCES = ("sentence1", "sentence2")
MAKERS: dict[str, Callable[[Random], Row]] = {
    "mnli": partial(_pair, columns=("premise", "hypothesis"), relations=("same", "other", "denied")),
    "sst2": _sst2,
    "cola": _cola,
    "qqp": partial(
        _pair, columns=("question1", "question2"), relations=("other", "same"), question="Is it true that {}?"
    ),
    "qnli": partial(
        _pair, columns=("question", "sentence"), relations=("same", "other"), question="Is it said that {}?"
    ),
    "rte": partial(_pair, columns=SENTENCES, relations=("same", "other")),
    "mrpc": partial(_pair, columns=SENTENCES, relations=("other", "same")),
    "stsb": _stsb,
    "squad": partial(_squad, answerable=1.0),
    "squad_v2": partial(_squad, answerable=2 / 3),
    "xsum": partial(_report, columns=("document", "summary"), events=1, remarks=5),
    "cnn_dailymail": partial(_report, columns=("article", "highlights"), events=3, remarks=4),
}
