"""Which responses and pairs the demo keeps: twelve distinct responses a prompt, then pairs among them.

The choice is made so that what is cheap to see (length, sampled or made by program) tells little about gold.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from bench.demo.constraints import Prompt, gold_score, words_of
from bench.demo.edits import KINDS, propose

POOL = 12
PAIRS = 6
SAMPLED = 6  # at most so many sampled responses in a pool
PROPOSALS = 6  # of each kind of edit
DRAWS = 40  # candidate pools compared for each prompt
OF_A_KIND = 2  # at most so many edits of one kind in a pool
TOKENS = 40
# One pattern, not a list of strings: the words stay a paragraph that can be read and added to.
BLOCKED = re.compile(
    r"""\b(?:hell|damn\w*|kill\w*|die[sd]?|dead|death|blood\w*|murder\w*|guns?|shots?|shoot\w*|weapons?|wars?|bomb\w*
    |drugs?|sex\w*|naked|nude|rape\w*|breasts?|ass|shit\w*|fuck\w*|bitch\w*|idiots?|stupid|dumb|ugly|fat|hate\w*
    |slaves?|nazis?|terror\w*|suicid\w*|beer|wine|drunk|god|jesus|christ\w*|allah|muslims?|jew\w*|virgins?|kiss\w*
    |poison\w*|toilets?|pee|poop|butt|ulcers?|abus\w*|prisons?|jail|devils?|satan|mistress|trump|obama|hitler)\b""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Response:
    """One response to a prompt with what made it and its gold score."""

    text: str
    generator: str
    gold: float

    @property
    def sampled(self) -> bool:
        """Whether the backbone wrote it as it stands."""
        return not self.generator.startswith("edit-")


def cut(raw: str) -> str:
    """A raw completion up to the first blank line or next turn."""
    return re.split(r"\n\s*\n|\b(?:User|Assistant):", raw, maxsplit=1)[0].strip()


def presentable(text: str) -> bool:
    """Printable ASCII, a few words at least one of them, not too long, nothing offensive, no runs of one character."""
    printable = all(char == "\n" or " " <= char <= "~" for char in text)
    clean = not BLOCKED.search(text) and not re.search(r"(.)\1{4}|\d{5}|https?:|@", text)
    return bool(words_of(text)) and printable and clean and token_estimate(text) <= TOKENS


def token_estimate(text: str) -> int:
    """About how many tokens the text has, without a tokenizer; capitals cost more."""
    parts = re.findall(r"[A-Za-z]+|\d|\n|[^\sA-Za-z\d]", text)
    return sum(-(-len(part) // (4 if len(part) > 1 and part.isupper() else 9)) for part in parts)


def clean_samples(rows: Iterable[Mapping[str, str | float]]) -> dict[str, list[tuple[str, str]]]:
    """Distinct presentable (text, generator) of each prompt's raw samples, by prompt text, in file order."""
    kept: dict[str, dict[str, str]] = {}
    for row in rows:
        text = cut(str(row["response"]))
        if presentable(text):
            kept.setdefault(str(row["prompt"]), {}).setdefault(text, f"gemma3-270m@{row['temperature']}")
    return {prompt: list(texts.items()) for prompt, texts in kept.items()}


def make_pool(prompt: Prompt, sampled: Sequence[tuple[str, str]], foreign: Sequence[str]) -> list[Response]:
    """Twelve distinct responses to the prompt, the best balanced of many draws, in random order."""
    rng = random.Random(f"pool {prompt.text}")
    own = [Response(text, generator, gold_score(prompt, text)) for text, generator in sampled]
    made = _edits(prompt, [text for text, _ in sampled], foreign, rng)
    draws = [_draw(own, made, rng) for _ in range(DRAWS)]
    pool = min(draws, key=_imbalance)
    rng.shuffle(pool)
    return pool


def make_pairs(prompt: Prompt, pool: Sequence[Response]) -> list[tuple[Response, Response]]:
    """Up to six (chosen, rejected) of unequal gold, the longer one chosen in half of them where that can be had."""
    rng = random.Random(f"pairs {prompt.text}")
    ordered = [(a, b) if a.gold > b.gold else (b, a) for a, b in combinations(pool, 2) if a.gold != b.gold]
    rng.shuffle(ordered)
    sides: dict[int, list[tuple[Response, Response]]] = {-1: [], 0: [], 1: []}
    for chosen, rejected in ordered:
        sides[_sign(len(chosen.text) - len(rejected.text))].append((chosen, rejected))
    pairs = [*sides[1][: PAIRS // 2], *sides[-1][: PAIRS // 2]]
    rest = [pair for pair in ordered if pair not in pairs]
    pairs += rest[: PAIRS - len(pairs)]
    rng.shuffle(pairs)
    return pairs


def agreement(pool: Sequence[Response], value: Mapping[str, float]) -> float:
    """Share of the pool's pairs of unequal gold that `value` (by text) puts in the right order; a tie counts half."""
    signs = [
        _sign(a.gold - b.gold) * _sign(value[a.text] - value[b.text])
        for a, b in combinations(pool, 2)
        if a.gold != b.gold
    ]
    return sum((sign + 1) / 2 for sign in signs) / len(signs) if signs else 0.5


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _edits(prompt: Prompt, sampled: Sequence[str], foreign: Sequence[str], rng: random.Random) -> list[Response]:
    """Distinct presentable edits of every kind, none of them equal to a sample."""
    kept: dict[str, str] = {}
    for kind in KINDS * PROPOSALS:
        text = propose(prompt, kind, sampled, foreign, rng).strip()
        if presentable(text) and text not in sampled:
            kept.setdefault(text, kind)
    return [Response(text, f"edit-{kind}", gold_score(prompt, text)) for text, kind in kept.items()]


def _draw(own: Sequence[Response], made: Sequence[Response], rng: random.Random) -> list[Response]:
    """Sampled responses, and edits whose gold levels are drawn first so that rare levels get in."""
    pool = rng.sample(own, min(SAMPLED, len(own)))
    levels: dict[float, list[Response]] = {}
    of_kind: Counter[str] = Counter()
    for response in rng.sample(made, len(made)):
        of_kind[response.generator] += 1
        if of_kind[response.generator] <= OF_A_KIND:
            levels.setdefault(response.gold, []).append(response)
    while len(pool) < POOL:
        open_levels = sorted(level for level, left in levels.items() if left)
        pool.append(levels[rng.choice(open_levels)].pop())
    return pool


def _imbalance(pool: Sequence[Response]) -> float:
    """Small when neither length nor being sampled tells gold, gold is spread, and the best response is perfect."""
    golds = [response.gold for response in pool]
    # fsum, since sum of floats rounds differently from Python 3.12 on and the draw must not depend on that.
    mean = math.fsum(golds) / len(golds)
    spread = math.sqrt(math.fsum((gold - mean) ** 2 for gold in golds) / len(golds))
    length = agreement(pool, {response.text: len(response.text) for response in pool})
    origin = agreement(pool, {response.text: float(response.sampled) for response in pool})
    kinds = len({response.generator for response in pool if not response.sampled})
    if spread == 0:
        return math.inf  # such a pool has no pairs
    imbalance: float = 2 * abs(length - 0.5) + 2 * abs(origin - 0.5) - spread - max(golds) - 0.03 * kinds
    return imbalance
