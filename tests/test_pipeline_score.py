"""Scoring new conversations: as the cache would, without running again what it has."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import WORDS, Read, assistant, user, write_jsonl

import pipeline
from cache.records import Dataset, DatasetBuilder
from cache.store import Store
from pipeline.fit import FitOptions, fit
from pipeline.rerun import Rerun
from pipeline.score import Scorer
from pipeline.scored import pair_table

PAIRS = [
    {
        "prompt": f"why {WORDS[number % 20]} {number}",
        "chosen": f"{WORDS[number % 13]} yes",
        "rejected": f"{WORDS[number % 11]} no",
    }
    for number in range(60)
]
SHOWN = ["row", "prompt", "response", "reward", "F", "L", "M", "loud", "yes"]
NEW = [
    {"prompt": row["prompt"] + " how", "response": row[side]} for row in PAIRS[:9] for side in ("chosen", "rejected")
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("score")
    attributes = [
        {"prompt": row["prompt"], "response": row[side], "yes": float(side == "chosen"), "loud": 0.1 * (number % 3)}
        for number, row in enumerate(PAIRS)
        for side in ("chosen", "rejected")
    ]
    embed(folder, {"pairs": PAIRS, "attrs": attributes}, folder / "store", tiny_backbone)
    yield folder / "store"


def embed(folder: Path, datasets: dict[str, Any], store: Path, backbone: Path, **options: Any) -> None:  # noqa: ANN401
    from pipeline.embed import EmbedOptions, embed

    sources = [str(write_jsonl(folder / f"{name}.jsonl", rows)) for name, rows in datasets.items()]
    spec: dict[str, Any] = {"layers": ("2", "last"), "pool": ("last", "mean", "prompt"), **options}
    embed(EmbedOptions(tuple(sources), store, str(backbone), template="plain", device="cpu", **spec))


def fitted(store: Path, head: str, features: str = "L2.mean+L4.last", **options: Any) -> str:  # noqa: ANN401
    given = {"pairs": "pairs", **({"attributes": "attrs"} if head in ("smorm", "gated") else {})}
    asked: dict[str, Any] = {**given, "control": False, **options}
    return fit(FitOptions((head,), store, features=(features,), **asked))[0].run_id


@pytest.mark.parametrize("features", ["L4.last", "L2.mean+L4.prompt", "L2.last+tokens+response_tokens"])
def test_a_new_text_scores_as_it_would_from_the_cache(
    features: str, store: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    """Against the long way: embed the new texts under the same spec into a copy of the store, score what it holds."""
    import shutil

    run = fitted(store, "linear", features)
    found = Scorer(run, store=store).score([row["prompt"] for row in NEW], [row["response"] for row in NEW])
    shutil.copytree(store, tmp_path / "store")
    embed(tmp_path, {"new": NEW}, tmp_path / "store", tiny_backbone)
    copied = Scorer(run, store=tmp_path / "store")
    scored = copied.score_dataset(Store(tmp_path / "store").dataset("new"))
    assert scored.cached.all()
    assert copied._loaded is None
    np.testing.assert_allclose(found, scored.reward, atol=1e-3 * scored.reward.std())


def test_features_relative_to_the_prompt_are_made_of_the_responses_that_are_scored_together(store: Path) -> None:
    run = fitted(store, "linear", "centred(L4.mean)")
    scorer, plain = Scorer(run, store=store), Scorer(fitted(store, "linear", "L4.mean"), store=store)
    prompt, said = "why not", ["yes", "no", "red"]
    together = scorer.score([prompt, prompt, prompt, "how"], [*said, "alone"])
    builder = DatasetBuilder("new")
    for response in said:
        builder.add_response([{"role": "user", "content": prompt}], response)
    raw = plain.score_dataset(Dataset("new", builder.tables(), {})).features
    expected = scorer.head.score(np.vstack([raw - raw.mean(axis=0), np.zeros_like(raw[:1])]))
    np.testing.assert_allclose(together, expected, atol=1e-3 * expected.std())
    known = Store(store).dataset("pairs")
    both = scorer.score_dataset(known)
    assert np.abs(both.features[0] + both.features[1]).max() < 1e-4  # a prompt's two responses, about their mean


def test_texts_of_the_store_are_not_run_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fitted(store, "linear")
    seen: list[int] = []
    plain = Rerun.run
    monkeypatch.setattr(Rerun, "run", lambda self, rows, **more: seen.append(len(rows)) or plain(self, rows, **more))
    scorer = Scorer(run, store=store)
    known, new = (PAIRS[0]["prompt"], PAIRS[0]["chosen"]), ("why not", "no")
    scorer.score([known[0]], [known[1]])
    assert seen == []
    rewards = scorer.score([known[0], new[0], new[0], known[0]], [known[1], new[1], new[1], known[1]])
    assert seen == [1]  # and a text that stands twice is run once
    assert rewards[0] == rewards[3]
    assert rewards[1] == rewards[2]


def test_the_stored_ids_are_read_once_for_all_calls(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer calls at every step."""
    import cache.embeddings

    scorer = Scorer(fitted(store, "linear"), store=store)
    known = (PAIRS[0]["prompt"], PAIRS[0]["chosen"]), (PAIRS[3]["prompt"], PAIRS[3]["rejected"])
    first = scorer.score([known[0][0]], [known[0][1]])
    monkeypatch.setattr(cache.embeddings, "read_id_column", lambda path: pytest.fail("the ids are read again"))
    monkeypatch.setattr(cache.embeddings, "read_ids", lambda path: pytest.fail("the ids are read again"))
    again = scorer.score([prompt for prompt, _ in known], [response for _, response in known])
    assert again[0] == first[0] != again[1]


