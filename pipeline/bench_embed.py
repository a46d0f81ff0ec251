"""`pipeline bench embed`: how fast an embedding run is, beside what others do, on the same texts in one process.

Variants take turns on slices of the texts, so that a busy machine hits all alike. Each is timed from text to vectors in
memory, tokenising included. Ours renders and writes to disk besides, as it always does. Loading is not timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import machine, published
from pipeline.backbone import Backbone, choose_device, default_dtype, load_backbone, resolve
from pipeline.bench_texts import Ours, Texts, make_texts
from pipeline.embed import TOKEN_BUDGET, EmbedOptions, make_extractor, make_spec
from pipeline.forward import choose_path, relative_difference
from pipeline.progress import say
from pipeline.published import Embedded
from pipeline.readers import read_source
from pipeline.render import Renderer

VARIANTS = ("a", "b", "c", "d")
EQUALITY_ROWS = 12
Vectors = NDArray[np.float32]
Run = Callable[[Sequence[int]], Embedded]


@dataclass(frozen=True)
class BenchEmbedOptions:
    """Options of `pipeline bench embed`.

    Attributes:
        source: a file or hub id.
        backbone: hub id, directory, or "gemma3-270m".
        backbone_revision: commit, tag or branch of a hub backbone.
        format: force a format instead of recognising it from the columns.
        template: chat template: "model", a named one, or a Jinja file; None takes the model's own.
        prompts: take the first so many prompts.
        as_listed: whether to take a response as often as pairs name it; (d) runs it once.
        max_length: tokens at which every variant cuts a text (on the left), and to which (a) pads.
        rounds: slices of the texts; the variants take turns on each.
        only: variants to run, of "a", "b", "c", "d".
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        dtypes: what (d) computes in, one variant each; empty takes what `pipeline embed` would.
        plain_dtype: what (b) computes in.
        threads: torch's threads; None leaves them as they are.
        token_budget: tokens in a pack of (d); None takes what `pipeline embed` would.
        peak_tflops: the device's bfloat16 peak for MFU; None looks a GPU's up by its name.
    """

    source: str
    backbone: str
    backbone_revision: str | None = None
    format: str | None = None
    template: str | None = None
    prompts: int = 75
    as_listed: bool = False
    max_length: int = 512
    rounds: int = 3
    only: tuple[str, ...] = VARIANTS
    device: str | None = None
    dtypes: tuple[str, ...] = ()
    plain_dtype: str = "float32"
    threads: int | None = None
    token_budget: int | None = None
    peak_tflops: float | None = None


@dataclass(frozen=True)
class Variant:
    """A procedure under measurement.

    Attributes:
        name: "a", "b", "c", or "d" with its dtype.
        what: in words.
        pooling: of its vectors.
        weight_bytes: of the model it uses.
        run: row numbers to vectors; what is timed.
        also: other ways to embed a few rows, run once and not timed, for the table of equality.
        reference: one row at a time; None for the backbone's last state.
        shares: whether a prompt is run once for all its responses.
    """

    name: str
    what: str
    pooling: str
    weight_bytes: int
    run: Run
    also: Mapping[str, Run] = field(default_factory=dict)
    reference: Run | None = None
    shares: bool = False


@dataclass
class Measured:
    """What a variant did, round by round.

    Attributes:
        seconds: wall time of each round.
        tokens_run: positions computed in each round: padding included, shared ones once.
        peak_bytes: the model's weights and the most that a round used beyond what was in use; None if unknown.
        vectors: of every row, (d,) each.
        at_last_token: likewise, for a variant that has `Embedded.at_last_token`.
    """

    seconds: list[float] = field(default_factory=list)
    tokens_run: list[int] = field(default_factory=list)
    peak_bytes: int | None = None
    vectors: dict[int, Vectors] = field(default_factory=dict)
    at_last_token: dict[int, Vectors] = field(default_factory=dict)


@dataclass(frozen=True)
class Equality:
    """How far some vectors are from those of the same rows run one at a time in float32.

    Attributes:
        variant: its name.
        pooling: what the vectors are.
        worst: largest |found - expected| / |expected|.
        cosine: lowest.
    """

    variant: str
    pooling: str
    worst: float
    cosine: float


@dataclass(frozen=True)
class Bench:
    """Everything that was measured.

    Attributes:
        options: what was asked for.
        device: "cpu" or "cuda".
        texts: what was embedded.
        slices: row numbers of each round.
        variants: what was run.
        measured: by variant name.
        gemm: FLOP/s of matrix products at the model's shapes, by dtype, one figure for each round.
        equality: how far vectors are from one row at a time in float32, over `EQUALITY_ROWS` rows.
        flops: (matrix products, attention) of all that each (d) ran.
        profiles: share of the time by kind of work in one batch of each (d).
        notes: what a reader must know.
    """

    options: BenchEmbedOptions
    device: str
    texts: Texts
    slices: list[list[int]]
    variants: list[Variant]
    measured: dict[str, Measured]
    gemm: dict[str, list[float]]
    equality: list[Equality]
    flops: dict[str, tuple[float, float]]
    profiles: dict[str, dict[str, float]]
    notes: list[str]


def bench_embed(options: BenchEmbedOptions) -> Bench:
    """Measure. Raises: ValueError with what, got and fix."""
    device = _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dataset = read_source(options.source, format=options.format, prompts=options.prompts)
    backbone = _load(options, device, "float32")
    if not 2 <= options.max_length <= backbone.max_length:
        raise ValueError(f"--max-length {options.max_length} is outside 2 to {backbone.max_length}; give one inside")
    renderer = Renderer.of(backbone.tokenizer, options.template)
    texts = make_texts(dataset, renderer, options.max_length, as_listed=options.as_listed)
    slices = texts.slices(options.rounds)
    notes: list[str] = []
    ours = _ours(options, device, texts) if "d" in options.only else {}
    baselines = _baselines(options, backbone, texts, notes)
    encoded = next((variant.reference for variant in baselines if variant.name == "c"), None)
    variants = [*baselines, *(_our_variant(name, run, encoded) for name, run in ours.items())]
    if not variants:
        raise ValueError(f"--only {','.join(options.only)} leaves nothing to run: {'; '.join(notes)}")
    _note_tokens(backbone, texts, notes)
    measured, gemm = run_rounds(variants, slices, backbone, _budget(options, device))
    everything = [number for numbers in slices for number in numbers]
    return Bench(
        options=options,
        device=device,
        texts=texts,
        slices=slices,
        variants=variants,
        measured=measured,
        gemm=gemm,
        equality=_equality(variants, measured, backbone, texts),
        flops={name: _flops(run, sum(measured[name].tokens_run), everything) for name, run in ours.items()},
        profiles={name: _profile(run, slices[0]) for name, run in ours.items()},
        notes=notes,
    )


def run_rounds(
    variants: Sequence[Variant], slices: Sequence[Sequence[int]], backbone: Backbone, budget: int
) -> tuple[dict[str, Measured], dict[str, list[float]]]:
    """Run every variant on every slice, in an order that rotates, and the machine's GEMM rates in each round.

    Args:
        variants: what to measure.
        slices: row numbers of each round.
        backbone: says the device and the shapes.
        budget: tokens in the matrix products of the GEMM rate.
    """
    device = backbone.model.device.type
    shapes = machine.weight_shapes(backbone.model)
    measured = {variant.name: Measured() for variant in variants}
    gemm: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for variant in variants:
        variant.run(slices[0][:1])
    for number, numbers in enumerate(slices):
        first = number % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            _measure(variant, numbers, measured[variant.name], device)
        for dtype, rates in gemm.items():
            rates.append(machine.gemm_rate(shapes, budget, dtype=getattr(torch, dtype), device=device))
    return measured, gemm


def equality_rows(count: int) -> list[int]:
    """Numbers of a few rows, spread evenly over `count`."""
    return [int(number) for number in np.unique(np.linspace(0, count - 1, EQUALITY_ROWS).round())]


def _measure(variant: Variant, numbers: Sequence[int], measured: Measured, device: str) -> None:
    before = machine.start_peak(device)
    started = time.perf_counter()
    embedded = variant.run(numbers)
    machine.synchronise(device)
    measured.seconds.append(time.perf_counter() - started)
    measured.tokens_run.append(embedded.tokens_run)
    if before is not None:
        used = variant.weight_bytes + machine.peak(device) - before
        measured.peak_bytes = max(used, measured.peak_bytes or 0)
    measured.vectors |= dict(zip(numbers, embedded.vectors, strict=True))
    if embedded.at_last_token is not None:
        measured.at_last_token |= dict(zip(numbers, embedded.at_last_token, strict=True))
    say(f"({variant.name}) {len(numbers):,} responses in {measured.seconds[-1]:.1f} s")


def _baselines(options: BenchEmbedOptions, backbone: Backbone, texts: Texts, notes: list[str]) -> list[Variant]:
    """Variants (a), (b) and (c), as far as they were asked for and can be run."""
    found = []
    if "a" in options.only:
        side = backbone.tokenizer.padding_side
        meant = "the last token" if side == "left" else "padding in every text that is not the longest allowed"
        notes.append(f"this tokenizer pads on the {side}: position -1, which (a) takes, is {meant}")
        found.append(_published_variant(options, backbone, texts))
    if "b" in options.only:
        found.append(_plain_variant(options, backbone, texts))
    if "c" in options.only and backbone.sentence is None:
        notes.append("(c) left out: the backbone is not in sentence-transformers' format")
    elif "c" in options.only and find_spec("sentence_transformers") is None:
        notes.append("(c) left out: sentence-transformers is not installed")
    elif "c" in options.only:
        found.append(_encoder_variant(options, backbone, texts))
    return found


def _published_variant(options: BenchEmbedOptions, backbone: Backbone, texts: Texts) -> Variant:
    device, length = backbone.model.device.type, options.max_length
    tokenizer = published.baseline_tokenizer(backbone.tokenizer, truncation_side="left")
    as_they_cut = published.baseline_tokenizer(backbone.tokenizer, truncation_side=backbone.tokenizer.truncation_side)
    classifier = published.load_classifier(options.backbone, options.backbone_revision, device, tokenizer)

    def run(numbers: Sequence[int]) -> Embedded:
        return published.published(classifier, tokenizer, [texts.texts[n] for n in numbers], max_length=length)

    def as_pairs(numbers: Sequence[int]) -> Embedded:
        pairs = [texts.as_text_pair(number) for number in numbers]
        return published.published(classifier, as_they_cut, pairs, max_length=length)

    what = f"published: float32, padded to {length}, all layers, batch {published.PUBLISHED_BATCH}"
    also = {"as published, tokenised as published too (a text pair)": as_pairs}
    return Variant("a", what, "as published: position -1", machine.weight_bytes(classifier), run, also)


def _plain_variant(options: BenchEmbedOptions, backbone: Backbone, texts: Texts) -> Variant:
    dtype = options.plain_dtype
    model = backbone.model if dtype == "float32" else _load(options, backbone.model.device.type, dtype).model
    tokenizer = published.baseline_tokenizer(backbone.tokenizer, truncation_side="left")

    def run(numbers: Sequence[int]) -> Embedded:
        return published.plain(model, tokenizer, [texts.texts[n] for n in numbers], max_length=options.max_length)

    what = f"plain loop: {dtype}, padded to the longest, batch {published.PLAIN_BATCH}"
    return Variant("b", what, "last real token", machine.weight_bytes(model), run)


def _encoder_variant(options: BenchEmbedOptions, backbone: Backbone, texts: Texts) -> Variant:
    where = str(resolve(options.backbone))
    encoder = published.load_sentence_encoder(where, backbone.model.device.type, options.max_length)

    def run(numbers: Sequence[int]) -> Embedded:
        return published.sentence_transformer(encoder, [texts.texts[number] for number in numbers])

    def alone(numbers: Sequence[int]) -> Embedded:
        return Embedded(np.concatenate([run([number]).vectors for number in numbers]), None, 0)

    what = "sentence-transformers encode(): float32, sorted by length, batch 32"
    return Variant("c", what, "the encoder's own", machine.weight_bytes(encoder), run, reference=alone)


def _ours(options: BenchEmbedOptions, device: str, texts: Texts) -> dict[str, Ours]:
    """(d) in each dtype, by variant name, set up as `pipeline embed` does."""
    found = {}
    for dtype in dict.fromkeys(options.dtypes or (default_dtype(device),)):
        backbone = _load(options, device, dtype)
        packed, decoder = choose_path(backbone)
        asked = EmbedOptions((), Path(), options.backbone, max_length=options.max_length, store_dtype="float32")
        asked = replace(asked, token_budget=options.token_budget)
        spec = make_spec(asked, backbone, texts.renderer, packed=packed)
        found[f"d {dtype}"] = Ours(texts, make_extractor(asked, backbone, spec, decoder), spec)
    return found


def _our_variant(name: str, ours: Ours, encoded: Run | None) -> Variant:
    """(d); a sentence encoder's vectors are compared with (c)'s one at a time, `encoded`, where (c) is run."""
    backbone = ours.extractor.backbone
    pooling = "the encoder's own" if backbone.sentence else "last token"
    reference = encoded or ours.alone if backbone.sentence else None

    def alone(numbers: Sequence[int]) -> Embedded:
        return Embedded(published.one_at_a_time(backbone, [ours.texts.rows[number] for number in numbers]), None, 0)

    shares = ours.extractor.packed
    loop = "transformers' layers" if ours.extractor.decoder is None else "own layer loop"
    what = f"pipeline embed: {backbone.dtype}, {'prompts shared in packs' if shares else 'padded batches'}, {loop}"
    also = {} if backbone.dtype == "float32" else {f"{backbone.dtype} one at a time, not shared": alone}
    return Variant(name, what, pooling, machine.weight_bytes(backbone.model), ours.run, also, reference, shares)


def _equality(
    variants: Sequence[Variant], measured: Mapping[str, Measured], backbone: Backbone, texts: Texts
) -> list[Equality]:
    """Of a few rows spread over the texts."""
    chosen = equality_rows(len(texts.rows))
    expected = published.one_at_a_time(backbone, [texts.rows[number] for number in chosen])
    found = []
    for variant in variants:
        run = measured[variant.name]
        truth = expected if variant.reference is None else variant.reference(chosen).vectors
        ways = {variant.pooling: np.stack([run.vectors[number] for number in chosen])}
        if run.at_last_token:
            ways["the same states at the last real token"] = np.stack([run.at_last_token[n] for n in chosen])
        ways |= {name: embed(chosen).vectors for name, embed in variant.also.items()}
        for pooling, vectors in ways.items():
            worst = relative_difference(vectors, truth)
            found.append(Equality(variant.name, pooling, worst, published.lowest_cosine(vectors, truth)))
    return found


def _flops(ours: Ours, tokens_run: int, numbers: Sequence[int]) -> tuple[float, float]:
    model = ours.extractor.backbone.model
    return machine.matrix_flops(model, tokens_run), machine.attention_flops(model, ours.positions(numbers))


def _profile(ours: Ours, numbers: Sequence[int]) -> dict[str, float]:
    rows, groups = ours.one_batch(numbers)
    return machine.profile(lambda: ours.extractor.run(rows, groups), ours.extractor.backbone.model.device.type)


def _note_tokens(backbone: Backbone, texts: Texts, notes: list[str]) -> None:
    tokenizer = published.baseline_tokenizer(backbone.tokenizer, truncation_side="left")
    ids = [row.ids for row in texts.rows]
    count = published.different_tokens(tokenizer, texts.texts, ids, max_length=texts.max_length)
    if count:
        notes.append(
            f"the tokenizer's own call makes other tokens of {count:,} of {len(ids):,} texts (special tokens): "
            "(a) and (b) run those, (d) and the reference do not"
        )


def _check(options: BenchEmbedOptions) -> str:
    """The device. Raises: ValueError for options that cannot be."""
    unknown = [name for name in options.only if name not in VARIANTS]
    if unknown or not options.only:
        raise ValueError(f"--only {(unknown or [''])[0]!r} is not one of a, b, c, d; join those wanted by commas")
    return choose_device(options.device)


def _load(options: BenchEmbedOptions, device: str, dtype: str) -> Backbone:
    say(f"loading {options.backbone} on {device} in {dtype}")
    return load_backbone(options.backbone, revision=options.backbone_revision, device=device, dtype=dtype)


def _budget(options: BenchEmbedOptions, device: str) -> int:
    return options.token_budget or TOKEN_BUDGET[device]
