"""What an exported model reads and how it is written where transformers has no class for it.

Plain: the backbone under a one-row linear layer (`pipeline.classifier`). Custom: the backbone, and the head in
`pipeline.exported.modeling_reward_head`, which is copied along.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import Tensor, nn

from cache.spec import COUNTS, SCALARS, EmbeddingSpec, feature_name
from heads.saving import HeadTree
from pipeline.backbone import Backbone
from pipeline.classifier import classifier_class, compact_weights, save_model, without_weights
from pipeline.exported.modeling_reward_head import OF_RESPONSE, RewardHeadConfig, RewardHeadModel
from pipeline.exported.reward_heads import tensor_key
from pipeline.features import stored
from pipeline.render import Renderer, TokenRow

AUTO = "AutoModelForSequenceClassification"
CODE = "modeling_reward_head.py"
MADE_UP = ("a", "Why?\n", "two\n\nparagraphs ")  # prompts that end in ways in which tokenizers differ


class Described(TypedDict, total=False):
    """What an exported class reads and gives, by the names and meanings that `RewardHeadConfig` has for them."""

    features: Sequence[Mapping[str, Any]]
    after: int
    marker: Sequence[int]
    score: str
    reward_names: Sequence[str]
    attribute_names: Sequence[str]


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
    wanted = {"layer": backbone.layer_count, "pool": "suffix" if after else "last", "norm": None}
    return classifier_class(backbone.model.config) if list(features) == [wanted] else None


def write_custom(
    directory: Path, base: nn.Module, tree: HeadTree, pad: int, *, dtype: str, **described: Unpack[Described]
) -> None:
    """Write the backbone and the head as our own class, and its code beside them.

    Args:
        directory: where to.
        base: the backbone's model.
        tree: the head.
        pad: the padding token's id.
        dtype: what the backbone loads in.
        described: what is read and what comes out.
    """
    config: Any = RewardHeadConfig(backbone_config=copy.deepcopy(base.config), head=tree.to_json(), **described)
    kinds: list[tuple[Any, str]] = [(RewardHeadConfig, "AutoConfig"), (RewardHeadModel, AUTO)]
    for kind, name in kinds:
        kind.register_for_auto_class(name)
    weights = {f"backbone.{name}": tensor for name, tensor in compact_weights(base).items()}
    weights |= {f"head.{name}": tensor for name, tensor in head_weights(tree).items()}
    save_model(without_weights(RewardHeadModel, config), directory, weights, pad, dtype=dtype)


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
