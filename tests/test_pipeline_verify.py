"""A sound store passes; a store that is broken on purpose does not, and the defect is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS, write_jsonl
from test_cache_verify import described, edit_json, rewrite, wrong

from cache.embeddings import Embeddings
from cache.files import read_json, write_json, write_table
from cache.store import Store
from cache.vectors import read_ids
from cache.verify import Finding
from pipeline.embed import EmbedOptions, embed
from pipeline.fit import FitOptions, fit
from pipeline.rerun import FLOAT16_ROUNDING
from pipeline.verify import VerifyOptions, verify

ALL = 1000  # rows: more than there are


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Pairs over 24 prompts of many lengths, each pair twice; a pool and attributes with some of their texts."""
    folder = tmp_path_factory.mktemp("sources")
    pairs, pool = [], []
    for number in range(24):
        prompt = f"why {WORDS[number % 20]} {WORDS[number * 7 % 20]} {number} " + "on the mat " * (number % 9)
        good, bad = f"{WORDS[number % 13]} yes because", f"{WORDS[number % 11]} no"
        pairs += [{"prompt": prompt, "chosen": good, "rejected": bad}] * 2
        pool.append({"prompt_id": str(number), "prompt": prompt, "response": good, "gold_score": number / 2})
    rated = [{"prompt": row["prompt"], "response": row["chosen"], "helpful": 1.0} for row in pairs[:6]]
    named = {"prefs": pairs, "pool": pool, "rated": rated}
    return tuple(str(write_jsonl(folder / f"{name}.jsonl", rows)) for name, rows in named.items())


