"""The trained model: where it reads, what its text term is, that adapters multiply out, that parts change nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads.objectives import bt_loss, odin_length_loss, odin_orthogonality_loss
from pipeline.backbone import Backbone, load_backbone
from pipeline.checkpoints import gather_state
from pipeline.finetune_data import Batch, Batches, gather_texts, share_out
from pipeline.finetune_loop import Loop, Settings
from pipeline.finetune_loss import Objective
from pipeline.finetune_model import Inputs, LoRA, RewardModel, build_model, merged, weight_groups
from pipeline.finetune_processes import shard_layers_in_float32
from pipeline.readers import read_source
from pipeline.render import Renderer, TokenRow

ROWS = [TokenRow(np.arange(3, 3 + length, dtype=np.int32), 2) for length in (9, 4, 6)]
CPU = torch.device("cpu")
BT = Objective("bt")
OBJECTIVES = {
    "bt": Objective("bt", centring=0.1),
    "grm": Objective("grm", alpha=0.3, beta=0.1),
    "odin": Objective("odin", length_weight=1.0, orthogonality_weight=0.5),
    "smorm": Objective("smorm", regression_weight=0.5),
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, tiny_tokenizer: Any) -> Path:  # noqa: ANN401
    """The tiny backbone with an LM head that is its embedding, as in Gemma."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    directory = tmp_path_factory.mktemp("backbone") / "causal"
    torch.manual_seed(1)
    Gemma3ForCausalLM(Gemma3TextConfig.from_pretrained(tiny_backbone)).save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def load(tiny_backbone: Path, language_model: Path) -> Callable[..., Backbone]:
    def load(*, lm_head: bool = False) -> Backbone:
        where = language_model if lm_head else tiny_backbone
        return load_backbone(str(where), revision=None, device="cpu", dtype="float32", lm_head=lm_head)

    return load


def build(backbone: Backbone, objective: Objective, **more: Any) -> RewardModel:  # noqa: ANN401
    """A model whose heads do not start at 0."""
    options: dict[str, Any] = {"attributes": 0, "hidden": 0, "lora": None, "recompute": True, "seed": 0}
    model = build_model(backbone, objective, **{**options, **more})
    generator = torch.Generator().manual_seed(5)
    for weight in model.heads.parameters():
        weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def test_states_are_read_at_the_last_token_whatever_pads(load: Callable[..., Backbone]) -> None:
    """The padding token is here the first row's own last token."""
    model = build(load(), BT).eval()
    together = model(*Inputs.of(ROWS, pad=int(ROWS[0].ids[-1]), device=CPU).arguments())[0]
    apart = torch.cat([model(*Inputs.of([row], pad=0, device=CPU).arguments())[0] for row in ROWS])
    assert torch.allclose(together, apart, atol=1e-5)
    assert together.shape == (3, 1)
    assert len(set(together[:, 0].tolist())) == 3


