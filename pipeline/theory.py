"""The theory stage: what both papers' theory says about one's own pairs, attributes, pool and runs.

Every number stands with the equation it comes from. Theorem 1 is taken on the training prompts and tried on the test
prompts, with the split that fit uses.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.annotate import Annotator, gold_scale
from bench.consistency import Consistency, consistency
from bench.differences import Difference, differences
from bench.intervals import NOTHING, Estimate, Floats, bootstrap_mean
from bench.theory import Theorem, theorem, tight_eps
from cache.records import Dataset
from cache.splits import is_test
from cache.store import Store
from cache.views import TrainingView
from pipeline.features import choose_features
from pipeline.fit_data import FitData, Source, choose_embeddings, gather
from pipeline.gold import gold_pool
from pipeline.judged import contender_of, scores_of
from pipeline.progress import say

Row = dict[str, Any]


@dataclass(frozen=True)
class TheoryOptions:
    """Options of `pipeline theory`.

    Attributes:
        store: the store's folder.
        pairs: dataset of D_S, for Theorem 1.
        attributes: dataset of D_M, for Theorem 1.
        use: attributes to take; empty means all.
        features: features joined by "+"; None takes the deepest layer's.
        embedding: fingerprint; None takes the only one that covers both datasets.
        ridge: of both covariances, in units of their mean eigenvalue.
        resamples: bootstrap draws of Theorem 1's moments.
        test_share: share of prompts that the theorem's bound is tried on, as in fit.
        split_seed: as in fit.
        pool: dataset with gold, for E|dr| and annotation quality.
        judge: whose gold, as for `pipeline annotate`; None takes the only one.
        betas: of the simulated annotators.
        runs: runs or groups judged on the pool, for order consistency; NAME:SCORER takes another score.
    """

    store: Path
    pairs: str | None
    attributes: str | None
    use: tuple[str, ...]
    features: str | None
    embedding: str | None
    ridge: float
    resamples: int
    test_share: float
    split_seed: int
    pool: str | None
    judge: str | None
    betas: tuple[float, ...]
    runs: tuple[str, ...]


def theory(options: TheoryOptions) -> list[Row]:
    """One row for each number: quantity, of (which attribute, beta or run), value, low, high, n and equation.

    Raises: ValueError if what a part needs is not given, or not in the store.
    """
    if not (options.pairs or options.attributes or options.pool):
        raise ValueError("give --pairs and --attributes for Theorem 1, or --pool for E|dr| and annotation quality")
    if options.runs and not options.pool:
        raise ValueError("order consistency of a run is measured on a pool with gold; give --pool DATASET")
    store = Store(options.store)
    rows: list[Row] = []
    if options.pairs or options.attributes:
        rows += _theorem_rows(options, *_views(store, options))
    if options.pool:
        rows += _pool_rows(options, store, store.dataset(options.pool))
    return rows


def _views(store: Store, options: TheoryOptions) -> tuple[TrainingView, TrainingView]:
    """The training prompts' view, and the test prompts', less those that a fine-tuned backbone has seen."""
    datasets = {"pairs": options.pairs, "attributes": options.attributes}
    opened = {kind: _annotated(store, kind, name) for kind, name in datasets.items()}
    embeddings = choose_embeddings(store, options.embedding, list(opened.values()))
    features = choose_features(options.features, embeddings)
    data: FitData = gather(embeddings, Source(features, options.pairs, options.attributes), opened, options.use)
    test = is_test(data.prompt_ids, share=options.test_share, seed=options.split_seed)[data.view.prompts]
    unseen = np.array([prompt not in embeddings.seen_prompts for prompt in data.prompt_ids], dtype=np.bool_)
    say(f"Theorem 1 on {'+'.join(features)} of {embeddings.spec.fingerprint}: {options.resamples} draws of all moments")
    return data.view.subset(~test), data.view.subset(test & unseen[data.view.prompts])


def _annotated(store: Store, kind: str, name: str | None) -> Dataset:
    if name is None:
        raise ValueError(f"Theorem 1 joins pairs with attribute scores, and there are no {kind}; give --{kind} DATASET")
    dataset = store.dataset(name)
    if not len(dataset[kind]):
        raise ValueError(f"dataset {name!r} has no {kind}; `pipeline ls` shows what each dataset has")
    return dataset


def _theorem_rows(options: TheoryOptions, train: TrainingView, test: TrainingView) -> Iterator[Row]:
    found = theorem(train, ridge=options.ridge, resamples=options.resamples)
    d, pairs = len(found.mu_s), len(train.pairs)
    annotated = int(np.isfinite(train.attributes).any(axis=1).sum())
    for name, sigma, n in (("Sigma_S", found.sigma_s, pairs), ("Sigma_M", found.sigma_m, annotated)):
        ridge = f"lambda = {options.ridge:g} tr({name}) / d, d = {d}"
        yield _row("lambda", name, _alone(sigma.strength, n), ridge)
        yield _row("effective rank / d", name, _alone(sigma.rank / d, n), f"tr {name} ({name} + lambda I)^-1 / d")
    yield _row("|mu_S|", None, _alone(float(np.linalg.norm(found.mu_s)), pairs), "mu_S = E[f_c - f_r]")
    for name, size in zip(train.attribute_names, np.linalg.norm(found.c_m, axis=0).tolist(), strict=True):
        yield _row("|C_M|", name, _alone(size, annotated), "C_M = E[f_m r^T], its column")
    for name, estimate in zip(train.attribute_names, found.alpha, strict=True):
        yield _row("alpha", name, estimate, "alpha = mu_S^T Sigma_M^-1 C_M, C_M = E[f_m r^T]")
    yield _row("1^T alpha", None, found.total, "assumed: 1^T alpha >= 0")
    yield _row(
        "draws with 1^T alpha > 0",
        None,
        _alone(found.positive, found.total.n),
        "share of reflected draws, 2 x value - draw",
    )
    yield _row("separation", None, _alone(found.separation, pairs), "mu_S^T Sigma_S^-1 mu_S")
    yield _row("c", "training pairs", _alone(found.c, pairs), "c = 1^T alpha / (K mu_S^T Sigma_S^-1 mu_S)")
    gap = "|c E[r_s(c) - r_s(r)] - E[r_m(c) - r_m(r)]| = 0"
    yield _row("identity", "training pairs", _alone(found.identity_gap, pairs), gap)
    yield from _test_pair_rows(found, test)
    yield from _bound_rows(found, train, test)


def _test_pair_rows(found: Theorem, test: TrainingView) -> Iterator[Row]:
    """The sides of the identity, and c, on pairs that had no part in w_S and W_M."""
    chosen, rejected = (_rewards(found, test, rows) for rows in test.pairs.T)
    prompts = test.prompts[test.pairs[:, 0]]
    for name, above, below in zip(("r_s", "r_m"), chosen, rejected, strict=True):
        yield _row(f"{name}(c) - {name}(r)", "test pairs", bootstrap_mean(above - below, prompts), "mean")
    yield _row("c", "test pairs", found.c_on(test), "c = E[r_m(c) - r_m(r)] / E[r_s(c) - r_s(r)]")


def _bound_rows(found: Theorem, train: TrainingView, test: TrainingView) -> Iterator[Row]:
    """The eps that the training rows need, and whether it does for the test rows."""
    used, unseen = train.used_rows(), test.used_rows()
    (r_s, r_m), (test_s, test_m) = _rewards(found, train, used), _rewards(found, test, unseen)
    prompts = test.prompts[unseen]
    yield _row("deviation of r_m", "training rows", _alone(float(r_m.std()), len(used)), "r_m = 1^T W_M^T f / K")
    for of, one, other in (("training rows", r_s, r_m), ("test rows", test_s, test_m)):
        yield _row("correlation", of, _alone(_correlation(one, other), len(one)), "of r_s and r_m")
    for name, share in (("eps", 1.0), ("eps for 95 %", 0.95)):
        eps = tight_eps(r_s, r_m, found.c, share=share)
        yield _row(name, "training rows", _alone(eps, len(used)), "smallest eps with r_m >= c r_s - eps")
        holds = bootstrap_mean((test_m >= found.c * test_s - eps).astype(np.float64), prompts)
        yield _row(f"bound holds with {name}", "test rows", holds, "share with r_m >= c r_s - eps")
    for name, share in (("eps", 1.0), ("eps for 95 %", 0.95)):
        nothing = tight_eps(r_s, r_m, 0.0, share=share)
        yield _row(f"{name} without r_s", "training rows", _alone(nothing, len(used)), "smallest eps with r_m >= -eps")


def _rewards(found: Theorem, view: TrainingView, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
    return found.rewards(view.matrix("Theorem 1")[rows])


def _correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if len(one) > 1 else float("nan")


def _pool_rows(options: TheoryOptions, store: Store, dataset: Dataset) -> Iterator[Row]:
    pool = gold_pool(dataset, options.judge)
    scale = gold_scale(pool.gold, pool.prompts)
    yield _row("scale", None, _alone(scale, len(pool.gold)), "deviation of gold within a prompt")
    annotators = [Annotator(beta, scale) for beta in options.betas]
    for difference in differences(pool.gold, pool.prompts, annotators):
        yield from _difference_rows(difference)
    ids = dataset["responses"]["response_id"].combine_chunks()
    rows = np.asarray(pc.index_in(pa.array(pool.response_ids), value_set=ids).to_numpy(), dtype=np.int64)
    for name in options.runs:
        scores = scores_of(store, contender_of(store, name), dataset)[rows]
        known = np.isfinite(scores).all(axis=1)
        for annotator in annotators:
            found = consistency(scores[known], pool.gold[known], pool.prompts[known], annotator=annotator)
            yield from _consistency_rows(name, found)


def _difference_rows(one: Difference) -> Iterator[Row]:
    if one.beta is None:
        of, name, what = None, "E|dr|", "|dr|"
        same, cross = "2 sigma_x / sqrt(pi)", "s sqrt(2/pi) exp(-m^2/2s^2) + m (1 - 2 Phi(-m/s))"
    else:
        of, name, what = f"beta {one.beta:g}", "Q", "s(beta |dr| / scale)"
        same, cross = (f"E {what}, dr ~ {law}" for law in ("N(0, 2 sigma_x^2)", "N(m, s^2)"))
    yield _row(f"{name} same prompt", of, one.same, f"mean {what} over pairs of a prompt's responses")
    yield _row(f"{name} same prompt, Gaussian", of, one.same_gaussian, same)
    yield _row(f"{name} cross prompt", of, one.cross, f"mean {what} over responses of two prompts")
    yield _row(f"{name} cross prompt, Gaussian", of, one.cross_gaussian, cross)
    yield _row(f"{name} cross - same", of, one.gain, ">= 0 for unimodal symmetric gold")


def _consistency_rows(name: str, found: Consistency) -> Iterator[Row]:
    of = f"{name}, beta {found.beta:g}"
    yield _row("order consistency with gold", of, found.truth, "P(score ranks as gold)")
    yield _row("order consistency with annotator", of, found.annotation, "P(score ranks as annotator)")
    yield _row("annotation quality", of, found.quality, "E xi, xi = s(beta |dr| / scale)")
    yield _row("bound on consistency with gold", of, found.bound, "P(as annotator) + E xi - 1")
    form = "E[(1-eps) xi^2 + eps (1-xi)^2], eps = P(not as annotator)"
    yield _row("paper's form of the bound", of, found.proposition, form)


def _alone(value: float, n: int) -> Estimate:
    """A number without an interval."""
    return replace(NOTHING, value=value, n=n)


def _row(quantity: str, of: str | None, estimate: Estimate, equation: str) -> Row:
    numbers = {name: getattr(estimate, name) for name in ("value", "low", "high")}
    shown = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    return {"quantity": quantity, "of": of, **shown, "n": estimate.n, "equation": equation}
