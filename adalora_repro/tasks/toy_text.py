"""``data=sample``: English text made by rules for each task, so that everything can be tried with no files, no network.

Rows have the columns of the data set they stand for. A row is made from facts (who did what where and when) in a few
forms; who did it to whom and negation decide the label, which a bag of words does not show, and a few classes are wrong
(``NOISE``). Every method learns it, and the numbers say nothing about the paper's.

The same settings give the same rows on every machine (``random.Random`` seeded with a text). No text (GLUE: no text or
pair of texts) is in two splits, and none is twice in one. Change ``VERSION`` whenever any row may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from adalora_repro.errors import InputError, one_of

VERSION = "3"
NOISE = 0.05  # share of wrong classes, as in real data

Row = dict[str, Any]
Fact = dict[str, str]


def _words(text: str) -> list[str]:
    return text.split()


WORDS = {
    "who": _words("Anna Boris Carla David Elena Frank Grace Hugo Irene Jonas Karen Louis Maria Nadia Oscar Paula"),
    "surname": _words("Abbott Becker Castro Dalton Ekberg Fischer Garcia Hansen Ivanov Jensen Keller Lopez"),
    "did": _words("praised helped visited called taught followed hired sued"),
    "city": _words("Berlin Lisbon Vienna Oslo Madrid Dublin Prague Warsaw Athens Boston Chicago Denver Lima Cairo"),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "goods": _words("engines shoes medicines computers chairs batteries bicycles cameras watches toys pianos"),
    "firm": _words("Arcadia Borealis Cobalt Deltron Everline Fontana Granite Helios Ironwood Juniper Kestrel"),
    "good": _words("wonderful moving charming gripping inventive delightful brilliant witty graceful"),
    "bad": _words("dull clumsy tedious shallow lifeless forced bland tiresome hollow"),
    "part": _words("plot acting music dialogue ending cast script humor opening direction"),
    "film": _words("film movie comedy drama thriller documentary sequel romance"),
    "noun": _words("father girl monk queen uncle actress king mother boy aunt"),
    "verb": _words("see admire know take draw forget help call"),
}
PAST = ["{who} {did} {whom} in {city} on {day}", "on {day} {who} {did} {whom} in {city}"]
PASSIVE = ["{whom} was {did} by {who} in {city} on {day}", "on {day} {whom} was {did} by {who} in {city}"]
NEVER = ["{who} never {did} {whom} in {city}", "{whom} was never {did} by {who} in {city}"]
#: (sentence, question, slot of the answer): what a passage says of somebody
PROFILE = [
    ("{name} was born in {city}.", "Where was {name} born?", "city"),
    ("For many years {name} worked for {firm}.", "What company did {name} work for?", "firm"),
    ("Friends say that {name} knew all about {goods}.", "What did {name} know all about?", "goods"),
    ("{name} was married to {spouse}.", "Who was {name} married to?", "spouse"),
    ("The brother of {name} was called {who}.", "What was the brother of {name} called?", "who"),
    ("Every {day} {name} stayed at home.", "On what day did {name} stay at home?", "day"),
]
EVENTS = [  # (what happened, its summary)
    ("A fire broke out in a factory of {firm} in {city} on {day}.", "A factory of {firm} in {city} has burned."),
    ("{firm} said on {day} that it will close its plant in {city}.", "{firm} is to shut its plant in {city}."),
    ("{who} {surname} won the {city} marathon on {day}.", "{who} {surname} has won the marathon in {city}."),
    ("{firm} will hire hundreds of people in {city} to make {goods}.", "{firm} is to make {goods} in {city}."),
]
REMARKS = [
    "Many people in {city} had talked about it for weeks.",
    "{who} {surname} told reporters that nobody had expected the news.",
    "It comes a year after a similar case in {city}.",
    "More details will be given on {day}.",
    "A spokesman for {firm} did not want to comment.",
    "Local shops reported good sales of {goods}.",
    "Some residents of {city} asked for more information.",
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
    for name in sorted(sizes, key=lambda name: name == "train"):
        rows = _distinct(task, name, sizes[name], Random(f"{VERSION} {task} {name} {seed}"), taken)
        if name == split:
            return rows
    raise one_of(f"split of {task}", split, sizes)


def _distinct(task: str, split: str, size: int, rng: Random, taken: set[tuple[str, ...]]) -> list[Row]:
    rows: list[Row] = []
    misses = 0
    while len(rows) < size:
        row = MAKERS[task](rng)
        text = tuple(value for name, value in row.items() if name != "title" and isinstance(value, str))
        if text in taken:
            misses += 1
            if misses > 1000 + 20 * size:
                raise InputError(f"data=sample has only about {len(taken)} different rows of {task}, {size} asked for")
            continue
        taken.add(text)
        if isinstance(row.get("label"), int) and rng.random() < NOISE:
            row["label"] = (row["label"] + 1) % (3 if task == "mnli" else 2)
        row["id" if task in WITH_ID else "idx"] = f"sample-{split}-{len(rows)}" if task in WITH_ID else len(rows)
        rows.append(row)
    return rows


def _fact(rng: Random) -> Fact:
    fact = {slot: rng.choice(words) for slot, words in WORDS.items()}
    return fact | {"whom": rng.choice([name for name in WORDS["who"] if name != fact["who"]])}


def _other(rng: Random, fact: Fact, slot: str) -> Fact:
    words = WORDS["who" if slot == "whom" else slot]
    return fact | {slot: rng.choice([word for word in words if word not in (fact["who"], fact["whom"], fact[slot])])}


def _exchanged(fact: Fact) -> Fact:
    return fact | {"who": fact["whom"], "whom": fact["who"]}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _sst2(rng: Random) -> Row:
    """Praise, or blame that is denied; blame, or praise that is denied."""
    positive, denied = rng.random() < 0.5, rng.random() < 0.4
    fact = _fact(rng)
    word = fact["good" if positive != denied else "bad"]
    forms = ["the {part} of this {film} is {not_}{word}", "this {film} is {not_}{word} , and so is its {part}"]
    text = rng.choice(forms).format(**fact, word=word, not_="not at all " if denied else "")
    return {"sentence": f"{text} .", "label": int(positive)}


def _cola(rng: Random) -> Row:
    """Agreement of subject and verb; the number of a noun between them does not count."""
    good, plural, near = rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.5
    noun, other, third = rng.sample(WORDS["noun"], 3)
    subject = f"the {noun}{'s' * plural}" + f" near the {other}{'s' * (not plural)}" * near
    verb = rng.choice(WORDS["verb"]) + "s" * (plural != good)
    return {"sentence": _sentence(f"{subject} {verb} the {third} on {rng.choice(WORDS['day'])}"), "label": int(good)}


def _inference(rng: Random) -> tuple[str, str, int]:
    """(premise, hypothesis, 0 entailment, 1 neutral, 2 contradiction); either of them may be denied."""
    fact, relation, denied = _fact(rng), rng.randrange(3), rng.random() < 0.5
    fact_2, denied_2 = fact, denied == (relation == 0)
    if relation == 1:
        denied_2 = rng.random() < 0.5
        fact_2 = _exchanged(fact) if rng.random() < 0.4 else _other(rng, fact, rng.choice(("who", "whom", "did")))
    premise = NEVER[0] if denied else rng.choice(PAST)
    hypothesis = NEVER[1] if denied_2 else rng.choice(PASSIVE)
    return _sentence(premise.format(**fact)), _sentence(hypothesis.format(**fact_2)), relation


def _rte(rng: Random) -> Row:
    entailed = rng.random() < 0.5
    premise, hypothesis, relation = _inference(rng)
    while (relation == 0) != entailed:
        premise, hypothesis, relation = _inference(rng)
    return {"sentence1": premise, "sentence2": hypothesis, "label": int(not entailed)}


def _mnli(rng: Random) -> Row:
    premise, hypothesis, relation = _inference(rng)
    return {"premise": premise, "hypothesis": hypothesis, "label": relation}


def _paraphrase(rng: Random, share: float) -> tuple[str, str, int]:
    """The same in other words, or with an exchanged role or another name."""
    fact, same = _fact(rng), int(rng.random() < share)
    changed = _exchanged(fact) if rng.random() < 0.5 else _other(rng, fact, rng.choice(("who", "whom", "city", "day")))
    return rng.choice(PAST).format(**fact), rng.choice(PASSIVE).format(**fact if same else changed), same


def _qqp(rng: Random) -> Row:
    first, second, same = _paraphrase(rng, 0.4)
    return {"question1": f"Is it true that {first}?", "question2": f"Do we know whether {second}?", "label": same}


def _mrpc(rng: Random) -> Row:
    first, second, same = _paraphrase(rng, 0.6)
    return {"sentence1": _sentence(first), "sentence2": _sentence(second), "label": same}


def _stsb(rng: Random) -> Row:
    """5 for the same fact, less for every part that differs, the verb most."""
    fact, score = _fact(rng), 5.0
    fact_2 = fact
    for slot, cost in (("did", 1.8), ("who", 1.2), ("whom", 1.1), ("city", 0.6), ("day", 0.3)):
        if rng.random() < 0.45:
            fact_2, score = _other(rng, fact_2, slot), score - cost
    texts = [_sentence(rng.choice(PAST).format(**values)) for values in (fact, fact_2)]
    return {"sentence1": texts[0], "sentence2": texts[1], "label": round(score, 1)}


def _profile(rng: Random) -> tuple[Fact, list[tuple[str, str, str]]]:
    fact = _fact(rng)
    values = fact | {"name": f"{fact['whom']} {fact['surname']}", "spouse": f"{rng.choice(WORDS['who'])} Quinn"}
    return values, [(text, question.format(**values), slot) for text, question, slot in PROFILE]


def _qnli(rng: Random) -> Row:
    """The sentence answers the question, or says something else of the same person, or the same of another one."""
    values, told = _profile(rng)
    (text, question, _), (another, _, _) = rng.sample(told, 2)
    answered = rng.random() < 0.5
    if not answered and rng.random() < 0.5:
        values, another = values | {"name": f"{rng.choice(WORDS['who'])} Tanaka"}, text
    return {
        "question": question,
        "sentence": (text if answered else another).format(**values),
        "label": int(not answered),
    }


def _squad(rng: Random, answered: bool = True) -> Row:
    values, told = _profile(rng)
    rng.shuffle(told)
    remarks = [remark.format(**_fact(rng)) for remark in rng.sample(REMARKS, 2)]
    (text, question, slot), said = told[0], [*told[1:4], *([told[0]] if answered else [])]
    sentences = [form.format(**values) for form, _, _ in said] + remarks
    rng.shuffle(sentences)
    context = " ".join(sentences)
    answers: Row = {"text": [], "answer_start": []}
    if answered:
        start = context.index(text.format(**values)) + len(text.partition(f"{{{slot}}}")[0].format(**values))
        answers = {"text": [values[slot]], "answer_start": [start]}
    return {"title": values["name"].replace(" ", "_"), "context": context, "question": question, "answers": answers}


def _report(rng: Random, events: int, remarks: int) -> tuple[str, list[str]]:
    """A text of ``events`` reports with ``remarks`` after each, and one summary sentence per event."""
    sentences, summary = [], []
    for event, short in rng.sample(EVENTS, events):
        fact = _fact(rng)
        sentences += [event.format(**fact), *(r.format(**_fact(rng)) for r in rng.sample(REMARKS, remarks))]
        summary.append(short.format(**fact))
    return " ".join(sentences), summary


def _xsum(rng: Random) -> Row:
    document, summary = _report(rng, 1, 7)
    return {"document": document, "summary": summary[0]}


def _cnn_dailymail(rng: Random) -> Row:
    article, summary = _report(rng, 3, 4)
    return {"article": article, "highlights": "\n".join(summary)}


MAKERS: dict[str, Callable[[Random], Row]] = {
    "mnli": _mnli,
    "sst2": _sst2,
    "cola": _cola,
    "qqp": _qqp,
    "qnli": _qnli,
    "rte": _rte,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "squad": _squad,
    "squad_v2": lambda rng: _squad(rng, answered=rng.random() < 2 / 3),
    "xsum": _xsum,
    "cnn_dailymail": _cnn_dailymail,
}
WITH_ID = ("squad", "squad_v2", "xsum", "cnn_dailymail")
