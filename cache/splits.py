"""Who is trained on and who is judged, decided by prompt and by hash.

A prompt's side depends on its content and the seed alone, so the same prompt in two datasets is on the same side of
both, and adding rows never moves the others.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def uniform(prompt_ids: Iterable[str], salt: str) -> NDArray[np.float64]:
    """One number in [0, 1) for each prompt, from sha256 of the salt and the id."""
    digests = (hashlib.sha256(f"{salt}:{prompt}".encode()).digest()[:8] for prompt in prompt_ids)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests], dtype=np.float64)


def is_test(prompt_ids: Iterable[str], *, share: float, seed: int) -> NDArray[np.bool_]:
    """True where the prompt is held out for judging; `share` of all prompts in expectation."""
    return uniform(prompt_ids, f"test:{seed}") < share


def is_valid(prompt_ids: Iterable[str], *, share: float, seed: int) -> NDArray[np.bool_]:
    """True where a training prompt is set aside for early stopping; drawn anew for each fitting seed."""
    return uniform(prompt_ids, f"valid:{seed}") < share
