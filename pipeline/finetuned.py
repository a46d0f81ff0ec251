"""A fine-tuned backbone as a directory: written, and recognised when it is embedded.

It is a backbone in HF format like any other. Beside its weights stand the head that was trained with it (`head/`, as
heads are saved), what it was trained on (finetune.json) and the prompts it has seen (seen_prompts.parquet).
`pipeline embed --backbone DIR` takes these over: the head becomes a run, so that `evaluate` judges it beside frozen
heads, and the prompts are never judged on, whatever head is fitted on the features (docs/decisions/0010).
"""

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.embeddings import SEEN, TRAINING, Embeddings
from cache.files import read_json, sha256_of_json, write_json, write_table
from cache.spec import feature_name
from cache.store import Store
from heads.given import reward_row
from heads.protocol import Head
from heads.registry import load_head
from heads.saving import read_tree
from pipeline.backbone import resolve
from pipeline.classifier import classifier_class, whole_template, write_classifier, write_tokenizer
from pipeline.finetune_output import check_whole
from pipeline.progress import say
from pipeline.render import Renderer, TokenRow

Scores = NDArray[np.float32]
HEAD, WRITING = "head", ".writing."
KIND = "finetuned"  # what the names of its runs begin with
PROOF_ROWS = 8
TOLERANCE = 1e-3  # of plain transformers' scores, relative to the standard deviation of those that were trained


def write_finetuned(
    directory: Path,
    base: nn.Module,
    head: Head,
    renderer: Renderer,
    rows: Sequence[TokenRow],
    pad: str,
    prompt_ids: Sequence[str],
    record: Mapping[str, Any],
) -> None:
    """Write a fine-tuned backbone; finetune.json comes last, so its presence means that the directory is whole.

    A head of one row of weights becomes the `score` of transformers' classifier. With any other the directory brings
    the class that `pipeline export` writes, with backbone and head in it; `load_backbone` takes the one out of both.

    Args:
        directory: where to.
        base: the backbone's model, adapters multiplied out.
        head: what was trained with it.
        renderer: as it was trained.
        rows: some of the rows it was trained for; what was written must score them as base and head do.
        pad: the token to pad with, which no row ends in.
        prompt_ids: what it has seen.
        record: for finetune.json.

    Raises: ValueError if what was written does not give the scores that were trained.
    """
    for left in directory.glob(f"{WRITING}*"):  # by a kill
        shutil.rmtree(left)
    working = directory / f"{WRITING}{os.getpid()}"
    working.mkdir(parents=True)
    try:
        cut = {"max_length": int(record["max_length"]), "overlong": record["overlong"]}
        pad_id = write_tokenizer(working, renderer, pad, **cut)
        (working / HEAD).mkdir()
        head.save(working / HEAD)
        layer = int(record["layer"])
        with redirect_stderr(io.StringIO()):  # progress bars that no option turns off
            kind = _write_model(working, base, head, pad_id, layer)
        difference = _largest_difference(working, kind, base, head, rows)
        write_table(working / SEEN, pa.table({"prompt_id": pa.array(prompt_ids, pa.string())}))
        (directory / TRAINING).unlink(missing_ok=True)
        shutil.rmtree(directory / HEAD, ignore_errors=True)
        for path in working.iterdir():
            path.replace(directory / path.name)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    template = sha256(whole_template(renderer).encode()).hexdigest()
    rendered = {"template_sha256": template, "difference": difference}
    write_json(directory / TRAINING, {**record, **rendered})


def read_training(backbone: str) -> tuple[dict[str, Any], list[str]] | None:
    """A fine-tuned backbone's finetune.json and the prompts it has seen; None for any other backbone.

    Raises: ValueError for one that was not written to its end.
    """
    where = resolve(backbone)
    if not isinstance(where, Path):
        return None
    check_whole(where)
    if not (where / TRAINING).is_file():
        return None
    return read_json(where / TRAINING), pq.read_table(where / SEEN)["prompt_id"].to_pylist()


