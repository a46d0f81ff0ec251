"""The exported class's own scoring of every head against the head's: it has no line of `heads` to lean on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_heads_every_head import QUICK, TEST, TRAIN, VALID

from heads.folding import folded_weight
from heads.protocol import Uncertain
from heads.registry import HEADS, load_head, make_head
from heads.saving import HeadTree, read_tree
from pipeline.export_files import head_weights
from pipeline.exported.reward_heads import HEADS as EXPORTED
from pipeline.exported.reward_heads import SavedHead

OTHERS: list[tuple[str, dict[str, object]]] = [
    ("linear", {"scaling": "rms"}),
    ("linear", {"scaling": "whiten"}),
    ("bt", {"scaling": "none"}),
    ("bayes", {"variant": "lower", "kappa": 2.0}),
    ("bt", {"hidden": (8, 4), "activation": "gelu"}),
    ("clf", {"scaling": "whiten"}),
    ("odin", {"hidden": ()}),
    ("ridge", {"scaling": "rms"}),
    ("smorm", {"trunk": "none", "variant": "M"}),
    ("smorm", {"activation": "identity", "private_l2": 0.1, "variant": "L"}),
    ("baseline-sm", {"regression": "ridge"}),
    ("gated", {"verbosity": None}),
    ("gated", {"verbosity": "brief"}),
    ("ensemble", {"aggregate": "lcb", "penalty": 0.3}),
    ("ensemble", {"base": "smorm", "base.epochs": 5}),
    ("ensemble", {"base": "bayes", "share": 0.7}),
]
CASES = [(name, {}) for name in HEADS if name != "lgbm"] + OTHERS


def fitted(name: str, options: dict[str, object], directory: Path) -> Any:  # noqa: ANN401
    quick = {} if options.get("base", "bt") != "bt" and name == "ensemble" else QUICK.get(name, {})
    head = make_head(name, {**quick, **options})
    head.fit(TRAIN, VALID, seed=0)
    head.save(directory)
    return load_head(directory)


def exported(tree: HeadTree) -> SavedHead:
    module = SavedHead(tree.to_json())
    module.load_state_dict(head_weights(tree))
    return module


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda case: str(case)[:40])
def test_the_exported_head_scores_as_the_head(name: str, options: dict[str, object], tmp_path: Path) -> None:
    head = fitted(name, options, tmp_path)
    with torch.inference_mode():
        rewards, attributes = exported(read_tree(tmp_path))(torch.from_numpy(TEST.features))
    expected = head.scores(TEST.features)
    assert next(iter(rewards)) == next(iter(expected))
    for reward, values in expected.items():
        np.testing.assert_allclose(rewards[reward].numpy(), values, rtol=1e-4, atol=1e-4 * values.std())
    predicted = head.predict_attributes(TEST.features)
    assert list(attributes) == list(predicted)
    for attribute, values in predicted.items():
        np.testing.assert_allclose(attributes[attribute].numpy(), values, rtol=1e-4, atol=1e-4 * values.std())
    if isinstance(head, Uncertain):
        np.testing.assert_allclose(rewards["sd"].numpy(), head.sd(TEST.features), rtol=1e-3)


def test_every_head_is_exported_or_refused(tmp_path: Path) -> None:
    assert set(HEADS) - set(EXPORTED) == {"lgbm"}
    fitted("lgbm", {}, tmp_path)
    with pytest.raises(ValueError, match=r"head lgbm is no tensors .*pipeline\.Scorer"):
        read_tree(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "score"),
    [
        ("linear", {}, "reward"),
        ("linear", {"scaling": "whiten"}, "reward"),
        ("smorm", {"trunk": "none"}, "F"),
        ("smorm", {"activation": "identity", "private_l2": 0.1, "epochs": 5}, "F"),
    ],
)
def test_a_linear_reward_is_one_weight_and_a_constant(
    name: str, options: dict[str, object], score: str, tmp_path: Path
) -> None:
    head = fitted(name, options, tmp_path)
    folded = folded_weight(head, score)
    assert folded is not None
    weight, constant = folded
    reward = head.scores(TEST.features)[score]
    found = TEST.features.astype(np.float64) @ weight + constant
    np.testing.assert_allclose(found, reward, atol=1e-3 * reward.std())


@pytest.mark.parametrize(
    ("name", "options", "score"),
    [
        ("linear", {"scaling": "rms"}, "reward"),
        ("bayes", {}, "reward"),
        ("bt", {"hidden": ()}, "reward"),
        ("ridge", {}, "L"),  # two attributes
        ("smorm", {"trunk": "none"}, "L"),
        ("smorm", {}, "F"),
    ],
)
def test_what_a_weight_would_lose_is_not_folded(
    name: str, options: dict[str, object], score: str, tmp_path: Path
) -> None:
    assert folded_weight(fitted(name, options, tmp_path), score) is None


def test_a_ridge_of_one_attribute_is_a_weight() -> None:
    from dataclasses import replace

    one = replace(TRAIN, attributes=TRAIN.attributes[:, :1], attribute_names=("helpful",))
    head = make_head("ridge")
    head.fit(one, seed=0)
    folded = folded_weight(head, "L")
    assert folded is not None
    reward = head.score(TEST.features)
    np.testing.assert_allclose(TEST.features @ folded[0] + folded[1], reward, atol=1e-2 * reward.std())


@pytest.mark.parametrize("kind", ["RobertaConfig", "MPNetConfig", "BertConfig", "GPT2Config"])
def test_padding_on_either_side_changes_no_score(kind: str) -> None:
    """Backbones count positions from 0, from the padding token's id, or by the mask."""
    import transformers

    from pipeline.exported.modeling_reward_head import RewardHeadConfig, RewardHeadModel

    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    backbone = getattr(transformers, kind)(vocab_size=50, max_position_embeddings=64, **layers)
    shapes = dict.fromkeys(("weight", "scaler.mean", "scaler.scale"), (16,))
    head = {"name": "linear", "options": {"scaling": "standard"}, "fitted": {}, "shapes": shapes, "members": {}}
    torch.manual_seed(0)
    described = [{"layer": 2, "pool": "last", "norm": None}]
    model = RewardHeadModel(RewardHeadConfig(backbone, described, head, reward_names=["reward"])).eval()
    for value in model.head.parameters():
        torch.nn.init.uniform_(value, 0.5, 2.0)
    ids = torch.randint(5, 50, (1, 9))
    pad, none = torch.full((1, 4), 1), torch.zeros(1, 4, dtype=torch.long)
    some = torch.ones_like(ids)
    with torch.inference_mode():
        alone = model(ids, some).logits
        right = model(torch.cat([ids, pad], 1), torch.cat([some, none], 1)).logits
        left = model(torch.cat([pad, ids], 1), torch.cat([none, some], 1)).logits
    torch.testing.assert_close(right, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, right, atol=0, rtol=0)
