import json
from typing import Any

from bench.report.names import group_names


def run(group: str, *, features: str, tuning: int | None, **options: object) -> dict[str, Any]:
    fitted_on = {"pairs_dataset": "prefs", "attributes_dataset": None}
    rest = {"features": [features], "embedding": "e", "tuning": tuning, "options": json.dumps(options)}
    return {"group": group, "head": "bt", **fitted_on, **rest}


def details(*runs: dict[str, Any]) -> list[str]:
    return [name.detail for name in group_names(runs).values()]


def test_options_that_a_search_found_are_no_part_of_a_name_that_tells_groups_apart_without_them() -> None:
    one, other = ({"features": f"L{layer}.last", "hidden": 8 * layer} for layer in (1, 2))
    assert details(run("a", tuning=4, **one), run("b", tuning=4, **other)) == ["features L1.last", "features L2.last"]
    assert details(run("a", tuning=None, **one), run("b", tuning=None, **other)) == [
        "features L1.last, hidden 8",
        "features L2.last, hidden 16",
    ]
    alike = [run(group, features="L1.last", tuning=4, hidden=hidden) for group, hidden in (("a", 8), ("b", 16))]
    assert details(*alike) == ["hidden 8", "hidden 16"]


def test_options_of_an_option_are_said_in_words() -> None:
    runs = [
        run(str(hidden), features="L1.last", tuning=None, base="bt", base_options={"hidden": hidden, "lr": 0.1})
        for hidden in (8, 16)
    ]
    assert details(*runs) == ["base_options (hidden 8; lr 0.1)", "base_options (hidden 16; lr 0.1)"]
