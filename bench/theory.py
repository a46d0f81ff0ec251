"""Theorem 1 of SMORM (arXiv:2507.07375) with one's own data put in: when does a high r_s force a high r_m?

The theorem is about linear heads on one feature space f: r_s = w_S^T f from pairs (D_S), and r_m, the mean of K
attribute heads W_M^T f, from attribute scores (D_M). With

    Sigma_S = E[(f_c - f_r)(f_c - f_r)^T]   mu_S = E[f_c - f_r]      w_S = Sigma_S^-1 mu_S
    Sigma_M = E[f_m f_m^T]                  C_M = E[f_m r^T]         W_M = Sigma_M^-1 C_M
    alpha = mu_S^T Sigma_M^-1 C_M           c = 1^T alpha / (K mu_S^T Sigma_S^-1 mu_S)

it says r_m >= c r_s - eps, if 1^T alpha >= 0. For these w, c E[r_s(c) - r_s(r)] = E[r_m(c) - r_m(r)] whatever the data
are: c is how far the attribute heads move from rejected to chosen, in steps of the pairs' head. So what is to be found
out is the sign of 1^T alpha, how large eps has to be, and whether that eps does on rows not used.

Features are centred on the rows of D_M and every channel divided by its deviation over all rows used; attributes have
mean 0 and deviation 1, because a sum of them means nothing in units of their own. A covariance of d channels from fewer
rows has no inverse, so both get a ridge: Sigma + lambda I with lambda = ridge x tr(Sigma) / d.

mu_S^T Sigma_S^-1 mu_S is taken on the pairs that Sigma_S and mu_S are from, and is too large by about rank / m, in a
bootstrap draw twice so. It and c have no interval here therefore; `Theorem.c_on` measures c on other pairs.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from bench.intervals import (
    RESAMPLES,
    Estimate,
    Floats,
    per_prompt,
    percentile_interval,
    prompt_counts,
    prompt_numbers,
    ratio,
    resampled_sums,
)
from cache.views import TrainingView

RIDGE = 0.1  # of each covariance, in units of its mean eigenvalue


@dataclass(frozen=True)
class Standard:
    """Where features have mean 0 and deviation 1.

    Attributes:
        centre: mean of the annotated rows; shape (d,).
        scale: deviation over all rows used, 1 where a channel is constant; shape (d,).
    """

    centre: Floats
    scale: Floats

    def features(self, features: NDArray[np.floating]) -> Floats:
        """Rows (n, d) on this scale."""
        standard: Floats = (features - self.centre) / self.scale
        return standard


@dataclass(frozen=True)
class Ridged:
    """A covariance with its ridge.

    Attributes:
        sigma: without it; shape (d, d).
        strength: lambda.
    """

    sigma: Floats
    strength: float

    def solve(self, right: Floats) -> Floats:
        """(Sigma + lambda I)^-1 right."""
        ridged = self.sigma + self.strength * np.eye(len(self.sigma))
        return np.asarray(np.linalg.solve(ridged, right), dtype=np.float64)

    @property
    def rank(self) -> float:
        """The trace of Sigma (Sigma + lambda I)^-1: how many directions the ridge leaves."""
        eigenvalues = np.clip(np.linalg.eigvalsh(self.sigma), 0, None)
        return float((eigenvalues / (eigenvalues + self.strength)).sum())


@dataclass(frozen=True)
class Theorem:
    """Theorem 1 on the rows of a view.

    Attributes:
        standard: how features are standardised.
        sigma_s: second moment of chosen minus rejected.
        sigma_m: covariance of the annotated rows.
        mu_s: mean of chosen minus rejected; shape (d,).
        c_m: covariance of features with attributes; shape (d, k).
        w_s: Sigma_S^-1 mu_S, the head of pairs; shape (d,).
        w_m: Sigma_M^-1 C_M, the attribute heads; shape (d, k).
        alpha: of each attribute; n is the rows that have it.
        total: 1^T alpha; n is the prompts drawn from.
        positive: share of the reflected draws, 2 x value - draw, with 1^T alpha > 0.
        identity_gap: |c E[r_s(c) - r_s(r)] - E[r_m(c) - r_m(r)]| on the pairs used: rounding alone.
    """

    standard: Standard
    sigma_s: Ridged
    sigma_m: Ridged
    mu_s: Floats
    c_m: Floats
    w_s: Floats
    w_m: Floats
    alpha: list[Estimate]
    total: Estimate
    positive: float
    identity_gap: float

    @property
    def separation(self) -> float:
        """mu_S^T Sigma_S^-1 mu_S, how far the head of pairs moves from rejected to chosen."""
        return float(self.mu_s @ self.w_s)

    @property
    def c(self) -> float:
        """1^T alpha / (K mu_S^T Sigma_S^-1 mu_S)."""
        return _c(self.mu_s, self.w_s, self.w_m)

    def rewards(self, features: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """r_s and r_m of a view's rows (n, d); two (n,)."""
        rows = self.standard.features(features)
        return rows @ self.w_s, rows @ self.w_m.mean(axis=1)

    def c_on(self, view: TrainingView, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
        """The c for which the identity holds on a view's pairs; on pairs not used, c without what was overfitted.

        Interval by bootstrap over the chosen responses' prompts; n counts pairs, 0 where there are none.
        """
        (chosen_s, chosen_m), (rejected_s, rejected_m) = (
            self.rewards(view.matrix("Theorem 1")[rows]) for rows in view.pairs.T
        )
        prompts = prompt_numbers(view.prompts[view.pairs[:, 0]])
        sums = np.stack(
            [per_prompt(chosen_m - rejected_m, prompts), per_prompt(chosen_s - rejected_s, prompts)], axis=1
        )
        if not len(sums):
            return Estimate(np.nan, 0, np.nan, np.nan)
        drawn = resampled_sums(sums, resamples=resamples, seed=seed)
        low, high = percentile_interval(ratio(drawn[:, :1], drawn[:, 1:]), prompts=len(sums))
        total = sums.sum(axis=0)
        return Estimate(float(ratio(total[0], total[1])), len(prompts), float(low[0]), float(high[0]))


def theorem(view: TrainingView, *, ridge: float = RIDGE, resamples: int = 300, seed: int = 0) -> Theorem:
    """Put a view's pairs and attributes into Theorem 1.

    A draw takes prompts again with replacement, their pairs and annotated rows with them, and makes mu_S, Sigma_M and
    C_M anew; the ridge stays. Where pairs and attributes share responses, alpha is overfitted, so intervals are the
    basic bootstrap's (2 x value - draw; Davison and Hinkley 1997, section 5.2) and need not hold the value.

    Args:
        view: with pairs and attributes, which need not share prompts.
        ridge: of both covariances, in units of their mean eigenvalue.
        resamples: bootstrap draws, each of which solves a system of d equations.
        seed: of the draws.

    Raises: ValueError if there is no pair, or an attribute has not two different scores.
    """
    data = _Data.of(view)
    ones = np.ones(int(data.prompts.max()) + 1)
    sigma_s = _second_moment(data.differences, np.ones(len(data.differences)))
    mu_s, sigma_m, c_m = data.moments(ones)
    ridges = [Ridged(sigma, ridge * float(np.trace(sigma)) / len(sigma)) for sigma in (sigma_s, sigma_m)]
    w_s, w_m = ridges[0].solve(mu_s), ridges[1].solve(c_m)
    draws = data.alphas(ridges[1].strength, resamples=resamples, seed=seed)
    alpha = np.append(mu_s @ w_m, (mu_s @ w_m).sum())
    reflected = 2 * alpha - draws  # a draw overfits once more than the value does; its percentiles would be off twice
    low, high = percentile_interval(reflected, prompts=len(ones))
    rows = [*np.isfinite(data.attributes).sum(axis=0).tolist(), len(ones)]
    estimates = [Estimate(*one) for one in zip(alpha.tolist(), rows, low.tolist(), high.tolist(), strict=True)]
    margins = data.differences @ np.stack([w_s, w_m.mean(axis=1)], axis=1)
    r_s, r_m = margins.mean(axis=0)
    return Theorem(
        standard=data.standard,
        sigma_s=ridges[0],
        sigma_m=ridges[1],
        mu_s=mu_s,
        c_m=c_m,
        w_s=w_s,
        w_m=w_m,
        alpha=estimates[:-1],
        total=estimates[-1],
        positive=float((reflected[:, -1] > 0).mean()),
        identity_gap=float(abs(_c(mu_s, w_s, w_m) * r_s - r_m)),
    )


def tight_eps(r_s: Floats, r_m: Floats, c: float, *, share: float = 1.0) -> float:
    """The smallest eps for which r_m >= c r_s - eps on at least `share` of the rows (n,); in units of r_m."""
    lacking = np.sort(c * r_s - r_m)
    return float(lacking[ceil(share * len(lacking)) - 1])


@dataclass(frozen=True)
class _Data:
    """A view's pairs and annotated rows, standardised.

    Attributes:
        standard: how.
        differences: chosen minus rejected; shape (m, d).
        features: of the annotated rows; shape (n, d).
        attributes: of those rows, in deviations; shape (n, k), NaN where not annotated.
        prompts: prompt number of every row of the view that is used, from 0.
        pair_prompts: of the chosen response of each pair; shape (m,).
        row_prompts: of each annotated row; shape (n,).
    """

    standard: Standard
    differences: Floats
    features: Floats
    attributes: Floats
    prompts: NDArray[np.int64]
    pair_prompts: NDArray[np.int64]
    row_prompts: NDArray[np.int64]

    @classmethod
    def of(cls, view: TrainingView) -> "_Data":
        used = view.used_rows()
        scores = view.attributes[used].astype(np.float64)
        _check(view, scores)
        annotated = np.isfinite(scores).any(axis=1)
        rows = view.matrix("Theorem 1")[used].astype(np.float64)
        deviation = rows.std(axis=0)
        standard = Standard(rows[annotated].mean(axis=0), np.where(deviation > 0, deviation, 1.0))
        rows = standard.features(rows)
        chosen, rejected = np.searchsorted(used, view.pairs).T
        prompts = prompt_numbers(view.prompts[used])
        return cls(
            standard=standard,
            differences=rows[chosen] - rows[rejected],
            features=rows[annotated],
            attributes=((scores - np.nanmean(scores, axis=0)) / np.nanstd(scores, axis=0))[annotated],
            prompts=prompts,
            pair_prompts=prompts[chosen],
            row_prompts=prompts[annotated],
        )

    def moments(self, counts: Floats) -> tuple[Floats, Floats, Floats]:
        """mu_S (d,), Sigma_M (d, d) and C_M (d, k), with each prompt counted as often as `counts` (prompts,) says.

        An attribute's column of C_M is taken over the rows that have it.
        """
        pairs, rows = counts[self.pair_prompts], counts[self.row_prompts]
        centre = rows @ self.features / rows.sum()
        weights = rows[:, None] * np.isfinite(self.attributes)
        weighted = weights * np.nan_to_num(self.attributes)
        total = weights.sum(axis=0)
        means = ratio(self.features.T @ weights, total) * ratio(weighted.sum(axis=0), total)
        sigma_m = _second_moment(self.features, rows) - np.outer(centre, centre)
        return pairs @ self.differences / pairs.sum(), sigma_m, ratio(self.features.T @ weighted, total) - means

    def alphas(self, strength: float, *, resamples: int, seed: int) -> Floats:
        """Alpha and 1^T alpha of each draw of prompts: (draws, k + 1). Draws without pairs or rows are left out."""
        found = []
        for counts in prompt_counts(int(self.prompts.max()) + 1, resamples=resamples, seed=seed):
            for count in counts:
                if count[self.pair_prompts].any() and count[self.row_prompts].any():
                    mu_s, sigma_m, c_m = self.moments(count)
                    alpha = Ridged(sigma_m, strength).solve(mu_s) @ c_m
                    found.append(np.append(alpha, alpha.sum()))
        return np.array(found)


def _check(view: TrainingView, scores: Floats) -> None:
    if not len(view.pairs):
        raise ValueError("Theorem 1 needs pairs, and the training prompts have none; lower the test share")
    for name, column in zip(view.attribute_names, scores.T, strict=True):
        different = len(np.unique(column[np.isfinite(column)]))
        if different < 2:
            raise ValueError(
                f"attribute {name} has {different} different scores on the training prompts, so it has no deviation to "
                "be measured in; leave it out with --use, or take more prompts"
            )


def _second_moment(rows: Floats, weights: Floats) -> Floats:
    """Weighted mean of the outer products of rows (n, d); rows without weight cost nothing."""
    kept = weights > 0
    scaled = rows[kept] * np.sqrt(weights[kept] / weights.sum())[:, None]
    moment: Floats = scaled.T @ scaled
    return moment


def _c(mu_s: Floats, w_s: Floats, w_m: Floats) -> float:
    return float((mu_s @ w_m).mean() / (mu_s @ w_s))
