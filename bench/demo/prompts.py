"""The demo prompts: five families of tasks, each with one to four constraints drawn from lists that fit together."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from bench.demo.constraints import Constraint, Prompt, wording
from bench.demo.topics import SHOT_TOPICS, TOPICS, Topic

T = TypeVar("T")

PROMPTS = 330
STARTS = ("today", "sometimes", "listen", "once", "well", "maybe")
ENDS = ("that is all", "thank you", "at last", "the end", "every day", "good night")
KEYS = (("name", "color"), ("title", "text"), ("first", "second"), ("item", "place"), ("topic", "fact"))
TASKS = {
    "prose": ("Write about {t}.", "Say something about {t}.", "Describe {t}.", "Tell me about {t}."),
    "list": ("Make a list about {t}.", "List things to do with {t}.", "What goes with {t}?"),
    "json": ("Give data about {t}.", "Describe {t} as data."),
}
# One kind of each group at most, so that the constraints of a prompt never contradict each other.
GROUPS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "prose": (
        ("sentences", "at_most_words", "at_least_words", "lines"),
        ("include", "avoid", "times", "order"),
        ("starts", "ends", "question", "exclaim"),
        ("lower", "upper", "no_commas", "quotes"),
    ),
    "list": (
        ("bullets", "numbered", "comma_list", "bullets", "numbered"),
        ("include", "avoid", "order"),
        ("lower", "upper"),
        ("ends", "line_words"),
    ),
    "json": (("json_keys",), ("include", "avoid", "order"), ("lower", "upper"), ("at_most_words", "at_least_words")),
    "arithmetic": (
        ("result",),
        ("sentences", "at_most_words", "at_least_words"),
        ("starts", "ends", "exclaim"),
        ("lower", "upper", "no_commas", "quotes"),
    ),
    "sorting": (("sorted",), ("bullets", "numbered", "comma_list", "lines"), ("lower", "upper"), ("ends", "exclaim")),
}
SHARES: Mapping[str, float] = {"prose": 0.42, "list": 0.2, "json": 0.1, "arithmetic": 0.16, "sorting": 0.12}
HOW_MANY: Mapping[int, float] = {1: 0.12, 2: 0.36, 3: 0.34, 4: 0.18}


def make_prompts() -> list[Prompt]:
    """The demo prompts in file order: all different, families and topics mixed, the same on every call."""
    rng = random.Random("rewardheads demo prompts")
    drawn: dict[str, Prompt] = {}
    while len(drawn) < PROMPTS:
        family = _choose(SHARES, rng)
        prompt = write_prompt(f"p{len(drawn):03d}", family, _draw_kinds(family, rng), rng.choice(TOPICS), rng)
        drawn.setdefault(prompt.text, prompt)
    return list(drawn.values())


def shots_for(prompt: Prompt) -> list[Prompt]:
    """Two prompts of the same family and kinds of constraints, about the topics kept for worked examples."""
    rng = random.Random(f"shots {prompt.text}")
    kinds = [constraint.kind for constraint in prompt.constraints]
    return [write_prompt("shot", prompt.subset, kinds, topic, rng) for topic in rng.sample(SHOT_TOPICS, 2)]


def write_prompt(name: str, family: str, kinds: Sequence[str], topic: Topic, rng: random.Random) -> Prompt:
    """One prompt of a family whose constraints are of the given kinds."""
    count = 3 if family == "sorting" else rng.choice((2, 3))
    constraints = tuple(_constraint(kind, topic, count, rng) for kind in kinds)
    stated = [wording(c, rng.randrange(2)) for c in constraints if c.kind not in ("result", "sorted")]
    return Prompt(name, " ".join([_task(family, constraints[0], topic, rng), *stated]), family, topic, constraints)


def _choose(weights: Mapping[T, float], rng: random.Random) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw_kinds(family: str, rng: random.Random) -> list[str]:
    """One to four kinds, in the order of the family's groups; all families but prose need their first group."""
    groups = range(len(GROUPS[family]))
    count = _choose(HOW_MANY, rng)
    used = rng.sample(groups, count) if family == "prose" else [0, *rng.sample(groups[1:], count - 1)]
    kinds = [rng.choice(GROUPS[family][group]) for group in sorted(used)]
    # All on one line and so many words a line: both at once is another task.
    return _draw_kinds(family, rng) if {"comma_list", "line_words"} <= set(kinds) else kinds


def _task(family: str, first: Constraint, topic: Topic, rng: random.Random) -> str:
    if family == "arithmetic":
        return _sum_task(first.number, topic, rng)
    if family == "sorting":
        shuffled = list(first.words)
        while shuffled == list(first.words):
            rng.shuffle(shuffled)
        return f"Sort from A to Z: {', '.join(shuffled)}."
    return rng.choice(TASKS[family]).format(t=topic.name)


def _sum_task(result: int, topic: Topic, rng: random.Random) -> str:
    """A question in digits whose answer is `result`."""
    part = rng.randrange(2, 10)
    things = rng.choice([word for word in topic.words if word.endswith("s")] or ["coins", "cards"])
    return rng.choice(
        (
            f"What is {result - part} plus {part}?",
            f"What is {result + part} minus {part}?",
            f"I have {result - part} {things} and get {part} more. How many {things} now?",
            f"There were {result + part} {things}, {part} are gone. How many are left?",
        )
    )


def _constraint(kind: str, topic: Topic, count: int, rng: random.Random) -> Constraint:
    """A constraint of the kind with drawn parameters; `count` is the number of lines or things asked for."""
    words = tuple(rng.sample(topic.words, 3))
    made: Mapping[str, Constraint] = {
        "at_most_words": Constraint(kind, rng.randrange(9, 17)),
        "at_least_words": Constraint(kind, rng.randrange(10, 17)),
        "sentences": Constraint(kind, rng.choice((1, 2, 2, 3))),
        "lines": Constraint(kind, count),
        "bullets": Constraint(kind, count),
        "numbered": Constraint(kind, count),
        "comma_list": Constraint(kind, count),
        "line_words": Constraint(kind, rng.choice((1, 2))),
        "include": Constraint(kind, words=words[:1]),
        "avoid": Constraint(kind, words=words[:1]),
        "times": Constraint(kind, rng.choice((1, 2, 2)), words[:1]),
        "order": Constraint(kind, words=words[:2]),
        "sorted": Constraint(kind, words=tuple(sorted(words))),
        "starts": Constraint(kind, words=(rng.choice(STARTS),)),
        "ends": Constraint(kind, words=(rng.choice(ENDS),)),
        "json_keys": Constraint(kind, words=rng.choice(KEYS)),
        "result": Constraint(kind, rng.randrange(11, 60)),
    }
    return made.get(kind, Constraint(kind))
