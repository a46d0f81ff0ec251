"""The model card of an exported reward model: what it was made of, what it scores, and how it was proven."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from bench.tables import as_markdown
from cache.embeddings import Embeddings
from cache.spec import EmbeddingSpec
from cache.store import Store
from pipeline.evaluate import summary

if TYPE_CHECKING:
    from pipeline.export import Exported

LICENCE = """---
license: other
license_name: TO-BE-CHOSEN
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, rewardheads]
---
"""
_TRUSTED = ", trust_remote_code=True"  # of the tokenizer too, which would ask, and wait for an answer, without it
_START = """
The head reads where the response begins. The class finds it by what the chat template writes before a response; on
{share:.1%} of the rows below it found the right place. A response that holds those words itself misleads it: pass
`response_start` (tokens before the response) to be sure.
"""
_IN_PLAIN = "Load it in float32: in less, rewards of responses that are alike become equal."
_IN_CUSTOM = """The backbone is loaded in {dtype}, the head computes in float32. For inference: it has no loss and no
gradients."""


def model_card(store: Store, run: Mapping[str, Any], embeddings: Embeddings, exported: "Exported") -> str:
    """The card as Markdown."""
    spec, training = embeddings.spec, embeddings.training
    made = "was frozen" if training is None else f"was fine-tuned from {_base(training)}"
    parts = [
        LICENCE,
        f"# Reward model {run['run_id']}\n",
        f"Head `{run['head']}` on {' + '.join(run['features'])} of {_shown(spec)['backbone']}, which {made}. "
        f"`logits` (B, 1) is its reward `{exported.score}`{_constant(exported)}.\n",
        _use(exported),
        _data(store, run, training),
        _head(run),
        _spec(spec),
        _metrics(store, run),
        _proof(exported),
        "## Licence\n\nTo be chosen by who publishes this. It must suit the backbone's licence and the datasets'.\n",
    ]
    return "\n".join(parts)


def _constant(exported: "Exported") -> str:
    if not exported.plain:
        return ""
    return f" less a constant: {exported.constant:.6g} added to `logits` gives it. Differences do not see it"


def _use(exported: "Exported") -> str:
    found, trusted = exported.agreement.starts_found, "" if exported.plain else _TRUSTED
    loaded = _IN_PLAIN if exported.plain else _IN_CUSTOM.format(dtype=exported.agreement.dtype)
    return f"""## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DIR = "."  # this directory
