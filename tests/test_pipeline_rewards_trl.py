"""A run as the reward of a real TRL trainer, for a few steps of a tiny policy. Needs the extra `trl`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, write_jsonl

import pipeline

pytest.importorskip("trl", reason="the trl extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # trl's own

STEPS, BATCH = 3, 4
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "num_generations": 2,
    "max_completion_length": 6,
    "max_steps": STEPS,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}
PROMPTS = [f"why {word}" for word in WORDS[:8]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[tuple[str, Path]]:
    from pipeline.embed import EmbedOptions, embed
    from pipeline.fit import FitOptions, fit

    folder = tmp_path_factory.mktemp("trl")
    pairs = [
        {"prompt": f"why {WORDS[n % 20]} {n}", "chosen": f"{WORDS[n % 13]} yes", "rejected": f"{WORDS[n % 11]} no"}
        for n in range(60)
    ]
    source = str(write_jsonl(folder / "pairs.jsonl", pairs))
    embed(EmbedOptions((source,), folder / "store", str(tiny_backbone), template="plain", device="cpu"))
    (summary,) = fit(FitOptions(("bt",), folder / "store", pairs="pairs", control=False))
    yield summary.run_id, folder / "store"


@pytest.fixture
def policy(tiny_backbone: Path, tiny_tokenizer: Any, tmp_path: Path) -> tuple[Any, Any]:  # noqa: ANN401
    import copy

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_backbone))
    model.save_pretrained(tmp_path / "policy")  # RLOO loads its reference model from there
    return AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), tokenizer


@pytest.mark.parametrize("trainer_name", ["GRPOTrainer", "RLOOTrainer"])
@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_trainer_takes_steps_by_our_rewards(
    kind: str, trainer_name: str, run: tuple[str, Path], policy: tuple[Any, Any], tmp_path: Path
) -> None:
    import trl
    from datasets import Dataset

    run_id, store = run
    plain = pipeline.reward_function(run_id, store=store)
    calls: list[tuple[Any, Any, list[Any]]] = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[Any]:  # noqa: ANN401 - as TRL calls it
        values = plain(prompts=prompts, completions=completions, **columns)
        calls.append((prompts, completions, values))
        return values

    prompts = PROMPTS if kind == "text" else [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    options = getattr(trl, trainer_name.replace("Trainer", "Config"))(**OPTIONS, output_dir=str(tmp_path))
    model, tokenizer = policy
    before = model.get_input_embeddings().weight.detach().clone()
    dataset = Dataset.from_dict({"prompt": prompts, "answer": list(range(len(prompts)))})
    trainer = getattr(trl, trainer_name)(
        model=model, args=options, train_dataset=dataset, processing_class=tokenizer, reward_funcs=reward
    )
    trainer.train()
    assert len(calls) == STEPS
    assert not (model.get_input_embeddings().weight == before).all()
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == STEPS
    for (asked, said, values), mean in zip(calls, logged, strict=True):
        assert len(asked) == len(said) == len(values) == BATCH
        assert isinstance(said[0], str) is (kind == "text")
        assert sum(values) / BATCH == pytest.approx(mean, abs=1e-4)
        again = pipeline.Scorer(run_id, store=store).score(
            [ask if isinstance(ask, str) else list(ask) for ask in asked],
            [say if isinstance(say, str) else say[-1]["content"] for say in said],
        )
        assert again.tolist() == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_an_exported_directory_is_a_reward_model_for_trl(
    form: Any,  # noqa: ANN401
    run: tuple[str, Path],
    policy: tuple[Any, Any],
    tmp_path: Path,
) -> None:
    import trl
    from datasets import Dataset

    from pipeline.export import ExportOptions, export
    from pipeline.fit import FitOptions, fit

    (linear,) = fit(FitOptions(("linear",), run[1], pairs="pairs", control=False))
    done = export(ExportOptions(linear.run_id, tmp_path / "reward", run[1], rows=8, form=form))
    ours = pipeline.reward_function(linear.run_id, store=run[1])
    seen: list[list[float | None]] = []

    def beside(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:  # noqa: ANN401 - as TRL calls it
        seen.append(ours(prompts=prompts, completions=completions))
        return seen[-1]

    model, tokenizer = policy
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]

    def trainer_of(**options: Any) -> Any:  # noqa: ANN401
        return trl.GRPOTrainer(
            model=model,
            args=trl.GRPOConfig(**OPTIONS, **options, output_dir=str(tmp_path / "run")),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            reward_funcs=[str(tmp_path / "reward"), beside],
        )

    if form == "custom":
        with pytest.raises(ValueError, match="custom code"):  # as docs/export.md says
            trainer_of()
    trainer = trainer_of(trust_remote_code=form == "custom")
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/beside/mean" in row]
    assert len(logged) == len(seen) == STEPS
    for row in logged:
        assert row["rewards/reward/mean"] + done.constant == pytest.approx(row["rewards/beside/mean"], abs=1e-3)
