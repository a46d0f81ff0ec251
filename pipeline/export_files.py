"""What an exported directory holds: configuration, weights and tokenizer, as transformers writes them.

Plain: the backbone under a one-row linear layer, in the sequence-classification class that transformers itself has for
it. Custom: the backbone, and the head in `pipeline.exported.modeling_reward_head`, which is copied along.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from cache.files import read_json, write_json
from cache.spec import COUNTS, SCALARS, EmbeddingSpec, feature_name
from heads.saving import HeadTree
from pipeline.backbone import Backbone
from pipeline.exported.modeling_reward_head import OF_RESPONSE, RewardHeadConfig, RewardHeadModel, tensor_key
from pipeline.features import stored
from pipeline.render import Renderer, TokenRow

AUTO = "AutoModelForSequenceClassification"
CODE = "modeling_reward_head.py"
REGRESSION = {"num_labels": 1, "problem_type": "regression"}
MADE_UP = ("a", "Why?\n", "two\n\nparagraphs ")  # prompts that end in ways in which tokenizers differ


def refuse_features(names: Sequence[str]) -> None:
    """Raise ValueError if a class that sees the tokens of one conversation cannot have one of these features."""
    for name in names:
        why = "comes from the LM head, which a sequence classifier has not" if name in SCALARS else None
        why = "is relative to the prompt's other responses" if name != stored(name) else why
        if why:
            raise ValueError(f"feature {name} {why}; score from Python (pipeline.Scorer), or fit without it")


def describe_features(names: Sequence[str], spec: EmbeddingSpec, backbone: Backbone) -> list[dict[str, Any]]:
    """The features as `RewardHeadConfig` has them."""
    places = {feature_name(layer, pool): (layer, pool) for layer in spec.layers for pool in spec.pool}
    described: list[dict[str, Any]] = []
    for name in names:
        if name in COUNTS:
            described.append({"count": name})
            continue
        layer, pool = places[name]
        unit = False
        if pool == "sentence":
            assert backbone.sentence is not None, "sentence pooling without a sentence encoder"
            pool, unit = backbone.sentence.tokens, backbone.sentence.normalized
        rms = spec.stored_dtype == "float16" and layer != backbone.layer_count
        described.append({"layer": layer, "pool": pool, "norm": "rms" if rms else "unit" if unit else None})
    return described


def plain_class(backbone: Backbone, features: Sequence[Mapping[str, Any]], after: int) -> type[Any] | None:
    """Transformers' own class whose `score` layer reads this feature, None if there is none.

    Such a class takes the final state of the last token that is no padding.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    wanted = {"layer": backbone.layer_count, "pool": "suffix" if after else "last", "norm": None}
    config: Any = backbone.model.config
    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    kind: type[Any] | None = classes.get(type(config), None)
    if kind is None or list(features) != [wanted]:
        return None
    score = getattr(_without_weights(kind, config), "score", None)
    shape = (score.in_features, getattr(score, "bias", None)) if isinstance(score, nn.Linear) else None
    return kind if shape == (config.hidden_size, None) else None


def write_plain(directory: Path, kind: type[Any], backbone: Backbone, weight: NDArray[Any], pad: int) -> None:
    """Write the backbone and one row of weights as transformers' own class.

    Args:
        directory: where to.
        kind: from `plain_class`.
        backbone: whose weights to write.
        weight: on the raw features; shape (d,).
        pad: the padding token's id.
    """
    model = _without_weights(kind, backbone.model.config)
    prefix = model.base_model_prefix
    weights = {f"{prefix}.{name}": _compact(tensor) for name, tensor in backbone.model.state_dict().items()}
    weights["score.weight"] = torch.from_numpy(weight)[None].clone()
    _save(model, directory, weights, pad, dtype="float32")  # in bfloat16 the sum over channels has three digits


def write_custom(
    directory: Path,
    backbone: Backbone,
    tree: HeadTree,
    pad: int,
    *,
    features: Sequence[Mapping[str, Any]],
    after: int,
    marker: Sequence[int],
    score: str,
    rewards: Sequence[str],
    attributes: Sequence[str],
) -> None:
    """Write the backbone and the head as our own class, and its code beside them; arguments as `RewardHeadConfig`'s."""
    config: Any = RewardHeadConfig(
        backbone_config=copy.deepcopy(backbone.model.config),
        features=features,
        head=tree.to_json(),
        score=score,
        reward_names=rewards,
        attribute_names=attributes,
        after=after,
        marker=marker,
    )
    kinds: list[tuple[Any, str]] = [(RewardHeadConfig, "AutoConfig"), (RewardHeadModel, AUTO)]
    for kind, name in kinds:
        kind.register_for_auto_class(name)
    model = _without_weights(RewardHeadModel, config)
    weights = {f"backbone.{name}": _compact(tensor) for name, tensor in backbone.model.state_dict().items()}
    weights |= {f"head.{name}": tensor for name, tensor in head_weights(tree).items()}
    _save(model, directory, weights, pad, dtype=backbone.dtype)


