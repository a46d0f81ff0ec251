"""What a study is: a grid declared in YAML, read into dataclasses, every mistake found before anything runs.

What needs the store (do the datasets, vectors and quantities exist) is checked in `pipeline.study_data`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.active import CHOICES, Choice
from bench.annotate import PAIRINGS, Pairing
from heads.registry import make_head
from pipeline.fit_data import Split
from pipeline.readers import dataset_name

Options = Mapping[str, Any]


@dataclass(frozen=True)
class PoolSpec:
    """A pool to annotate and judge on.

    Attributes:
        dataset: with responses.
        judge: whose gold; None takes the only one.
        attributes: dataset of attribute scores of its responses; None without.
        use: those of its attributes that heads are fitted on; empty takes all.
    """

    dataset: str
    judge: str | None = None
    attributes: str | None = None
    use: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureSpec:
    """Features: columns of the embedding that fits; backbone or fingerprint say which, where there are several."""

    columns: tuple[str, ...]
    backbone: str | None = None
    embedding: str | None = None


@dataclass(frozen=True)
class HeadSpec:
    """A head, the options that differ from its defaults, and what its fits are judged on beside all others'."""

    head: str
    options: Options
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class Cell:
    """One fit: where it stands in the grid.

    Attributes:
        pool: name of the pool.
        features: name of the features.
        head: name of the head in the study.
        pairing: which responses are compared.
        choice: how pairs are chosen of those that could be annotated.
        beta: quality of the annotations.
        pairs: annotated pairs, those for early stopping included.
        seed: of the draw, the errors, the early-stopping split and the fit.
    """

    pool: str
    features: str
    head: str
    pairing: Pairing
    choice: Choice
    beta: float
    pairs: int
    seed: int

    @property
    def name(self) -> str:
        """What the cell is called in the results: its place in words."""
        return (
            f"{self.pool}/{self.features}/{self.head}/{self.pairing}/{self.choice}/"
            f"beta{self.beta:g}/n{self.pairs}/s{self.seed}"
        )


