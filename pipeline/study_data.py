"""What a study's cells share: one matrix for each set of features, pools as rows of it, and who may be fitted on.

Everything a cell could lack is looked for here, before anything runs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.active import Choice
from bench.annotate import Pairing, gold_scale, most_pairs
from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.splits import is_test, is_valid
from cache.store import Store
from cache.views import TrainingView
from heads.registry import make_head
from pipeline.features import centred, stored
from pipeline.gold import gold_pool
from pipeline.study_attributes import attribute_scores
from pipeline.study_spec import FeatureSpec, Study

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

CANDIDATES = 4000  # pairs that could be annotated, at least, where they are chosen


@dataclass(frozen=True)
class PoolData:
    """A pool as rows of the study's matrices.

    Attributes:
        rows: the matrix row of each response; shape (n,).
        prompts: prompt numbers; shape (n,).
        gold: shape (n,), in the judge's units.
        scale: standard deviation of gold within a prompt.
        test: whether a response's prompt is held out for judging; shape (n,).
        stop: by seed, whether it is set aside for early stopping; shape (n,).
        attributes: attribute scores, NaN where not annotated, (n, k), and their names; None without.
    """

    rows: Rows
    prompts: Rows
    gold: NDArray[np.float64]
    scale: float
    test: Mask
    stop: Mapping[int, Mask]
    attributes: tuple[NDArray[np.float32], tuple[str, ...]] | None

    def side(self, seed: int, *, stop: bool) -> Rows:
        """Numbers of the pool's responses that a seed fits on, or stops by."""
        return np.flatnonzero(~self.test & (self.stop[seed] == stop))


@dataclass(frozen=True)
class FeatureData:
    """A matrix (N, d) or the .npy file that holds it, its blocks, and the responses' tokens where known (N,)."""

    matrix: NDArray[np.float32] | Path
    blocks: tuple[tuple[str, int], ...]
    lengths: NDArray[np.float32] | None

    def opened(self) -> NDArray[np.float32]:
        """The matrix; a file is mapped, and shared by all who map it."""
        return np.asarray(np.load(self.matrix, mmap_mode="r")) if isinstance(self.matrix, Path) else self.matrix


@dataclass(frozen=True)
class StudyData:
    """What cells are made of. It pickles; matrices in files go as paths.

    Attributes:
        features: by name.
        pools: by name.
        pair_sets: held-out pairs of the datasets to judge on, (chosen, rejected) matrix rows; (m, 2) by dataset.
        most: the largest numbers of pairs to fit on and to stop by that a cell of a pool and pairing asks for.
        definitions: what the results depend on, as JSON: content hashes, fingerprints, options.
    """

    features: Mapping[str, FeatureData]
    pools: Mapping[str, PoolData]
    pair_sets: Mapping[str, Rows]
    most: Mapping[tuple[str, Pairing], tuple[int, int]]
    definitions: Mapping[str, Any]

    def in_files(self, folder: Path) -> Self:
        """The same with its matrices written into a folder, for processes to map."""
        kept = {}
        for number, (name, one) in enumerate(self.features.items()):
            file = folder / f"features-{number}.npy"
            np.save(file, one.opened())
            kept[name] = replace(one, matrix=file)
        return replace(self, features=kept)


