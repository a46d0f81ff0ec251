"""The stages that users run: read, embed, fit, evaluate, query, report; and the command line over them.

The only room that knows transformers, datasets and click; each stage is a frozen dataclass and a function.
`Scorer` and `reward_function` can be had from here; importing this module imports nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.rewards import reward_function
    from pipeline.score import Scorer

__all__ = ["Scorer", "reward_function"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what the name stands for
    """Import what is asked for (PEP 562): torch takes a second."""
    if name == "Scorer":
        from pipeline.score import Scorer

        return Scorer
    if name == "reward_function":
        from pipeline.rewards import reward_function

        return reward_function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
