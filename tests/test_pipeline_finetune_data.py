"""Batches and the parts they are cut into: everything once, in memory, whoever runs it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.finetune_data import Batch, Batches, gather_texts, share_out
from pipeline.readers import read_source
from pipeline.render import Renderer


def test_an_epoch_passes_over_every_pair_once_and_the_next_in_another_order() -> None:
    batches = Batches(np.arange(100, 137), np.empty(0, dtype=np.int64), size=5, seed=0)
    assert batches.per_epoch == 8
    epochs = [np.concatenate([batches.at(8 * epoch + step).pairs for step in range(8)]) for epoch in (0, 1)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(100, 137))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_no_step_is_left_with_a_single_pair() -> None:
    """Its loss is a mean: the one pair would move the weights as far as the others' sixteen."""
    batches = Batches(np.arange(33), np.empty(0, dtype=np.int64), size=16, seed=0)
    assert [len(batches.at(step).pairs) for step in range(batches.per_epoch)] == [11, 11, 11]


def test_a_batch_depends_on_its_step_alone() -> None:
    def drawn(steps: list[int], seed: int = 3) -> list[list[int]]:
        batches = Batches(np.arange(40), np.arange(7), size=4, seed=seed)
        return [[*batches.at(step).pairs, -1, *batches.at(step).annotated] for step in steps]

    assert drawn([0, 5, 17, 23]) == drawn([23, 17, 5, 0])[::-1]
    assert drawn([0, 5]) != drawn([0, 5], seed=4)


def test_two_streams_of_different_length_never_lack_one() -> None:
    batches = Batches(np.arange(40), np.arange(7), size=4, seed=0)
    drawn = [batches.at(step) for step in range(batches.per_epoch)]
    assert len(drawn) == 10
    assert all(len(batch.pairs) == 4 and 1 <= len(batch.annotated) <= 2 for batch in drawn)
    assert {row for batch in drawn for row in batch.annotated.tolist()} == set(range(7))


def connected(rows: list[int], pairs: list[list[int]]) -> bool:
    """Whether pairs lead from the first row to all others: such rows must be run together, whatever the budget."""
    reached, before = {rows[0]}, set[int]()
    while reached != before:
        before = set(reached)
        reached |= {row for pair in pairs if before & set(pair) for row in pair}
    return reached == set(rows)


@settings(deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=9
    ),
    annotated=st.sets(st.integers(0, 11), max_size=6),
    processes=st.integers(1, 3),
    budget=st.integers(1, 200),
    lengths=st.lists(st.integers(1, 30), min_size=12, max_size=12),
)
def test_parts_hold_everything_once(
    pairs: list[tuple[int, int]], annotated: set[int], processes: int, budget: int, lengths: list[int]
) -> None:
    table, known = np.array(pairs, dtype=np.int64), np.array(lengths, dtype=np.int64)
    batch = Batch(np.arange(len(pairs)), np.array(sorted(annotated), dtype=np.int64))
    shares = share_out(batch, table, known, processes=processes, token_budget=budget)
    assert len({len(share) for share in shares}) == 1
    real = [part for share in shares for part in share if not part.stands_in]
    assert sorted(n for part in real for n in part.pairs.tolist()) == list(range(len(pairs)))
    assert sorted(n for part in real for n in part.annotated.tolist()) == sorted(annotated)
    rows = [row for part in real for row in part.rows.tolist()]
    assert sorted(rows) == sorted({*table.ravel().tolist(), *annotated})  # one pass for each response
    for part in real:
        assert set(table[part.pairs].ravel()) | set(part.annotated) == set(part.rows)
        assert len(part.rows) * known[part.rows].max() <= budget or connected(
            part.rows.tolist(), table[part.pairs].tolist()
        )


def test_parts_keep_to_the_budget_where_units_allow_it() -> None:
    pairs = np.arange(12).reshape(6, 2)
    lengths = np.array([10, 9, 3, 2, 5, 5, 1, 1, 8, 2, 4, 4])
    batch = Batch(np.arange(6), np.empty(0, dtype=np.int64))
    (parts,) = share_out(batch, pairs, lengths, processes=1, token_budget=40)
    assert [part.pairs.tolist() for part in parts] == [[0, 4], [2, 5, 1, 3]]
    assert all(len(part.rows) * lengths[part.rows].max() <= 40 for part in parts)


def test_rows_are_those_that_embedding_renders(tiny_tokenizer: object, preferences: Path) -> None:
    dataset = read_source(str(preferences))
    renderer = Renderer.of(tiny_tokenizer, "plain")  # type: ignore[arg-type]
    texts = gather_texts({"pairs": dataset, "attributes": None}, renderer, max_length=20, overlong="drop", use=())
    responses = dataset["responses"].to_pylist()
    whole = renderer.encode([(row["prompt"], row["response"]) for row in responses])
    kept = [row for row in whole if len(row) <= 20]
    assert 0 < len(kept) < len(whole)
    assert [row.ids.tolist() for row in texts.rows] == [row.ids.tolist() for row in kept]
    assert all((row.ids == row.ids[0]).sum() == 1 for row in texts.rows)  # one BOS
    assert texts.data.left_out == len(whole) - len(kept)
    assert len(texts.data.view.pairs) < len(dataset["pairs"])
    assert set(texts.prompt_ids) == {row["prompt_id"] for row in responses}  # of the dropped ones too


def test_overlong_error_names_the_response(tiny_tokenizer: object, preferences: Path) -> None:
    dataset = read_source(str(preferences))
    renderer = Renderer.of(tiny_tokenizer, "plain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"response [0-9a-f]{32} has \d+ tokens, more than --max-length 20"):
        gather_texts({"pairs": dataset, "attributes": None}, renderer, max_length=20, overlong="error", use=())