def load_study(store: Store, study: Study) -> StudyData:
    """Gather what the study's cells need, and refuse the study if one of them cannot be made.

    Raises: ValueError that names what is missing: a dataset, judge, vector, attribute, or pairs enough.
    """
    pools = {name: store.dataset(spec.dataset) for name, spec in study.pools.items()}
    others = {name: store.dataset(name) for name in study.targets if name not in study.pools}
    for name, dataset in others.items():
        if not len(dataset["pairs"]):
            raise ValueError(f"evaluate names {name!r}, which is no pool of the study and has no pairs to judge by")
    _check_needs(study)
    every = list({dataset.name: dataset for dataset in (*pools.values(), *others.values())}.values())
    embeddings = {name: _embedding(store, name, spec, every) for name, spec in study.features.items()}
    tuned = _seen_by_backbones(study, every, embeddings)
    ids = _embedded(every, list(embeddings.values()))
    row_of = {identifier: row for row, identifier in enumerate(ids)}
    features = {
        name: _feature_data(embedding, study.features[name].columns, ids, _prompts(every, ids))
        for name, embedding in embeddings.items()
    }
    data = {name: _pool_data(store, study, name, dataset, row_of) for name, dataset in pools.items()}
    most = _check_quantities(study, data)
    seen = tuned.union(*(dataset["responses"]["prompt_id"].to_pylist() for dataset in pools.values()))
    pair_sets = {name: _pair_set(study, dataset, row_of, seen) for name, dataset in others.items()}
    judged = {name: _digest(ids, one.rows) for name, one in data.items()}
    judged |= {name: _digest(ids, pairs.reshape(-1)) for name, pairs in pair_sets.items()}
    definitions = _definitions(store, study, {**pools, **others}, embeddings, judged)
    return StudyData(features, data, pair_sets, most, definitions)


def _seen_by_backbones(study: Study, datasets: Sequence[Dataset], embeddings: Mapping[str, Embeddings]) -> set[str]:
    """The prompts that fine-tuned backbones have seen; ValueError if the study would judge on one of them."""
    prompts = sorted({prompt for dataset in datasets for prompt in dataset["responses"]["prompt_id"].to_pylist()})
    held_out = is_test(prompts, share=study.split.test_share, seed=study.split.seed)
    for name, one in embeddings.items():
        known = sum(prompt in one.seen_prompts for prompt, out in zip(prompts, held_out, strict=True) if out)
        if known:
            raise ValueError(
                f"features.{name}: the backbone was fine-tuned on {known:,} of the prompts that the study holds out; "
                "take the split that it was tuned with (finetune.json), or features of another backbone"
            )
    return {prompt for one in embeddings.values() for prompt in one.seen_prompts}


def _check_needs(study: Study) -> None:
    for number, grid in enumerate(study.grids):
        for head in grid.heads:
            spec = study.heads[head]
            if "attributes" not in make_head(spec.head, spec.options).needs:
                continue
            if lacking := [pool for pool in grid.pools if study.pools[pool].attributes is None]:
                raise ValueError(
                    f"grids[{number}]: head {head} is fitted on attributes too, and pool {lacking[0]} names none; "
                    f"give pools.{lacking[0]}.attributes a dataset, or fit the head on other pools"
                )


def _embedding(store: Store, name: str, spec: FeatureSpec, datasets: Sequence[Dataset]) -> Embeddings:
    """The one embedding of the store that has these columns for all the datasets."""
    found = [store.embeddings(fingerprint) for fingerprint in store.fingerprints()]
    fitting = [
        one
        for one in found
        if (spec.backbone in (None, one.spec.backbone))
        and one.spec.fingerprint.startswith(spec.embedding or "")
        and {stored(column) for column in spec.columns} <= set(one.spec.inputs)
    ]
    covering = [one for one in fitting if not (lacking := _lacking(one, datasets)) or not lacking]
    if len(covering) == 1:
        return covering[0]
    if covering:
        raise ValueError(
            f"features.{name}: embeddings {', '.join(one.spec.fingerprint for one in covering)} all fit; "
            "choose one with `embedding`"
        )
    if fitting:
        raise ValueError(
            f"features.{name}: embedding {fitting[0].spec.fingerprint} has no vectors for "
            f"{', '.join(_lacking(fitting[0], datasets))}; run `pipeline embed` on them with its options"
        )
    raise ValueError(
        f"features.{name}: no embedding in {store.root} has {'+'.join(spec.columns)}"
        + (f" of backbone {spec.backbone}" if spec.backbone else "")
        + "; `pipeline ls` shows what there is"
    )


def _lacking(embeddings: Embeddings, datasets: Sequence[Dataset]) -> list[str]:
    """The datasets that have a response which is neither embedded nor dropped as over-long."""
    return [
        dataset.name
        for dataset in datasets
        if any(
            identifier not in embeddings.dropped
            for identifier in dataset["responses"]["response_id"].to_pylist()
            if identifier not in embeddings
        )
    ]


