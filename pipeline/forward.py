"""Token rows through the frozen backbone to one vector per row and feature.

Two ways give the same vectors. *Packed*: rows without padding, each prompt's tokens run once for all its responses
(see `pipeline.packing`). *Padded*: right-padded, length-sorted batches, right for any architecture. In both the pooled
tokens are known from the row itself, so that padding side and pad == eos do not matter.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface

from cache.spec import SCALARS, EmbeddingSpec, feature_name
from cache.vectors import RMS, Scalars, Vectors
from pipeline.backbone import Backbone
from pipeline.budget import TokenBudget, memory_share
from pipeline.decoder import Decoder
from pipeline.likelihood import likelihoods, needed_tokens
from pipeline.packing import ATTENTION, Pack, Placed, attend_spans, make_packs
from pipeline.render import TokenRow

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutput

Features = dict[str, NDArray[np.float32]]

FLOAT16_MAX = 65504.0
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # relative: how far batching and packing may move a vector


@dataclass(frozen=True)
class Extractor:
    """Computes the features of a spec.

    Attributes:
        backbone: the loaded model.
        layers: hidden layers to keep; the last one is the normed final state.
        pool: as in `cache.spec.EmbeddingSpec`; "sentence" only where the backbone has it, and padded.
        token_budget: tokens in one pack or padded batch; a TokenBudget adapts itself to the device's memory.
        packed: whether to share prompts in packs; only for backbones that `supports_packing`.
        decoder: our own loop over the layers, for packs; None leaves it to transformers.
        scalars: as in `cache.spec.EmbeddingSpec`; only where the backbone was loaded with its LM head.
    """

    backbone: Backbone
    layers: tuple[int, ...]
    pool: tuple[str, ...]
    token_budget: int | TokenBudget
    packed: bool = False
    decoder: Decoder | None = None
    scalars: tuple[str, ...] = ()

    def run(self, rows: Sequence[TokenRow], groups: Sequence[Hashable]) -> tuple[Features, int]:
        """Features of n rows, in the rows' order, and the number of tokens that were computed.

        Args:
            rows: the token rows.
            groups: a key for each row; adjacent rows of one key may share the tokens that they begin with.

        Returns: for each feature an (n, d) float32 array, for each scalar an (n, 1) one; tokens run, padding included,
            shared ones once.
        """
        gathered: Features = {}
        computed = 0
        AttentionInterface.register(ATTENTION, attend_spans)
        self.backbone.model.set_attn_implementation(ATTENTION if self.packed else self.backbone.attention)
        budget = TokenBudget(self.token_budget) if isinstance(self.token_budget, int) else self.token_budget
        for numbers, vectors, tokens in self._parts(rows, groups, budget):
            computed += tokens
            for name, matrix in vectors.items():
                if name not in gathered:
                    gathered[name] = np.empty((len(rows), matrix.shape[1]), dtype=np.float32)
                gathered[name][numbers] = matrix.cpu().numpy()
        return gathered, computed

    def count(self, rows: Sequence[TokenRow], groups: Sequence[Hashable]) -> int:
        """Number of tokens that `run` would compute for these rows with the token budget as it is."""
        budget = self.token_budget if isinstance(self.token_budget, int) else self.token_budget.tokens
        if self.packed:
            return sum(len(pack.ids) for pack in make_packs(rows, groups, budget))
        lengths = np.array([len(row) for row in rows])
        return sum(len(batch) * int(lengths[batch].max()) for batch in batches(lengths.tolist(), budget))

    def _parts(
        self, rows: Sequence[TokenRow], groups: Sequence[Hashable], budget: TokenBudget
    ) -> Iterator[tuple[list[int], dict[str, Tensor], int]]:
        """(row numbers, their features, tokens run), part by part; what was run stays when memory ends."""
        left = list(range(len(rows)))
        while left:
            part, keys = [rows[number] for number in left], [groups[number] for number in left]
            done: set[int] = set()
            fullest = 0
            try:
                for numbers, vectors, tokens in (
                    self._packed(part, keys, budget) if self.packed else self._padded(part, budget)
                ):
                    yield [left[number] for number in numbers], vectors, tokens
                    done.update(numbers)
                    fullest = max(fullest, tokens)
                if fullest > 0.9 * budget.tokens:  # a smaller pack says nothing of what this budget needs
                    budget.grow(memory_share(self.backbone.model.device))
            except torch.OutOfMemoryError:
                budget.shrink()
            left = [number for position, number in enumerate(left) if position not in done]

    def _packed(
        self, rows: Sequence[TokenRow], groups: Sequence[Hashable], budget: TokenBudget
    ) -> Iterator[tuple[list[int], dict[str, Tensor], int]]:
        for pack in make_packs(rows, groups, budget.tokens):
            yield [placed.row for placed in pack.placed], self._forward_pack(pack, rows), len(pack.ids)

    def _padded(
        self, rows: Sequence[TokenRow], budget: TokenBudget
    ) -> Iterator[tuple[list[int], dict[str, Tensor], int]]:
        for batch in batches([len(row) for row in rows], budget.tokens):
            chosen = [rows[number] for number in batch]
            yield batch.tolist(), self._forward_batch(chosen), len(batch) * max(len(row) for row in chosen)

    @torch.inference_mode()
    def _forward_pack(self, pack: Pack, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        read = {pool: [in_pack(placed, rows[placed.row].pooled(pool)) for placed in pack.placed] for pool in self.pool}
        members = [rows[placed.row] for placed in pack.placed]
        also = [
            in_pack(placed, tokens)
            for placed, row in zip(pack.placed, members, strict=True)
            for tokens in needed_tokens(self.scalars, row)
        ]
        needed = np.unique(np.concatenate([*also, *(tokens for pooled in read.values() for tokens in pooled)]))
        device = self.backbone.model.device
        gathered = {pool: _Segments.of(tokens, device) for pool, tokens in read.items()}
        features = {}
        for layer, states in self._pack_states(pack, needed):
            for pool, segments in gathered.items() if layer in self.layers else ():
                features[feature_name(layer, pool)] = segments.mean(states)
            if layer == self.backbone.layer_count:
                features |= self._likelihoods(states, members, lambda n, tokens: in_pack(pack.placed[n], tokens))
        return features

    @property
    def _layers_run(self) -> tuple[int, ...]:
        """The layers whose states are looked at, ascending."""
        return tuple(sorted({*self.layers, *([self.backbone.layer_count] if self.scalars else [])}))

    def _likelihoods(
        self, states: Tensor, rows: Sequence[TokenRow], at: Callable[[int, range], NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """The scalars, from final states (tokens, d)."""
        if not self.scalars:
            return {}
        assert self.backbone.lm_head is not None, "scalars without an LM head"
        return likelihoods(self.backbone.lm_head, self.scalars, states, rows, at)

    def _pack_states(self, pack: Pack, needed: NDArray[np.int64]) -> Iterator[tuple[int, Tensor]]:
        """(layer, states (tokens, d)) for each layer that is looked at; of the deepest only the needed tokens'."""
        device = self.backbone.model.device
        ids = torch.from_numpy(pack.ids).long().to(device)
        positions = torch.from_numpy(pack.positions).to(device)
        if self.decoder is not None:
            wanted = torch.from_numpy(needed).to(device)
            yield from self.decoder.states(ids, positions, pack.spans, self._layers_run, wanted)
            return
        output = self.backbone.model(
            input_ids=ids[None],
            position_ids=positions[None],
            output_hidden_states=self.layers != (self.backbone.layer_count,),
            use_cache=False,
            spans=pack.spans,
        )
        for layer in self._layers_run:
            yield layer, self._states(output, layer)[0]

    @torch.inference_mode()
    def _forward_batch(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        device = self.backbone.model.device
        pad = self.backbone.tokenizer.pad_token_id
        ids, mask = right_padded(rows, pad if isinstance(pad, int) else 0)
        output = self.backbone.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            output_hidden_states=self.layers != (self.backbone.layer_count,),
            use_cache=False,
        )
        features = {
            feature_name(layer, pool): self._pooled(self._states(output, layer), rows, pool)
            for layer in self.layers
            for pool in self.pool
        }
        width = ids.shape[1]
        final = self._states(output, self.backbone.layer_count).flatten(0, 1)
        return features | self._likelihoods(final, rows, lambda n, tokens: n * width + np.asarray(tokens))

    def _pooled(self, states: Tensor, rows: Sequence[TokenRow], pool: str) -> Tensor:
        """(rows, d) from a padded batch's (rows, tokens, d)."""
        if pool != "sentence":
            return pool_states(states, [row.pooled(pool) for row in rows])
        sentence = self.backbone.sentence
        assert sentence is not None, "sentence pooling without a sentence encoder"
        pooled = pool_states(states, [row.pooled(sentence.tokens) for row in rows])
        return torch.nn.functional.normalize(pooled, dim=1) if sentence.normalized else pooled

    def _states(self, output: "BaseModelOutput", layer: int) -> Tensor:
        states = output.last_hidden_state if layer == self.backbone.layer_count else None
        if states is None:
            assert output.hidden_states is not None, "intermediate layers were not asked for"
            states = output.hidden_states[layer]
        assert states is not None
        return states