def take_over(store: Store, embeddings: Embeddings, backbone: str) -> None:
    """If the backbone is a fine-tuned one, keep with its embedding what it has seen, and its head as a run."""
    known = read_training(backbone)
    if known is None:
        return
    record, seen = known
    embeddings.record_training(record, seen)
    head = load_head(Path(resolve(backbone)) / HEAD)
    spec, feature = embeddings.spec, feature_name(int(record["layer"]), "last")
    if feature not in spec.features:
        say(f"note: this backbone's own head reads {feature}, which these --layers and --pool leave out")
        return
    for name in ("template_sha256", "max_length", "overlong"):
        if record[name] != getattr(spec, name):
            say(f"note: fine-tuned with {name} {record[name]}, embedded with {getattr(spec, name)}")
    run = _run(store, embeddings, head, record, feature)
    directory = store.run_directory(run["run_id"])
    if not (directory / "run.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        head.save(directory)
        write_json(directory / "run.json", run)
    say(f"this backbone brings its own head: run {run['run_id']} (`pipeline evaluate {run['run_id']} --on DATASET`)")


def _run(store: Store, embeddings: Embeddings, head: Head, record: Mapping[str, Any], feature: str) -> dict[str, Any]:
    """The head's run.json, as `pipeline.fit` writes it.

    It names the datasets that the store has as they were trained on; of others, the seen prompts are all that is known.
    """
    plan = record["plan"]
    hashes = {name: store.dataset(name).info["content_hash"] for name in store.dataset_names()}
    identity: dict[str, Any] = {"head": head.name, "options": head.get_params()}
    for kind in ("pairs", "attributes"):
        name, content_hash = plan[f"{kind}_dataset"], plan[f"{kind}_hash"]
        known = name is not None and hashes.get(name) == content_hash
        identity |= {f"{kind}_dataset": name if known else None, f"{kind}_hash": content_hash if known else None}
    identity |= {
        "attributes_used": plan["attributes_used"] if identity["attributes_dataset"] else [],
        "embedding": embeddings.spec.fingerprint,
        "features": [feature],
        "split": plan["split"],
    }
    group = f"{KIND}-{plan['objective']['name']}-{sha256_of_json({**identity, 'plan': plan})[:8]}"
    return {
        "run_id": f"{group}-s{plan['seed']}",
        "group": group,
        **identity,
        "tuning": None,
        "seed": plan["seed"],
        "control": None,
        "counts": record["counts"],
        "history": record["history"],
        "seconds": record["seconds"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("rewardheads", "torch", "numpy")},
        "finetuned": dict(plan),
    }


def _write_model(directory: Path, base: Any, head: Head, pad: int, layer: int) -> Any:  # noqa: ANN401 - of transformers
    """The weights and config.json; returns the class: transformers' classifier, or ours where the head is no row."""
    row = reward_row(head)
    if row is None:
        from pipeline.export_files import write_custom
        from pipeline.exported.modeling_reward_head import RewardHeadModel

        write_custom(
            directory,
            base,
            read_tree(directory / HEAD),
            pad,
            dtype="float32",
            features=[{"layer": layer, "pool": "last", "norm": None}],
            score="reward",
            reward_names=["reward"],
        )
        return RewardHeadModel
    kind = classifier_class(base.config)
    assert kind is not None, "a backbone that `prepare` had to refuse"
    write_classifier(directory, kind, base, row, pad)
    return kind


@torch.no_grad()
def proof_scores(base: Any, head: Head, rows: Sequence[TokenRow]) -> Scores:  # noqa: ANN401 - a model of transformers
    """What base and head make of the first of these rows, each by itself: (PROOF_ROWS,)."""
    base.eval()
    states = [base(input_ids=ids, use_cache=False).last_hidden_state[:, -1].float() for ids in _proof_ids(rows)]
    return head.score(torch.cat(states).numpy())


def hold_together(found: Scores, trained: Scores, what: str) -> float:
    """How far scores are from those that were trained, relative to the spread of these; a constant does not count.

    Args:
        found: scores; shape (r,).
        trained: likewise.
        what: what found them, for the sentence.

    Raises: ValueError if it is more than rounding.
    """
    difference = np.abs((found - found.mean()) - (trained - trained.mean())).max()
    # The spread and not the size: a constant that all share says nothing. It is 0 if no step was better than none.
    worst = float(difference / max(trained.std(), 1e-6))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{what} otherwise than it was trained: by {worst:.1e} relative (allowed {TOLERANCE:.0e}); "
            "the checkpoints are kept, report this with the backbone's name"
        )
    return worst


@torch.no_grad()
def _largest_difference(directory: Path, kind: Any, base: Any, head: Head, rows: Sequence[TokenRow]) -> float:  # noqa: ANN401
    """How far the scores of what was written are from those of base and head. Raises ValueError if beyond rounding."""
    trained, sample = proof_scores(base, head, rows), _proof_ids(rows)
    again = kind.from_pretrained(directory, dtype=torch.float32).eval()
    pad = again.config.get_text_config().pad_token_id
    longest = max(ids.shape[1] for ids in sample)
    ids = torch.cat([nn.functional.pad(one, (0, longest - one.shape[1]), value=pad) for one in sample])
    mask = torch.cat([nn.functional.pad(torch.ones_like(one), (0, longest - one.shape[1])) for one in sample])
    written = again(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()
    return hold_together(written, trained, "plain transformers scores what was written")


def _proof_ids(rows: Sequence[TokenRow]) -> list[Tensor]:
    return [torch.from_numpy(row.ids).long()[None] for row in rows[:PROOF_ROWS]]
