"""What heads are fitted on: datasets and features chosen from a store, and which prompts a fit may see.

The test prompts are set apart by the hash of their content before anything is looked at; a seed draws the prompts of
the early-stopping split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.assembly import IN_MEMORY
from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.splits import is_test, is_valid
from cache.store import Store
from cache.views import TrainingView
from heads.protocol import Head
from pipeline.features import assemble_features, refuse_repeats
from pipeline.progress import say


@dataclass(frozen=True)
class Source:
    """Features, and the datasets of D_S and D_M: what a head is fitted on."""

    features: tuple[str, ...]
    pairs: str | None
    attributes: str | None

    @property
    def matrix(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the matrix depends on: its columns, and the datasets whose responses are its rows, in that order."""
        return self.features, tuple(dict.fromkeys(name for name in (self.pairs, self.attributes) if name))


@dataclass(frozen=True)
class FitData:
    """A view, and what a fit needs to know of its rows.

    Attributes:
        view: features, pairs and attributes.
        prompt_ids: the id of each prompt, by the view's prompt numbers.
        left_out: responses without a vector.
    """

    view: TrainingView
    prompt_ids: tuple[str, ...]
    left_out: int


@dataclass(frozen=True)
class Split:
    """How prompts are shared out.

    Attributes:
        test_share: share of prompts held out for judging.
        valid_share: share of the other prompts set aside for early stopping.
        seed: another number draws other test prompts.
    """

    test_share: float = 0.2
    valid_share: float = 0.15
    seed: int = 0

    def views(self, data: FitData, seed: int) -> tuple[TrainingView, TrainingView]:
        """Training and early-stopping views of one fitting seed; test prompts are in neither."""
        train, stop = self.sides(data, seed)
        return data.view.subset(train), data.view.subset(stop)

    def sides(self, data: FitData, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows of the view are for training, and which for early stopping: each (n,)."""
        test = is_test(data.prompt_ids, share=self.test_share, seed=self.seed)[data.view.prompts]
        stop = is_valid(data.prompt_ids, share=self.valid_share, seed=seed)[data.view.prompts]
        return ~test & ~stop, ~test & stop


def choose_split(
    embeddings: Embeddings,
    *,
    test_share: float | None = None,
    valid_share: float | None = None,
    seed: int | None = None,
) -> Split:
    """The split as given; what is not given is as the backbone was fine-tuned with, if it was, else as `Split` has it.

    With another split, some of a head's test prompts would be prompts that the backbone has seen, which are not judged.
    """
    given = {"test_share": test_share, "valid_share": valid_share, "seed": seed}
    tuned = (embeddings.training or {"plan": {"split": {}}})["plan"]["split"]
    return Split(**{**tuned, **{name: value for name, value in given.items() if value is not None}})


def shuffled(view: TrainingView, *, seed: int) -> TrainingView:
    """The view with its labels made meaningless: each pair turned round by a coin, attribute rows permuted."""
    generator = np.random.default_rng(seed)
    turned = generator.random(len(view.pairs)) < 0.5
    pairs = np.where(turned[:, None], view.pairs[:, ::-1], view.pairs)
    return replace(view, pairs=pairs, attributes=_dealt_out(view.attributes, generator))


def permute_attributes(view: TrainingView, *, seed: int) -> TrainingView:
    """The view with each response's attribute scores given to another response, all of a row together."""
    return replace(view, attributes=_dealt_out(view.attributes, np.random.default_rng(seed)))


def _dealt_out(attributes: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    dealt = attributes.copy()
    annotated = np.flatnonzero(np.isfinite(attributes).any(axis=1))
    dealt[annotated] = attributes[generator.permutation(annotated)]
    return dealt


def choose_datasets(store: Store, heads: Sequence[Head], given: Mapping[str, str | None]) -> dict[str, Dataset | None]:
    """The datasets of D_S ("pairs") and D_M ("attributes"), by what they are given for.

    Raises: ValueError if a head needs one that is not given, none needs one that is, or it lacks those annotations.
    """
    return {kind: _annotated(store, heads, kind, name) for kind, name in given.items()}


def _annotated(store: Store, heads: Sequence[Head], kind: str, name: str | None) -> Dataset | None:
    users = [head for head in heads if kind in head.needs]
    if name is None:
        if users:
            raise ValueError(f"head {users[0].name} is fitted on {kind}; give --{kind} DATASET")
        return None
    if not users:
        who = f"head {heads[0].name} does not use" if len(heads) == 1 else "none of the heads uses"
        raise ValueError(f"{who} {kind}; leave out --{kind} {name}")
    dataset = store.dataset(name)
    if not len(dataset[kind]):
        raise ValueError(f"dataset {name!r} has no {kind}; `pipeline ls` shows what each dataset has")
    return dataset


def choose_embeddings(store: Store, fingerprint: str | None, datasets: Sequence[Dataset]) -> Embeddings:
    """The embedding asked for, or the only one that has a vector for every response of the datasets.

    Raises: ValueError that lists the candidates when there is none or more than one.
    """
    if fingerprint is not None:
        return store.embeddings(fingerprint)
    found = [store.embeddings(name) for name in store.fingerprints()]
    covering = [embeddings for embeddings in found if all(_covers(embeddings, dataset) for dataset in datasets)]
    if len(covering) == 1:
        return covering[0]
    names = ", ".join(dataset.name for dataset in datasets)
    described = "; ".join(f"{e.spec.fingerprint} ({e.spec.backbone}, {'+'.join(e.spec.features)})" for e in covering)
    if covering:
        raise ValueError(f"{len(covering)} embeddings cover {names}: {described}; choose one with --embedding")
    raise ValueError(f"no embedding in {store.root} covers {names}; run `pipeline embed` on them with one --backbone")


def _covers(embeddings: Embeddings, dataset: Dataset) -> bool:
    ids = dataset["responses"]["response_id"].to_pylist()
    return all(identifier in embeddings or identifier in embeddings.dropped for identifier in ids)


def gather(
    embeddings: Embeddings,
    source: Source,
    datasets: Mapping[str, Dataset | None],
    use: Sequence[str],
    *,
    in_memory: int = IN_MEMORY,
) -> FitData:
    """Put a source's matrix and annotations together; `use` chooses attributes, and none of them means all.

    A matrix of more than `in_memory` bytes stays in the store, and heads keep to as much of it at once.

    Raises: ValueError if a dataset is not embedded under this spec, or an attribute is not there.
    """
    data = assemble_features(
        embeddings,
        source.features,
        pairs=datasets["pairs"] if source.pairs else None,
        attributes=datasets["attributes"] if source.attributes else None,
        in_memory=in_memory,
    )
    view = with_attributes(data.view, use) if source.attributes else data.view
    return FitData(view, tuple(dict.fromkeys(data.prompt_ids)), data.left_out)


def with_attributes(view: TrainingView, names: Sequence[str]) -> TrainingView:
    """The view with these attributes alone, in this order; all of them when there are no names.

    Raises: ValueError that lists the attributes there are.
    """
    if not names:
        return view
    refuse_repeats("--use", names)
    unknown = [name for name in names if name not in view.attribute_names]
    if unknown:
        raise ValueError(f"no attribute {unknown[0]!r}; --use takes some of {', '.join(view.attribute_names)}")
    columns = [view.attribute_names.index(name) for name in names]
    return replace(view, attributes=view.attributes[:, columns], attribute_names=tuple(names))


def check_split(data: FitData, source: Source, split: Split, *, seeds: int) -> None:
    """Refuse a split that leaves nothing to fit on, and say what leaves nothing to stop by or to learn."""
    needs = [kind for kind, dataset in (("attributes", source.attributes), ("pairs", source.pairs)) if dataset]
    without = 0
    for seed in range(seeds):
        train, valid = split.views(data, seed)
        rows = {"pairs": (len(train.pairs), len(data.view.pairs), len(valid.pairs))}
        rows["attributes"] = (annotated_rows(train), annotated_rows(data.view), annotated_rows(valid))
        for kind in needs:
            fitted, all_, stopping = rows[kind]
            if all_ and not fitted:
                raise ValueError(
                    f"the split by prompt leaves none of {all_:,} {kind} to fit on (seed {seed}: {stopping:,} for "
                    "early stopping, the rest for judging); take more prompts, or lower --test-share or --valid-share"
                )
        without += any(not rows[kind][2] for kind in needs)
    if without:
        say(f"note: {without} of {seeds} seeds have nothing for early stopping: too few prompts")
    scores = split.views(data, 0)[0].attributes
    for name, column in zip(data.view.attribute_names, scores.T, strict=True):
        if len(set(column[np.isfinite(column)].tolist())) == 1:
            say(f"note: attribute {name} has the same score everywhere: there is nothing in it to learn")


def annotated_rows(view: TrainingView) -> int:
    """How many rows have an attribute score."""
    return int(np.isfinite(view.attributes).any(axis=1).sum())


def trained_prompts(store: Store, run: Mapping[str, Any]) -> set[str]:
    """Prompts that a run, or its backbone, was fitted on or stopped by: no score on them is honest.

    Raises: ValueError if a dataset is gone, or has been replaced since: its old prompts are not known any more.
    """
    datasets = [_as_fitted(store, run, kind) for kind in ("pairs", "attributes") if run[f"{kind}_dataset"]]
    prompts = sorted({prompt for dataset in datasets for prompt in dataset["responses"]["prompt_id"].to_pylist()})
    held_out = is_test(prompts, share=run["split"]["test_share"], seed=run["split"]["seed"])
    fitted = {prompt for prompt, out in zip(prompts, held_out, strict=True) if not out}
    known = run["embedding"] in store.fingerprints()
    return fitted | store.embeddings(run["embedding"]).seen_prompts if known else fitted


def _as_fitted(store: Store, run: Mapping[str, Any], kind: str) -> Dataset:
    dataset = store.dataset(run[f"{kind}_dataset"])
    if dataset.info["content_hash"] != run[f"{kind}_hash"]:
        raise ValueError(
            f"dataset {dataset.name!r} was replaced after run {run['run_id']} was fitted on it, so which prompts that "
            "run has seen is not known; fit the head again"
        )
    return dataset
