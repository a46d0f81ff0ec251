"""A run as TRL's reward function, for `GRPOTrainer` and `RLOOTrainer`."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Protocol

from cache.records import Message
from pipeline.score import Prompt, Scorer

Completion = str | Sequence[Mapping[str, Any]]


class RewardFunction(Protocol):
    """What TRL calls: prompts and completions, and every other column of the dataset, which a head does not read."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        **columns: Any,  # noqa: ANN401 - whatever the dataset has
    ) -> list[float | None]:
        """A reward for each completion; None, which TRL leaves out, where the over-long policy does."""
        ...


def reward_function(
    run: str,
    *,
    store: Path | str = "store",
    backbone: str | None = None,
    template: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> RewardFunction:
    """The run's reward as a function with TRL's signature, f(prompts, completions, **columns) -> list[float].

    A text prompt is one user turn, a text completion the assistant's reply. Of a completion in messages the last is
    the reply, those before it (tool use) belong to the conversation.

    Args:
        run: a run's id, or a group with one run that is no control.
        store: the store's folder.
        backbone: as in `pipeline.score.ScoreOptions`, and so the others.
        template: likewise.
        device: likewise.
        dtype: likewise.

    Raises: ValueError if the run or its embedding is not in the store.
    """
    scorer = Scorer(run, store=store, backbone=backbone, template=template, device=device, dtype=dtype)

    def reward(
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        **columns: Any,  # noqa: ANN401 - as TRL gives them
    ) -> list[float | None]:
        replies = [_reply(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores = scorer.score(*zip(*replies, strict=True)).tolist() if replies else []
        return [None if isnan(score) else score for score in scores]

    reward.__name__ = str(scorer.run["run_id"])  # TRL's logs are by this name
    return reward


def _reply(prompt: Prompt, completion: Completion) -> tuple[Prompt, str]:
    """The conversation before the last reply, and that reply."""
    asked: list[Message] = [
        _turn(t) for t in ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    ]
    if isinstance(completion, str):
        return asked, completion
    *before, last = [_turn(turn) for turn in completion]
    return [*asked, *before], last["content"]


def _turn(turn: Mapping[str, Any]) -> Message:
    """A turn as text: that of its parts where it comes in parts, and none where it only calls a tool."""
    content = turn.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return {"role": turn["role"], "content": text}
