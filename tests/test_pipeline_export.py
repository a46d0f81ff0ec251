"""Exports of a tiny backbone: what transformers makes of the directory, and what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, write_jsonl

from cache.records import Dataset, DatasetBuilder
from pipeline.export import Exported, ExportOptions, export
from pipeline.fit import FitOptions, fit
from pipeline.score import Scorer

QUICK = {"bt": (("epochs", "3"),), "smorm": (("epochs", "3"), ("trunk", "none")), "gated": (("epochs", "3"),)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    """Pairs and attributes of prompts of several turns, embedded once for this module."""
    folder = tmp_path_factory.mktemp("export")
    pairs, attributes = [], []
    for number in range(40):
        prompt = [
            {"role": "user", "content": f"why {WORDS[number % 20]} {number}"},
            {"role": "assistant", "content": WORDS[number % 7]},
            {"role": "user", "content": f"how {WORDS[number * 7 % 20]}\n"},
        ]
        good, bad = f"{WORDS[number % 13]} yes because", f"{WORDS[number % 11]} no"
        pairs.append({"prompt": prompt, "chosen": [assistant(good)], "rejected": [assistant(bad)]})
        attributes += [{"prompt": prompt, "response": text, "yes": float("yes" in text)} for text in (good, bad)]
    from pipeline.embed import EmbedOptions, embed

    sources = [write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in (("pairs", pairs), ("attrs", attributes))]
    embed(
        EmbedOptions(
            sources=tuple(map(str, sources)),
            store=folder / "store",
            backbone=str(tiny_backbone),
            template="plain",
            layers=("2", "last"),
            pool=("last", "mean", "prompt"),
            device="cpu",
        )
    )
    yield folder / "store"


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def fitted(store: Path, head: str, features: str, **options: Any) -> str:  # noqa: ANN401
    needs = {"linear": "p", "bt": "p", "lgbm": "p", "ensemble": "p", "ridge": "a"}.get(head, "pa")
    more = {name: dataset for name, dataset in (("pairs", "pairs"), ("attributes", "attrs")) if name[0] in needs}
    asked = FitOptions((head,), store, features=(features,), options=QUICK.get(head, ()), control=False, **more)
    return fit(replace(asked, **options))[0].run_id


def exported(store: Path, run: str, directory: Path, **options: Any) -> Exported:  # noqa: ANN401
    return export(ExportOptions(run, directory, store, rows=16, **options))


def load(directory: Path, *, custom: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=custom)
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=custom), model.eval()


CONVERSATIONS = [
    ("why is red", "yes because of blue"),
    ("how\n", "no"),
    ([{"role": "user", "content": "one"}, assistant("two"), {"role": "user", "content": "three"}], "mat, mat; mat."),
]


def messages() -> list[list[dict[str, str]]]:
    return [
        [*([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), assistant(response)]
        for prompt, response in CONVERSATIONS
    ]


@pytest.mark.parametrize(
    ("head", "features", "plain"),
    [
        ("linear", "L4.last", True),
        ("smorm", "L4.last", True),  # its trunk is none
        ("ridge", "L4.last", True),  # of one attribute
        ("linear", "L2.mean", False),
        ("bt", "L4.last", False),
        ("gated", "L2.last+L4.mean+L4.prompt", False),
        ("linear", "L4.mean+response_tokens+tokens", False),
    ],
)
def test_an_export_scores_new_conversations_as_the_scorer_does(
    store: Path, tmp_path: Path, head: str, features: str, plain: bool
) -> None:
    run = fitted(store, head, features)
    done = exported(store, run, tmp_path / "out")
    assert done.plain is plain
    assert (tmp_path / "out" / "modeling_reward_head.py").exists() is not plain
    tokenizer, model = load(tmp_path / "out", custom=not plain)
    assert type(model).__name__ == ("Gemma3TextForSequenceClassification" if plain else "RewardHeadModel")
    assert (model.config.num_labels, model.config.problem_type, model.config.pad_token_id) == (1, "regression", 0)
    expected = Scorer(run, store=store).score(*zip(*CONVERSATIONS, strict=True))
    found = {}
    for side in ("left", "right"):
        inputs = tokenizer.apply_chat_template(
            messages(), padding=True, return_tensors="pt", return_dict=True, tokenizer_kwargs={"padding_side": side}
        )
        assert inputs["attention_mask"][:, 0 if side == "right" else -1].all()
        with torch.inference_mode():
            found[side] = model(**inputs).logits[:, 0].numpy() + done.constant
    np.testing.assert_allclose(found["left"], found["right"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["right"], expected, atol=5e-3 * done.agreement.spread)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert str(store.parent.parent) not in (tmp_path / "out" / "config.json").read_text()  # nor the backbone's folder


def test_a_text_classification_pipeline_ranks_as_the_scorer(store: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    run = fitted(store, "linear", "L4.last")
    exported(store, run, tmp_path / "out")
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    texts = [classify.tokenizer.apply_chat_template(one, tokenize=False) for one in messages()]
    scores = [row["score"] for row in classify(texts, function_to_apply="none")]
    expected = Scorer(run, store=store).score(*zip(*CONVERSATIONS, strict=True))
    assert np.argsort(scores).tolist() == np.argsort(expected).tolist()


@pytest.mark.parametrize("template", ["plain", "gemma", "chatml", "llama3"])
def test_the_exported_tokenizer_gives_the_renderers_tokens(template: str, tmp_path: Path, tiny_tokenizer: Any) -> None:  # noqa: ANN401
    from transformers import AutoTokenizer

    from pipeline.classifier import choose_pad, write_tokenizer
    from pipeline.render import Renderer

    renderer = Renderer.of(tiny_tokenizer, template)
    rows = renderer.encode([(json.dumps(one[:-1]), one[-1]["content"]) for one in messages()])
    write_tokenizer(tmp_path, renderer, choose_pad(renderer, rows), max_length=64, overlong="left")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row, conversation in zip(rows, messages(), strict=True):
        ids = row.ids.tolist()
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"] == ids
        assert tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False))["input_ids"] == ids
    assert tiny_tokenizer("a")["input_ids"][0] == tiny_tokenizer.bos_token_id  # the renderer's own is as it was


def test_the_class_finds_where_a_response_begins(exported_mean: Path) -> None:
    tokenizer, model = load(exported_mean, custom=True)
    inputs = tokenizer.apply_chat_template(messages(), padding=True, return_tensors="pt", return_dict=True)
    prompts = [
        tokenizer.apply_chat_template(one[:-1], add_generation_prompt=True, return_dict=True) for one in messages()
    ]
    starts = model.response_starts(inputs["input_ids"], inputs["attention_mask"])
    assert starts.tolist() == [len(prompt["input_ids"]) for prompt in prompts]
    given = model(**inputs, response_start=starts).logits
    assert torch.equal(given, model(**inputs).logits)
    assert not torch.allclose(given, model(**inputs, response_start=starts + 1).logits, rtol=1e-3)
    with pytest.raises(ValueError, match="row 0 does not hold what the chat template writes"):
        model(torch.full((1, 9), 20))


def test_the_code_needs_nothing_of_this_package() -> None:
    from pipeline.exported import modeling_reward_head, rescore

    for module in (modeling_reward_head, rescore):
        assert module.__file__ is not None
        text = Path(module.__file__).read_text()
        imports = [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))]
        assert not {"pipeline", "heads", "cache", "bench", "numpy", "rewardheads"} & set(imports)


def test_without_trust_a_custom_export_does_not_load(store: Path, tmp_path: Path) -> None:
    """A model type of its own: the backbone's own class would take the weights and draw a head at random."""
    from transformers import AutoModelForSequenceClassification

    exported(store, fitted(store, "bt", "L4.last"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_another_of_the_heads_rewards_may_become_logits(store: Path, tmp_path: Path) -> None:
    run = fitted(store, "smorm", "L4.last")
    done = exported(store, run, tmp_path / "out", score="M")
    assert (done.score, done.plain) == ("M", False)
    with pytest.raises(ValueError, match="has no reward 'Q'; it has F, L, M"):
        exported(store, run, tmp_path / "other", score="Q")
    assert not (tmp_path / "other").exists()


def test_the_custom_form_of_a_plain_head_says_all_that_the_head_says(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fitted(store, "smorm", "L4.last")
    assert exported(store, run, tmp_path / "plain").plain
    assert "a plain class gives F alone; --form custom has L, M, yes too" in capsys.readouterr().err
    done = exported(store, run, tmp_path / "custom", form="custom")
    assert (done.score, done.plain, done.constant) == ("F", False, 0)
    _, model = load(tmp_path / "custom", custom=True)
    assert (model.config.reward_names, model.config.attribute_names) == (["F", "L", "M"], ["yes"])
    with pytest.raises(ValueError, match=r"reward M of head smorm on L4\.last is no weight"):
        exported(store, run, tmp_path / "other", form="plain", score="M")


def test_a_deviation_is_no_reward(store: Path, tmp_path: Path) -> None:
    run = fitted(store, "bayes", "L4.last", attributes=None)
    with pytest.raises(ValueError, match="has no reward 'sd'; it has reward, lower"):
        exported(store, run, tmp_path / "out", score="sd")


def test_what_killed_exports_left_is_cleared_and_nothing_else(store: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    others = {".out.2", ".out.notes", f".out.{os.getppid()}.exporting", f".other.{dead.pid}.exporting"}
    for name in {*others, f".out.{dead.pid}.exporting"}:
        (tmp_path / name).mkdir()
    exported(store, fitted(store, "linear", "L4.last"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "out"}


def test_a_name_taken_meanwhile_is_left_as_it_is(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def card(*_: object) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        return "card"

    monkeypatch.setattr("pipeline.export.model_card", card)
    with pytest.raises(ValueError, match="came to be while this export was made"):
        exported(store, fitted(store, "linear", "L4.last"), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.fixture(scope="module")
def exported_mean(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`linear` on a mean, which looks for the responses' starts: exported once for the tests that only load it."""
    directory = tmp_path_factory.mktemp("exported") / "out"
    exported(store, fitted(store, "linear", "L2.mean"), directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_head_stays_in_float32_when_the_model_is_made_shorter(exported_mean: Path, dtype: torch.dtype) -> None:
    tokenizer, model = load(exported_mean, custom=True)
    kept = {name: value.clone() for name, value in model.head.state_dict().items()}
    inputs = tokenizer.apply_chat_template(messages(), padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        full = model(**inputs).logits
        short = model.to(dtype)(**inputs).logits
    assert model.backbone.embed_tokens.weight.dtype == dtype
    assert all(torch.equal(value, kept[name]) for name, value in model.head.state_dict().items())
    assert short.dtype == torch.float32
    np.testing.assert_allclose(short.numpy(), full.numpy(), atol=0.3 * full.std().item())


def test_a_single_row_needs_no_mask_and_several_with_padding_do(exported_mean: Path) -> None:
    tokenizer, model = load(exported_mean, custom=True)
    model.config.pad_token_id = tokenizer.bos_token_id  # as where a tokenizer has no padding token of its own
    inputs = tokenizer.apply_chat_template(messages()[0], return_tensors="pt", return_dict=True)
    assert torch.equal(model(**inputs).logits, model(inputs["input_ids"]).logits)
    both = tokenizer.apply_chat_template(messages(), padding=True, return_tensors="pt", return_dict=True)
    with pytest.raises(ValueError, match="need attention_mask"):
        model(both["input_ids"])


def test_responses_that_end_in_the_padding_token_are_scored_by_a_plain_class(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from pipeline.embed import EmbedOptions, embed

    pad = AutoTokenizer.from_pretrained(tiny_backbone).pad_token
    rows = [{"prompt": f"why {n}", "chosen": f"{WORDS[n % 13]} yes", "rejected": "no"} for n in range(40)]
    rows.append({"prompt": "how", "chosen": f"yes{pad}", "rejected": "no"})
    source = str(write_jsonl(tmp_path / "pairs.jsonl", rows))
    embed(EmbedOptions((source,), tmp_path / "store", str(tiny_backbone), template="plain", device="cpu"))
    run = fit(FitOptions(("linear",), tmp_path / "store", pairs="pairs", control=False))[0].run_id
    done = export(ExportOptions(run, tmp_path / "out", tmp_path / "store", rows=8))
    assert done.plain
    tokenizer, model = load(tmp_path / "out", custom=False)
    conversation = [{"role": "user", "content": "how"}, assistant(f"yes{pad}")]
    inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        found = model(**inputs).logits[0, 0].item() + done.constant
    (expected,) = Scorer(run, store=tmp_path / "store").score(["how"], [f"yes{pad}"])
    assert found == pytest.approx(expected, abs=5e-3 * done.agreement.spread)


def test_an_export_that_cannot_find_the_responses_is_not_kept(tiny_backbone: Path, tmp_path: Path) -> None:
    """Transcripts: what the template writes before a response stands in the responses."""
    from pipeline.embed import EmbedOptions, embed

    said = "yes\n\nUser: why\n\nAssistant:"
    rows = [
        {"prompt": f"why {n}", "chosen": f"{said} {WORDS[n % 13]}", "rejected": f"{said} {WORDS[n % 11]} no"}
        for n in range(40)
    ]
    source = str(write_jsonl(tmp_path / "pairs.jsonl", rows))
    pool = ("last", "mean")
    embed(EmbedOptions((source,), tmp_path / "store", str(tiny_backbone), template="plain", pool=pool, device="cpu"))
    asked = FitOptions(("linear",), tmp_path / "store", pairs="pairs", features=("L4.mean",), control=False)
    run = fit(asked)[0].run_id
    with pytest.raises(ValueError, match=r"finds 0.0% of the responses' starts by itself .* nothing was kept"):
        export(ExportOptions(run, tmp_path / "out", tmp_path / "store", rows=8))
    assert not (tmp_path / "out").exists()
    asked = replace(asked, features=("L4.last",))
    assert export(ExportOptions(fit(asked)[0].run_id, tmp_path / "out", tmp_path / "store", rows=8)).plain


@pytest.mark.parametrize("head", ["linear", "bt"])
def test_the_cards_own_lines_run_and_the_directory_can_be_saved_again(
    head: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fitted(store, head, "L4.last")
    done = exported(store, run, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    said: dict[str, Any] = {}
    exec(code, said)
    (expected,) = Scorer(run, store=store).score(["What is 2 + 2?"], ["Four."])
    assert said["reward"].item() + done.constant == pytest.approx(expected, abs=5e-3 * done.agreement.spread)
    said["model"].save_pretrained(tmp_path / "again")
    said["tokenizer"].save_pretrained(tmp_path / "again")
    _, again = load(tmp_path / "again", custom=not done.plain)
    torch.testing.assert_close(again(**said["inputs"]).logits[0, 0], said["reward"])


def test_an_ensemble_takes_its_deviation_along(store: Path, tmp_path: Path) -> None:
    run = fitted(store, "ensemble", "L4.last", options=(("base.epochs", "3"),))
    exported(store, run, tmp_path / "out")
    tokenizer, model = load(tmp_path / "out", custom=True)
    inputs = tokenizer.apply_chat_template(messages(), padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        found = dict(zip(model.config.reward_names, model(**inputs).rewards.T, strict=True))
    assert list(found) == ["mean", "min", "lcb", "sd"]
    scorer = Scorer(run, store=store)
    scored = scorer.score_dataset(conversations_dataset())
    assert scored.sd is not None
    np.testing.assert_allclose(found["sd"].numpy(), scored.sd, rtol=0.02)


def conversations_dataset() -> Dataset:
    builder = DatasetBuilder("new")
    for one in messages():
        builder.add_response(one[:-1], one[-1]["content"])  # type: ignore[arg-type]
    return Dataset("new", builder.tables(), {})


def test_the_card_says_what_the_model_is(store: Path, tmp_path: Path) -> None:
    run = fitted(store, "linear", "L4.last")
    done = exported(store, run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "license: other",
        "pairs: pairs",
        f"{done.constant:.6g} added",
        "This run was not evaluated",
        "L4.last",
    ):
        assert said in card
    assert f"| {done.agreement.fresh_difference:.2e} |" in card
    from pipeline.evaluate import EvaluateOptions, evaluate

    evaluate(EvaluateOptions((run,), ("pairs",), store))
    exported(store, run, tmp_path / "again")
    assert "| pairs | reward | pair_accuracy |" in (tmp_path / "again" / "README.md").read_text()


def test_an_export_that_does_not_score_as_the_head_is_not_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heads.folding import folded_weight

    def wrong(head: Any, score: str) -> Any:  # noqa: ANN401 - a head, a weight
        folded = folded_weight(head, score)
        assert folded is not None
        folded[0][3] *= 1.5
        return folded

    monkeypatch.setattr("pipeline.export.folded_weight", wrong)
    with pytest.raises(ValueError, match=r"does not score as the head does.*nothing was kept"):
        exported(store, fitted(store, "linear", "L4.last"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_sentence(run_cli: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    trees = fitted(store, "lgbm", "L4.last")
    refused = run_cli("export", trees, tmp_path / "out", "--store", store)
    assert refused.exit_code == 1
    assert "Error: head lgbm is no tensors" in refused.stderr
    with pytest.raises(ValueError, match=r"feature centred\(L4.last\) is relative to the prompt's other responses"):
        exported(store, fitted(store, "linear", "centred(L4.last)"), tmp_path / "out")
    (tmp_path / "there").mkdir()
    refused = run_cli("export", fitted(store, "linear", "L4.last"), tmp_path / "there", "--store", store)
    assert refused.exit_code == 1
    assert "exists already" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_was_proven(run_cli: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    run = fitted(store, "linear", "L4.last")
    done = run_cli("export", run, tmp_path / "out", "--rows", 8, "--json", "--store", store)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["plain"], row["rows"], row["score"]) == (True, 8, "reward")
    assert row["fresh_spearman"] > 0.9999
    assert "largest difference" in done.stderr