def write_tokenizer(directory: Path, renderer: Renderer, *, max_length: int, overlong: str) -> int:
    """Write the tokenizer with a chat template that writes all there is: BOS, conversation, suffix, closing token.

    The tokenizer itself then adds nothing. So ids are the renderer's both ways that they are made elsewhere, from
    messages at once and from the template's text, and neither has a second BOS.

    Returns: the padding token's id; where there is none, EOS becomes it.
    """
    tokenizer: Any = copy.deepcopy(renderer.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
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
    write_json(path, {**written, "tokenizer_class": "PreTrainedTokenizerFast"})
    return int(tokenizer.pad_token_id)


def whole_template(renderer: Renderer) -> str:
    """The renderer's template with what the renderer, and not the template, puts around a conversation."""
    tokenizer, body = renderer.tokenizer, renderer.template.removesuffix("\n")
    opening, closing = "", ""
    if renderer.bos == "cls":
        opening, closing = str(tokenizer.cls_token), str(tokenizer.sep_token)
    elif renderer.bos == "one" and not _writes_bos(renderer):
        opening = str(tokenizer.bos_token)
    before = f"{{{{ {json.dumps(opening)} }}}}" if opening else ""
    tail = renderer.suffix + closing
    after = f"{{% if not add_generation_prompt %}}{{{{ {json.dumps(tail)} }}}}{{% endif %}}" if tail else ""
    return before + body + after


def head_weights(tree: HeadTree, prefix: str = "") -> dict[str, Tensor]:
    """The head's tensors by their names in `SavedHead`."""
    own = {f"{prefix}values.{tensor_key(name)}": tensor.float() for name, tensor in tree.saved.tensors.items()}
    for name, member in tree.members.items():
        own |= head_weights(member, f"{prefix}members.{name}.")
    return own


def find_marker(renderer: Renderer, features: Sequence[Mapping[str, Any]], rows: Sequence[TokenRow]) -> list[int]:
    """The token ids that stand before every response; [] if no feature needs to know where it begins, or none do."""
    if not any(feature.get("count", feature.get("pool")) in OF_RESPONSE for feature in features):
        return []
    prompts = [json.dumps([{"role": "user", "content": content}]) for content in MADE_UP]
    known = [*rows, *renderer.encode([(prompt, word) for prompt in prompts for word in ("yes", "No, 1.")])]
    backwards = [row.ids[: row.response_start].tolist()[::-1] for row in known]
    common = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*backwards, strict=False))
    return [tokens[0] for tokens in common][::-1]


def _writes_bos(renderer: Renderer) -> bool:
    return renderer.text([{"role": "user", "content": "a"}], "b").startswith(str(renderer.tokenizer.bos_token))


def _without_weights(kind: type[Any], config: Any) -> Any:  # noqa: ANN401 - a model of transformers
    """The class's parts and their names, without memory for them."""
    config = copy.deepcopy(config)
    for name, value in REGRESSION.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return kind(config)


def _compact(tensor: Tensor) -> Tensor:
    """A copy of the tensor, in bfloat16 where that loses nothing: most checkpoints are made of it."""
    tensor = tensor.detach().cpu()
    short = tensor.to(torch.bfloat16)
    return short if torch.equal(short.to(tensor.dtype), tensor) else tensor.clone()


def _save(model: Any, directory: Path, weights: Mapping[str, Tensor], pad: int, *, dtype: str) -> None:  # noqa: ANN401
    """Write config.json and safetensors; the configuration says what to load in, whatever the file holds."""
    missing = set(model.state_dict()) ^ set(weights)
    assert not missing, f"weights do not fit the class: {sorted(missing)[:3]}"
    model.config.pad_token_id = pad
    model.save_pretrained(directory, state_dict=dict(weights))
    config = read_json(directory / "config.json")
    for part in (config, config.get("backbone_config", {})):
        part.pop("_name_or_path", None)  # a folder of this machine
    write_json(directory / "config.json", {**config, "dtype": dtype, "pad_token_id": pad, **_labels(config)})


def _labels(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
