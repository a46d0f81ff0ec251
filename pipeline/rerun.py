"""The backbone of an embedding, run again: new texts become the features that the embedding would hold of them.

Renderer, over-long policy, RMS and rounding are those of the spec, so a head sees a new text exactly as it sees a
cached one. What can change a vector and is not what it was is refused, field by field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache.embeddings import Embeddings
from cache.spec import COUNTS, NAMES, SCALARS, EmbeddingSpec, feature_name
from cache.vectors import RMS, Scalars
from pipeline import likelihood
from pipeline.backbone import Backbone, choose_device, load_backbone
from pipeline.embed import PART_ROWS, choose_budget
from pipeline.forward import TOLERANCE, Extractor, Features, choose_path, relative_difference, stored
from pipeline.packing import ATTENTION
from pipeline.progress import Progress, say
from pipeline.render import Renderer
from pipeline.windows import Pending, Window, characters, encode, token_counts, windows

FLOAT16_ROUNDING = 2.0**-11  # relative, of a value that is not subnormal


@dataclass(frozen=True)
class NewRows:
    """Features of new responses.

    Attributes:
        ids: of the responses that were run; n of them, in the order of `matrix`.
        matrix: their features side by side; shape (n, d), float32.
        dropped: responses that the over-long policy leaves out, and why.
    """

    ids: list[str]
    matrix: NDArray[np.float32]
    dropped: dict[str, str]


@dataclass(frozen=True)
class Rerun:
    """A loaded backbone and what it takes to run a text as an embedding's texts were run.

    Attributes:
        spec: the embedding's.
        names: the features that are wanted, some of the spec's `inputs`.
        extractor: runs the layers and poolings that these need.
        renderer: the spec's.
    """

    spec: EmbeddingSpec
    names: tuple[str, ...]
    extractor: Extractor
    renderer: Renderer

    @classmethod
    def load(
        cls,
        spec: EmbeddingSpec,
        names: Sequence[str],
        *,
        backbone: str | None = None,
        template: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """Load the spec's backbone.

        Args:
            spec: the embedding's.
            names: the features that are wanted.
            backbone: where the backbone is now; None takes the name in the spec.
            template: the chat template; None takes the name in the spec.
            device: "cpu" or "cuda"; None takes the GPU if there is one.
            dtype: what it computes in; None takes the spec's.

        Raises: ValueError if the backbone or template cannot be had, or is not what the embedding was made with.
        """
        commit = spec.weights.partition(":")[2] if _kind(spec.weights) == "revision" else None
        device, dtype = choose_device(device), dtype or spec.compute_dtype
        name = backbone or spec.backbone
        say(f"loading {name} on {device} in {dtype}")
        loaded = load_backbone(
            name,
            revision=commit if backbone is None else None,
            device=device,
            dtype=dtype,
            lm_head=any(name in SCALARS for name in names),
        )
        tokenizer = loaded.tokenizer_hash  # before it is used: use can change the serialisation
        renderer = Renderer.of(loaded.tokenizer, template or spec.template, spec.suffix)
        _refuse_changes(spec, loaded, tokenizer, renderer)
        return cls(spec, tuple(names), _extractor(loaded, spec, names), renderer)

    @property
    def backbone(self) -> Backbone:
        """What is loaded."""
        return self.extractor.backbone

    @property
    def _window_rows(self) -> int:
        return PART_ROWS[self.backbone.model.device.type]

    @property
    def weights_compared(self) -> bool:
        """Whether the weights were held against the spec's: a hub's commit says nothing of a directory's hash."""
        return _kind(self.backbone.weights) == _kind(self.spec.weights)

    def refuse_other_vectors(self, embeddings: Embeddings, rows: Sequence[Pending]) -> None:
        """Run rows that the embedding has, and hold the vectors against those that it has.

        Raises: ValueError naming the first feature that is further off than dtype and float16 allow.
        """
        new, start = self.run(rows, rounded=False), 0
        dtypes = self.spec.compute_dtype, self.backbone.dtype
        for name in self.names:
            was = embeddings.gather(new.ids, [name])
            now, start = new.matrix[:, start : start + was.shape[1]], start + was.shape[1]
            off = relative_difference(was, now) if name in self.spec.features else float(np.abs(was - now).max())
            allowed = allowed_difference(self.spec, name, dtypes)
            if not off <= allowed:
                raise ValueError(
                    f"{self.backbone.name} is not the backbone that embedding {self.spec.fingerprint} was made with: "
                    f"{len(new.ids)} of its rows run again have another {name}, by {off:.1e} where {allowed:.1e} is "
                    f"rounding; give {self.spec.backbone} as {self.spec.weights} has it, or embed and fit again"
                )

    def run(self, rows: Sequence[Pending], *, rounded: bool = True) -> NewRows:
        """Features of responses; those of one prompt should follow each other, so that its tokens are run once.

        Args:
            rows: the responses.
            rounded: as the store would hold them; False leaves out float16's rounding and nothing else.

        Raises: ValueError if a row is over-long and the spec says "error", or a vector cannot be stored.
        """
        ids, dropped, parts = list[str](), dict[str, str](), list[NDArray[np.float32]]()
        progress, size = Progress("responses", total=sum(map(characters, rows))), self._window_rows
        for asked in windows(rows, size):
            window = encode(asked, self.renderer, self.spec)
            if window.rows:
                features, _ = self.extractor.run(window.rows, window.groups)
                parts.append(self._matrix(features, window, rounded=rounded))
            ids += window.ids
            dropped |= window.dropped
            if len(rows) > size:  # else there is nothing to be told before the end
                progress.advance(sum(map(characters, asked)), len(asked))
        progress.close()
        return NewRows(ids, np.concatenate(parts) if parts else np.empty((0, 0), np.float32), dropped)

    def _matrix(self, features: Features, window: Window, *, rounded: bool) -> NDArray[np.float32]:
        """The features side by side as `cache.embeddings.Embeddings.gather` gives them: (rows, d)."""
        vectors, scalars = stored(features, self.spec, self.backbone.layer_count, window.ids)
        scalars = token_counts(window) | scalars
        columns = list[NDArray[np.float32]]()
        for name in self.names:
            if name in SCALARS + COUNTS:
                columns.append(_column(scalars, name))
            elif rounded:
                columns.append(vectors[name].astype(np.float32))
            else:
                columns.append(features[name] / _column(scalars, name + RMS))
        return np.concatenate(columns, axis=1)


