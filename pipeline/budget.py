"""How many tokens go through the backbone at once: found by trying, on a device that can run out of memory."""

from dataclasses import dataclass

import torch

ROOM = 0.5  # grow while a pack leaves this share of the device's memory free
STEP = 1.25


@dataclass
class TokenBudget:
    """Tokens in one pack or padded batch.

    On a GPU it grows while there is room, and halves when memory runs out. On a CPU it stays: larger batches fall out
    of the cache, and are slower long before memory ends.

    Attributes:
        tokens: the budget now.
        grows: whether it may grow; off where a user gave it, or on a CPU.
        most: where growing ends.
    """

    tokens: int
    grows: bool = False
    most: int = 262_144

    def shrink(self) -> None:
        """After running out of memory: half of it, and no more growing. Raises ValueError when one token is left."""
        if self.tokens <= 1:
            raise ValueError("one row does not fit into the device's memory; lower --max-length or take another device")
        self.tokens, self.grows = max(1, self.tokens // 2), False
        torch.cuda.empty_cache()

    def grow(self, used: float) -> None:
        """After a full pack that used this share of the device's memory."""
        if self.grows and used < 1 - ROOM:
            self.tokens = min(self.most, int(self.tokens * STEP))


def memory_share(device: torch.device) -> float:
    """The largest share of a GPU's memory in use since it was last asked; 1 for a CPU."""
    if device.type != "cuda":
        return 1.0
    peak = torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.reset_peak_memory_stats(device)
    return peak
