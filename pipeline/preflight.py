"""Checks around the long run.

Before it: batching does not change vectors, and answers can be told apart. After it: a free linear probe shows whether
the vectors hold any preference at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.metrics import pair_accuracy
from cache.assembly import assemble
from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.spec import EmbeddingSpec
from cache.splits import uniform
from cache.views import TrainingView
from pipeline.progress import say

if TYPE_CHECKING:
    from pipeline.forward import Extractor
    from pipeline.render import Renderer

ROWS = 8
PROBE_PAIRS = (50, 5000)  # fewer say nothing, more cost time
PROBE_FOLDS = 5


class Row(Protocol):
    """A response to be embedded."""

    @property
    def response_id(self) -> str:
        """Its id."""
        ...

    @property
    def prompt(self) -> str:
        """Its prompt as JSON messages."""
        ...

    @property
    def response(self) -> str:
        """Its text."""
        ...


def preflight(extractor: "Extractor", renderer: "Renderer", rows: Sequence[Row], spec: EmbeddingSpec) -> str:
    """Run eight rows together and one at a time without packing, and two answers to one prompt.

    Returns: what was found, in words.
    Raises: ValueError if batching or packing changes a vector beyond the dtype's tolerance, or if the responses to
        one prompt all have the same vector.
    """
    from pipeline import likelihood
    from pipeline.forward import TOLERANCE, largest_difference, largest_shift
    from pipeline.render import fit_length

    sample = rows[:ROWS]
    encoded = renderer.encode([(row.prompt, row.response) for row in sample])
    fitted = [fit_length(row, max_length=spec.max_length, overlong="left", bos=spec.bos != "none") for row in encoded]
    tokens = [row for row in fitted if row is not None]
    batched, _ = extractor.run(tokens, [row.prompt for row in sample])
    singles, _ = replace(extractor, token_budget=1, packed=False).run(tokens, [row.prompt for row in sample])
    worst = largest_difference(batched, singles)
    if not worst <= TOLERANCE[spec.compute_dtype]:  # a NaN is no agreement
        raise ValueError(
            f"preflight: {'packing' if extractor.packed else 'batching'} changes vectors by {worst:.1e} relative "
            f"(allowed {TOLERANCE[spec.compute_dtype]:.0e} in {spec.compute_dtype}); use --no-share or --dtype float32"
        )
    shift = largest_shift(batched, singles)
    if not shift <= likelihood.TOLERANCE[spec.compute_dtype]:
        raise ValueError(
            f"preflight: {'packing' if extractor.packed else 'batching'} changes scalars by {shift:.1e} nats; "
            "use --no-share or --dtype float32"
        )
    for name in filter(_of_response, batched):
        _check_distinct(name, batched[name], sample)
    how = "packed" if extractor.packed else "batched"
    nats = f", scalars within {shift:.1e} nats" if spec.scalars else ""
    return f"preflight: {len(tokens)} rows {how} and one at a time agree within {worst:.1e} relative{nats}"


def probe(dataset: Dataset, embeddings: Embeddings) -> tuple[float, float, float] | None:
    """Held-out pair accuracy of a linear Bradley-Terry head in 5 folds by prompt: (value, low, high).

    Says so when the interval includes 50 %. None for a dataset with fewer than 50 pairs with vectors, or whose pairs
    are all of one fold, or without a feature of the responses. Prompts that the backbone was tuned on do not count.
    """
    from heads.linear import Linear

    features = list(filter(_of_response, embeddings.spec.features))
    if len(dataset["pairs"]) < PROBE_PAIRS[0] or not features:
        return None
    data = assemble(embeddings, features[-1:], pairs=dataset)
    unseen = np.array([prompt not in embeddings.seen_prompts for prompt in data.prompt_ids], dtype=np.bool_)
    rows, pairs = np.unique(data.view.subset(unseen).pairs[: PROBE_PAIRS[1]], return_inverse=True)
    few = pairs.reshape(-1, 2)
    view = TrainingView.of(data.view.features[rows], prompts=data.view.prompts[rows], pairs=few)
    fold = (uniform([data.prompt_ids[row] for row in rows.tolist()], "probe") * PROBE_FOLDS).astype(int)
    owner = fold[few[:, 0]]
    if len(few) < PROBE_PAIRS[0] or len(set(owner.tolist())) < 2:
        return None
    margins = np.full(len(few), np.nan, dtype=np.float32)
    for held_out in range(PROBE_FOLDS):
        train = view.subset(fold != held_out)
        head = Linear(l2=1.0)
        head.fit(train, view.subset(np.zeros(len(fold), dtype=np.bool_)), seed=0)
        score = head.score(view.matrix("the probe"))
        margins[owner == held_out] = (score[few[:, 0]] - score[few[:, 1]])[owner == held_out]
    found = pair_accuracy(margins, view.prompts[few[:, 0]]).accuracy
    line = f"linear probe on {dataset.name}: {found.value:.1%} [{found.low:.1%}, {found.high:.1%}], n = {found.n:,}"
    warning = (
        "; WARNING: no better than chance: check the template, the labels and the layer" if found.low <= 0.5 else ""
    )
    say(line + warning)
    return found.value, found.low, found.high


def _of_response(feature: str) -> bool:
    """Whether a feature depends on the response: the state before it is the same for all answers to a prompt."""
    return not feature.endswith(".prompt")


def _check_distinct(name: str, matrix: NDArray[np.float32], rows: Sequence[Row]) -> None:
    """Among answers to one prompt at least two must differ; a template may trim the white space that sets two apart."""
    couples = [
        (first, second)
        for second in range(len(rows))
        for first in range(second)
        if rows[first].prompt == rows[second].prompt
    ]
    if couples and all(np.array_equal(matrix[first], matrix[second]) for first, second in couples):
        first, second = couples[0]
        raise ValueError(
            f"preflight: responses {rows[first].response_id} and {rows[second].response_id} differ in text but "
            f"have the same {name}; the template or --max-length hides the response"
        )
