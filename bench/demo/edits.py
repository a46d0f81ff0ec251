"""Responses made by program: near-correct answers, and answers spoilt in known ways.

A response starts as pieces (sentences or list items) from a topic's own material or from a sampled response, and is
brought to meet the kept constraints one after the other. What comes out is only a proposal: its gold score is always
computed from the text, never assumed from how it was made.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence

from bench.demo.constraints import Constraint, Prompt, gold_score, json_object, lines_of, sentences_of, words_of
from bench.demo.topics import FILLERS

SENTENCE_CARRIERS = (
    "People often talk about the {0}.",
    "I like the {0} most.",
    "Look at the {0} again.",
    "There is always some {0} here.",
    "It begins with the {0}.",
    "Do not forget the {0}.",
)
ORDER_CARRIERS = (
    "First the {0} and then the {1}.",
    "I see the {0} before the {1}.",
    "The {0} is near the {1}.",
    "We need the {0}, later the {1}.",
)
TWICE_CARRIERS = ("One {0} here and one {0} there.", "The {0} is a {0}.", "Some {0} and more {0}.")
ITEM_CARRIERS = ("the {0}", "{0}", "some {0}", "more {0}")
RESULT_CARRIERS = (
    "The answer is {0}.",
    "That makes {0}.",
    "It is {0}.",
    "Now there are {0}.",
    "We count {0} in all.",
    "{0}.",
)
LISTED = ("bullets", "numbered", "comma_list", "lines", "json_keys")
SIZED = ("sentences", *LISTED[:-1])
FINISHING = ("starts", "ends", "question", "exclaim", "no_commas", "quotes", "lower", "upper")
KINDS = ("built", "repaired", "dropped", "repeated", "padded", "truncated", "off-topic", "scrambled")


def propose(prompt: Prompt, kind: str, sampled: Sequence[str], foreign: Sequence[str], rng: random.Random) -> str:
    """One made response of the given kind.

    Args:
        prompt: what it answers.
        kind: one of KINDS.
        sampled: sampled responses to this prompt; starting points of repairs and corruptions.
        foreign: responses to other prompts, for "off-topic" and for padding.
        rng: where every choice comes from.
    """
    if kind == "off-topic":
        return rng.choice(foreign)
    from_sample = bool(sampled) and (kind == "repaired" or (kind != "built" and rng.random() < 0.5))
    base = rng.choice(sampled) if from_sample else None
    if kind == "dropped":
        return roughen(compose(prompt, base, _some(prompt, rng), rng), rng)
    text = compose(prompt, base, prompt.constraints, rng) if base is None or rng.random() < 0.6 else base
    if kind in CORRUPTIONS:
        text = CORRUPTIONS[kind](text, foreign, rng)
    return roughen(text, rng)


def compose(prompt: Prompt, base: str | None, kept: Sequence[Constraint], rng: random.Random) -> str:
    """A response aimed at the kept constraints and past the others; `base` gives the pieces, else the topic does."""
    material = _material(prompt, kept, rng)
    pieces = _pieces(base) if base else []
    pieces = (pieces + material)[: _size(prompt, kept, rng)]
    for constraint in kept:
        if constraint.kind in CONTENT:
            pieces = CONTENT[constraint.kind](pieces, constraint, material, rng)
    for constraint in set_aside(prompt, kept):
        pieces = _spoil(pieces, constraint, material, rng)
    text = _join(prompt, pieces, kept, rng)
    for constraint in sorted((c for c in kept if c.kind in FINISHING), key=lambda c: FINISHING.index(c.kind)):
        text = _finish(text, constraint, rng)
    return text


def worked_answer(prompt: Prompt) -> str:
    """A response that meets every constraint: the first of a hundred tries that does, else the best of them."""
    rng = random.Random(f"answer {prompt.text}")
    best = compose(prompt, None, prompt.constraints, rng)
    for _ in range(99):
        if gold_score(prompt, best) == 1:
            break
        best = max(best, compose(prompt, None, prompt.constraints, rng), key=lambda text: gold_score(prompt, text))
    return best


def set_aside(prompt: Prompt, kept: Sequence[Constraint]) -> list[Constraint]:
    """The prompt's constraints that are not kept."""
    return [constraint for constraint in prompt.constraints if constraint not in kept]


def roughen(text: str, rng: random.Random) -> str:
    """Now and then lose a capital or the last full stop, as the sampled responses do."""
    if rng.random() < 0.12:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.1:
        text = text.rstrip(".")
    return text


def _some(prompt: Prompt, rng: random.Random) -> list[Constraint]:
    """All of the prompt's constraints but one or more."""
    kept = rng.randrange(len(prompt.constraints))
    return [prompt.constraints[index] for index in sorted(rng.sample(range(len(prompt.constraints)), kept))]


