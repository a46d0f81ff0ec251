"""The tables of what a head says: every column once, each row beside the row of the input that it is of."""

import numpy as np
import pytest
from conftest import assistant, user

from cache.records import Dataset, DatasetBuilder
from pipeline.scored import Margins, Scored, pair_table, response_table

NAN = float("nan")


def values(*given: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(given, dtype=np.float32)


def scored(*attributes: str) -> Scored:
    return Scored(
        ["a", "b"],
        rewards={"F": values(1, 2), "L": values(3, 4)},
        attributes={name: values(number, NAN) for number, name in enumerate(attributes, 10)},
        sd=values(0.1, 0.2),
        features=np.zeros((2, 3), np.float32),
        cached=np.array([True, False]),
    )


def dataset() -> Dataset:
    builder = DatasetBuilder("new")
    first = builder.add_response([user("why")], "yes", generator="g", subset="s", source="x")
    second = builder.add_response([user("a"), assistant("b"), user("c")], "no")
    builder.add_pair(second, first, subset="s", source="x", margin=2.0)
    return Dataset("new", builder.tables(), {})


OWN = ["row", "prompt", "response", "generator", "subset", "source", "reward", "F", "L", "sd"]
IDS = ["cached", "response_id", "prompt_id"]


@pytest.mark.parametrize("name", [*OWN, *IDS, "chosen", "margin", "margin_sd", "p_win", "pair_id", "id"])
def test_an_attribute_never_takes_the_name_of_another_column(name: str) -> None:
    table = response_table(dataset(), scored(name, "loud"), [0, 1])
    assert table.column_names == [*OWN, f"attribute_{name}", "loud", *IDS]
    assert table[f"attribute_{name}"].to_pylist() == [10.0, None]
    pairs = pair_table(dataset(), scored(name), MARGINS, [0])
    assert len(set(pairs.column_names)) == len(pairs.column_names)
    assert pairs[f"rejected_attribute_{name}"].to_pylist() == [10.0]


def test_two_attributes_never_share_a_name() -> None:
    for names in (("sd", "attribute_sd"), ("attribute_sd", "sd")):
        found = scored(*names).columns()
        assert list(found) == ["reward", "F", "L", "sd", *list(found)[4:]]
        assert sorted(column[0] for column in list(found.values())[4:]) == [10.0, 11.0]


MARGINS = Margins(np.array([[1, 0]]), values(1), values(0.5), {"F": np.array([0.75]), "L": np.array([0.25])})


def test_a_row_has_the_number_and_the_prompt_of_its_input() -> None:
    table = response_table(dataset(), scored(), [4, 7])
    messages = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": '
    assert table["row"].to_pylist() == [4, 7]
    assert table["prompt"].to_pylist() == ["why", messages + '"c"}]']
    (pair,) = pair_table(dataset(), scored(), MARGINS, [5]).to_pylist()
    assert (pair["row"], pair["prompt"], pair["chosen"], pair["rejected"]) == (5, messages + '"c"}]', "no", "yes")
    assert (pair["p_win_F"], pair["margin_sd"], pair["chosen_L"], pair["rejected_L"]) == (0.75, 0.5, 4.0, 3.0)


def test_rows_are_taken_in_any_order_and_number() -> None:
    taken = scored("loud").take([1, 0, 1])
    assert taken.response_ids == ["b", "a", "b"]
    assert taken.reward.tolist() == [2.0, 1.0, 2.0]
    assert taken.cached.tolist() == [False, True, False]
    assert taken.sd is not None and taken.sd.tolist() == values(0.2, 0.1, 0.2).tolist()
    assert np.isnan(taken.attributes["loud"][[0, 2]]).all() and taken.features.shape == (3, 3)