def _embedded(datasets: Sequence[Dataset], embeddings: Sequence[Embeddings]) -> list[str]:
    """The responses that every embedding has, each once: the same rows for all features."""
    ids = dict.fromkeys(key for dataset in datasets for key in dataset["responses"]["response_id"].to_pylist())
    return [key for key in ids if all(key in one for one in embeddings)]


def _prompts(datasets: Sequence[Dataset], ids: Sequence[str]) -> Rows:
    """The number of each response's prompt."""
    prompt_of: dict[str, str] = {}
    for dataset in datasets:
        responses = dataset["responses"]
        prompt_of |= dict(zip(responses["response_id"].to_pylist(), responses["prompt_id"].to_pylist(), strict=True))
    return np.unique([prompt_of[key] for key in ids], return_inverse=True)[1].astype(np.int64)


def _feature_data(embeddings: Embeddings, columns: Sequence[str], ids: list[str], prompts: Rows) -> FeatureData:
    names = [stored(column) for column in columns]
    blocks = tuple((name, embeddings.dimension(name)) for name in names)
    view = TrainingView.of(embeddings.gather(ids, names), prompts=prompts, blocks=blocks)
    matrix = view.matrix("a study") if names == list(columns) else centred(view, columns).matrix("a study")
    return FeatureData(matrix, blocks, embeddings.gather(ids, ["response_tokens"])[:, 0])


def _pool_data(store: Store, study: Study, name: str, dataset: Dataset, row_of: Mapping[str, int]) -> PoolData:
    spec = study.pools[name]
    try:
        pool = gold_pool(dataset, spec.judge)
    except ValueError as error:
        raise ValueError(f"pools.{name}: {error}") from error
    kept = np.array([number for number, key in enumerate(pool.response_ids) if key in row_of], dtype=np.int64)
    ids = [pool.response_ids[number] for number in kept]
    attributes = attribute_scores(store, name, spec, ids, pool.gold[kept])
    prompts, number_of = np.unique([pool.prompt_ids[number] for number in kept], return_inverse=True)
    test = is_test(prompts, share=study.split.test_share, seed=study.split.seed)
    if test.sum() < 2:
        raise ValueError(
            f"pools.{name}: {int(test.sum())} of its {len(prompts)} prompts are held out; "
            "raise split.test_share, or take another split.seed"
        )
    return PoolData(
        rows=np.array([row_of[key] for key in ids], dtype=np.int64),
        prompts=number_of.astype(np.int64),
        gold=pool.gold[kept],
        scale=gold_scale(pool.gold[kept], number_of),
        test=test[number_of],
        stop={seed: is_valid(prompts, share=study.split.valid_share, seed=seed)[number_of] for seed in study.seeds},
        attributes=attributes,
    )


def _check_quantities(study: Study, pools: Mapping[str, PoolData]) -> dict[tuple[str, Pairing], tuple[int, int]]:
    """The most pairs asked of each pool and pairing; ValueError if the pool has fewer for some seed."""
    most: dict[tuple[str, Pairing], tuple[int, int]] = {}
    for (name, pairing), levels in _asked(study).items():
        carried = [_carried(pools[name], pairing, seed) for seed in study.seeds]
        fit, stop = (min(sides) for sides in zip(*carried, strict=True))
        largest = max(pairs for _, pairs in levels)
        if not _within(largest, study.split.valid_share, fit, stop):
            raise ValueError(
                f"{largest:,} {pairing} pairs of pool {name} are asked for, and its prompts outside the test split "
                f"carry {_largest(study.split.valid_share, fit, stop):,} ({study.split.valid_share:.0%} of them for "
                "early stopping); ask for at most that many"
            )
        shares = [(choice, share_out(pairs, study.split.valid_share)) for choice, pairs in levels]
        wanted = max(candidates(choice, share[0]) for choice, share in shares)
        most[name, pairing] = wanted, max(share[1] for _, share in shares)
    return most


def _asked(study: Study) -> dict[tuple[str, Pairing], set[tuple[Choice, int]]]:
    """The choices and quantities of each pool and pairing."""
    asked: dict[tuple[str, Pairing], set[tuple[Choice, int]]] = {}
    for grid in study.grids:
        for pool, pairing in product(grid.pools, grid.pairing):
            asked.setdefault((pool, pairing), set()).update(product(grid.choice, grid.pairs))
    return asked


