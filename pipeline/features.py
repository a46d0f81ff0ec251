"""Which features a head reads, as `--features` names them, and the view that holds them.

A feature is a column of the embedding ("L9.mean"), or `centred(L9.mean)`: that column less its mean over the prompt's
responses (`heads.centring`). Several stand side by side, joined by "+". A run keeps the names, so that what is made at
fitting is made wherever its head scores.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache.assembly import IN_MEMORY, Assembled, assemble
from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.views import TrainingView
from heads.centring import centred_by_prompt

CENTRED = "centred("


def choose_features(asked: str | None, embeddings: Embeddings) -> tuple[str, ...]:
    """The features asked for, joined by "+", or the deepest layer's first pooling.

    Raises: ValueError that lists what the embedding has.
    """
    spec = embeddings.spec
    if asked is None:
        return (spec.features[-len(spec.pool)],)
    names = asked.split("+")
    unknown = [name for name in names if stored(name) not in spec.inputs]
    refuse_repeats("--features", names)
    if unknown:
        raise ValueError(f"embedding {spec.fingerprint} has no feature {unknown[0]!r}; it has {', '.join(spec.inputs)}")
    return tuple(names)


def stored(name: str) -> str:
    """The column that a feature is made from."""
    return name.removeprefix(CENTRED).removesuffix(")") if name.startswith(CENTRED) and name.endswith(")") else name


def assemble_features(
    embeddings: Embeddings,
    features: Sequence[str],
    *,
    pairs: Dataset | None = None,
    attributes: Dataset | None = None,
    pool: Dataset | None = None,
    in_memory: int = IN_MEMORY,
) -> Assembled:
    """As `cache.assembly.assemble`, with what is `centred(...)` less the mean over the responses of these datasets.

    Raises: ValueError if a dataset is not embedded under this spec, or centred features stay on disk.
    """
    columns = [stored(name) for name in features]
    data = assemble(embeddings, columns, pairs=pairs, attributes=attributes, pool=pool, in_memory=in_memory)
    return data if columns == list(features) else replace(data, view=centred(data.view, features))


def centre_columns(
    matrix: NDArray[np.float32], prompts: NDArray[np.int64], features: Sequence[str], widths: Sequence[int]
) -> NDArray[np.float32]:
    """The matrix (n, d) with what is `centred(...)` less its mean over the rows of a prompt; `widths` sum to d."""
    within = np.repeat([name.startswith(CENTRED) for name in features], widths)
    matrix = matrix.copy()
    matrix[:, within] = centred_by_prompt(matrix[:, within], prompts)
    return matrix


def centred(view: TrainingView, features: Sequence[str]) -> TrainingView:
    """The view with those of its blocks centred that `features`, their names in order, call so."""
    widths = [width for _, width in view.blocks]
    matrix = centre_columns(view.matrix("centred(...)"), view.prompts, features, widths)
    return replace(view, features=matrix, blocks=tuple(zip(features, widths, strict=True)))


def refuse_repeats(option: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name stands twice."""
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise ValueError(f"{option} names {repeated[0]} twice; name each once")