def embed_into(store: Path, backbone: Path, sources: tuple[str, ...], **changes: Any) -> None:  # noqa: ANN401
    options = {"template": "plain", "layers": ("50%", "last"), "pool": ("last", "mean"), "dtype": "float32", **changes}
    embed(EmbedOptions(sources, store, str(backbone), device="cpu", part_rows=16, **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, sources: tuple[str, ...]) -> Path:
    """Pairs, a pool and attributes, embedded, with one head fitted. Never to be broken."""
    store = tmp_path_factory.mktemp("verify") / "store"
    embed_into(store, tiny_backbone, sources)
    fit(FitOptions(("linear",), store, pairs="prefs", control=False))
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def check(store: Path, rows: int = ALL, **changes: Any) -> list[Finding]:  # noqa: ANN401
    return verify(VerifyOptions((), store, rows=rows, device="cpu", **changes))


def only(store: Path) -> Embeddings:
    (fingerprint,) = Store(store).fingerprints()
    return Store(store).embeddings(fingerprint)


def part(store: Path, number: int = 0) -> Path:
    return only(store).directory / f"part-{number:05d}.parquet"


def test_a_sound_store_is_ok_in_every_part(store: Path) -> None:
    findings = check(store)
    assert [finding.status for finding in findings] == ["ok"] * 6, findings
    rows = only(store).rows
    data, embedding, runs, again = findings[:3], findings[3], findings[4], findings[5]
    assert [finding.subject for finding in data] == ["data/pool", "data/prefs", "data/rated"]
    assert data[1].what.startswith("48 responses, 48 pairs: ")
    assert f"{rows} rows in {len(only(store).parts)} parts" in embedding.what
    assert runs.what.startswith("1 runs")
    assert again.what.startswith(f"{rows} rows (--seed ")
    assert f"allowed {1e-5 + FLOAT16_ROUNDING:.1e}" in again.what


def test_the_seed_draws_the_rows_and_so_many_of_them(store: Path) -> None:
    first, again, other = (check(store, rows=3, seed=seed)[5].what for seed in (1, 1, 2))
    assert first.startswith("3 rows (--seed 1) embedded again")
    assert first == again
    assert first.partition(")")[2] != other.partition(")")[2]


def test_a_damaged_part_is_named_and_not_compared(store: Path) -> None:
    content = bytearray(part(store).read_bytes())
    content[len(content) // 2] ^= 1
    part(store).write_bytes(bytes(content))
    findings = check(store)
    (defect,) = wrong(findings)
    assert defect.startswith("embeddings: part-00000.parquet was changed: its sha256 is ")
    assert described(findings, "note") == ["embeddings: not re-embedded: its files are damaged"]


def swap_vectors(columns: dict[str, Any]) -> None:
    columns["L2.mean"][[3, 6]] = columns["L2.mean"][[6, 3]]


def swap_rms(columns: dict[str, Any]) -> None:
    columns["L2.last.rms"][[3, 6]] = columns["L2.last.rms"][[6, 3]]


def swap_ids(columns: dict[str, Any]) -> None:
    ids = columns["response_id"]
    ids[3], ids[6] = ids[6], ids[3]


@pytest.mark.parametrize(("change", "feature"), [(swap_vectors, "L2.mean"), (swap_rms, "L2.last")])
def test_only_embedding_again_finds_two_rows_swapped(
    store: Path, change: Callable[[dict[str, Any]], None], feature: str
) -> None:
    ids = read_ids(part(store))
    rewrite(part(store), change)
    assert wrong(check(store, rows=0)) == []
    (defect,) = wrong(check(store))
    assert "embedded again one at a time: 2 give other vectors, the worst by " in defect
    assert f"({feature} of {ids[3]})" in defect or f"({feature} of {ids[6]})" in defect


def test_two_ids_swapped_show_in_the_token_counts(store: Path) -> None:
    rewrite(part(store), swap_ids)
    (defect,) = wrong(check(store))
    assert " tokens of " in defect
    assert any(key in defect for key in (read_ids(part(store))[row] for row in (3, 6)))


def test_a_row_off_by_four_times_float16_rounding_is_found(store: Path) -> None:
    def scale(columns: dict[str, Any]) -> None:
        columns["L4.last"][0] *= np.float16(1 + 4 * FLOAT16_ROUNDING)

    rewrite(part(store), scale)
    (defect,) = wrong(check(store))
    assert f"(L4.last of {read_ids(part(store))[0]})" in defect


def test_a_text_edited_in_place_is_found_by_its_vector_too(store: Path) -> None:
    shutil.rmtree(store / "data" / "pool")  # it has the same text, unchanged
    shutil.rmtree(store / "data" / "rated")
    path = store / "data" / "prefs" / "responses.parquet"
    table = pq.read_table(path)
    edited = [text.replace("yes", "two") for text in table["response"].to_pylist()]  # a token each
    count = sum("two" in text for text in edited)
    write_table(path, table.set_column(3, table.schema.field("response"), pa.array(edited)))
    data, vectors = wrong(check(store))
    assert data.startswith("data/prefs: responses: the text of ")
    assert f"{count} give other vectors" in vectors


def test_a_run_whose_head_or_origin_is_gone_is_named(store: Path) -> None:
    (run_id,) = Store(store).run_names()
    directory = Store(store).run_directory(run_id)
    (directory / "head.safetensors").write_bytes(b"rubbish")
    (directory / "metrics.parquet").write_bytes(b"rubbish")
    edit_json(directory / "run.json", pairs_hash="0" * 64, attributes_dataset="lost", embedding="e" * 16)
    embedding, pairs, attributes, table, head = wrong(check(store, rows=0))
    assert embedding == f"runs/{run_id}: its embedding {'e' * 16} is not in the store"
    assert pairs.startswith(f"runs/{run_id}: its dataset 'prefs' was replaced: fitted on 000000000000..., now ")
    assert attributes == f"runs/{run_id}: its dataset 'lost' is not in the store"
    assert table.startswith(f"runs/{run_id}: metrics.parquet cannot be read (")
    assert head.startswith(f"runs/{run_id}: {directory / 'head.safetensors'} is missing or damaged")


def test_a_head_of_another_kind_is_named(store: Path) -> None:
    (run_id,) = Store(store).run_names()
    edit_json(Store(store).run_directory(run_id) / "run.json", head="bt")
    assert wrong(check(store, rows=0)) == [f"runs/{run_id}: head.json is of a head 'linear', run.json of 'bt'"]


@pytest.fixture
def backbone(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))


def test_the_backbone_may_have_moved(store: Path, backbone: Path) -> None:
    findings = check(store, rows=2, backbone=str(backbone))
    assert [finding.status for finding in findings] == ["ok"] * 6


def test_other_weights_are_named_with_both_hashes(store: Path, backbone: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(backbone / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    findings = check(store, backbone=str(backbone))
    (defect,) = wrong(findings)
    assert defect.startswith(f"embeddings: weights was {only(store).spec.weights}, is now sha256:")
    assert described(findings, "note") == ["embeddings: not re-embedded: its spec changed"]


def test_another_tokenizer_is_named(store: Path, backbone: Path) -> None:
    content = read_json(backbone / "tokenizer.json")
    content["normalizer"] = {"type": "Lowercase"}
    write_json(backbone / "tokenizer.json", content)
    (defect,) = wrong(check(store, backbone=str(backbone)))
    assert defect.startswith(f"embeddings: tokenizer was {only(store).spec.tokenizer}, is now ")


def test_a_bos_that_is_gone_is_named(store: Path, backbone: Path) -> None:
    edit_json(backbone / "tokenizer_config.json", bos_token=None)
    assert wrong(check(store, backbone=str(backbone))) == ["embeddings: bos was one, is now none"]


def test_a_smaller_backbone_is_compared_field_by_field(store: Path, backbone: Path) -> None:
    config = read_json(backbone / "config.json")
    kinds = config["layer_types"][:3]
    config |= {"num_hidden_layers": 3, "layer_types": kinds, "max_position_embeddings": 100}
    write_json(backbone / "config.json", config)
    defects = wrong(check(store, backbone=str(backbone)))
    assert [defect.split()[1] for defect in defects] == ["weights", "max_length", "layers"]
    assert defects[1:] == [
        "embeddings: max_length was 512, is now 100",
        "embeddings: layers was (2, 4), is now (2,)",
    ]


def test_another_template_is_named(store: Path) -> None:
    before = only(store).spec.template_sha256
    (defect,) = wrong(check(store, template="chatml"))
    assert defect.startswith(f"embeddings: template_sha256 was {before}, is now ")
    assert defect.endswith(" (template chatml)")


def test_a_template_from_a_file_is_asked_for_when_it_is_not_there(
    tiny_backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    template, store = tmp_path / "mine.jinja", tmp_path / "s"
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    template.write_text(text)
    embed_into(store, tiny_backbone, sources, template=str(template))
    assert [finding.status for finding in check(store)] == ["ok"] * 5
    moved = template.rename(tmp_path / "moved.jinja")
    findings = check(store)
    assert wrong(findings) == []
    assert described(findings, "note") == [f"embeddings: not re-embedded: its template {template} is not here"]
    assert [finding.status for finding in check(store, template=str(moved))] == ["ok"] * 5
    template.write_text(text.replace(": ", "> "))
    (defect,) = wrong(check(store))
    assert defect.startswith("embeddings: template_sha256 was ")
    with pytest.raises(ValueError, match=r"no template 'lost.jinja'"):
        check(store, template="lost.jinja")


def test_a_template_that_the_backbone_no_longer_has_is_named(
    backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    own = backbone / "chat_template.jinja"
    own.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    embed_into(tmp_path / "s", backbone, sources, template="model")
    own.unlink()
    assert "embeddings: template was model, is gone: this backbone's tokenizer has no chat template" in " ".join(
        wrong(check(tmp_path / "s"))
    )


def test_a_backbone_that_is_gone_leaves_the_checks_on_disk(
    backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    store = tmp_path / "s"
    embed_into(store, backbone, sources)
    shutil.rmtree(backbone)
    findings = check(store)
    assert wrong(findings) == []
    (note,) = described(findings, "note")
    assert note.startswith(f"embeddings: not re-embedded: backbone {backbone} is not a directory")
    assert described(check(store, rows=0), "note") == []
    part(store).unlink()
    assert len(wrong(check(store))) == 1
    with pytest.raises(ValueError, match="is not a directory"):  # the one that was asked for must be there
        check(store, backbone=str(backbone))


def test_rows_without_texts_in_the_store_are_said_not_to_be_run(store: Path) -> None:
    shutil.rmtree(store / "data")
    shutil.rmtree(store / "runs")
    assert described(check(store), "note") == ["embeddings: not re-embedded: no dataset has its rows' texts"]


def test_another_compute_dtype_is_told_and_allowed_for(store: Path) -> None:
    findings = check(store, dtype="bfloat16")
    assert wrong(findings) == []
    assert described(findings, "note") == ["embeddings: compute_dtype was float32, is now bfloat16"]
    assert "allowed 5.0e-02" in findings[-1].what


def test_vectors_stored_as_float32_without_sharing_have_only_the_computing_to_allow_for(
    tiny_backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    embed_into(tmp_path / "s", tiny_backbone, sources, store_dtype="float32", share=False)
    findings = check(tmp_path / "s")
    assert [finding.status for finding in findings] == ["ok"] * 5
    assert "allowed 1.0e-05" in findings[-1].what


def test_cut_and_dropped_rows_are_run_again_as_they_were(
    tiny_backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    for overlong in ("left", "right", "drop"):
        embed_into(tmp_path / overlong, tiny_backbone, sources, max_length=40, overlong=overlong)
        embeddings = only(tmp_path / overlong)
        assert embeddings.dropped or (embeddings.scalar("cut_tokens") > 0).any()
        assert wrong(check(tmp_path / overlong)) == []


def test_one_embedding_is_chosen_by_how_it_begins(store: Path, tiny_backbone: Path, sources: tuple[str, ...]) -> None:
    first = only(store).spec.fingerprint
    embed_into(store, tiny_backbone, sources, template="chatml", layers=("last",))
    (second,) = set(Store(store).fingerprints()) - {first}
    findings = verify(VerifyOptions((second[:6],), store, rows=0))
    assert [finding.subject for finding in findings[3:]] == [f"embeddings/{second}"]  # and no run is fitted on it
    findings = verify(VerifyOptions((), store, rows=1, device="cpu"))
    assert sum("embedded again" in finding.what for finding in findings) == 2
    with pytest.raises(ValueError, match="--template plain is one, the 2 embeddings to verify have 2; name"):
        check(store, template="plain")
    with pytest.raises(ValueError, match=r"0 embeddings in .* match 'zz'"):
        verify(VerifyOptions(("zz",), store))


MOVED = """
import sys
from pipeline.embed import EmbedOptions, embed
from pipeline.verify import VerifyOptions, verify
from pathlib import Path
hub, source, store = map(Path, sys.argv[1:])
embed(EmbedOptions((str(source),), store, "acme/tiny", template="plain", device="cpu"))
(hub / "models--acme--tiny/refs/main").write_text("b" * 40)
for given in (None, "main"):
    print(*verify(VerifyOptions((), store, device="cpu", backbone_revision=given)), sep="\\n")
"""


def test_a_hub_backbone_is_loaded_at_its_commit_and_main_compared_when_asked(
    tiny_backbone: Path, sources: tuple[str, ...], tmp_path: Path
) -> None:
    model = tmp_path / "hub" / "models--acme--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_backbone, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    command = [sys.executable, "-W", "ignore", "-c", MOVED, tmp_path / "hub", sources[0], tmp_path / "s"]
    offline = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "data/" not in line]
    assert [line.split()[0] for line in lines] == ["ok", "note", "ok", "ok", "WRONG", "note"]
    assert f"main of acme/tiny is at {'b' * 40} now, these vectors are of {'a' * 40}" in lines[1]
    assert f"weights was revision:{'a' * 40}, is now revision:{'b' * 40}; give what it was made with" in lines[4]


def test_a_directory_cannot_be_told_from_a_commit_by_name_so_its_rows_decide(
    store: Path, sources: tuple[str, ...], tmp_path: Path, tiny_backbone: Path
) -> None:
    embeddings = only(store)
    spec = embeddings.spec.to_json() | {"weights": f"revision:{'a' * 40}"}
    write_json(embeddings.directory / "spec.json", spec)
    shutil.rmtree(store / "runs")
    fingerprint = type(embeddings.spec).from_json(spec).fingerprint
    embeddings.directory.rename(embeddings.directory.with_name(fingerprint))
    findings = check(store, backbone=str(tiny_backbone))
    assert wrong(findings) == []
    (note,) = described(findings, "note")
    assert note.startswith(f"embeddings: weights was revision:{'a' * 40}, is now sha256:")
    assert findings[-1].status == "ok"


def test_the_command_prints_lines_and_its_exit_code_says_whether_all_is_well(
    run_cli: Callable[..., Any], store: Path
) -> None:
    result = run_cli("verify", "--rows", 2, "--seed", 5, "--device", "cpu", "--store", store)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * 6
    part(store).unlink()
    result = run_cli("verify", "--rows", 0, "--store", store, "--json")
    assert result.exit_code == 1
    (defect,) = [row for row in json.loads(result.stdout) if row["status"] == "WRONG"]
    assert defect["what"].startswith("part-00000.parquet with")
    assert defect["fix"].startswith("restore ")


def test_the_command_on_a_folder_that_is_no_store_is_one_sentence(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    result = run_cli("verify", "--store", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"Error: no datasets, embeddings or runs in {tmp_path}; name a store with --store\n"
