from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, write_jsonl
from test_cache_embeddings import SPEC

from cache.store import Store
from pipeline import preflight as checks
from pipeline.backbone import load_backbone
from pipeline.embed import EmbedOptions, embed
from pipeline.forward import Extractor
from pipeline.render import Renderer
from pipeline.windows import Pending

ROWS = [Pending(f"r{text}", '[{"role": "user", "content": "why"}]', text) for text in ("yes", "no no", "red cat")]


def test_the_preflight_says_how_far_batching_moved_a_vector(tiny_backbone: Path) -> None:
    backbone = load_backbone(str(tiny_backbone), revision=None, device="cpu", dtype="float32")
    extractor = Extractor(backbone, (4,), ("last",), 512, packed=True)
    found = checks.preflight(extractor, Renderer.of(backbone.tokenizer, "plain"), ROWS, SPEC)
    assert found.startswith("preflight: 3 rows packed and one at a time agree within ")


def test_a_backbone_that_packs_wrongly_is_stopped(tiny_backbone: Path) -> None:
    backbone = load_backbone(str(tiny_backbone), revision=None, device="cpu", dtype="float32")
    extractor = Extractor(backbone, (4,), ("last",), 512, packed=True)

    class Wrong(Extractor):
        def run(self, *arguments: Any) -> Any:  # noqa: ANN401
            features, computed = super().run(*arguments)
            moved = 1.01 if self.packed else 1.0
            return {name: matrix * np.float32(moved) for name, matrix in features.items()}, computed

    wrong = Wrong(**vars(extractor))
    with pytest.raises(ValueError, match=r"packing changes vectors by 1\.0e-02 relative .* use --no-share"):
        checks.preflight(wrong, Renderer.of(backbone.tokenizer, "plain"), ROWS, SPEC)


def test_answers_that_all_look_alike_are_stopped(tiny_backbone: Path) -> None:
    backbone = load_backbone(str(tiny_backbone), revision=None, device="cpu", dtype="float32")
    with torch.no_grad():
        for layer in backbone.model.layers:  # nothing but the embedding of the last token is left
            layer.self_attn.o_proj.weight.zero_()
    alike = [Pending("a", ROWS[0].prompt, "red yes"), Pending("b", ROWS[0].prompt, "blue yes")]
    extractor = Extractor(backbone, (4,), ("last",), 512)
    with pytest.raises(ValueError, match=r"responses a and b differ in text but have the same L4\.last"):
        checks.preflight(extractor, Renderer.of(backbone.tokenizer, "plain"), alike, SPEC)


@pytest.mark.parametrize("told", [True, False])
def test_the_probe_warns_when_vectors_hold_no_preference(
    told: bool, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coin = np.random.default_rng(0).random(150) < 0.5
    rows = []
    for number, heads in enumerate(coin):
        words = [f"{WORDS[number % 17]} yes", f"{WORDS[number % 19]} no"]
        chosen, rejected = words if told or heads else words[::-1]
        rows.append({"prompt": f"why {number}", "chosen": chosen, "rejected": rejected})
    source = write_jsonl(tmp_path / "coin.jsonl", rows)
    options = EmbedOptions((str(source),), tmp_path / "s", str(tiny_backbone), template="plain", device="cpu")
    summary = embed(options)
    assert ("WARNING: no better than chance" in capsys.readouterr().err) is not told
    value, low, high = summary.probes["coin"]
    assert low <= value <= high
    assert (low > 0.5) is told


def test_a_dataset_without_pairs_is_not_probed(
    run_cli: Callable[..., Any], tiny_backbone: Path, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "attrs.jsonl", [{"prompt": "why", "response": "yes", "help": 1.0}])
    result = run_cli(
        "embed",
        source,
        "--backbone",
        tiny_backbone,
        "--template",
        "plain",
        "--device",
        "cpu",
        "--store",
        tmp_path / "s",
    )
    assert result.exit_code == 0, result.output
    assert "probe" not in result.stderr
    assert Store(tmp_path / "s").dataset("attrs").info["counts"] == {"responses": 1, "attributes": 1}
