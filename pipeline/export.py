"""The export stage: a run as a directory that transformers loads where this package is not installed.

It is written under another name, loaded again by plain transformers in a fresh process, and gets its name only when it
scores as the head does (`pipeline.export_proof`).
"""

import glob
import json
import os
import shutil
from collections.abc import Mapping, Sequence
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
from pipeline.classifier import choose_pad, ends_in, pad_candidates, write_classifier, write_tokenizer
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
from pipeline.render import Renderer, TokenRow
from pipeline.rerun import Rerun
from pipeline.score import one_run
from pipeline.windows import Pending

LEAST_ROWS = 8  # fewer say nothing of ranks
WRITING = ".exporting"  # how the name of a directory ends that is not whole
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
    """Cached rows that the proof scores: their texts, (n,), and their tokens.

    Attributes:
        texts: the rows.
        tokens: what the renderer makes of them.
        ends: of each token that may pad, a row of the datasets that ends in it, where there is one.
    """

    texts: list[Pending]
    tokens: list[TokenRow]
    ends: list[TokenRow]

    @classmethod
    def of(cls, renderer: Renderer, texts: list[Pending], everything: Mapping[str, Pending]) -> Self:
        """Encode the rows, and look among all responses of their datasets for endings in a token that may pad."""
        ends = [
            next((row for row in everything.values() if row.response.rstrip().endswith(token)), None)
            for token in pad_candidates(renderer)
        ]
        rows, found = ([(row.prompt, row.response) for row in some if row] for some in (texts, ends))
        return cls(texts, renderer.encode(rows), renderer.encode(found))

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
    everything = _responses(store, run)
    texts = _draw(everything, run, embeddings, options.rows)
    rerun = Rerun.load(
        embeddings.spec, run["features"], backbone=options.backbone, template=options.template, device=options.device
    )
    if not rerun.weights_compared:
        rerun.refuse_other_vectors(embeddings, texts[:LEAST_ROWS])
    sample = Sample.of(rerun.renderer, texts, everything)
    fresh = Fresh.of(head, rerun, sample)
    score = fresh.choose(options.score, run["head"])
    working = options.directory.with_name(f".{options.directory.name}.{os.getpid()}{WRITING}")
    _clear(options.directory)
    try:
        draft = Draft(rerun, head, tree, sample, fresh, score)
        constant, dtype = draft.write(working, options.form), rerun.backbone.dtype
        del rerun, draft  # the process that proves it loads the backbone again
        say(f"proving it on {len(texts)} cached rows in a fresh process")
        found = rescore_elsewhere(working, sample.messages, sample.tokens)
        cached = head.scores(embeddings.gather([row.response_id for row in texts], run["features"]))[score]
        agreement = compare(found, Expected(fresh.exact[score], fresh.rounded[score], cached, constant), dtype=dtype)
        exported = Exported(options.directory, score, constant, not (working / CODE).is_file(), agreement)
        (working / "README.md").write_text(model_card(store, run, embeddings, exported), encoding="utf-8")
        _put(working, options.directory)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    say(agreement.sentence())
    return exported


def _put(working: Path, directory: Path) -> None:
    """Give a whole export its name. Raises ValueError if another one took it meanwhile."""
    try:
        working.rename(directory)
    except OSError as error:
        raise ValueError(f"{directory} came to be while this export was made; give another directory") from error


def _clear(directory: Path) -> None:
    """Remove what killed exports to this directory have left beside it."""
    for left in directory.parent.glob(f".{glob.escape(directory.name)}.*{WRITING}"):
        pid = left.name.removesuffix(WRITING).rpartition(".")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