@dataclass(frozen=True)
class _Segments:
    """Tokens of several rows end to end, and how many each row has: one gather for all rows."""

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, tokens: Sequence[NDArray[np.int64]], device: torch.device) -> "_Segments":
        lengths = torch.tensor([len(one) for one in tokens])
        return cls(torch.from_numpy(np.concatenate(tokens)).to(device), lengths.to(device))

    def mean(self, states: Tensor) -> Tensor:
        """(tokens, d) -> (rows, d), float32."""
        chosen = states[self.tokens].float()
        return (
            chosen if len(chosen) == len(self.lengths) else torch.segment_reduce(chosen, "mean", lengths=self.lengths)
        )


def choose_path(backbone: Backbone, *, share: bool = True) -> tuple[bool, Decoder | None]:
    """Whether to share prompts in packs, and by which loop: ours, or transformers' where ours does not know the parts.

    Whatever is chosen gives the vectors of one row at a time within the dtype's tolerance: it has been tried.
    """
    decoder = make_decoder(backbone) if share else None
    return share and (decoder is not None or supports_packing(backbone)), decoder


def supports_packing(backbone: Backbone) -> bool:
    """Whether the backbone gives the same vectors packed as it gives one row at a time.

    Three made-up conversations with a common beginning are run both ways. Architectures that do more than causal
    attention over positions (state-space layers, bidirectional or soft-capped attention) fail here.
    """
    rows = _made_up_rows(backbone)
    layers, pool = (backbone.layer_count,), ("last",)
    plain = Extractor(backbone, layers, pool, token_budget=1)
    expected, _ = plain.run(rows, [0] * len(rows))
    try:
        found, _ = replace(plain, token_budget=1 << 20, packed=True).run(rows, [0] * len(rows))
    except (TypeError, ValueError, RuntimeError):
        return False
    return largest_difference(found, expected) <= TOLERANCE[backbone.dtype]


