"""The export stage: a run as a directory that transformers loads where this package is not installed.

It is written under another name, loaded again by plain transformers in a fresh process, and gets its name only when it
scores as the head does (`pipeline.export_proof`).
"""

import glob
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cache.embeddings import Embeddings
from cache.store import Store
from heads.folding import folded_weight
from heads.protocol import Head, Uncertain
from heads.registry import load_head
from heads.saving import HeadTree, read_tree
from pipeline.card import model_card
from pipeline.classifier import choose_pad, ends_in, write_classifier, write_tokenizer
from pipeline.export_files import (
    CODE,
    describe_features,
    find_marker,
    plain_class,
    refuse_features,
    write_custom,
)
from pipeline.export_proof import Agreement, Expected, compare, rescore_elsewhere
from pipeline.progress import say
from pipeline.render import TokenRow
from pipeline.rerun import Rerun
from pipeline.score import one_run
from pipeline.windows import Pending

LEAST_ROWS = 8  # fewer say nothing of ranks
Form = Literal["plain", "custom"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of `pipeline export`.

    Attributes:
        run: a run's id, or a group with one run that is no control.
        directory: where to; must not exist.
        store: the store's folder.
        score: which of the head's rewards is `logits`; None takes the head's own choice.
        form: "plain" (transformers' own class, one reward) or "custom" (ours, all that the head says); None takes the
            plain one where there is one.
        rows: cached rows that the proof scores.
        backbone: where the backbone is now; None takes the name in the spec.
        template: the chat template; None takes the name in the spec.
        device: "cpu" or "cuda", for the features that the proof compares with; None takes the GPU if there is one.
    """

    run: str
    directory: Path
    store: Path
    score: str | None = None
    form: Form | None = None
    rows: int = 64
    backbone: str | None = None
    template: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        directory: where it is.
        score: which of the head's rewards is `logits`.
        constant: what is to be added to `logits` to get that reward; 0 where nothing was left out.
        plain: whether transformers has the class itself.
        agreement: what the proof found.
    """

    directory: Path
    score: str
    constant: float
    plain: bool
    agreement: Agreement

    def as_row(self) -> dict[str, Any]:
        """One flat row."""
        found = {name: value for name, value in vars(self.agreement).items() if name != "versions"}
        made = {"directory": str(self.directory), "score": self.score, "constant": self.constant, "plain": self.plain}
        return {**made, **found}


@dataclass(frozen=True)
class Sample:
    """Cached rows that the proof scores: their texts, (n,), and their tokens."""

    texts: list[Pending]
    tokens: list[TokenRow]

    @property
    def messages(self) -> list[list[dict[str, str]]]:
        """The conversations as any chat template takes them."""
        return [[*json.loads(row.prompt), {"role": "assistant", "content": row.response}] for row in self.texts]


def export(options: ExportOptions) -> Exported:
    """Run the stage.

    Raises: ValueError if the head cannot be had as tensors, or the written model does not score as the head does;
        nothing is left behind then.
    """
    store = Store(options.store)
    run = one_run(store, options.run)
    if options.directory.exists():
        raise ValueError(f"{options.directory} exists already; give another directory, or remove it first")
    refuse_features(run["features"])
    saved = store.run_directory(run["run_id"])
    tree, head = read_tree(saved), load_head(saved)
    embeddings = store.embeddings(run["embedding"])
    texts = _draw(store, run, embeddings, options.rows)
    rerun = Rerun.load(
        embeddings.spec, run["features"], backbone=options.backbone, template=options.template, device=options.device
    )
    sample = Sample(texts, rerun.renderer.encode([(row.prompt, row.response) for row in texts]))
    fresh = Fresh.of(head, rerun, sample)
    score = fresh.choose(options.score, run["head"])
    working = options.directory.with_name(f".{options.directory.name}.{os.getpid()}")
    _clear(options.directory)
    try:
        constant = _write(working, rerun, head, tree, sample, fresh, score, options.form)
        say(f"proving it on {len(texts)} cached rows in a fresh process")
        found = rescore_elsewhere(working, sample.messages, sample.tokens)
        cached = head.scores(embeddings.gather([row.response_id for row in texts], run["features"]))[score]
        expected = Expected(fresh.exact[score], fresh.rounded[score], cached, constant)
        agreement = compare(found, expected, dtype=rerun.backbone.dtype)
        exported = Exported(options.directory, score, constant, not (working / CODE).is_file(), agreement)
        (working / "README.md").write_text(model_card(store, run, embeddings, exported), encoding="utf-8")
        working.rename(options.directory)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    say(agreement.sentence())
    return exported


def _clear(directory: Path) -> None:
    """Remove what killed exports to this directory have left beside it."""
    for left in directory.parent.glob(f".{glob.escape(directory.name)}.*"):
        if left.suffix[1:].isdigit():
            shutil.rmtree(left)


@dataclass(frozen=True)
class Fresh:
    """The head on the sample's texts, run again.

    Attributes:
        exact: its rewards by name, each (n,).
        rounded: the same with vectors rounded as the store's are.
        attributes: names of what it predicts.
    """

    exact: dict[str, NDArray[np.float32]]
    rounded: dict[str, NDArray[np.float32]]
    attributes: list[str]

    @classmethod
    def of(cls, head: Head, rerun: Rerun, sample: Sample) -> Self:
        """Run the backbone over the sample."""
        matrix = rerun.run(sample.texts, rounded=False).matrix
        rounded = matrix.astype(rerun.spec.stored_dtype).astype(np.float32)
        return cls(head.scores(matrix), head.scores(rounded), list(head.predict_attributes(matrix)))

    def choose(self, score: str | None, head: str) -> str:
        """The reward asked for, else the head's own choice. Raises ValueError listing them if there is none such."""
        if score is not None and score not in self.exact:
            raise ValueError(f"head {head} has no reward {score!r}; it has {', '.join(self.exact)}")
        return score or next(iter(self.exact))


def _write(
    working: Path,
    rerun: Rerun,
    head: Head,
    tree: HeadTree,
    sample: Sample,
    fresh: Fresh,
    score: str,
    form: Form | None,
) -> float:
    """Write the directory, plain where transformers has a class for it; returns the constant that this leaves out.

    Raises: ValueError if the plain form is asked for and there is none.
    """
    backbone, renderer = rerun.backbone, rerun.renderer
    features = describe_features(rerun.names, rerun.spec, backbone)
    working.mkdir(parents=True)
    spec, rows = rerun.spec, sample.tokens
    token = choose_pad(renderer, rows)
    pad = write_tokenizer(working, renderer, token, max_length=spec.max_length, overlong=spec.overlong)
    after = rows[0].after
    kind, folded = plain_class(backbone, features, after), folded_weight(head, score)
    if form != "custom" and kind is not None and folded is not None and not ends_in(rows, pad):
        weight, constant = folded
        write_classifier(working, kind, backbone.model, torch.from_numpy(weight), pad)
        left_out = [name for name in [*fresh.exact, *fresh.attributes] if name != score]
        if left_out:
            say(f"a plain class gives {score} alone; --form custom has {', '.join(left_out)} too")
        return constant
    if form == "plain":
        raise ValueError(
            f"reward {score} of head {head.name} on {'+'.join(rerun.names)} is no weight on the last token's final "
            "state, which is all that a plain class reads; leave out --form plain"
        )
    write_custom(
        working,
        backbone.model,
        tree,
        pad,
        dtype=backbone.dtype,
        features=features,
        after=after,
        marker=find_marker(renderer, features, rows),
        score=score,
        rewards=[*fresh.exact, *(["sd"] if isinstance(head, Uncertain) else [])],
        attributes=fresh.attributes,
    )
    return 0.0


def _draw(store: Store, run: Mapping[str, Any], embeddings: Embeddings, count: int) -> list[Pending]:
    """Random responses of the run's datasets that the embedding has uncut, all of them where there are not so many.

    Of a fine-tuned backbone's own head the store may lack those; then responses of any that it has. Rows that were cut
    are left out: what cuts them elsewhere is not ours.
    """
    names = [run[f"{kind}_dataset"] for kind in ("pairs", "attributes") if run[f"{kind}_dataset"]]
    names = names or store.dataset_names()
    columns = ["response_id", "prompt", "response"]
    texts = {row["response_id"]: row for name in names for row in _texts(store, name, columns)}
    ids = sorted(texts)
    positions, cut = embeddings.positions(ids), embeddings.scalar("cut_tokens")
    usable = [key for key, at in zip(ids, positions.tolist(), strict=True) if at >= 0 and not cut[at]]
    if len(usable) < LEAST_ROWS:
        raise ValueError(
            f"{len(usable)} responses of {', '.join(names)} are whole in embedding {run['embedding']}, and a proof "
            f"takes {LEAST_ROWS}; embed more of them, or with a larger --max-length"
        )
    drawn = np.random.default_rng(0).permutation(len(usable))[:count]
    return [Pending(**texts[usable[number]]) for number in drawn.tolist()]


def _texts(store: Store, dataset: str, columns: list[str]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = store.dataset(dataset)["responses"].select(columns).to_pylist()
    return rows