def test_the_text_term_is_the_language_model_s_own_likelihood(
    load: Callable[..., Backbone], language_model: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = build(load(lm_head=True), OBJECTIVES["grm"], hidden=8).eval()
    text = model(*Inputs.of(ROWS, pad=0, device=CPU, texts=[0, 2]).arguments())[1]
    causal = AutoModelForCausalLM.from_pretrained(language_model).eval()
    for number in (0, 2):
        ids = torch.from_numpy(ROWS[number].ids).long()
        said = causal(input_ids=ids[None]).logits[0].log_softmax(-1)
        expected = sum(float(said[at - 1, ids[at]].detach()) for at in range(2, len(ids)))
        assert float(text[number].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(text[1].detach()) == 0


def test_the_lm_head_stays_as_it_was_while_the_embedding_is_trained(load: Callable[..., Backbone]) -> None:
    backbone = load(lm_head=True)
    embedding = backbone.model.get_input_embeddings().weight  # type: ignore[no-untyped-call]
    assert backbone.lm_head is not None and backbone.lm_head.weight.data_ptr() == embedding.data_ptr()
    model = build(backbone, OBJECTIVES["grm"], hidden=8)
    assert model.lm_head is not None
    before = model.lm_head.weight.clone()
    text = model(*Inputs.of(ROWS, pad=0, device=CPU, texts=[0]).arguments())[1]
    text.sum().backward()
    assert embedding.grad is not None and embedding.grad.any()
    with torch.no_grad():
        embedding -= embedding.grad
    assert torch.equal(model.lm_head.weight, before)
    assert not torch.equal(embedding, before)


def test_merged_adapters_give_the_adapters_scores(load: Callable[..., Backbone]) -> None:
    pytest.importorskip("peft")
    model = build(load(), BT, lora=LoRA(rank=4, alpha=8)).eval()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora_" in name or name.startswith("heads.") for name in trained)
    plain = build(load(), BT).eval()(*Inputs.of(ROWS, pad=0, device=CPU).arguments())[0]
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    adapted = model(*Inputs.of(ROWS, pad=0, device=CPU).arguments())[0]
    assert not torch.allclose(adapted, plain, atol=1e-2)
    base = merged(model)
    assert not any("lora" in name for name, _ in base.named_parameters())
    again = RewardModel(base, model.heads, None)(*Inputs.of(ROWS, pad=0, device=CPU).arguments())[0]
    assert torch.allclose(again, adapted, atol=1e-4)


def make_loop(backbone: Backbone, source: Path, objective: Objective, *, token_budget: int) -> Loop:
    from accelerate import Accelerator

    dataset = read_source(str(source))
    renderer = Renderer.of(backbone.tokenizer, "plain")
    texts = gather_texts({"pairs": dataset, "attributes": None}, renderer, max_length=64, overlong="left", use=())
    attributes = 2 if objective.regression_weight else 0
    targets = np.random.default_rng(0).normal(size=(len(texts.rows), attributes)).astype(np.float32)
    model = build(backbone, objective, attributes=attributes, hidden=8 if objective.alpha else 0)
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    ready, optimizer = accelerator.prepare(model, optimizer)
    settings = Settings(10, 1e-3, 0.1, 0.0, 1.0, 5, token_budget, 0)
    nothing = np.empty(0, dtype=np.int64)
    batches = Batches(np.arange(20), nothing, 7, 0)
    return Loop(accelerator, ready, optimizer, objective, texts, targets, batches, Batch(nothing, nothing), settings, 0)


def gradients(loop: Loop, batch: Batch) -> tuple[dict[str, float], torch.Tensor]:
    """The losses of a batch, and its gradient in one vector."""
    (mine,) = share_out(
        batch, loop.texts.data.view.pairs, loop.lengths, processes=1, token_budget=loop.settings.token_budget
    )
    losses = loop._gradients(batch, mine, 0)
    return losses, torch.cat([w.grad.flatten() for w in loop.model.parameters() if w.grad is not None])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole(
    name: str, load: Callable[..., Backbone], preferences: Path
) -> None:
    objective = OBJECTIVES[name]
    annotated = np.array([0, 3, 50, 51, 52], dtype=np.int64)
    batch = Batch(np.array([0, 1, 9, 11, 18]), annotated if objective.regression_weight else annotated[:0])
    made = [
        make_loop(load(lm_head=bool(objective.alpha)), preferences, objective, token_budget=budget)
        for budget in (10**6, 50)
    ]
    (whole, expected), (parts, found) = (gradients(loop, batch) for loop in made)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert float(expected.norm()) > 0.01


def test_odin_on_a_batch_is_the_sum_of_its_three_losses(load: Callable[..., Backbone], preferences: Path) -> None:
    loop = make_loop(load(), preferences, OBJECTIVES["odin"], token_budget=60)
    batch = Batch(np.array([0, 5, 9]), np.empty(0, dtype=np.int64))
    losses, _ = gradients(loop, batch)
    pairs, lengths = loop.texts.data.view.pairs[batch.pairs], loop.texts.data.view.lengths
    assert lengths is not None
    rows = [loop.texts.rows[row] for row in pairs.flatten()]
    with torch.no_grad():
        scores = loop.model(*Inputs.of(rows, 0, CPU).arguments())[0]
    weight = loop.model.heads.rows.detach()
    margin = scores.sum(1).view(-1, 2)
    length = odin_length_loss(scores[:, 0], scores[:, 1], torch.from_numpy(lengths[pairs.flatten()]))
    assert losses["preference"] == pytest.approx(float(bt_loss(margin[:, 0] - margin[:, 1])), rel=1e-4)
    assert losses["length"] == pytest.approx(float(length), rel=1e-4)
    assert losses["orthogonality"] == pytest.approx(
        0.5 * float(odin_orthogonality_loss(weight[0], weight[1])), rel=1e-4
    )
    assert losses["loss"] == pytest.approx(losses["preference"] + losses["length"] + losses["orthogonality"])


@pytest.mark.parametrize("name", ["bt", "odin"])
def test_the_first_gradient_is_of_the_size_of_the_loss(
    name: str, load: Callable[..., Backbone], preferences: Path
) -> None:
    """ODIN's correlation and cosine of rows of zeros have gradients of 1 / eps."""
    loop = make_loop(load(), preferences, OBJECTIVES[name], token_budget=10**6)
    options: dict[str, Any] = {"attributes": 0, "hidden": 0, "lora": None, "recompute": False, "seed": 0}
    loop.model = build_model(load(), OBJECTIVES[name], **options)
    losses, found = gradients(loop, Batch(np.arange(8), np.empty(0, dtype=np.int64)))
    assert 1e-3 < float(found.norm()) < 1e3
    if name == "bt":
        assert losses["preference"] == pytest.approx(np.log(2), abs=1e-6)


def test_each_head_scores_as_the_model_that_it_was_trained_in() -> None:
    from heads.attributes import AttributeScale
    from pipeline.finetune_model import RewardHeads

    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    scale = AttributeScale(("a", "b"), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    spread = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    shapes = {"bt": (1, 0, 0), "smorm": (1, 0, 2), "grm": (1, 4, 0), "odin": (2, 0, 0)}
    for name, (rewards, hidden, attributes) in shapes.items():
        heads = RewardHeads(6, rewards=rewards, hidden=hidden, attributes=attributes)
        for weight in heads.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(weight.numel()))
        out = heads(states).detach()
        head = heads.as_head(OBJECTIVES[name], scale if attributes else None, spread)
        np.testing.assert_allclose(head.score(states.numpy()), out[:, 0], rtol=1e-5, atol=1e-6)
        if attributes:
            np.testing.assert_allclose(head.predict_attributes(states.numpy())["b"], out[:, 2] * 3 + 2, rtol=1e-5)
            np.testing.assert_allclose(head.scores(states.numpy())["L"], out[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
        if rewards == 2:
            np.testing.assert_allclose(head.scores(states.numpy())["both"], out.sum(1), rtol=1e-5, atol=1e-6)


def test_a_schedule_by_hand() -> None:
    settings = Settings(100, 8.0, 0.04, 0.0, 1.0, 5, 1, 0)
    assert [settings.lr_at(step) for step in (0, 1, 3, 4)] == [2.0, 4.0, 8.0, 8.0]
    assert settings.lr_at(52) == pytest.approx(4.0)  # half way down
    assert settings.lr_at(99) == pytest.approx(8.0 * 0.5 * (1 + np.cos(np.pi * 95 / 96)))


def test_only_matrices_decay(load: Callable[..., Backbone]) -> None:
    """With a gradient of 0 a step of AdamW is its decay."""
    model = build(load(), BT)
    names = {weight: name for name, weight in model.named_parameters()}
    groups = weight_groups(model, 0.5)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
        weight.data += 1.0
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    torch.optim.AdamW(groups, lr=0.1).step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {"base.layers.0.self_attn.q_proj.weight", "heads.reward.weight"} <= moved
    assert moved == {name for weight, name in names.items() if weight.ndim == 2}
    assert torch.allclose(model.heads.rows, 0.95 * before["heads.reward.weight"])
    assert "base.norm.weight" in before and "base.norm.weight" not in moved


@pytest.mark.filterwarnings("ignore")  # torch calls this FSDP the old one; accelerate's default it is
def test_a_sharded_model_takes_the_step_of_a_whole_one_in_bfloat16(
    load: Callable[..., Backbone], tmp_path: Path
) -> None:
    """Sharded over one process, as accelerate shards on a GPU: by its plugin, which wraps the decoder's layers."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import FullyShardedDataParallel

    def step(model: Any, trained: RewardModel) -> dict[str, torch.Tensor]:  # noqa: ANN401 - a module, wrapped or not
        optimizer = torch.optim.AdamW(weight_groups(trained, 0.1), lr=0.01)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(*Inputs.of(ROWS, 0, CPU).arguments())[0]
        assert scores.dtype == torch.float32
        bt_loss(scores[0, 0] - scores[1:, 0]).backward()
        optimizer.step()
        weights, state = gather_state(model, optimizer)
        return {**weights, **state}

    whole = build(load(), BT, recompute=False)
    expected = step(whole, whole)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)  # `--use_fsdp` alone says no more
    plugin.set_mixed_precision("bf16")
    shard_layers_in_float32(plugin)
    apart = build(load(), BT, recompute=False)
    plugin.set_auto_wrap_policy(apart)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        sharded = FullyShardedDataParallel(
            apart,
            auto_wrap_policy=plugin.auto_wrap_policy,
            mixed_precision=plugin.mixed_precision_policy,
            use_orig_params=True,
            device_id=CPU,
        )
        assert len(FullyShardedDataParallel.fsdp_modules(sharded)) == 1 + 4
        found = step(sharded, apart)
    finally:
        torch.distributed.destroy_process_group()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