def test_messages_and_text_are_the_same_prompt(store: Path) -> None:
    scorer = Scorer(fitted(store, "linear"), store=store)
    by_text, by_messages = scorer.score(["why not", [user("why not")]], ["no", "no"])
    assert by_text == by_messages
    with pytest.raises(ValueError, match="1 prompts for 2 responses"):
        scorer.score(["why"], ["yes", "no"])


def score(run_cli: Callable[..., Any], store: Path, *arguments: object, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    result = run_cli("score", *arguments, "--json", "--store", store, **more)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_responses_come_in_the_files_order_with_all_that_the_head_says(
    run_cli: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "why", "response": ""}, NEW[0], *NEW])
    run = fitted(store, "smorm")
    rows = score(run_cli, store, run, file)
    assert [row["response"] for row in rows] == [row["response"] for row in NEW]
    assert list(rows[0]) == [*SHOWN, "cached", "response_id", "prompt_id"]
    assert [row["row"] for row in rows] == [1, *range(3, 2 + len(NEW))]  # the first that has it, refused ones counted
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in NEW]
    assert all(row["reward"] == row["F"] for row in rows)
    assert not any(row["cached"] for row in rows)
    told = run_cli("score", run, file, "--store", store)
    assert "refused 1: response is empty" in told.stderr


