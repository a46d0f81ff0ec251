"""The constraints of the demo prompts: how each is worded, and the program that says whether a text meets it.

Word matching ignores case; a sentence ends at ".", "!" or "?", a line at a newline.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.demo.topics import Topic


@dataclass(frozen=True)
class Constraint:
    """One checkable demand; `number` and `words` are what its kind needs, else 0 and ()."""

    kind: str
    number: int = 0
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One demo prompt with the constraints it states."""

    id: str
    text: str
    subset: str
    topic: Topic
    constraints: tuple[Constraint, ...]


def words_of(text: str) -> list[str]:
    """The words and numbers of a text in lower case; "don't" is one word."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def sentences_of(text: str) -> list[str]:
    """The sentences of a text with their end marks; a last one without an end mark counts."""
    parts = re.findall(r"[^.!?]+[.!?]*", text)
    return [part.strip() for part in parts if words_of(part)]


def lines_of(text: str) -> list[str]:
    """The lines that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def json_object(text: str) -> dict[str, object] | None:
    """The JSON object that the whole text is, or None when it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _bare(text: str) -> str:
    """Text in lower case without the punctuation and quotes around it; what "starts" and "ends" look at."""
    return text.strip().strip(".!?,;:\"'{}[]- \n").lower()


def _first_places(text: str, words: Sequence[str]) -> list[int]:
    """Index of each word's first use in the text; -1 where it is missing."""
    found = words_of(text)
    return [found.index(word.lower()) if word.lower() in found else -1 for word in words]


def _in_order(text: str, words: Sequence[str]) -> bool:
    places = _first_places(text, words)
    return -1 not in places and places == sorted(places)


def _listed(text: str, count: int, mark: str) -> bool:
    """Exactly `count` lines, all of them with the mark and something behind it; "#" stands for 1, 2, 3."""
    lines = lines_of(text)
    marks = [f"{number}. " if mark == "#" else mark for number in range(1, len(lines) + 1)]
    fits = [
        line.startswith(start) and bool(words_of(line[len(start) :])) for line, start in zip(lines, marks, strict=True)
    ]
    return len(lines) == count and all(fits)


def _comma_list(text: str, count: int) -> bool:
    parts = text.split(",")
    return len(lines_of(text)) == 1 and len(parts) == count and all(words_of(part) for part in parts)


def _has_keys(text: str, keys: Sequence[str]) -> bool:
    """A JSON object with exactly these keys, whatever their case, and no empty value."""
    value = json_object(text)
    return value is not None and sorted(k.lower() for k in value) == sorted(keys) and "" not in value.values()


def _starts(text: str, phrase: str) -> bool:
    wanted = words_of(phrase)
    return words_of(text)[: len(wanted)] == wanted


def _cased(text: str, method: Callable[[str], str]) -> bool:
    return any(char.isalpha() for char in text) and text == method(text)


CHECKS: Mapping[str, Callable[[str, Constraint], bool]] = {
    "at_most_words": lambda t, c: 0 < len(words_of(t)) <= c.number,
    "at_least_words": lambda t, c: len(words_of(t)) >= c.number,
    "sentences": lambda t, c: len(sentences_of(t)) == c.number,
    "lines": lambda t, c: len(lines_of(t)) == c.number,
    "line_words": lambda t, c: all(len(words_of(re.sub(r"^\d+\. ", "", x))) == c.number for x in lines_of(t)),
    "include": lambda t, c: c.words[0] in words_of(t),
    "avoid": lambda t, c: c.words[0] not in words_of(t),
    "times": lambda t, c: words_of(t).count(c.words[0]) == c.number,
    "order": lambda t, c: _in_order(t, c.words),
    "sorted": lambda t, c: _in_order(t, c.words),
    "starts": lambda t, c: _starts(t, c.words[0]),
    "ends": lambda t, c: _bare(t).endswith(c.words[0]),
    "question": lambda t, c: t.rstrip('" \n').endswith("?"),
    "exclaim": lambda t, c: t.rstrip('" \n').endswith("!"),
    "lower": lambda t, c: _cased(t, str.lower),
    "upper": lambda t, c: _cased(t, str.upper),
    "no_commas": lambda t, c: "," not in t,
    "quotes": lambda t, c: len(t) > 2 and t.startswith('"') and t.endswith('"') and t.count('"') == 2,
    "bullets": lambda t, c: _listed(t, c.number, "- "),
    "numbered": lambda t, c: _listed(t, c.number, "#"),
    "comma_list": lambda t, c: _comma_list(t, c.number),
    "json_keys": lambda t, c: _has_keys(t, c.words),
    "result": lambda t, c: str(c.number) in re.findall(r"\d+", t),
}

# "{n}" is the number, "{0}", "{1}" the words; "sorted" and "result" are worded by the task itself.
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "at_most_words": ("Use at most {n} words.", "No more than {n} words."),
    "at_least_words": ("Use at least {n} words.", "Write {n} words or more."),
    "sentences": ("Write exactly {n} {sentences}.", "Answer in {n} {sentences}."),
    "lines": ("Put it on {n} lines.", "Use exactly {n} lines."),
    "line_words": ("Use {n} {words} per line.", "Each line has {n} {words}."),
    "include": ('Use the word "{0}".', 'The word "{0}" must appear.'),
    "avoid": ('Do not use the word "{0}".', 'Avoid the word "{0}".'),
    "times": ('Use the word "{0}" {times}.', 'The word "{0}" must appear {times}.'),
    "order": ('Mention "{0}" before "{1}".', 'Say "{0}" first and "{1}" later.'),
    "starts": ('Start with "{0}".', 'The first word is "{0}".'),
    "ends": ('End with "{0}".', 'The last words are "{0}".'),
    "question": ("Ask it as a question.", "End with a question mark."),
    "exclaim": ("End with an exclamation mark.",),
    "lower": ("Use only lower case.", "No capital letters."),
    "upper": ("Use only capital letters.", "Write in upper case."),
    "no_commas": ("Do not use commas.", "No commas."),
    "quotes": ("Put the whole answer in double quotes.",),
    "bullets": ('Use {n} lines that start with "- ".', 'Write {n} bullet points with "- ".'),
    "numbered": ("Number {n} lines 1. to {n}.", "Use a numbered list of {n} lines."),
    "comma_list": ("Give {n} things on one line with commas.", "Put {n} things on a line, split by commas."),
    "json_keys": ('Reply in JSON with the keys "{0}" and "{1}".', 'Use JSON with keys "{0}" and "{1}" only.'),
}


def wording(constraint: Constraint, variant: int) -> str:
    """The constraint as the prompt says it; `variant` picks among its wordings."""
    choices = WORDINGS[constraint.kind]
    n = constraint.number
    return choices[variant % len(choices)].format(
        *constraint.words,
        n=n,
        sentences="sentence" if n == 1 else "sentences",
        words="word" if n == 1 else "words",
        times={1: "exactly once", 2: "exactly twice"}.get(n, f"exactly {n} times"),
    )


def met(constraint: Constraint, text: str) -> bool:
    """Whether the text meets the constraint."""
    return CHECKS[constraint.kind](text, constraint)


def gold_score(prompt: Prompt, text: str) -> float:
    """Share of the prompt's constraints that the text meets, in [0, 1]."""
    return sum(met(constraint, text) for constraint in prompt.constraints) / len(prompt.constraints)
