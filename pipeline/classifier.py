"""A directory that transformers loads as a sequence classifier: its class, its weights and its tokenizer.

Exports and fine-tuned backbones are both written by this module, so that one conversation gets the same ids from both.
"""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from cache.files import read_json, write_json
from heads.saving import told_as_os_error
from pipeline.render import Renderer, TokenRow

REGRESSION = {"num_labels": 1, "problem_type": "regression"}
LABELS = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
NAMED = ("pad", "eos", "bos", "unk")  # the tokens that may pad, the best first
OLDER = {  # numbers of `rope_parameters`, and what the architectures call them in transformers 4
    "rope_theta": ("rope_theta", "rotary_emb_base", "global_rope_theta"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}


def classifier_class(config: Any) -> type[Any] | None:  # noqa: ANN401 - a configuration of transformers
    """Transformers' class that puts one row of weights on the final state of the last token that is no padding.

    Returns: None if it has none for this architecture.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    kind: type[Any] | None = classes.get(type(config), None)
    score: Any = None if kind is None else getattr(without_weights(kind, config), "score", None)
    one_row = isinstance(score, nn.Linear) and getattr(score, "bias", None) is None
    return kind if one_row and score.in_features == config.get_text_config().hidden_size else None


def without_weights(kind: type[Any], config: Any) -> Any:  # noqa: ANN401 - a model of transformers
    """The class's parts and their names with one label, without memory for them."""
    config = copy.deepcopy(config)
    for name, value in REGRESSION.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return kind(config)


def write_classifier(directory: Path, kind: type[Any], base: nn.Module, row: Tensor, pad: int) -> None:
    """Write a backbone and one row of weights as transformers' own class.

    Args:
        directory: where to.
        kind: from `classifier_class`.
        base: the backbone's model.
        row: on the raw final state; shape (d,).
        pad: the padding token's id.
    """
    model = without_weights(kind, base.config)
    weights = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in compact_weights(base).items()}
    weights["score.weight"] = row[None].clone()
    save_model(model, directory, weights, pad, dtype="float32")  # in bfloat16 the sum over channels has three digits