def test_standard_input_is_json_or_json_lines(store: Path) -> None:
    from click.testing import CliRunner

    from pipeline.cli import main

    run = fitted(store, "linear")
    rows = [
        {"messages": [user("why"), assistant("no"), user("how"), assistant("yes")]},
        {"messages": [user("a"), assistant("b")]},
    ]
    inputs = ["\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows[0]) + "\n"]
    tables = []
    for text in inputs:
        result = CliRunner().invoke(main, ["score", run, "-", "--json", "--store", str(store)], input=text)
        assert result.exit_code == 0, result.output
        tables.append(json.loads(result.stdout))
    assert tables[0] == tables[1]
    assert tables[2] == tables[0][:1]
    empty = CliRunner().invoke(main, ["score", run, "-", "--store", str(store)], input="")
    assert empty.exit_code == 1
    assert "standard input is empty" in empty.stderr and "/tmp" not in empty.stderr
    for text, said in [("prompt,response\nwhy,no\n", "neither JSON nor JSON lines"), ("[{", "not valid JSON")]:
        refused = CliRunner().invoke(main, ["score", run, "-", "--store", str(store)], input=text)
        assert refused.exit_code == 1
        assert f"standard input is {said}" in refused.stderr and "name it" not in refused.stderr
    expected = Scorer(run, store=store).score([rows[0]["messages"][:3], "a"], ["yes", "b"])
    np.testing.assert_allclose([row["reward"] for row in tables[0]], expected, rtol=1e-6)


def test_pairs_get_a_calibrated_probability_once_the_run_is_judged(
    run_cli: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    run = fitted(store, "linear", split_seed=3)
    file = write_jsonl(tmp_path / "new.jsonl", [{**PAIRS[5], "prompt": "how so"}])
    (before,) = score(run_cli, store, run, file)
    assert "p_win" not in before
    from pipeline.evaluate import EvaluateOptions, evaluate

    metrics = evaluate(EvaluateOptions((run,), ("pairs",), store)).to_pylist()
    (temperature,) = [row["value"] for row in metrics if (row["metric"], row["scorer"]) == ("temperature", "reward")]
    (row,) = score(run_cli, store, run, file)
    assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-6)
    assert row["p_win"] == pytest.approx(1 / (1 + math.exp(-row["margin"] / temperature)), rel=1e-6)
    assert len(score(run_cli, store, run, file, "--each", "response")) == 2
    scorer = Scorer(run, store=store)
    sides = [PAIRS[5]["chosen"], PAIRS[5]["rejected"]]
    found = scorer.win(["how so", "how so", "why"], [*sides, "yes"], [*sides[::-1], "yes"])
    assert found.tolist() == pytest.approx([row["p_win"], 1 - row["p_win"], 0.5], rel=1e-5)
    assert scorer.win([], [], []).shape == (0,)
    with pytest.raises(ValueError, match="1 prompts for 2 rejected"):
        scorer.win(["why"], ["yes"], ["a", "b"])
    with pytest.raises(ValueError, match=r"was not judged on pairs, .* `pipeline evaluate`"):
        Scorer(fitted(store, "linear", split_seed=4), store=store).win(["why"], ["yes"], ["no"])


def test_all_that_a_head_says_comes_in_the_order_of_the_lists(store: Path) -> None:
    scorer = Scorer(fitted(store, "smorm"), store=store)
    known = PAIRS[0]["prompt"], PAIRS[0]["chosen"]
    found = scorer.score_all(["why not", known[0], "why not"], ["no", known[1], "no"])
    assert list(found.rewards) == ["F", "L", "M"] == scorer.reward_names()
    assert list(found.attributes) == ["loud", "yes"]
    assert found.cached.tolist() == [False, True, False]
    (alone,) = scorer.score_all([known[0]], [known[1]]).rewards["M"]
    assert found.rewards["M"][1] == alone and found.rewards["M"][0] == found.rewards["M"][2] != alone
    assert found.attributes["yes"].shape == (3,) and found.features.shape == (3, 64)
    assert scorer.score([], []).shape == (0,)


def test_uncertain_heads_say_how_sure_they_are(run_cli: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "new.jsonl", [{**PAIRS[5], "prompt": "how so"}])
    run = fitted(store, "bayes")
    (pair,) = score(run_cli, store, run, file)
    chosen, rejected = score(run_cli, store, run, file, "--each", "response")
    assert pair["chosen_sd"] == chosen["sd"] > 0
    assert (pair["chosen"], pair["rejected"]) == (PAIRS[5]["chosen"], PAIRS[5]["rejected"])
    from pipeline.evaluate import EvaluateOptions, evaluate

    evaluate(EvaluateOptions((run,), ("pairs",), store))
    (pair,) = score(run_cli, store, run, file)
    assert [name for name in pair if name.startswith("p_win")] == ["p_win_reward", "p_win_lower"]  # none by the sd
    assert 0 < pair["margin_sd"] <= chosen["sd"] + rejected["sd"]


def test_the_ensembles_deviation_is_that_of_its_members(store: Path) -> None:
    scorer = Scorer(fitted(store, "ensemble", options=(("base.epochs", "3"),)), store=store)
    scored = scorer.score_dataset(Store(store).dataset("pairs"))
    members = scorer.head.member_rewards(scored.features)  # type: ignore[attr-defined]
    assert scored.sd is not None
    np.testing.assert_allclose(scored.sd, members.std(axis=0), rtol=1e-5)
    margins = members[:, 0] - members[:, 1]
    (margin_sd,) = scorer.head.margin_sd(scored.features[:1], scored.features[1:2])  # type: ignore[attr-defined]
    assert margin_sd == pytest.approx(margins.std(), rel=1e-4)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "json"])