@dataclass(frozen=True)
class Grid:
    """Levels that are all combined with each other."""

    pools: tuple[str, ...]
    features: tuple[str, ...]
    heads: tuple[str, ...]
    pairing: tuple[Pairing, ...]
    choice: tuple[Choice, ...]
    beta: tuple[float, ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """A study as it was declared.

    Attributes:
        name: of its folder in the store.
        seeds: each cell is fitted once for each.
        split: how prompts are shared out.
        pools: by name.
        features: by name.
        heads: by name.
        grids: their cells together are the study's.
        evaluate: further pools of the study (by name), or datasets with pairs, to judge every fit on.
    """

    name: str
    seeds: tuple[int, ...]
    split: Split
    pools: Mapping[str, PoolSpec]
    features: Mapping[str, FeatureSpec]
    heads: Mapping[str, HeadSpec]
    grids: tuple[Grid, ...]
    evaluate: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Everything that some fit is judged on beside its own pool."""
        return tuple(dict.fromkeys([*self.evaluate, *(name for head in self.heads.values() for name in head.evaluate)]))

    def cells(self) -> list[Cell]:
        """Every cell once, seed by seed, so that a study that was stopped has whole seeds."""
        found: dict[Cell, None] = {}
        for seed in self.seeds:
            for grid in self.grids:
                levels = (grid.pools, grid.features, grid.heads, grid.pairing, grid.choice, grid.beta, grid.pairs)
                found.update(dict.fromkeys(Cell(*place, seed) for place in product(*levels)))
        return list(found)


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises: ValueError that says where the file is wrong and what could stand there.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    try:
        return parse_study(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_study(content: object) -> Study:
    """The study that a YAML document says. Raises ValueError as `read_study`."""
    top = _mapping(content, "the study", required=("study", "pools", "features", "heads", "grids"),
                   optional=("seeds", "split", "evaluate"))  # fmt: skip
    name = _text(top["study"], "study")
    if name != dataset_name(name):
        raise ValueError(f"study: {name!r} cannot be a folder's name; use letters, digits and . _ -")
    split = _mapping(top.get("split", {}), "split", optional=("test_share", "valid_share", "seed"))
    pools = {key: _pool(value, f"pools.{key}") for key, value in _named(top["pools"], "pools").items()}
    features = {key: _features(value, f"features.{key}") for key, value in _named(top["features"], "features").items()}
    heads = {key: _head(key, value, f"heads.{key}") for key, value in _named(top["heads"], "heads").items()}
    known = {"pools": tuple(pools), "features": tuple(features), "heads": tuple(heads)}
    grids = _list(top["grids"], "grids")
    return Study(
        name=name,
        seeds=_seeds(top.get("seeds", 1)),
        split=_split(split),
        pools=pools,
        features=features,
        heads=heads,
        grids=tuple(_grid(grid, f"grids[{number}]", known) for number, grid in enumerate(grids)),
        evaluate=_evaluate(top, "evaluate"),
    )


def _pool(value: object, where: str) -> PoolSpec:
    given = _mapping(value, where, required=("dataset",), optional=("judge", "attributes", "use"))
    if "use" in given and "attributes" not in given:
        raise ValueError(f"{where}.use names attributes, and {where}.attributes names no dataset that has them")
    use = tuple(_text(each, f"{where}.use") for each in _list(given["use"], f"{where}.use")) if "use" in given else ()
    return PoolSpec(**{key: _text(text, f"{where}.{key}") for key, text in given.items() if key != "use"}, use=use)


def _features(value: object, where: str) -> FeatureSpec:
    given = _mapping(value, where, required=("columns",), optional=("backbone", "embedding"))
    columns = tuple(_text(given["columns"], f"{where}.columns").split("+"))
    others = {key: _text(text, f"{where}.{key}") for key, text in given.items() if key != "columns"}
    return FeatureSpec(columns, **others)


def _head(name: str, value: object, where: str) -> HeadSpec:
    given = _mapping(value if value is not None else {}, where, optional=("head", "options", "evaluate"))
    head = _text(given.get("head", name), f"{where}.head")
    options = _named(given["options"], f"{where}.options") if given.get("options") else {}
    try:
        made = make_head(head, options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if "pairs" not in made.needs:
        raise ValueError(f"{where}: head {head} is not fitted on pairs, and pairs are what a study varies")
    return HeadSpec(head, options, _evaluate(given, f"{where}.evaluate"))


def _evaluate(given: Options, where: str) -> tuple[str, ...]:
    return tuple(_text(each, where) for each in _list(given["evaluate"], where)) if given.get("evaluate") else ()


def _grid(value: object, where: str, known: Mapping[str, tuple[str, ...]]) -> Grid:
    axes = ("pools", "features", "heads", "pairing", "beta", "pairs")
    given = _mapping(value, where, required=axes, optional=("choice",))
    allowed = {**known, "pairing": PAIRINGS, "choice": CHOICES}
    levels: dict[str, tuple[Any, ...]] = {}
    for axis in (*axes, "choice"):
        place = f"{where}.{axis}"
        listed = _list(given.get(axis, ["random"]), place)
        if axis in allowed:
            levels[axis] = tuple(_one_of(each, place, allowed[axis]) for each in listed)
        else:
            levels[axis] = tuple((_beta if axis == "beta" else _count)(each, place) for each in listed)
        if len(set(levels[axis])) < len(listed):
            raise ValueError(f"{place} names a level twice: {listed}")
    return Grid(**levels)


def _seeds(value: object) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(_count(each, "seeds", least=0) for each in _list(value, "seeds"))
    return tuple(range(_count(value, "seeds")))


def _split(given: Options) -> Split:
    for name in ("test_share", "valid_share"):
        share = given.get(name, 0.1)
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
            raise ValueError(f"split.{name} is {share!r}; give a share between 0 and 1")
    if "seed" in given:
        _count(given["seed"], "split.seed", least=0)
    return Split(**given)


def _mapping(value: object, where: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Options:
    """The entries of a mapping; ValueError for one that is missing or that there is not."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it takes entries {', '.join((*required, *optional))}")
    if unknown := [key for key in value if key not in (*required, *optional)]:
        raise ValueError(f"{where} has no entry {unknown[0]!r}; there are {', '.join((*required, *optional))}")
    if missing := [key for key in required if key not in value]:
        raise ValueError(f"{where} lacks the entry {missing[0]!r}")
    return value


def _named(value: object, where: str) -> dict[str, Any]:
    """A mapping from names, which must be texts without a slash."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where} is {value!r}; give one or more entries by name")
    if wrong := [key for key in value if not isinstance(key, str) or "/" in key]:
        raise ValueError(f"{where} names {wrong[0]!r}; a name is text without a slash (put it in quotes)")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {value!r}; give a list with one or more entries")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is {value!r}; give text")
    return value


def _one_of(value: object, where: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{where} names {value!r}; there are {', '.join(known)}")
    return str(value)


def _count(value: object, where: str, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where} has {value!r}; give whole numbers from {least} on")
    return value


def _beta(value: object, where: str) -> float:
    number = math.inf if value == "inf" else value  # YAML's own infinity is .inf
    if not isinstance(number, int | float) or isinstance(number, bool) or not number >= 0:
        raise ValueError(f"{where} has {value!r}; give numbers from 0 (random) on, inf for perfect annotations")
    return float(number)
