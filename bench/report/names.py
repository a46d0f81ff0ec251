"""What the report calls a head: by what tells it from the others, and no longer than that."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = Mapping[str, Any]
CONTROL = "control"  # detail of the names of length, oracle and random
GIVEN = ("features", "embedding", "tuning trials")  # the traits that no search finds
CONTROLS = {"oracle": "best possible", "random": "random", "length": "length"}


@dataclass(frozen=True)
class Name:
    """What tells a row from the others.

    Attributes:
        head: the head, with the score it gives when it gives several ("smorm L").
        detail: what differs between the groups of this head that were fitted on the same data; "" for a single group.
        fitted_on: the data it was fitted on.
    """

    head: str
    detail: str
    fitted_on: str

    def scored(self, scorer: str) -> "Name":
        """The name with the score it gives, when it gives several."""
        return self if scorer == "reward" else replace(self, head=f"{self.head} {scorer}")


@dataclass(frozen=True)
class Origin:
    """What a table's heads were fitted on, and whether each row must say it.

    Attributes:
        note: a sentence for above the table; "" when all were fitted on the very dataset they are judged on.
        told: whether rows say it, because the same head stands there fitted on different data.
    """

    note: str
    told: bool

    @classmethod
    def of(cls, names: Iterable[Name], dataset: str) -> "Origin":
        """Over the names of one table."""
        different = {name for name in names if name.detail != CONTROL}
        origins = sorted({name.fitted_on for name in different})
        if origins == [dataset]:
            return cls(note="", told=False)
        if len(origins) == 1:
            return cls(note=f"Fitted on {origins[0]}.", told=False)
        told = len({(name.head, name.detail) for name in different}) < len(different)
        return cls(note="" if told else "Fitted on different data: see Runs.", told=told)

    def called(self, name: Name) -> str:
        """The name in one line of text."""
        if name.detail == CONTROL:
            return name.head
        details = [name.detail, f"fitted on {name.fitted_on}" if self.told else ""]
        return f"{name.head} ({', '.join(filter(None, details))})" if any(details) else name.head


def control(scorer: str) -> Name:
    """The name of length, oracle or random."""
    return Name(CONTROLS.get(scorer, scorer), CONTROL, "")


def group_names(runs: Iterable[Row]) -> dict[str, Name]:
    """A name for each group: its head, its data, and what the groups of that head on that data do not all share."""
    alike: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for run in runs:
        fitted_on = dict.fromkeys(filter(None, [run["pairs_dataset"], run["attributes_dataset"]]))
        alike[_kind(run), " + ".join(fitted_on)].setdefault(run["group"], _traits(run))
    return {
        group: Name(head, detail, fitted_on)
        for (head, fitted_on), groups in alike.items()
        for group, detail in zip(groups, _differences(list(groups.values()), list(groups)), strict=True)
    }


def _kind(run: Row) -> str:
    """The head's name; of one that was trained with its backbone what its group is called, less the hash."""
    group: str = run["group"]
    return group.rpartition("-")[0] if group.startswith("finetuned-") else str(run["head"])


def _traits(run: Row) -> Row:
    options = json.loads(run["options"] or "{}")
    return {
        "features": "+".join(run["features"] or []),
        "embedding": run["embedding"],
        "tuning trials": run["tuning"],
        **options,
    }


def _differences(traits: Sequence[Row], fallbacks: Sequence[str]) -> list[str]:
    """For each of several dictionaries the entries that are not the same in all; its fallback if they tell nothing.

    Options that a search found are left out where the rest tells them apart: nobody chose them.
    """
    keys = list(dict.fromkeys(key for one in traits for key in one))
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in traits}) > 1]
    given = [key for key in differing if key in GIVEN]
    for told in ([given] if all(one["tuning trials"] for one in traits) else []) + [differing]:
        texts = [", ".join(_said(key, one[key]) for key in told if one.get(key) is not None) for one in traits]
        if len(set(texts)) == len(texts):
            return texts
    return [f"{text} {group}".strip() for text, group in zip(texts, fallbacks, strict=True)]


def _said(name: str, value: object) -> str:
    inside = "; ".join(_said(key, one) for key, one in value.items()) if isinstance(value, dict) else ""
    return f"{name} ({inside})" if inside else f"{name} {value}"
