"""The attribute scores of a demo response: five qualities that a program can check, each in [0, 1], 1 is best."""

from collections.abc import Sequence

from bench.demo.constraints import Prompt, gold_score, words_of

LONGEST = 40  # words from which on brevity is 0
TOPICAL = 2  # key words of the topic from which on a response is fully on topic


def attributes(prompt: Prompt, text: str) -> dict[str, float]:
    """The five attribute scores of a response to the prompt."""
    return {
        "constraints_met": gold_score(prompt, text),
        "brevity": max(0.0, 1 - len(words_of(text)) / LONGEST),
        "no_repetition": _distinct_share(_ngrams(words_of(text), 2)),
        "on_topic": min(len(_topic_words(prompt) & set(words_of(text))), TOPICAL) / TOPICAL,
        "own_words": _own_share(prompt.text, text),
    }


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _distinct_share(ngrams: Sequence[tuple[str, ...]]) -> float:
    """Share of word pairs that are not repeats; 1 for a single word."""
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def _topic_words(prompt: Prompt) -> set[str]:
    """The topic's key words and the words of its name, "the" left out."""
    return {*prompt.topic.words, *words_of(prompt.topic.name)} - {"the"}


def _own_share(prompt: str, text: str) -> float:
    """Share of the response's runs of three words that do not stand in the prompt; 1 for fewer than three words."""
    asked = set(_ngrams(words_of(prompt), 3))
    said = _ngrams(words_of(text), 3)
    return sum(run not in asked for run in said) / len(said) if said else 1.0