tokenizer = AutoTokenizer.from_pretrained(DIR{trusted})
model = AutoModelForSequenceClassification.from_pretrained(DIR{trusted})
messages = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "Four."}}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
reward = model(**inputs).logits[0, 0]
```

The chat template writes everything, BOS included, and the tokenizer adds nothing, so the text of
`apply_chat_template(messages, tokenize=False)` may be tokenised as it is. {loaded}
{"" if found is None else _START.format(share=found)}"""


def _data(store: Store, run: Mapping[str, Any], training: Mapping[str, Any] | None) -> str:
    lines = ["## Training data\n"]
    for kind in ("pairs", "attributes"):
        name = run[f"{kind}_dataset"]
        if not name or run.get("finetuned"):  # whose data are the backbone's
            continue
        origin: dict[str, Any] = dict(store.dataset(name).info["origin"]) if name in store.dataset_names() else {}
        lines.append(_dataset(kind, name, origin, run[f"{kind}_hash"]))
    lines += _backbone_data(training)
    counts, split = run["counts"], run["split"]
    fitted = ", ".join(
        f"{counts[f'train_{what}']:,} {what}" for what in ("pairs", "annotated") if counts[f"train_{what}"]
    )
    lines.append(f"- fitted on {fitted}; {split['test_share']:.0%} of the prompts were held out for judging")
    used = run.get("attributes_used")
    return "\n".join([*lines, *([f"- attributes: {', '.join(used)}"] if used else [])]) + "\n"


def _backbone_data(training: Mapping[str, Any] | None) -> list[str]:
    """What the backbone was fine-tuned on, the last time first."""
    lines: list[str] = []
    while training is not None:
        lines.append(
            f"- the backbone was fine-tuned from {_base(training)} by `{training['plan']['objective']['name']}` on"
        )
        for kind, dataset in training["datasets"].items():
            lines.append("  " + _dataset(kind, dataset["name"], dataset["origin"], dataset["content_hash"]))
        training = training["before"]
    return lines


def _dataset(kind: str, name: str, origin: Mapping[str, Any], content_hash: str) -> str:
    return f"- {kind}: {name} ({_words(origin)}), content {content_hash[:16]}"


def _base(training: Mapping[str, Any]) -> str:
    """The backbone that was fine-tuned, without the folders of the machine it was on."""
    plan = training["plan"]
    return str(plan["backbone"]) if plan["weights"].startswith("revision:") else Path(plan["backbone"]).name


def _shown(spec: EmbeddingSpec) -> dict[str, Any]:
    """The spec's fields that hold anything, without the folders of the machine it was made on."""
    fields = {name: value for name, value in spec.to_json().items() if value not in ("", ())}
    fields["template"] = Path(spec.template).name
    if not spec.weights.startswith("revision:"):  # else it is a hub id
        fields["backbone"] = Path(spec.backbone).name
    return fields


def _words(origin: Mapping[str, Any]) -> str:
    """A dataset's origin without the folders of the machine it was read on."""
    return ", ".join(str(value).rsplit("/", 1)[-1] if key == "path" else str(value) for key, value in origin.items())


def _head(run: Mapping[str, Any]) -> str:
    tuned = f", its options chosen by {run['tuning']['budget']} trials" if run.get("tuning") else ""
    options = json.dumps(run["options"], ensure_ascii=False)
    return f"## Head\n\n`{run['head']}`, seed {run['seed']}{tuned}: `{options}`\n"


def _spec(spec: EmbeddingSpec) -> str:
    fields = _shown(spec)
    lists = {name: ", ".join(map(str, value)) for name, value in fields.items() if isinstance(value, tuple)}
    rows = [f"- {name}: {value}" for name, value in {**fields, **lists}.items()]
    return f"## Embedding spec {spec.fingerprint}\n\n" + "\n".join(rows) + "\n"


def _metrics(store: Store, run: Mapping[str, Any]) -> str:
    path = store.run_directory(run["run_id"]) / "metrics.parquet"
    if not path.is_file():
        return "## Metrics\n\nThis run was not evaluated.\n"
    table = summary(pq.read_table(path)).select(["dataset", "scorer", "metric", "at", "value", "low", "high", "n"])
    return (
        "## Metrics\n\nOn prompts that the head was not fitted on; intervals of 95 % by bootstrap over prompts. "
        f"`length` is the response's length, for a control.\n\n{as_markdown(table)}"
    )


def _proof(exported: "Exported") -> str:
    found = exported.agreement
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    compared = {
        "the head on the same texts, run again": (found.fresh_difference, found.allowed_fresh, found.fresh_spearman),
        "the head on the cached vectors": (found.cached_difference, found.allowed_cached, found.cached_spearman),
    }
    rows = [f"| {name} | {d:.2e} | {allowed:.2e} | {rank:.6f} |" for name, (d, allowed, rank) in compared.items()]
    if found.unaided_difference is not None:
        rows.append(f"| the first, responses' starts not given | {found.unaided_difference:.2e} | | |")
    return f"""## Proof

This directory was loaded by `{found.model_class}` in a fresh process ({versions}) and scored {found.rows} rows
that the store has. The standard deviation of their scores is {found.spread:.3g}.

| against | largest difference | allowed | Spearman |
|---|---:|---:|---:|
{chr(10).join(rows)}

Cached vectors may be float16; that rounding alone moves these scores by up to {found.rounding:.2e}. All conversations
had the tokens of the pipeline's own renderer. Rows longer than the spec's max_length were left out: whoever cuts such
rows must cut them the same way, BOS kept, which the tokenizer's own truncation does not do.
"""