def _is_list(prompt: Prompt) -> bool:
    return prompt.subset in ("list", "sorting", "json")


def _material(prompt: Prompt, kept: Sequence[Constraint], rng: random.Random) -> list[str]:
    """The topic's sentences or items, shuffled; items of the asked number of words where lines are measured."""
    pieces = list(prompt.topic.items if _is_list(prompt) else prompt.topic.sentences)
    if prompt.subset == "json":
        pieces += prompt.topic.sentences
    for constraint in kept:
        if constraint.kind == "line_words":
            pieces = [" ".join(["good", *words_of(piece)][-constraint.number :]) for piece in pieces]
    rng.shuffle(pieces)
    return pieces


def _pieces(text: str) -> list[str]:
    """A response taken apart into list items, JSON values or sentences, without their marks."""
    value = json_object(text)
    if value is not None:
        return [str(part) for part in value.values() if words_of(str(part))]
    lines = lines_of(text)
    parts = lines if len(lines) > 1 else sentences_of(text)
    if len(parts) == 1 and len(text) < 60 and text.count(",") > 1:
        parts = text.split(",")
    bare = [re.sub(r'^(?:- |\d+\. )|"', "", part.strip()).strip() for part in parts]
    return [part for part in bare if words_of(part)]


def _size(prompt: Prompt, kept: Sequence[Constraint], rng: random.Random) -> int:
    """How many pieces: as many as the constraint says, or one off where it is to be missed."""
    for constraint in prompt.constraints:
        if constraint.kind in SIZED and constraint in kept:
            return constraint.number
        if constraint.kind in SIZED:
            return max(1, constraint.number + rng.choice((-1, 1, 2)))
        if constraint.kind == "at_most_words":
            return 1 if constraint in kept else rng.choice((3, 4))
        if constraint.kind == "at_least_words":
            return rng.choice((2, 3, 4)) if constraint in kept else 1
    return 2 if prompt.subset == "json" else rng.choice((1, 1, 2, 3, 4))


def _has(piece: str, *words: str) -> bool:
    return any(word in words_of(piece) for word in words)


def _carry(constraint: Constraint, pieces: Sequence[str], material: Sequence[str], rng: random.Random) -> str:
    """A piece with the constraint's first word: the topic's own where there is one, else a made one."""
    word = constraint.words[0]
    own = [piece for piece in material if words_of(piece).count(word) == 1 and piece not in pieces]
    if own and rng.random() < 0.6:
        return rng.choice(own)
    carriers = SENTENCE_CARRIERS if all(piece.endswith(".") for piece in material) else ITEM_CARRIERS
    return rng.choice(carriers).format(word)


def _put(pieces: Sequence[str], piece: str, rng: random.Random) -> list[str]:
    """The pieces with one of them, drawn at random, replaced."""
    place = rng.randrange(max(len(pieces), 1))
    return [*pieces[:place], piece, *pieces[place + 1 :]]


