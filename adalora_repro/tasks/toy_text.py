"""``data=sample``: English text made by rules for each task, so that everything can be tried with no files, no network.

Rows have the columns of the data set they stand for. They are learnable but not trivial: what decides the label is
often word order, negation or who does what to whom, which a bag of words does not show, and a few labels are wrong
(``NOISE``) as in real data. Numbers measured on them say nothing about the paper's.

The same settings give the same rows on every machine (``random.Random`` seeded with a text). No text (GLUE: no text or
pair of texts) is in two splits, and none is twice in one. Change ``VERSION`` whenever any row may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from adalora_repro.errors import InputError, one_of

VERSION = "1"
NOISE = 0.02  # share of wrong labels in classification

Row = dict[str, Any]


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
    order = sorted(sizes, key=lambda name: name == "train")
    for name in order:
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
        row["id" if task in WITH_ID else "idx"] = f"sample-{split}-{len(rows)}" if task in WITH_ID else len(rows)
        rows.append(row)
    return rows


def _noisy(rng: Random, label: int, labels: int) -> int:
    return (label + rng.randrange(1, labels)) % labels if rng.random() < NOISE else label


def _words(text: str) -> list[str]:
    return text.split()


# Words

GOOD = _words("wonderful moving sharp charming gripping inventive delightful brilliant tender witty absorbing graceful")
BAD = _words("dull clumsy tedious shallow predictable lifeless noisy forced bland muddled tiresome hollow")
ASPECTS = _words("plot acting pacing music dialogue ending cast camera work script humor opening finale direction")
FILMS = _words("film movie comedy drama thriller documentary sequel romance")
DEGREES = ["very", "truly", "utterly", "really", "quite", "remarkably", "deeply", "surprisingly"]
NAMES = _words(
    "Anna Boris Carla David Elena Frank Grace Hugo Irene Jonas Karen Louis Maria Nadia Oscar Paula Quentin Rosa Simon "
    "Teresa Ulrich Vera Walter Yvonne"
)
SURNAMES = _words(
    "Abbott Becker Castro Dalton Ekberg Fischer Garcia Hansen Ivanov Jensen Keller Lopez Moreau Novak Olsen Petrov "
    "Quinn Rossi Schmidt Tanaka"
)
CITIES = _words(
    "Berlin Lisbon Vienna Oslo Madrid Dublin Prague Warsaw Athens Boston Chicago Denver Seattle Toronto Sydney Nairobi "
    "Lima Cairo Kyoto Mumbai"
)
COMPANIES = _words(
    "Arcadia Borealis Cobalt Deltron Everline Fontana Granite Helios Ironwood Juniper Kestrel Lumina Meridian "
    "Northgate Orchard Pinnacle"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January March May July September November")
GOODS = _words("engines shoes medicines computers chairs batteries bicycles cameras cheeses watches toys pianos")

KINDS = {  # hypernym -> hyponyms
    "animal": ["dog", "cat", "horse", "cow", "rabbit", "sheep"],
    "vehicle": ["car", "truck", "bus", "van", "tractor"],
    "musician": ["drummer", "singer", "guitarist", "pianist", "violinist"],
    "worker": ["plumber", "carpenter", "welder", "miner", "builder"],
    "child": ["boy", "girl"],
    "athlete": ["swimmer", "runner", "boxer", "skier", "cyclist"],
}
ACTIONS = {  # what a kind does -> (says the same, cannot be true at the same time)
    "animal": [
        ("sleeping", "asleep", "awake"),
        ("eating", "having food", "sleeping"),
        ("running", "moving", "resting"),
    ],
    "vehicle": [("moving", "in motion", "standing still"), ("parked", "standing still", "moving")],
    "musician": [("playing loudly", "making noise", "silent"), ("resting", "taking a break", "performing")],
    "worker": [("working", "on the job", "on holiday"), ("smiling", "looking happy", "crying")],
    "child": [
        ("laughing", "looking happy", "crying"),
        ("sleeping", "asleep", "awake"),
        ("running", "moving", "sitting"),
    ],
    "athlete": [("training", "exercising", "resting"), ("resting", "taking a break", "exercising")],
}
PLACES = ["garden", "park", "street", "yard", "square", "station", "harbor", "village", "field", "market"]
ADJECTIVES = ["old", "young", "small", "tall", "brown", "tired", "noisy", "famous", "lonely", "strange"]
DEEDS = [  # active past, passive participle, the same in other words
    ("praised", "praised", "spoke well of"),
    ("criticized", "criticized", "spoke ill of"),
    ("hired", "hired", "gave a job to"),
    ("dismissed", "dismissed", "took the job from"),
    ("helped", "helped", "gave help to"),
    ("visited", "visited", "paid a visit to"),
    ("called", "called", "made a call to"),
    ("married", "married", "became the spouse of"),
    ("defeated", "defeated", "won against"),
    ("taught", "taught", "gave lessons to"),
    ("sued", "sued", "took legal action against"),
    ("followed", "followed", "went after"),
]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _two(rng: Random, words: Sequence[str]) -> tuple[str, str]:
    first, second = rng.sample(list(words), 2)
    return first, second


def _person(rng: Random) -> str:
    return f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}"


def _sentence(text: str, mark: str = ".") -> str:
    return text[0].upper() + text[1:] + mark


# SST-2: polarity words under negation, contrast and report


def _sst2(rng: Random) -> Row:
    positive = rng.random() < 0.5
    same, other = (GOOD, BAD) if positive else (BAD, GOOD)
    aspect, second = _two(rng, ASPECTS)
    film = rng.choice(FILMS)
    a, b = _two(rng, same)
    c, d = _two(rng, other)
    degree = rng.choice([*DEGREES, ""])
    strong = f"{degree} {a}".strip()
    forms = [
        f"the {aspect} is {strong} and the {second} is {b}",
        f"{_article(strong)} {film} with {_article(b)} {aspect}",
        f"the {aspect} may be {c} , but the {film} as a whole is {strong}",
        f"although the {aspect} is {c} and the {film} looks {d} , it is in the end {a}",
        f"i expected {_article(c)} {film} , yet the {aspect} turned out {strong}",
        f"the {film} is not {c} at all , and its {aspect} is far from {d}",
        f"the {aspect} is never {c} and the {second} is hardly {d}",
        f"those who call this {film} {c} are wrong about its {aspect} and its {second}",
        f"nobody will find the {aspect} of this {film} {c} or the {second} {d}",
        f"what begins as {_article(c)} {film} ends as {_article(strong)} one , thanks to the {aspect}",
        f"not even the {c} {aspect} can change how {a} this {film} is",
    ]
    return {"sentence": rng.choice(forms) + rng.choice([" .", " !", ""]), "label": _noisy(rng, int(positive), 2)}


# CoLA: sentences of a small grammar; each fault uses words that sound sentences have too

NOUNS = [  # singular, plural, reflexive
    ("father", "fathers", "himself"),
    ("girl", "girls", "herself"),
    ("monk", "monks", "himself"),
    ("queen", "queens", "herself"),
    ("uncle", "uncles", "himself"),
    ("actress", "actresses", "herself"),
    ("king", "kings", "himself"),
    ("mother", "mothers", "herself"),
    ("boy", "boys", "himself"),
    ("aunt", "aunts", "herself"),
]
TRANSITIVE = [  # base, third person, past, participle, -ing
    ("see", "sees", "saw", "seen", "seeing"),
    ("admire", "admires", "admired", "admired", "admiring"),
    ("know", "knows", "knew", "known", "knowing"),
    ("take", "takes", "took", "taken", "taking"),
    ("draw", "draws", "drew", "drawn", "drawing"),
    ("forget", "forgets", "forgot", "forgotten", "forgetting"),
]
INTRANSITIVE = [
    ("sleep", "sleeps", "slept", "slept", "sleeping"),
    ("arrive", "arrives", "arrived", "arrived", "arriving"),
    ("smile", "smiles", "smiled", "smiled", "smiling"),
    ("fall", "falls", "fell", "fallen", "falling"),
    ("speak", "speaks", "spoke", "spoken", "speaking"),
]
TIMES = ["yesterday", "every day", "in the evening", "before dinner", "at school", "near the river", "after the war"]


def _cola(rng: Random) -> Row:
    good = rng.random() < 0.6
    plural = rng.random() < 0.5
    noun, other = rng.sample(NOUNS, 2)
    subject = (
        f"{rng.choice(['some', 'these', 'the']) if plural else rng.choice(['every', 'this', 'the'])} {noun[plural]}"
    )
    if rng.random() < 0.3:
        subject += f" near the {other[not plural]}"
    verb, alone = rng.choice(TRANSITIVE), rng.choice(INTRANSITIVE)
    third = rng.choice(NOUNS)
    number = rng.randrange(2)
    thing = f"the {third[number]}"
    be, have, do = ("are", "have", "do") if plural else ("is", "has", "does")
    not_be, not_have, not_do = ("is", "has", "does") if plural else ("are", "have", "do")
    now, wrong_now = (0, 1) if plural else (1, 0)
    reflexive = "themselves" if plural else noun[2]
    wrong_reflexive = (
        ("herself" if noun[2] == "himself" else "himself") if rng.random() < 0.5 or plural else "themselves"
    )
    when = rng.choice(TIMES)
    pairs = [  # (acceptable, not acceptable)
        (f"{subject} {verb[now]} {thing} {when}", f"{subject} {verb[wrong_now]} {thing} {when}"),
        (f"{subject} {be} {alone[4]} {when}", f"{subject} {not_be} {alone[4]} {when}"),
        (f"{subject} {have} {verb[3]} {thing} {when}", f"{subject} {have} {verb[0]} {thing} {when}"),
        (f"{subject} {have} {alone[3]} {when}", f"{subject} {not_have} {alone[3]} {when}"),
        (f"{subject} {do} not {verb[0]} {thing}", f"{subject} {not_do} not {verb[0]} {thing}"),
        (f"{subject} {verb[2]} {thing} and {alone[2]} {when}", f"{subject} {verb[2]} and {alone[2]} {thing} {when}"),
        (f"{subject} {alone[2]} {when}", f"{subject} {alone[2]} {thing} {when}"),
        (f"{subject} {verb[2]} {reflexive} {when}", f"{subject} {verb[2]} {wrong_reflexive} {when}"),
        (f"{do} {subject} {verb[0]} {thing} {when}", f"{do} {subject} {verb[1]} {thing} {when}"),
        (f"{thing} that {subject} {verb[2]} {alone[2]} {when}", f"{thing} that {subject} {alone[2]} {verb[2]} {when}"),
        (f"who do you think {verb[2]} {thing} {when}", f"who do you think {thing} {verb[0]} it {when}"),
        (f"it is {thing} that {subject} {verb[2]} {when}", f"is it {thing} that {when} {verb[2]} {subject} the"),
    ]
    text = rng.choice(pairs)[0 if good else 1]
    mark = "?" if text.split()[0] in ("do", "does", "who", "is") else "."
    return {"sentence": _sentence(text, mark), "label": _noisy(rng, int(good), 2)}


# MNLI and RTE: small worlds with hypernyms, negation, quantifiers and roles

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2


def _inference(rng: Random) -> tuple[str, str, int]:
    """(premise, hypothesis, relation)."""
    return rng.choice((_scene, _scene, _deed, _count))(rng)


def _scene(rng: Random) -> tuple[str, str, int]:
    kind = rng.choice(list(KINDS))
    noun, noun_2 = _two(rng, KINDS[kind])
    action, paraphrase, opposite = rng.choice(ACTIONS[kind])
    adjective, adjective_2 = _two(rng, ADJECTIVES)
    place, place_2 = _two(rng, PLACES)
    relation = rng.randrange(3)
    if rng.random() < 0.35:  # under "no" the inference runs the other way: from the kind to its members
        premise = f"no {kind} in the {place} is {action}"
        hypotheses = [
            [f"no {noun} in the {place} is {action}", f"no {adjective} {kind} in the {place} is {action}"],
            [f"no {kind} in the {place_2} is {action}", f"{_article(noun)} in the {place_2} is {action}"],
            [f"{_article(noun)} in the {place} is {action}", f"some {adjective} {noun} in the {place} is {paraphrase}"],
        ]
    else:
        premise = f"the {adjective} {noun} in the {place} is {action}"
        hypotheses = [
            [
                f"{_article(kind)} in the {place} is {action}",
                f"the {noun} in the {place} is {paraphrase}",
                f"the {adjective} {noun} is not {opposite}",
                f"there is {_article(kind)} in the {place}",
            ],
            [
                f"{_article(adjective_2)} {noun} in the {place_2} is {action}",
                f"the {noun_2} in the {place} is {action}",
                f"no {noun_2} in the {place} is {action}",
                f"the {adjective} {noun} is not in the {place} every day",
            ],
            [
                f"the {noun} in the {place} is {opposite}",
                f"the {adjective} {noun} is not {action}",
                f"no {kind} in the {place} is {action}",
                f"there is no {noun} in the {place}",
            ],
        ]
    return _sentence(premise), _sentence(rng.choice(hypotheses[relation])), relation


def _deed(rng: Random) -> tuple[str, str, int]:
    first, second, third = (f"{name}" for name in rng.sample(NAMES, 3))
    (past, participle, paraphrase), (past_2, _, _) = rng.sample(DEEDS, 2)
    city, city_2 = _two(rng, CITIES)
    relation = rng.randrange(3)
    hypotheses = [
        [f"{second} was {participle} by {first}", f"{first} {paraphrase} {second}", f"{first} was in {city}"],
        [
            f"{first} was {participle} by {third}",
            f"{third} {paraphrase} {second}",
            f"{first} {past_2} {third} in {city_2}",
        ],
        [f"{first} never {past} {second}", f"{second} was not {participle} by {first}", f"nobody {past} {second}"],
    ]
    premise = f"on {rng.choice(DAYS)} {first} {past} {second} in {city}"
    return _sentence(premise), _sentence(rng.choice(hypotheses[relation])), relation


def _count(rng: Random) -> tuple[str, str, int]:
    kind = rng.choice(["worker", "musician", "athlete"])
    noun = rng.choice(KINDS[kind])
    place, place_2 = _two(rng, PLACES)
    action, paraphrase, opposite = rng.choice(ACTIONS[kind])
    words = ["two", "three", "four", "five", "six", "seven"]
    low, number, high = sorted(rng.sample(range(6), 3))
    relation = rng.randrange(3)
    hypotheses = [
        [f"at least {words[low]} {kind}s in the {place} are {action}", f"at most {words[high]} {noun}s are {action}"],
        [f"{words[number]} {kind}s in the {place_2} are {action}", f"at most {words[high]} {kind}s are {paraphrase}"],
        [f"at least {words[high]} {noun}s are {action}", f"only {words[low]} {noun}s are {action}"],
    ]
    hypotheses[0].append(f"more than one {noun} is {paraphrase}")
    hypotheses[2].append(f"all {noun}s in the {place} are {opposite}")
    premise = f"exactly {words[number]} {noun}s are {action} and all of them are in the {place}"
    return _sentence(premise), _sentence(rng.choice(hypotheses[relation])), relation


def _mnli(rng: Random) -> Row:
    premise, hypothesis, relation = _inference(rng)
    return {"premise": premise, "hypothesis": hypothesis, "label": _noisy(rng, relation, 3)}


def _rte(rng: Random) -> Row:
    """As MNLI with another sentence in the premise, two classes of equal size, and roles exchanged."""
    entailed = rng.random() < 0.5
    while True:
        premise, hypothesis, relation = _inference(rng)
        if (relation == ENTAILMENT) == entailed:
            break
    if not entailed and rng.random() < 0.3:
        first, second = _two(rng, NAMES)
        past, participle, paraphrase = rng.choice([deed for deed in DEEDS if deed[0] != "married"])
        premise = _sentence(f"{first} {past} {second} in {rng.choice(CITIES)}")
        hypothesis = _sentence(rng.choice([f"{first} was {participle} by {second}", f"{second} {paraphrase} {first}"]))
    extra = _sentence(f"{_person(rng)} {rng.choice(DEEDS)[0]} {_person(rng)}")
    parts = [premise, extra] if rng.random() < 0.5 else [extra, premise]
    return {"sentence1": " ".join(parts), "sentence2": hypothesis, "label": _noisy(rng, int(not entailed), 2)}


# QNLI and SQuAD: facts about people and companies


def _profile(rng: Random) -> tuple[str, list[tuple[str, str, str, str]]]:
    """A subject and facts about it: (attribute, sentence with {}, question, answer)."""
    if rng.random() < 0.5:
        name, place, place_2 = _person(rng), *_two(rng, CITIES)
        year = rng.randrange(1900, 1990)
        goods, company = rng.choice(GOODS), rng.choice(COMPANIES)
        return name, [
            ("birthplace", f"{name} was born in {{}} as the child of a baker.", f"Where was {name} born?", place),
            ("birth", f"The birth of {name} was registered in {{}}.", f"In what year was {name} born?", str(year)),
            ("home", f"{name} later moved to {{}} and stayed there.", f"Where did {name} move later?", place_2),
            ("employer", f"For many years {name} worked for {{}}.", f"What company did {name} work for?", company),
            ("trade", f"Friends say that {name} knew all about {{}}.", f"What did {name} know all about?", goods),
            ("spouse", f"{name} was married to {{}}.", f"Who was {name} married to?", _person(rng)),
        ]
    name, city, city_2 = rng.choice(COMPANIES), *_two(rng, CITIES)
    year, staff = rng.randrange(1850, 2015), rng.randrange(2, 90) * 10
    kind = rng.choice(["Works", "Group", "Brothers", "Industries", "Partners", "Labs", "Motors", "Foods"])
    name = f"{name} {kind}"
    return name, [
        ("founder", f"{name} was founded by {{}}.", f"Who founded {name}?", _person(rng)),
        ("founded", f"The company {name} began its business in {{}}.", f"When did {name} begin?", str(year)),
        ("seat", f"The head office of {name} is in {{}}.", f"In which city is the head office of {name}?", city),
        ("goods", f"{name} is known for its {{}}.", f"What is {name} known for?", rng.choice(GOODS)),
        ("staff", f"Some {{}} people work for {name}.", f"How many people work for {name}?", str(staff)),
        ("factory", f"A new factory of {name} was opened in {{}}.", f"Where did {name} open a factory?", city_2),
    ]


def _qnli(rng: Random) -> Row:
    """The sentence answers the question, tells another fact of the same subject, or the same fact of another one."""
    name, facts = _profile(rng)
    asked, told = rng.sample(facts, 2)
    answered = rng.random() < 0.5
    if not answered and rng.random() < 0.3:
        other, others = _profile(rng)
        if other != name:
            name, told = next(((other, fact) for fact in others if fact[0] == asked[0]), (name, told))
    fact = asked if answered else told
    sentence = fact[1].format(fact[3])
    if rng.random() < 0.5:
        start = sentence[0] if sentence.startswith(name) else sentence[0].lower()
        sentence = f"According to {rng.choice(NAMES)}, {start}{sentence[1:]}"
    return {"question": asked[2], "sentence": sentence, "label": _noisy(rng, int(not answered), 2)}


def _passage(rng: Random) -> Row:
    name, facts = _profile(rng)
    other, more = _profile(rng)
    while other == name:
        other, more = _profile(rng)
    chosen = [(fact, True) for fact in rng.sample(facts, 4)] + [(fact, False) for fact in rng.sample(more, 2)]
    rng.shuffle(chosen)
    asked = rng.choice([fact for fact, own in chosen if own])
    context, start = "", -1
    for fact, _ in chosen:
        if fact is asked:
            start = len(context) + fact[1].index("{}")
        context += fact[1].format(fact[3]) + " "
    missing = [fact for fact in facts if all(fact is not told for told, _ in chosen)]
    return {
        "title": name.replace(" ", "_"),
        "context": context.strip(),
        "question": asked[2],
        "answers": {"text": [asked[3]], "answer_start": [start]},
        "_missing": rng.choice(missing)[2],
    }


def _squad(rng: Random) -> Row:
    row = _passage(rng)
    del row["_missing"]
    return row


def _squad_v2(rng: Random) -> Row:
    """One question in three asks for a fact of the subject that the context does not tell."""
    row = _passage(rng)
    missing = row.pop("_missing")
    if rng.random() < 1 / 3:
        row |= {"question": missing, "answers": {"text": [], "answer_start": []}}
    return row


# QQP and MRPC: the same in other words, against a changed or exchanged entity

QUESTIONS = [  # groups of templates that ask the same; {a} and {b} must not be exchanged
    [
        "How long does the train from {a} to {b} take?",
        "How much time do I need to go from {a} to {b} by train?",
        "What is the duration of a train ride from {a} to {b}?",
    ],
    [
        "Why is {a} more expensive than {b}?",
        "What makes {a} cost more than {b}?",
        "For what reason are prices in {a} higher than in {b}?",
    ],
    [
        "Should I move from {a} to {b} to study {c}?",
        "Is it a good idea to leave {a} and go to {b} for a degree in {c}?",
        "To learn {c}, is it wise to move to {b} from {a}?",
    ],
    [
        "How can I learn {c} quickly in {a}?",
        "What is the fastest way to learn {c} in {a}?",
        "In {a}, how do I get good at {c} in a short time?",
    ],
    [
        "Where can I find a cheap {d} in {a}?",
        "What is the best place in {a} to get {d_article} at a low price?",
        "Which part of {a} has {d_article} that does not cost much?",
    ],
    [
        "How do I become {d_article} without studying {c}?",
        "Can someone who never studied {c} be {d_article}?",
        "What are the ways to work as {d_article} with no degree in {c}?",
    ],
]
SUBJECTS = _words("physics cooking chess French Spanish law painting statistics drawing history piano medicine")
ROLES = _words("pilot teacher dentist lawyer baker guide tailor mechanic")


def _qqp(rng: Random) -> Row:
    duplicate = rng.random() < 0.4
    group = rng.choice(QUESTIONS)
    first, second = rng.sample(group, 2)
    slots = dict(zip("ab", _two(rng, CITIES), strict=True)) | {"c": rng.choice(SUBJECTS), "d": rng.choice(ROLES)}
    changed = dict(slots)
    if not duplicate:
        used = [slot for slot in "abcd" if f"{{{slot}" in first]
        if {"a", "b"} <= set(used) and rng.random() < 0.6:
            changed["a"], changed["b"] = slots["b"], slots["a"]
        else:
            slot = rng.choice(used)
            words = {"a": CITIES, "b": CITIES, "c": SUBJECTS, "d": ROLES}[slot]
            changed[slot] = rng.choice([word for word in words if word not in slots.values()])
    texts = [
        form.format(**values, d_article=_article(values["d"])) for form, values in ((first, slots), (second, changed))
    ]
    return {"question1": texts[0], "question2": texts[1], "label": _noisy(rng, int(duplicate), 2)}


def _mrpc(rng: Random) -> Row:
    equivalent = rng.random() < 0.65
    amount, amount_2 = rng.sample(range(11, 99), 2)
    first, second = _two(rng, COMPANIES)
    day, day_2 = _two(rng, DAYS)
    boss = _person(rng)
    forms = [
        "{a} bought {b} for ${n} million on {d} , {p} said .",
        "{b} was acquired by {a} on {d} in a deal worth ${n} million , according to {p} .",
        "On {d} , {p} announced that {a} had taken over {b} for ${n} million .",
        "{p} confirmed the ${n} million sale of {b} to {a} on {d} .",
    ]
    other_forms = [
        "Shares of {a} rose {n} percent on {d} while those of {b} fell , {p} said .",
        "On {d} , {p} noted , {b} lost value and the stock of {a} gained {n} percent .",
        "{p} said that {a} shares were up {n} percent on {d} , and {b} shares were down .",
        "There was a drop in the price of {b} on {d} but {a} climbed by {n} percent , said {p} .",
    ]
    same, other = rng.sample((forms, other_forms), 2)
    form, form_2 = rng.sample(same, 2)
    values: dict[str, Any] = {"a": first, "b": second, "n": amount, "d": day, "p": boss}
    changed = dict(values)
    if not equivalent:
        change = rng.choice(("roles", "event", "figures", "company"))
        if change == "roles":
            changed |= {"a": second, "b": first}
        elif change == "event":
            form_2 = rng.choice(other)
        elif change == "figures":
            changed |= {"n": amount_2, "d": day_2}
        else:
            changed["a"] = rng.choice([name for name in COMPANIES if name not in (first, second)])
    return {
        "sentence1": form.format(**values),
        "sentence2": form_2.format(**changed),
        "label": _noisy(rng, int(equivalent), 2),
    }


# STS-B: the score falls with every part of the sentence that differs

SCENES = [  # activities by topic: one of the same topic is half as far as one of another
    ["playing the guitar", "playing the piano", "singing a song"],
    ["slicing an onion", "peeling a potato", "frying an egg"],
    ["riding a horse", "feeding a horse", "leading a donkey"],
    ["driving a car", "washing a car", "repairing a truck"],
    ["reading a book", "writing a letter", "reading a newspaper"],
]
ACTORS = [["man", "boy", "guy"], ["woman", "girl", "lady"], ["dog", "puppy"], ["monkey", "ape"]]


def _stsb(rng: Random) -> Row:
    """5 less 1.4 for another actor, 1 or 2.6 for another activity, 0.8 for another place, less for near ones; noise.

    Three pairs in ten have nothing in common.
    """
    topic = rng.choice(SCENES)
    activity, near = _two(rng, topic)
    far = rng.choice(rng.choice([scene for scene in SCENES if scene is not topic]))
    actors, others = rng.sample(ACTORS, 2)
    place, place_2 = _two(rng, PLACES)
    adjective = rng.choice(["", "", *ADJECTIVES])
    unrelated = rng.random() < 0.3
    score = 5.0
    actor, actor_2 = _two(rng, actors) if rng.random() < 0.5 else (actors[0], actors[0])
    if unrelated or rng.random() < 0.2:
        actor_2, score = rng.choice(others), score - 1.4
    elif actor != actor_2:
        score -= 0.4
    activity_2 = activity
    draw = 1.0 if unrelated else rng.random()
    if draw > 0.7:
        activity_2, score = far, score - 2.6
    elif draw > 0.4:
        activity_2, score = near, score - 1.0
    first_place, second_place = f" in the {place}", f" in the {place}"
    where = 1.0 if unrelated else rng.random()
    if where > 0.75:
        second_place, score = f" in the {place_2}", score - 0.8
    elif where > 0.5:
        second_place, score = "", score - 0.4
    subject = f"{adjective} {actor}".strip()
    first = _sentence(f"{_article(subject)} is {activity}{first_place}")
    second = rng.choice(
        [
            f"{_article(actor_2)} is {activity_2}{second_place}",
            f"there is {_article(actor_2)} {activity_2}{second_place}",
            f"{second_place.strip()} {_article(actor_2)} is {activity_2}".strip(),
        ]
    )
    score = min(5.0, max(0.0, score + rng.choice((-0.2, 0.0, 0.0, 0.2))))
    return {"sentence1": first, "sentence2": _sentence(second), "label": round(score, 1)}


# XSum and CNN/DailyMail: reports of one event among remarks; the summary tells the event

EVENTS = [  # (what happened, the same as a summary)
    ("A fire broke out in a factory of {c} in {p} on {d}", "A factory of {c} in {p} has been damaged by fire."),
    ("{c} said on {d} that it will close its plant in {p}", "{c} is to shut its plant in {p}."),
    ("{n} has been elected mayor of {p} after a vote on {d}", "{n} is the new mayor of {p}."),
    ("Police in {p} arrested {n} on {d} over missing {g}", "{n} has been held by police in {p} over missing {g}."),
    ("The museum of {p} will show a collection of {g} from {d}", "A collection of {g} will be shown in {p}."),
    ("{n} won the {p} marathon on {d} in heavy rain", "{n} has won the marathon in {p}."),
    (
        "{c} plans to hire hundreds of people in {p} to make {g}",
        "Hundreds of jobs making {g} are to be created in {p}.",
    ),
]
REMARKS = [
    "Many people in {q} had talked about it for weeks.",
    "{m} told reporters that nobody had expected the news.",
    "It comes a year after a similar case in {q}.",
    "The weather in {q} was mild on {e}.",
    "More details will be given on {e}.",
    "{m} , who lives in {q} , said the town would have to wait and see.",
    "A spokesman for {k} did not want to comment.",
    "The council of {q} meets on {e} to talk about the matter.",
    "Local shops reported good sales of {h}.",
    "{k} has offices in {q} and sells {h}.",
    "Some residents asked for more information.",
    "Two similar events were held in {q} in {o}.",
]


def _report(rng: Random, events: int, remarks: int) -> tuple[str, list[str]]:
    """A text of ``events`` reports with ``remarks`` after each, and one summary sentence per event."""
    sentences, summary = [], []
    for event, short in rng.sample(EVENTS, events):
        values = {"c": rng.choice(COMPANIES), "p": rng.choice(CITIES), "d": rng.choice(DAYS), "n": _person(rng)}
        values["g"] = rng.choice(GOODS)
        sentences.append(event.format(**values) + ".")
        summary.append(short.format(**values))
        for remark in rng.sample(REMARKS, remarks):
            fill = {"q": rng.choice(CITIES), "m": _person(rng), "e": rng.choice(DAYS), "k": rng.choice(COMPANIES)}
            sentences.append(remark.format(**fill, h=rng.choice(GOODS), o=rng.choice(MONTHS)))
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
    "squad_v2": _squad_v2,
    "xsum": _xsum,
    "cnn_dailymail": _cnn_dailymail,
}
WITH_ID = ("squad", "squad_v2", "xsum", "cnn_dailymail")
