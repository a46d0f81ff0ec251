"""What an audit asks of cached vectors: neighbouring prompts, and margins by heads that have not seen the pair."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.audit import Match, nearest
from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.splits import uniform
from cache.store import Store
from heads.linear import Linear
from pipeline.features import assemble_features, choose_features, stored
from pipeline.progress import say

FOLDS = 5


def covering_embeddings(store: Store, asked: str | None, datasets: Sequence[Dataset]) -> Embeddings | None:
    """The embedding asked for, else the only one that covers the datasets; None, and why, where there is no such."""
    if asked is not None:
        return store.embeddings(asked)
    opened = [store.embeddings(name) for name in store.fingerprints()]
    ids = {identifier for dataset in datasets for identifier in dataset["responses"]["response_id"].to_pylist()}
    covering = [one for one in opened if all(identifier in one or identifier in one.dropped for identifier in ids)]
    if len(covering) == 1:
        return covering[0]
    fix = "choose one with --embedding" if covering else "`pipeline embed` makes one"
    say(f"no neighbours and no doubtful labels: {len(covering)} embeddings cover the data; {fix}")
    return None


def prompt_feature(asked: str | None, embeddings: Embeddings) -> str:
    """The feature asked for, else the deepest state of the prompt, else the deepest of the response."""
    of_prompt = [name for name in embeddings.spec.features if name.endswith(".prompt")]
    return stored(choose_features(of_prompt[-1] if asked is None and of_prompt else asked, embeddings)[0])


def neighbours(
    embeddings: Embeddings, feature: str, datasets: Sequence[Dataset], fitted: Sequence[str], judged: Sequence[str]
) -> tuple[list[Match], dict[str, float]]:
    """Each judged prompt with the nearest fitted one, nearest first, and each fitted prompt's cosine to its nearest.

    Prompts without a vector are left out.
    """
    vectors = _prompt_vectors(embeddings, feature, datasets)
    ours = [number for number, prompt in enumerate(fitted) if prompt in vectors]
    theirs = [number for number, prompt in enumerate(judged) if prompt in vectors]
    if not ours or not theirs:
        return [], {}
    first = np.stack([vectors[fitted[number]] for number in ours])
    found = nearest(first, np.stack([vectors[judged[number]] for number in theirs]))
    order = np.argsort(-found.cosine, kind="stable")
    matches = [Match(ours[found.row[k]], theirs[k], float(found.cosine[k])) for k in order]
    return matches, dict(zip((fitted[number] for number in ours), found.back.tolist(), strict=True))


def cross_fitted_margins(
    embeddings: Embeddings, dataset: Dataset, asked: str | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Margins of `linear` in FOLDS folds by prompt, each pair by a head that has not seen its prompt.

    Args:
        embeddings: where the vectors are.
        dataset: whose pairs.
        asked: features joined by "+"; None takes the deepest of the response.

    Returns: row numbers in the table of pairs, margins in nats, and prompt numbers; each (m,).
    """
    of_response = [name for name in embeddings.spec.features if not name.endswith(".prompt")]
    data = assemble_features(embeddings, choose_features(asked or of_response[-1], embeddings), pairs=dataset)
    view = data.view
    fold = (uniform(data.prompt_ids, "audit") * FOLDS).astype(np.int64)
    margins = np.zeros(len(view.pairs), dtype=np.float32)
    for held_out in range(FOLDS):
        stop = (held_out + 1) % FOLDS  # chooses the L2 strength
        head = Linear()
        head.fit(view.subset((fold != held_out) & (fold != stop)), view.subset(fold == stop), seed=0)
        score = head.score(view.features)
        mine = fold[view.pairs[:, 0]] == held_out
        margins[mine] = score[view.pairs[mine, 0]] - score[view.pairs[mine, 1]]
    return data.pair_rows, margins, view.prompts[view.pairs[:, 0]]


def _prompt_vectors(
    embeddings: Embeddings, feature: str, datasets: Sequence[Dataset]
) -> dict[str, NDArray[np.float32]]:
    """Each prompt's vector, the mean over its responses: (d,)."""
    prompt_of: dict[str, str] = {}
    for dataset in datasets:
        columns = dataset["responses"].select(["response_id", "prompt_id"]).to_pydict()
        prompt_of.update(zip(columns["response_id"], columns["prompt_id"], strict=True))
    held = [identifier for identifier in prompt_of if identifier in embeddings]
    number_of: dict[str, int] = {}
    owner = [number_of.setdefault(prompt_of[identifier], len(number_of)) for identifier in held]
    vectors = embeddings.gather(held, [feature])
    total = np.zeros((len(number_of), vectors.shape[1]), dtype=np.float32)
    np.add.at(total, owner, vectors)
    total /= np.bincount(owner, minlength=len(number_of))[:, None].astype(np.float32)
    return dict(zip(number_of, total, strict=True))