def _include(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    return (
        list(pieces) if any(_has(p, *c.words) for p in pieces) else _put(pieces, _carry(c, pieces, material, rng), rng)
    )


def _avoid(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    clean = [piece for piece in material if not _has(piece, *c.words) and piece not in pieces]
    rng.shuffle(clean)
    return [clean.pop() if _has(piece, *c.words) and clean else piece for piece in pieces]


def _times(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    clean = _avoid(pieces, c, material, rng)
    piece = rng.choice(TWICE_CARRIERS).format(c.words[0]) if c.number == 2 else _carry(c, pieces, material, rng)
    return _put(clean, piece, rng)


def _order(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    first, second = c.words
    clean = _avoid(_avoid(pieces, Constraint("avoid", words=(first,)), material, rng), c, material, rng)
    if all(piece.endswith(".") for piece in material):
        return _put(clean, rng.choice(ORDER_CARRIERS).format(first, second), rng)
    ends = [rng.choice(ITEM_CARRIERS).format(word) for word in c.words]
    return [ends[0], *clean[2:], ends[1]]


def _result(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    clean = [re.sub(r"\d+", str(c.number), piece) for piece in pieces]
    if any(str(c.number) in piece for piece in clean):
        return clean
    return _put(clean, rng.choice(RESULT_CARRIERS).format(c.number), rng)


def _sorted(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    return list(c.words)


CONTENT: Mapping[str, Callable[[Sequence[str], Constraint, Sequence[str], random.Random], list[str]]] = {
    "include": _include,
    "avoid": _avoid,
    "times": _times,
    "order": _order,
    "result": _result,
    "sorted": _sorted,
}


def _spoil(pieces: Sequence[str], c: Constraint, material: Sequence[str], rng: random.Random) -> list[str]:
    """Pieces that miss a constraint which most texts would meet, or come close to one which most would not."""
    if c.kind == "avoid":
        return _put(pieces, _carry(c, pieces, material, rng), rng)
    if c.kind == "include":
        return _avoid(pieces, c, material, rng)
    if c.kind == "order":
        return _order(pieces, Constraint("order", words=c.words[::-1]), material, rng)
    if c.kind == "result":
        return _result(pieces, Constraint("result", c.number + rng.choice((-10, -2, -1, 1, 2, 10))), material, rng)
    if c.kind == "sorted":
        return rng.sample(c.words, rng.choice((2, 3, 3)))
    return list(pieces)


def _join(prompt: Prompt, pieces: Sequence[str], kept: Sequence[Constraint], rng: random.Random) -> str:
    """The pieces in the format that a kept constraint asks for, else in another one."""
    asked = next((c for c in prompt.constraints if c.kind in LISTED), None)
    kind = asked.kind if asked else ("comma_list" if prompt.subset == "sorting" else "prose")
    if asked is not None and asked not in kept:
        kind = rng.choice([other for other in ("bullets", "numbered", "comma_list", "lines", "prose") if other != kind])
    bare = [piece.rstrip(".!?,") for piece in pieces]
    if kind == "json_keys":
        assert asked is not None
        return json.dumps(dict(zip(asked.words, [*bare, *bare, "none"], strict=False)))
    if kind == "comma_list":
        return ", ".join(piece.replace(",", "") for piece in bare)
    if kind == "prose":
        return " ".join(piece if re.search(r"[.!?]$", piece) or _is_list(prompt) else f"{piece}." for piece in pieces)
    marks = {"bullets": "- ", "numbered": "{}. ", "lines": ""}
    parts = bare if _is_list(prompt) else pieces
    return "\n".join(marks[kind].format(number) + piece for number, piece in enumerate(parts, 1))


def _finish(text: str, constraint: Constraint, rng: random.Random) -> str:
    """The text with its start, end, punctuation or case brought in line with the constraint."""
    bare = text.rstrip(".!?, ")
    word = constraint.words[0] if constraint.words else ""
    lowered = bare[:1].lower() + bare[1:] if not re.match(r"I\b", bare) else bare
    end = text[len(bare) :].strip()
    return {
        "starts": lambda: f"{word.capitalize()}{rng.choice((', ', ' ', ': '))}{lowered}{end}",
        "ends": lambda: f"{bare}{rng.choice((' - ', ' and ', ' ', ': '))}{word}{end}",
        "question": lambda: f"{bare}?",
        "exclaim": lambda: f"{bare}!",
        "no_commas": lambda: text.replace(",", ""),
        "quotes": lambda: '"' + text.replace('"', "") + '"',
        "lower": text.lower,
        "upper": text.upper,
    }[constraint.kind]()


def _repeated(text: str, foreign: Sequence[str], rng: random.Random) -> str:
    """The last line or sentence again, or a run of words again and again."""
    parts = lines_of(text) if "\n" in text else sentences_of(text)
    if rng.random() < 0.5 and parts:
        return ("\n" if "\n" in text else " ").join([*parts, *[rng.choice(parts)] * rng.choice((1, 2))])
    tokens = text.split(" ")
    place = rng.randrange(len(tokens))
    return " ".join([*tokens[:place], *tokens[place : place + 3] * rng.choice((2, 3)), *tokens[place + 3 :]])


def _padded(text: str, foreign: Sequence[str], rng: random.Random) -> str:
    """Words that say nothing, or another prompt's answer, before or behind."""
    extra = rng.choice(FILLERS) if rng.random() < 0.6 else rng.choice(foreign)
    glue = rng.choice((" ", " ", "\n"))
    return f"{extra}{glue}{text}" if rng.random() < 0.4 else f"{text}{glue}{extra}"


def _truncated(text: str, foreign: Sequence[str], rng: random.Random) -> str:
    """The first part of the text, cut between words."""
    tokens = re.findall(r"\s*\S+", text)
    return "".join(tokens[: max(1, int(len(tokens) * rng.uniform(0.3, 0.8)))])


def _scrambled(text: str, foreign: Sequence[str], rng: random.Random) -> str:
    """The same words in another order; line breaks stay where they are."""
    gaps = re.findall(r"\s+", text)
    tokens = text.split()
    rng.shuffle(tokens)
    return "".join(token + gap for token, gap in zip(tokens, [*gaps, ""], strict=False))


CORRUPTIONS: Mapping[str, Callable[[str, Sequence[str], random.Random], str]] = {
    "repeated": _repeated,
    "padded": _padded,
    "truncated": _truncated,
    "scrambled": _scrambled,
}