def _carried(pool: PoolData, pairing: Pairing, seed: int) -> tuple[int, int]:
    """The most pairs among the prompts that a seed fits on, and among those that it stops by."""
    sides = [pool.side(seed, stop=stop) for stop in (False, True)]
    fit, stop = (most_pairs(pool.gold[s], pool.prompts[s], pairing=pairing) if len(s) else 0 for s in sides)
    return fit, stop


def _largest(valid_share: float, fit: int, stop: int) -> int:
    """The most pairs that can be shared out among so many."""
    count = min(int(fit / (1 - valid_share)), int((stop + 1) / valid_share)) + 2
    while count and not _within(count, valid_share, fit, stop):
        count -= 1
    return count


def _within(pairs: int, valid_share: float, fit: int, stop: int) -> bool:
    fitted, stopping = share_out(pairs, valid_share)
    return fitted <= fit and stopping <= stop


def candidates(choice: Choice, fit: int) -> int:
    """Pairs among which those to annotate are chosen, where the pool carries so many: it depends on nothing else."""
    return fit if choice == "random" else max(CANDIDATES, 2 * fit)


def share_out(pairs: int, valid_share: float) -> tuple[int, int]:
    """How many of so many pairs are fitted on, and how many stop early."""
    stop = round(valid_share * pairs)
    return pairs - stop, stop


def _pair_set(study: Study, dataset: Dataset, row_of: Mapping[str, int], seen: set[str]) -> Rows:
    """Pairs whose prompts no fit has seen: of other prompts than the pools', or of held-out ones."""
    responses = dataset["responses"]
    prompt_of = dict(zip(responses["response_id"].to_pylist(), responses["prompt_id"].to_pylist(), strict=True))
    prompts = sorted(set(prompt_of.values()))
    test = is_test(prompts, share=study.split.test_share, seed=study.split.seed)
    unseen = {prompt for prompt, out in zip(prompts, test, strict=True) if out or prompt not in seen}
    pairs = zip(dataset["pairs"]["chosen_id"].to_pylist(), dataset["pairs"]["rejected_id"].to_pylist(), strict=True)
    kept = [
        (row_of[chosen], row_of[rejected])
        for chosen, rejected in pairs
        if chosen in row_of and rejected in row_of and {prompt_of[chosen], prompt_of[rejected]} <= unseen
    ]
    if not kept:
        raise ValueError(f"evaluate: no pair of {dataset.name!r} has prompts that no fit has seen")
    return np.array(kept, dtype=np.int64)


def _digest(ids: Sequence[str], rows: Rows) -> str:
    """A hash of the responses in these rows: those that all embeddings have, so another embedding may change them."""
    return hashlib.sha256("\n".join(ids[row] for row in rows).encode()).hexdigest()[:16]


def _definitions(
    store: Store,
    study: Study,
    datasets: Mapping[str, Dataset],
    embeddings: Mapping[str, Embeddings],
    responses: Mapping[str, str],
) -> dict[str, Any]:
    """By kind and name, what results depend on beside the place in the grid; `responses` are hashes of those kept."""

    def targets(names: Sequence[str]) -> dict[str, Any]:
        return {name: [datasets[name].info["content_hash"], responses[name]] for name in names}

    return {
        "split": {"all": vars(study.split)},
        "pools": {
            name: {
                **vars(spec),
                "content": datasets[name].info["content_hash"],
                "responses": responses[name],
                "attributes_content": spec.attributes and store.dataset(spec.attributes).info["content_hash"],
            }
            for name, spec in study.pools.items()
        },
        "features": {
            name: {"columns": list(study.features[name].columns), "embedding": one.spec.fingerprint}
            for name, one in embeddings.items()
        },
        "heads": {
            name: {
                "head": spec.head,
                "options": make_head(spec.head, spec.options).get_params(),
                "evaluate": targets(spec.evaluate),
            }
            for name, spec in study.heads.items()
        },
        "evaluate": targets(study.evaluate),
    }