def compact_weights(base: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's weights, in bfloat16 where that loses nothing: most checkpoints are made of it."""
    return {name: _compact(tensor.detach().cpu()) for name, tensor in base.state_dict().items()}


def save_model(model: Any, directory: Path, weights: Mapping[str, Tensor], pad: int, *, dtype: str) -> None:  # noqa: ANN401
    """Write config.json and safetensors; the configuration says what to load in, whatever the file holds."""
    strange = set(model.state_dict()) ^ set(weights)
    assert not strange, f"weights do not fit the class: {sorted(strange)[:3]}"
    model.config.get_text_config().pad_token_id = pad
    model.config.pad_token_id = pad
    with told_as_os_error(directory):
        model.save_pretrained(directory, state_dict=dict(weights))
    config: dict[str, Any] = {**read_json(directory / "config.json"), "dtype": dtype, "pad_token_id": pad, **LABELS}
    for part in (config, config.get("backbone_config", {})):
        part.pop("_name_or_path", None)  # a folder of this machine
        part |= older_keys(part)
    write_json(directory / "config.json", config)


def older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys by which transformers 4 (rewardbench's) reads what version 5 keeps in `rope_parameters` and `dtype`.

    Without them it takes its classes' defaults, another rotary embedding, and says nothing. Version 5 reads its own.
    """
    older: dict[str, Any] = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    rope, kinds = config.get("rope_parameters") or {}, config.get("layer_types") or []
    full, sliding = dict(rope.get("full_attention", rope) or {}), rope.get("sliding_attention")
    for name, called in OLDER.items():
        older |= dict.fromkeys(called, full.pop(name)) if name in full else {}
    if full.get("rope_type", "default") != "default":
        older["rope_scaling"] = full
    if sliding is not None:
        older |= dict.fromkeys(("rope_local_base_freq", "local_rope_theta"), sliding["rope_theta"])
    if "full_attention" in kinds and "sliding_attention" in kinds:
        older["sliding_window_pattern"] = kinds.index("full_attention") + 1
    return {name: value for name, value in older.items() if name not in config}


def choose_pad(renderer: Renderer, rows: Sequence[TokenRow]) -> str:
    """The token to pad with.

    Transformers' classifiers read the last token that is not this one, so it is one that none of these rows ends in, if
    the tokenizer has such a one.

    Raises: ValueError if the tokenizer names no token at all.
    """
    tokenizer: Any = renderer.tokenizer
    named = pad_candidates(renderer)
    if not named:
        raise ValueError(
            f"this tokenizer has none of the tokens {', '.join(NAMED)}, so there is nothing to pad with; give it a "
            "pad_token in tokenizer_config.json"
        )
    unused = (token for token in named if not ends_in(rows, tokenizer.convert_tokens_to_ids(token)))
    return next(unused, named[0])


def pad_candidates(renderer: Renderer) -> list[str]:
    """The tokens that the tokenizer has a name for and that may pad, the best first."""
    found = [getattr(renderer.tokenizer, f"{name}_token") for name in NAMED]
    return [str(token) for token in found if token is not None]


def write_tokenizer(directory: Path, renderer: Renderer, pad: str, *, max_length: int, overlong: str) -> int:
    """Write the tokenizer with a chat template that writes all there is: BOS, conversation, suffix, closing token.

    The tokenizer itself then adds nothing. So ids are the renderer's both ways that they are made elsewhere, from
    messages at once and from the template's text, and neither has a second BOS.

    Returns: the padding token's id.
    """
    tokenizer: Any = copy.deepcopy(renderer.tokenizer)
    tokenizer.pad_token = pad
    tokenizer.chat_template = whole_template(renderer)
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer.model_max_length = max_length
    tokenizer.truncation_side = "right" if overlong == "right" else "left"
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = read_json(path)
    written = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    # A class of the model's own may put its special tokens around a text again when it is loaded, as BERT's does.
    # transformers 4 has token types for it unless told otherwise, and a decoder's class refuses them.
    names = ["input_ids", "attention_mask"]
    write_json(path, {**written, "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names})
    return int(tokenizer.pad_token_id)


def check_tokenizer(renderer: Renderer, conversations: Sequence[tuple[str, str]], pad: str) -> None:
    """Raise ValueError if the tokenizer that is written gives conversations other ids than the renderer.

    As when a template has no BOS and the tokenizer marks where a text begins: the written one finds a BOS there.

    Args:
        renderer: what they are trained by.
        conversations: (prompt as JSON messages, response).
        pad: the padding token.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), renderer, pad, max_length=2**20, overlong="left")
        written: Any = AutoTokenizer.from_pretrained(folder)
    for row, (prompt, response) in zip(renderer.encode(conversations), conversations, strict=True):
        messages, ours = [*json.loads(prompt), {"role": "assistant", "content": response}], row.ids.tolist()
        again = written(written.apply_chat_template(messages, tokenize=False))["input_ids"]
        for ids in (written.apply_chat_template(messages, return_dict=True)["input_ids"], again):
            if ids != ours:
                raise ValueError(
                    f"with template {renderer.name!r}, a tokenizer written for transformers gives other tokens than "
                    f"are trained on: {_parting(written, ours, ids)}; use a template that writes the BOS itself, or "
                    "another"
                )


def _parting(tokenizer: Any, ours: list[int], theirs: list[int]) -> str:  # noqa: ANN401 - a tokenizer of transformers
    """Where two rows of tokens part, in words."""
    same = next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(map(len, (ours, theirs)))
    )
    shown = [tokenizer.convert_ids_to_tokens(ids[max(0, same - 1) : same + 3]) for ids in (theirs, ours)]
    return f"{shown[0]}, not {shown[1]}, at token {same}"


def ends_in(rows: Sequence[TokenRow], token_id: int) -> bool:
    """Whether a row's last token is this one."""
    return any(row.ids[-1] == token_id for row in rows)


def whole_template(renderer: Renderer) -> str:
    """The renderer's template with what the renderer, and not the template, puts around a conversation."""
    tokenizer, body = renderer.tokenizer, renderer.template.removesuffix("\n")
    opening, closing = "", ""
    if renderer.bos == "cls":
        opening, closing = str(tokenizer.cls_token), str(tokenizer.sep_token)
    elif renderer.bos == "one" and not _writes_bos(renderer):
        opening = str(tokenizer.bos_token)
    before = f"{{{{ {_literal(opening)} }}}}" if opening else ""
    tail = renderer.suffix + closing
    after = f"{{% if not add_generation_prompt %}}{{{{ {_literal(tail)} }}}}{{% endif %}}" if tail else ""
    return before + body + after


def _literal(text: str) -> str:
    """A text as Jinja reads it. Not escaped to ASCII: JSON writes what is beyond 16 bits as two halves of a letter."""
    return json.dumps(text, ensure_ascii=False)


def _writes_bos(renderer: Renderer) -> bool:
    return renderer.text([{"role": "user", "content": "a"}], "b").startswith(str(renderer.tokenizer.bos_token))


def _compact(tensor: Tensor) -> Tensor:
    short = tensor.to(torch.bfloat16)
    return short if torch.equal(short.to(tensor.dtype), tensor) else tensor.clone()
