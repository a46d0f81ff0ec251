"""A run as TRL's reward function, for `GRPOTrainer` and `RLOOTrainer`."""

import re
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from pipeline.conversations import Prompt, joined, refuse_unequal
from pipeline.readers import cells
from pipeline.score import Scorer

Completion = str | Sequence[Mapping[str, Any]]
LONE = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which UTF-8 cannot hold


class RewardFunction:
    """A run as the function that TRL calls. It can be pickled: another process opens the store and loads the backbone.

    Attributes:
        __name__: the run's id, and the reward's name behind it where one was asked for; TRL's logs are by this name.
    """

    def __init__(self, scorer: Scorer, score: str | None) -> None:
        """Take the head's own reward, or the one of that name. Raises ValueError listing them if there is none such."""
        if score is not None and score not in (names := scorer.reward_names()):
            raise ValueError(f"head {scorer.run['head']} has no reward {score!r}; it has {', '.join(names)}")
        self._scorer, self._score = scorer, score
        self.__name__ = "-".join(filter(None, [scorer.run["run_id"], score]))

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        **columns: Any,  # noqa: ANN401 - every other column of the dataset, which a head does not read
    ) -> list[float | None]:
        """A reward for each completion, (n,); None, which TRL leaves out, where the over-long policy does.

        Raises: ValueError as `Scorer.score_all`, but not for what a policy may write: half of a surrogate pair is
            read as U+FFFD, and what a turn calls is not read.
        """
        refuse_unequal(prompts, completions, "completions")
        if not prompts:
            return []
        replies = [_reply(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scored = self._scorer.score_all(*zip(*replies, strict=True))
        values = scored.reward if self._score is None else scored.rewards[self._score]
        return [None if isnan(value) else value for value in values.tolist()]


def reward_function(
    run: str,
    *,
    store: Path | str = "store",
    score: str | None = None,
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
        score: which of the head's rewards, as F, L, M, lower; None takes the head's own choice.
        backbone: as in `pipeline.score.ScoreOptions`, and so the others.
        template: likewise.
        device: likewise.
        dtype: likewise.

    Raises: ValueError if the run or its embedding is not in the store, or the head has no such reward.
    """
    scorer = Scorer(run, store=store, backbone=backbone, template=template, device=device, dtype=dtype)
    return RewardFunction(scorer, score)


def _reply(prompt: Prompt, completion: Completion) -> tuple[Prompt, str]:
    """The conversation before the last reply, and that reply; what is wrong with the prompt the scorer says."""
    if isinstance(completion, str):
        return _readable_prompt(prompt), _readable(completion)
    if not completion or not all(isinstance(turn, Mapping) for turn in completion):
        raise ValueError(
            f"a completion is {cells.kind(completion)} where a text or a list of messages is expected, of which the "
            "last is the reply"
        )
    *before, last = [_spoken(turn) for turn in completion]
    asked = _readable_prompt(prompt)
    return [*([cells.user(asked)] if isinstance(asked, str) else asked), *before], last["content"]


def _spoken(turn: Mapping[str, Any]) -> dict[str, Any]:
    """What a turn of the policy or of a tool says: nothing where it only calls one."""
    content = turn.get("content")
    return {"role": turn.get("role"), "content": "" if content is None else _readable(joined(content))}


def _readable_prompt(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return str(_readable(prompt))
    return [
        {**turn, "content": _readable(joined(turn.get("content")))} if isinstance(turn, Mapping) else turn
        for turn in prompt
    ]


def _readable(content: Any) -> Any:  # noqa: ANN401 - a text, or what the scorer will refuse
    return LONE.sub("\ufffd", content) if isinstance(content, str) else content