def make_decoder(backbone: Backbone) -> Decoder | None:
    """Our own loop for this backbone, where it gives the vectors that transformers gives, layer by layer; else None."""
    rows = _made_up_rows(backbone)
    layers = tuple(range(backbone.layer_count + 1))
    plain = Extractor(backbone, layers, ("last", "mean"), token_budget=1)
    expected, _ = plain.run(rows, [0] * len(rows))
    try:
        ours = replace(plain, token_budget=1 << 20, packed=True, decoder=Decoder(backbone.model))
        found, _ = ours.run(rows, [0] * len(rows))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return ours.decoder if largest_difference(found, expected) <= TOLERANCE[backbone.dtype] else None


def relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest |found - expected| / |expected| over rows."""
    return float(np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def largest_difference(found: Features, expected: Features) -> float:
    """The largest `relative_difference` over features; NaN if any is, which `max` would lose."""
    names = [name for name in expected if name not in SCALARS]
    return float(np.max([relative_difference(found[name], expected[name]) for name in names]))


def largest_shift(found: Features, expected: Features) -> float:
    """The largest |found - expected| over scalars, in nats; 0 where there are none, NaN if any is."""
    return float(np.max([0.0, *(np.max(np.abs(found[n] - expected[n])) for n in expected if n in SCALARS)]))


def batches(lengths: Sequence[int], token_budget: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches: sorted by length, each at most `token_budget` tokens with padding, or one row.

    Ties keep the rows' order, so the same lengths give the same batches in every run.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        following = lengths[order[end]] if end < len(order) else 0
        if end == len(order) or following * (end + 1 - start) > token_budget:
            yield order[start:end]
            start = end


def pool_states(states: Tensor, tokens: Sequence[range]) -> Tensor:
    """The mean state of each row's tokens.

    Args:
        states: (rows, tokens, d), right-padded.
        tokens: which of each row's tokens to average; at least one.

    Returns: (rows, d), float32.
    """
    first = torch.tensor([one.start for one in tokens], device=states.device)
    end = torch.tensor([one.stop for one in tokens], device=states.device)
    if bool((end - first == 1).all()):
        return states[torch.arange(len(states), device=states.device), first].float()
    positions = torch.arange(states.shape[1], device=states.device)
    inside = (positions >= first[:, None]) & (positions < end[:, None])
    weights = inside.float() / inside.sum(dim=1, keepdim=True)
    return torch.einsum("rt,rtd->rd", weights, states.float().masked_fill(~inside[:, :, None], 0.0))


def stored(
    features: dict[str, NDArray[np.float32]], spec: EmbeddingSpec, last_layer: int, response_ids: Sequence[str]
) -> tuple[dict[str, Vectors], dict[str, Scalars]]:
    """Features as the spec stores them; scalars, and the RMS of those that are RMS-normalised.

    With float16, intermediate layers are divided by their RMS: residual streams reach 1e5 in Gemma, beyond float16's
    65,504. The final normed state is stored as it is.

    Raises: ValueError with the response id if a value is not finite or overflows.
    """
    vectors: dict[str, Vectors] = {}
    scalars: dict[str, Scalars] = {}
    for name, matrix in features.items():
        if name in SCALARS:
            _check(~np.isfinite(matrix), name, response_ids, "is not finite; leave it out of --scalars")
            scalars[name] = matrix[:, 0]
            continue
        _check(~np.isfinite(matrix), name, response_ids, "is not finite; compute with --dtype float32")
        if spec.stored_dtype == "float32":
            vectors[name] = matrix
            continue
        if not name.startswith(f"L{last_layer}."):
            rms = np.sqrt(np.mean(np.square(matrix), axis=1)) + np.float32(np.finfo(np.float32).tiny)
            scalars[name + RMS] = rms
            matrix = matrix / rms[:, None]
        _check(np.abs(matrix) > FLOAT16_MAX, name, response_ids, "overflows float16; use --store-dtype float32")
        vectors[name] = matrix.astype(np.float16)
    return vectors, scalars


def in_pack(placed: Placed, tokens: range) -> NDArray[np.int64]:
    """Where a row's tokens lie in its pack: the first of them may be shared ones."""
    positions = np.asarray(tokens)
    own = placed.start + positions - placed.shared
    return np.where(positions < placed.shared, placed.prefix_start + positions, own)


def _made_up_rows(backbone: Backbone) -> list[TokenRow]:
    """Three conversations that begin alike, longer than a sliding window where there is one that is not too long."""
    config = backbone.model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    beginning = min(window + 8 if window <= 1024 else 64, backbone.max_length - 16)
    generator = np.random.default_rng(0)
    common = generator.integers(0, config.vocab_size, beginning)
    ends = [generator.integers(0, config.vocab_size, length) for length in (3, 7, 1)]
    return [TokenRow(np.concatenate([common, end]).astype(np.int32), beginning) for end in ends]


def right_padded(rows: Sequence[TokenRow], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, longest)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.ids)
        mask[number, : len(row)] = 1
    return ids, mask


def _check(bad: NDArray[np.bool_], name: str, response_ids: Sequence[str], what: str) -> None:
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows):
        raise ValueError(f"feature {name} of response {response_ids[rows[0]]} {what} (rows like it: {len(rows)})")