@dataclass(frozen=True)
class Draft:
    """All that goes into a directory.

    Attributes:
        rerun: the backbone and how it is run.
        head: the head.
        tree: its tensors.
        sample: rows of its datasets.
        fresh: what the head says of them.
        score: the reward that `logits` will be.
    """

    rerun: Rerun
    head: Head
    tree: HeadTree
    sample: Sample
    fresh: Fresh
    score: str

    def write(self, working: Path, form: Form | None) -> float:
        """Write it, plain where transformers has a class for it; returns the constant that this leaves out.

        Raises: ValueError if the plain form is asked for and there is none.
        """
        renderer, spec, rows = self.rerun.renderer, self.rerun.spec, [*self.sample.tokens, *self.sample.ends]
        features = describe_features(self.rerun.names, spec, self.rerun.backbone)
        after = rows[0].after
        kind = plain_class(self.rerun.backbone, features, after)
        folded = folded_weight(self.head, self.score) if kind is not None and form != "custom" else None
        if folded is None and form == "plain":
            raise ValueError(
                f"reward {self.score} of head {self.head.name} on {'+'.join(self.rerun.names)} is no weight on the "
                "last token's final state, which is all that a plain class reads; leave out --form plain"
            )
        working.mkdir(parents=True)
        pad = write_tokenizer(
            working, renderer, choose_pad(renderer, rows), max_length=spec.max_length, overlong=spec.overlong
        )
        if folded is None or kind is None or (ends_in(rows, pad) and form != "plain"):
            self._write_custom(working, features, after, pad)
            return 0.0
        self._refuse_ends(rows, pad)
        weight, constant = folded
        write_classifier(working, kind, self.rerun.backbone.model, torch.from_numpy(weight), pad)
        left_out = [name for name in [*self.fresh.exact, *self.fresh.attributes] if name != self.score]
        if left_out:
            say(f"a plain class gives {self.score} alone; --form custom has {', '.join(left_out)} too")
        return constant

    def _refuse_ends(self, rows: Sequence[TokenRow], pad: int) -> None:
        if ends_in(rows, pad):
            raise ValueError(
                "some responses end in every token that may pad, which a plain class takes for padding; leave out "
                "--form plain"
            )

    def _write_custom(self, working: Path, features: list[dict[str, Any]], after: int, pad: int) -> None:
        backbone = self.rerun.backbone
        write_custom(
            working,
            backbone.model,
            self.tree,
            pad,
            dtype=backbone.dtype,
            features=features,
            after=after,
            marker=find_marker(self.rerun.renderer, features, self.sample.tokens),
            score=self.score,
            reward_names=[*self.fresh.exact, *(["sd"] if isinstance(self.head, Uncertain) else [])],
            attribute_names=self.fresh.attributes,
        )


def _responses(store: Store, run: Mapping[str, Any]) -> dict[str, Pending]:
    """Responses of the run's datasets by id; of a fine-tuned backbone's own head, of all datasets if it names none."""
    names = [run[f"{kind}_dataset"] for kind in ("pairs", "attributes") if run[f"{kind}_dataset"]]
    columns = ["response_id", "prompt", "response"]
    tables = [store.dataset(name)["responses"].select(columns) for name in names or store.dataset_names()]
    return {row["response_id"]: Pending(**row) for table in tables for row in table.to_pylist()}


def _draw(
    everything: Mapping[str, Pending], run: Mapping[str, Any], embeddings: Embeddings, count: int
) -> list[Pending]:
    """Random responses that the embedding has uncut, all of them where there are not so many.

    Rows that were cut are left out: what cuts them elsewhere is not ours.
    """
    ids = sorted(everything)
    positions, cut = embeddings.positions(ids), embeddings.scalar("cut_tokens")
    usable = [key for key, at in zip(ids, positions.tolist(), strict=True) if at >= 0 and not cut[at]]
    if len(usable) < LEAST_ROWS:
        raise ValueError(
            f"{len(usable)} responses of the run's datasets are whole in embedding {run['embedding']}, and a proof "
            f"takes {LEAST_ROWS}; embed more of them, or with a larger --max-length"
        )
    drawn = np.random.default_rng(0).permutation(len(usable))[:count]
    return [everything[usable[number]] for number in drawn.tolist()]