def test_the_table_goes_into_a_file(ending: str, run_cli: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    run = fitted(store, "linear")
    result = run_cli("score", run, "pairs", "-o", tmp_path / f"out.{ending}", "--store", store)
    assert result.exit_code == 0, result.output
    text = (tmp_path / f"out.{ending}").read_bytes()
    lines = {"jsonl": 60, "csv": 61}
    if ending == "parquet":
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 60
    elif ending == "json":
        assert len(json.loads(text)) == 60
    else:
        assert len(text.splitlines()) == lines[ending]


def test_a_response_that_is_dropped_as_over_long_has_no_reward(tmp_path: Path, tiny_backbone: Path) -> None:
    embed(tmp_path, {"pairs": PAIRS}, tmp_path / "s", tiny_backbone, max_length=40, overlong="drop")
    scorer = Scorer(fitted(tmp_path / "s", "linear"), store=tmp_path / "s")
    long, short = scorer.score(["why", "why"], ["yes " * 60, "yes"])
    assert math.isnan(long)
    assert math.isfinite(short)
    dataset = DatasetBuilder("new")
    sides = [dataset.add_response([user("why")], response) for response in ("yes " * 60, "yes")]
    dataset.add_pair(*sides)
    sure = Scorer(fitted(tmp_path / "s", "bayes"), store=tmp_path / "s")
    new = Dataset("new", dataset.tables(), {})
    scored = sure.score_dataset(new)
    margins = sure.margins(scored, np.array([[0, 1]]))
    (pair,) = pair_table(new, scored, margins, [0]).to_pylist()
    assert pair["margin"] is None and pair["margin_sd"] is None and pair["rejected_sd"] > 0
    reward = pipeline.reward_function(fitted(tmp_path / "s", "linear"), store=tmp_path / "s")
    assert reward(prompts=["why"], completions=["yes " * 60]) == [None]


def test_a_backbone_that_is_not_what_it_was_is_refused(
    store: Path,
    tmp_path: Path,
    tiny_backbone: Path,
    tiny_tokenizer: Any,  # noqa: ANN401
) -> None:
    import shutil

    from transformers import AutoModel

    shutil.copytree(tiny_backbone, tmp_path / "other")
    model = AutoModel.from_pretrained(tiny_backbone)
    model.norm.weight.data += 0.5
    model.save_pretrained(tmp_path / "other")
    scorer = Scorer(fitted(store, "linear"), store=store, backbone=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"weights of .* was made with sha256"):
        scorer.score(["why"], ["so"])
    scorer = Scorer(fitted(store, "linear"), store=store, template="chatml")
    with pytest.raises(ValueError, match="template_sha256"):
        scorer.score(["why"], ["so"])


def of_the_hub(store: Path, run: str, copy: Path) -> None:
    """A copy of a store, as if the backbone had come from the hub: its weights known by a commit, not by a hash."""
    import shutil

    from cache.spec import EmbeddingSpec

    shutil.copytree(store, copy)
    (was,) = (copy / "embeddings").iterdir()
    content = {**json.loads((was / "spec.json").read_text()), "weights": "revision:" + 40 * "0"}
    now = EmbeddingSpec.from_json(content).fingerprint
    (was / "spec.json").write_text(json.dumps(content))
    was.rename(was.with_name(now))
    saved = copy / "runs" / run / "run.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "embedding": now}))


@pytest.mark.parametrize("features", ["L4.last", "L2.mean+tokens"])
def test_a_directory_in_the_place_of_a_hub_backbone_is_tried_on_cached_rows(
    features: str, store: Path, tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from transformers import AutoModel

    from pipeline.export import ExportOptions, export

    run = fitted(store, "linear", features)
    of_the_hub(store, run, tmp_path / "store")
    same = Scorer(run, store=tmp_path / "store", backbone=str(tiny_backbone)).score(["why"], ["so"])
    assert same.tolist() == Scorer(run, store=store).score(["why"], ["so"]).tolist()
    shutil.copytree(tiny_backbone, tmp_path / "other")
    model = AutoModel.from_pretrained(tiny_backbone)
    model.layers[0].post_feedforward_layernorm.weight.data += 0.03
    model.save_pretrained(tmp_path / "other")
    changed = Scorer(run, store=tmp_path / "store", backbone=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"other is not the backbone that embedding .* another L"):
        changed.score(["why"], ["so"])
    with pytest.raises(ValueError, match="is not the backbone"):  # and not only the first time
        changed.score(["why"], ["so"])
    assert "not known" not in capsys.readouterr().err
    asked = ExportOptions(run, tmp_path / "out", tmp_path / "store", backbone=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"other is not the backbone that embedding .* another L"):
        export(asked)
    for table in (tmp_path / "store" / "data").iterdir():
        shutil.rmtree(table)
    changed.score(["why"], ["so"])
    assert "is not known: no dataset of the store has its texts" in capsys.readouterr().err


def test_the_documents_example_runs(store: Path) -> None:
    import re

    run = fitted(store, "linear", split_seed=3)
    from pipeline.evaluate import EvaluateOptions, evaluate

    evaluate(EvaluateOptions((run,), ("pairs",), store))
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(import pipeline\n\nscorer.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("bt-a050e269-s0", run).replace('"store"', repr(str(store))), names)
    assert names["rewards"].tolist() == names["everything"].reward.tolist()
    assert names["p_win"].shape == (1,) and (names["p_win"][0] > 0.5) == (names["rewards"][0] > names["rewards"][1])


def test_a_group_of_several_runs_is_not_one_run(run_cli: Callable[..., Any], store: Path) -> None:
    runs = fit(FitOptions(("bt",), store, pairs="pairs", seeds=2, options=(("epochs", "2"),), control=True))
    with pytest.raises(ValueError, match=rf"has 2 runs \({runs[0].run_id}, {runs[1].run_id}\)"):
        Scorer(runs[0].group, store=store)
    assert Scorer(runs[2].run_id, store=store).run["control"] == "shuffled labels"
    with pytest.raises(ValueError, match="was not judged on pairs of 'attrs'"):
        Scorer(runs[0].run_id, store=store, calibrate="attrs")
    refused = run_cli("score", runs[0].run_id, "attrs", "--each", "pair", "--store", store)
    assert refused.exit_code == 1
    assert "attrs has no pairs" in refused.stderr


def test_conversations_without_annotations_are_read(read: Read) -> None:
    dataset = read([{"prompt": "why", "response": "so", "generator": "g"}, {"prompt": [user("a")], "response": "b"}])
    assert dataset.info["format"] == "responses"
    assert dataset["responses"]["generator"].to_pylist() == ["g", None]
    dataset = read([{"messages": [user("a"), assistant("b")]}, {"messages": [user("a")]}, {"messages": "a"}])
    assert dataset.info["format"] == "messages"
    assert [refused["reason"] for refused in dataset.info["refused"]] == [
        "messages does not end with an assistant reply",
        "messages holds text where a list of messages is expected",
    ]


def test_importing_the_package_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, pipeline; assert 'torch' not in sys.modules; pipeline.Scorer; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        pipeline.nonesuch  # noqa: B018
