import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl

import pipeline.embed as stage
from cache.embeddings import Embeddings
from cache.store import Store
from pipeline import forward
from pipeline.embed import EmbedOptions, choose_part_rows, embed, parse_layers
from pipeline.windows import Pending, windows


def options(preferences: Path, backbone: Path, store: Path, **changes: Any) -> EmbedOptions:  # noqa: ANN401
    return EmbedOptions(
        **{
            "sources": (str(preferences),),
            "store": store,
            "backbone": str(backbone),
            "template": "plain",
            "layers": ("50%", "last"),
            "pool": ("last", "mean"),
            "device": "cpu",
            "part_rows": 32,
            **changes,
        }
    )


def only(store: Path) -> Embeddings:
    (fingerprint,) = Store(store).fingerprints()
    return Store(store).embeddings(fingerprint)


def matrices(embeddings: Embeddings) -> dict[str, np.ndarray]:
    return {name: np.vstack(embeddings.blocks(name)) for name in embeddings.spec.features}


def test_every_response_gets_its_vectors(preferences: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    summary = embed(options(preferences, tiny_backbone, tmp_path / "s"))
    embeddings = only(tmp_path / "s")
    ids = Store(tmp_path / "s").dataset("prefs")["responses"]["response_id"].to_pylist()
    assert sorted(embeddings.ids()) == sorted(ids)
    assert embeddings.spec.layers == (2, 4)
    assert {name: matrix.shape for name, matrix in matrices(embeddings).items()} == {
        name: (len(ids), 32) for name in ("L2.last", "L2.mean", "L4.last", "L4.mean")
    }
    assert summary.embedded == len(ids)
    assert summary.tokens == embeddings.scalar("tokens").sum()
    assert summary.computed < summary.tokens  # prompts were shared
    low, high = summary.probes["prefs"][1:]
    assert 0.5 < low <= high  # "yes" against "no" is easy


def test_a_second_run_has_nothing_to_do(preferences: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    first = embed(options(preferences, tiny_backbone, tmp_path / "s"))
    again = embed(options(preferences, tiny_backbone, tmp_path / "s"))
    assert (again.embedded, again.reused) == (0, first.embedded)
    by_name = embed(options(preferences, tiny_backbone, tmp_path / "s", sources=("prefs",)))
    assert (by_name.embedded, by_name.reused) == (0, first.embedded)


def test_a_text_in_two_datasets_is_run_once(preferences: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in preferences.read_text().splitlines()]
    pool = [
        {"prompt_id": row["prompt"], "prompt": row["prompt"], "response": row["chosen"], "gold_score": 1.0}
        for row in rows[:10]
    ]
    write_jsonl(tmp_path / "pool.jsonl", [*pool, {**pool[0], "response": "quite new", "gold_score": 0.0}])
    embed(options(preferences, tiny_backbone, tmp_path / "s"))
    summary = embed(options(tmp_path / "pool.jsonl", tiny_backbone, tmp_path / "s"))
    assert (summary.embedded, summary.reused) == (1, 10)


@pytest.mark.parametrize("share", [True, False])
def test_a_dry_run_counts_what_a_run_then_runs_and_writes_nothing(
    preferences: Path, tiny_backbone: Path, tmp_path: Path, share: bool
) -> None:
    asked = options(preferences, tiny_backbone, tmp_path / "s", share=share, max_length=20)
    counted = embed(replace(asked, dry_run=True))
    assert not (tmp_path / "s").exists()
    done = embed(asked)
    for name in ("fingerprint", "embedded", "reused", "cut", "dropped", "tokens", "computed"):
        assert getattr(counted, name) == getattr(done, name), name
    assert done.cut and done.computed != done.tokens
    assert embed(replace(asked, dry_run=True)).reused == done.embedded


def test_sharing_prompts_does_not_change_vectors(preferences: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    embed(options(preferences, tiny_backbone, tmp_path / "shared"))
    summary = embed(options(preferences, tiny_backbone, tmp_path / "plain", share=False))
    assert summary.computed >= summary.tokens
    first, second = only(tmp_path / "shared"), only(tmp_path / "plain")
    assert first.spec.differences(second.spec) == {"attention": ("shared-prefix", "sdpa")}
    ids = first.ids()
    for feature in first.spec.features:
        assert np.allclose(first.gather(ids, [feature]), second.gather(ids, [feature]), rtol=2e-3, atol=2e-3), feature


KILLED = """
import sys, time
import pipeline.embed as stage
append = stage.Embeddings.append
def slow(self, *arguments):
    part = append(self, *arguments)
    print(part.file, flush=True)
    time.sleep(0.5)
    return part
stage.Embeddings.append = slow
stage.embed(stage.EmbedOptions(sources=(sys.argv[1],), store=stage.Path(sys.argv[3]), backbone=sys.argv[2],
    template="plain", layers=("50%", "last"), pool=("last", "mean"), device="cpu", part_rows=32))
"""


def test_kill_nine_loses_nothing_finished_and_gives_the_same_bits(
    preferences: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        KILLED,
        str(preferences),
        str(tiny_backbone),
        str(tmp_path / "k"),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "part-00001.parquet":
            assert process.poll() is None
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    done = only(tmp_path / "k").rows
    resumed = embed(options(preferences, tiny_backbone, tmp_path / "k"))
    embed(options(preferences, tiny_backbone, tmp_path / "whole"))
    killed, whole = only(tmp_path / "k"), only(tmp_path / "whole")
    assert 0 < done < whole.rows
    assert resumed.embedded == whole.rows - done
    assert killed.ids() == whole.ids()
    expected = matrices(whole)
    assert all(np.array_equal(found, expected[name]) for name, found in matrices(killed).items())


@pytest.mark.parametrize(
    ("overlong", "embedded", "cut", "dropped"), [("left", 4, 2, 0), ("right", 2, 0, 2), ("drop", 2, 0, 2)]
)
def test_overlong_rows_are_counted(
    tiny_backbone: Path, tmp_path: Path, overlong: str, embedded: int, cut: int, dropped: int
) -> None:
    long = " ".join(["why"] * 200)
    rows = [{"prompt": "Hi", "chosen": "yes", "rejected": "no"}, {"prompt": long, "chosen": "yes", "rejected": "no"}]
    source = write_jsonl(tmp_path / "long.jsonl", rows)
    summary = embed(options(source, tiny_backbone, tmp_path / "s", max_length=100, overlong=overlong))
    assert (summary.embedded, summary.cut, summary.dropped) == (embedded, cut, dropped)
    again = embed(options(source, tiny_backbone, tmp_path / "s", max_length=100, overlong=overlong))
    assert again.embedded == 0  # what was dropped stays dropped
    embeddings = only(tmp_path / "s")
    assert embeddings.scalar("tokens").max() <= 100
    assert int((embeddings.scalar("cut_tokens") > 0).sum()) == cut


def test_overlong_error_stops_and_names_the_row(tiny_backbone: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "why " * 200, "chosen": "yes", "rejected": "no"}])
    with pytest.raises(ValueError, match=r"has \d+ tokens, more than --max-length 100; raise it, or choose"):
        embed(options(source, tiny_backbone, tmp_path / "s", max_length=100, overlong="error"))
    assert not (tmp_path / "s").exists()


def test_layers_are_numbers_per_cent_or_last() -> None:
    assert parse_layers(["last", "50%", "3", "9"], 18) == (3, 9, 18)
    assert parse_layers(["0", "33%", "66%", "100%"], 18) == (0, 6, 12, 18)
    for wrong in ("19", "-1", "101%", "x", "1.5"):
        with pytest.raises(ValueError, match=f"layer '{wrong}' is not one of 0 to 18"):
            parse_layers([wrong], 18)


def test_a_large_dataset_has_a_thousand_parts_at_most_and_a_resumed_run_the_same_ones() -> None:
    assert choose_part_rows(128_000, "cpu") == 128
    assert choose_part_rows(1_000_001, "cpu") == 1001
    assert choose_part_rows(1_000_001, "cuda") == 8192


def test_windows_never_cut_a_prompt_and_do_not_move_when_a_run_resumes() -> None:
    rows = [Pending(f"{prompt}{row}", f"p{prompt}", "r") for prompt in range(10) for row in range(3)]
    whole = [list(window) for window in windows(rows, 4)]
    assert [len(window) for window in whole] == [6, 6, 6, 6, 6]
    resumed = [list(window) for window in windows(rows[12:], 4)]
    assert resumed == whole[2:]


def test_a_name_with_other_content_is_not_replaced_unasked(
    preferences: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    embed(options(preferences, tiny_backbone, tmp_path / "s"))
    before = Store(tmp_path / "s").dataset("prefs").info
    write_jsonl(preferences, [{"prompt": "Hi", "chosen": "yes", "rejected": "no"}])
    with pytest.raises(ValueError, match="has a dataset 'prefs' with other content"):
        embed(options(preferences, tiny_backbone, tmp_path / "s"))
    assert Store(tmp_path / "s").dataset("prefs").info == before
    embed(options(preferences, tiny_backbone, tmp_path / "s", refresh=True))
    assert Store(tmp_path / "s").dataset("prefs").info["counts"]["pairs"] == 1


def test_prompts_keeps_the_first_prompts(preferences: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    embed(options(preferences, tiny_backbone, tmp_path / "s", prompts=3))
    assert Store(tmp_path / "s").dataset("prefs").info["prompts"] == 3


BAD = {
    "missing": (None, "missing.jsonl"),
    "gzip": (b"\x1f\x8b\x08\x00rubbish", "bad.jsonl.gz"),
    "json": (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{oops\n', "bad.jsonl"),
    "columns": (b'{"question": "a"}\n', "bad.jsonl"),
    "empty": (b'{"prompt": "a", "chosen": "", "rejected": ""}\n', "bad.jsonl"),
    "user": (
        b'{"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}\n',
        "bad.jsonl",
    ),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_input_is_one_sentence_and_leaves_the_store_alone(
    kind: str, run_cli: Callable[..., Any], tiny_backbone: Path, tmp_path: Path
) -> None:
    content, name = BAD[kind]
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    store = tmp_path / "s"
    result = run_cli("embed", source, "--backbone", tiny_backbone, "--template", "plain", "--store", store)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not store.exists()


def test_a_backbone_that_is_not_there_leaves_the_store_alone(
    run_cli: Callable[..., Any], preferences: Path, tmp_path: Path
) -> None:
    result = run_cli("embed", preferences, "--backbone", tmp_path / "nowhere", "--store", tmp_path / "s")
    assert result.exit_code == 1
    assert "is not a directory; give a directory in HF format or a hub id" in result.stderr
    assert not (tmp_path / "s").exists()


def test_a_failed_preflight_leaves_the_store_alone(
    preferences: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(forward.TOLERANCE, "float32", -1.0)
    with pytest.raises(ValueError, match="preflight: batching changes vectors by"):
        embed(options(preferences, tiny_backbone, tmp_path / "s", share=False))
    assert not (tmp_path / "s").exists()


def test_what_another_process_wrote_before_the_lock_is_not_run_again(
    preferences: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s"
    check, calls = stage.preflight, []

    def meanwhile(*arguments: Any) -> str:  # noqa: ANN401
        calls.append(1)
        if len(calls) == 1:
            embed(options(preferences, tiny_backbone, store))
        return check(*arguments)

    monkeypatch.setattr(stage, "preflight", meanwhile)
    summary = embed(options(preferences, tiny_backbone, store))
    embeddings = only(store)
    assert len(calls) == 2
    assert (summary.embedded, summary.reused) == (0, embeddings.rows)
    assert len(set(embeddings.ids())) == embeddings.rows == sum(part.rows for part in embeddings.parts)


def test_a_base_model_needs_a_named_template(
    run_cli: Callable[..., Any], preferences: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    result = run_cli("embed", preferences, "--backbone", tiny_backbone, "--store", tmp_path / "s")
    assert result.exit_code == 1
    assert "no chat template; name one with --template plain" in result.stderr
    assert not (tmp_path / "s").exists()


def test_a_part_that_cannot_be_written_stops_the_run(
    preferences: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Embeddings.append

    def full(self: Embeddings, *arguments: Any) -> Any:  # noqa: ANN401
        if self.parts:
            raise OSError(28, "No space left on device")
        return append(self, *arguments)

    monkeypatch.setattr(Embeddings, "append", full)
    with pytest.raises(OSError, match="No space left"):
        embed(options(preferences, tiny_backbone, tmp_path / "s"))
    monkeypatch.undo()
    assert len(only(tmp_path / "s").parts) == 1
    embed(options(preferences, tiny_backbone, tmp_path / "s"))
    embed(options(preferences, tiny_backbone, tmp_path / "whole"))
    expected = matrices(only(tmp_path / "whole"))
    assert all(np.array_equal(found, expected[name]) for name, found in matrices(only(tmp_path / "s")).items())


def test_pairs_of_one_prompt_are_embedded_without_a_probe(tiny_backbone: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "why", "chosen": f"yes {number}", "rejected": f"no {number}"} for number in range(60)]
    summary = embed(options(write_jsonl(tmp_path / "one.jsonl", rows), tiny_backbone, tmp_path / "s"))
    assert (summary.embedded, summary.probes) == (120, {})