def allowed_difference(spec: EmbeddingSpec, name: str, dtypes: Sequence[str]) -> float:
    """How far a feature that is run again may be from what is stored: relative for a vector, in nats for a scalar.

    Args:
        spec: of what is stored.
        name: the feature.
        dtypes: what was computed in, then and now.
    """
    if name not in spec.features:
        return max(likelihood.TOLERANCE[dtype] for dtype in dtypes)
    return max(TOLERANCE[dtype] for dtype in dtypes) + (FLOAT16_ROUNDING if spec.stored_dtype == "float16" else 0.0)


def _kind(weights: str) -> str:
    """What a spec's weights are known by: "revision" or "sha256"."""
    return weights.partition(":")[0]


def _column(scalars: Mapping[str, Scalars], name: str) -> NDArray[np.float32]:
    """A scalar of each row as a column (rows, 1); a single 1 where there is none of that name."""
    column: NDArray[np.float32] = np.asarray(scalars.get(name, np.ones(1)), dtype=np.float32)[:, None]
    return column


def _extractor(backbone: Backbone, spec: EmbeddingSpec, names: Sequence[str]) -> Extractor:
    """What runs the layers, poolings and scalars that these features need, as the spec's embedding was run."""
    packed, decoder = choose_path(backbone, share=spec.attention == ATTENTION)
    layers, pool = _needed(spec, names)
    budget = choose_budget(backbone.model.device.type)
    scalars = tuple(name for name in SCALARS if name in names)
    return Extractor(backbone, layers, pool, budget, packed=packed, decoder=decoder, scalars=scalars)


def _needed(spec: EmbeddingSpec, names: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The layers and poolings among which these features are; one of each where they are all single numbers."""
    places = [(layer, pool) for layer in spec.layers for pool in spec.pool if feature_name(layer, pool) in names]
    layers = tuple(layer for layer in spec.layers if any(layer == wanted for wanted, _ in places))
    pool = tuple(pool for pool in spec.pool if any(pool == wanted for _, wanted in places))
    return layers or spec.layers[:1], pool or spec.pool[:1]


def _refuse_changes(spec: EmbeddingSpec, backbone: Backbone, tokenizer: str, renderer: Renderer) -> None:
    """Raise ValueError naming the first field that is not what it was.

    A hub's commit and a directory's hash may stand for the same weights, so those two kinds are not compared here: who
    asks for features then compares vectors (`Rerun.weights_compared`).
    """
    now = replace(
        spec,
        weights=backbone.weights,
        tokenizer=tokenizer,
        template_sha256=renderer.sha256,
        bos=renderer.bos,
        max_length=min(spec.max_length, backbone.max_length),
        layers=tuple(layer for layer in spec.layers if layer <= backbone.layer_count),
    )
    for field, (was, found) in spec.differences(now).items():
        other_kind = field == "weights" and _kind(was) != _kind(found)
        if field not in NAMES and not other_kind:
            raise ValueError(
                f"{field} of {backbone.name} is {found}, but embedding {spec.fingerprint} was made with {was}; give "
                "what it was made with (--backbone, --template), or embed and fit again"
            )
