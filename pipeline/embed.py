"""The embedding stage: preference data in, one vector per response and feature out, once.

Responses that the store already has under the same spec are not run again. Work goes window by window, each written
as one part; windows are cut in the order of the data, so a run that was killed continues with the very batches that
the uninterrupted run would have made, and its vectors are the same to the bit.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.spec import SCALARS, EmbeddingSpec
from cache.store import Store
from pipeline.backbone import Backbone, choose_device, default_dtype, load_backbone
from pipeline.budget import TokenBudget
from pipeline.decoder import Decoder
from pipeline.finetuned import take_over
from pipeline.forward import Extractor, choose_path
from pipeline.packing import ATTENTION
from pipeline.preflight import preflight, probe
from pipeline.progress import Progress, clock, say
from pipeline.render import Renderer
from pipeline.sources import read_datasets
from pipeline.windows import (
    Done,
    Plan,
    characters,
    count,
    encode,
    fill,
    pending_responses,
    say_cut,
    show_row,
    windows,
)
from pipeline.workers import run_here, run_in_processes, worker_devices

DEFAULT_MAX_LENGTH = 2048
POOLINGS = ("last", "mean", "prompt", "suffix", "sentence")
TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}  # larger batches fall out of a CPU's cache and are slower
PART_ROWS = {"cpu": 128, "cuda": 8192}  # at least
MOST_PARTS = 1000  # the manifest is written again with each


@dataclass(frozen=True)
class EmbedOptions:
    """Options of `pipeline embed`.

    Attributes:
        sources: files, hub ids, or names of datasets that the store has.
        store: the store's folder.
        backbone: hub id, directory, or "gemma3-270m".
        backbone_revision: commit, tag or branch of a hub backbone.
        name: dataset name instead of the one made from the source (one source only).
        format: force a format instead of recognising it from the columns.
        config: configuration of a hub dataset.
        split: split of a hub dataset.
        revision: revision of a hub dataset.
        prompts: keep the first so many prompts of each source.
        layers: hidden layers: numbers, per cent of the depth, or "last".
        pool: "last", "mean", "prompt", "suffix", "sentence"; None takes what `choose_pool` says.
        suffix: text after every conversation.
        scalars: "logprob", "yes_no": what the LM head says of each response.
        template: chat template: "model", a named one, or a Jinja file; None takes the model's own.
        max_length: longest row in tokens; None takes 2,048 or the model's limit.
        overlong: what happens to longer rows: "left", "right", "drop" or "error".
        dtype: compute dtype; None takes bfloat16 where the device multiplies in it.
        store_dtype: "float16" or "float32".
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        share: whether the tokens of a prompt are run once for all its responses, where the backbone allows it.
        token_budget: tokens in a pack or padded batch; None takes the device's default.
        processes: processes that run the backbone; None takes one for each GPU, or one on a CPU.
        part_rows: responses in a part, the unit that a kill can lose; None takes what `choose_part_rows` says.
        refresh: read a source again although the store has a dataset of its name with other content.
        dry_run: count what would be run, and write nothing.
    """

    sources: tuple[str, ...]
    store: Path
    backbone: str
    backbone_revision: str | None = None
    name: str | None = None
    format: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    prompts: int | None = None
    layers: tuple[str, ...] = ("last",)
    pool: tuple[str, ...] | None = None
    suffix: str = ""
    scalars: tuple[str, ...] = ()
    template: str | None = None
    max_length: int | None = None
    overlong: str = "left"
    dtype: str | None = None
    store_dtype: str = "float16"
    device: str | None = None
    share: bool = True
    token_budget: int | None = None
    processes: int | None = None
    part_rows: int | None = None
    refresh: bool = False
    dry_run: bool = False


@dataclass
class EmbedSummary:
    """What an embedding run did, or would do if it is a dry run.

    Attributes:
        fingerprint: of the embedding written to.
        datasets: names of the datasets covered.
        embedded: responses that were run.
        reused: responses that the store had already.
        cut: rows shortened to max_length.
        dropped: rows left out by the over-long policy.
        tokens: real tokens computed.
        computed: tokens run: padding included, shared prompts once.
        seconds: wall time of the forward passes and writes.
        probes: 5-fold linear probe accuracy of each dataset with pairs, with its interval.
    """

    fingerprint: str
    datasets: tuple[str, ...]
    embedded: int = 0
    reused: int = 0
    cut: int = 0
    dropped: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    probes: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def embed(options: EmbedOptions) -> EmbedSummary:
    """Run the stage. Nothing is written before all sources are read, the backbone is loaded and the preflight passed.

    Raises: ValueError with what, got and fix.
    """
    store = Store(options.store)
    datasets = read_datasets(options, store)
    backbone = _load(options)
    renderer = Renderer.of(backbone.tokenizer, options.template, options.suffix)
    packed, decoder = choose_path(backbone, share=options.share)
    spec = make_spec(options, backbone, renderer, packed=packed)
    extractor = make_extractor(options, backbone, spec, decoder)
    depth, device = backbone.layer_count, backbone.model.device.type
    known = store.find_embeddings(spec)
    plan = _plan(datasets, known)
    if plan.todo:
        show_row(plan.todo[0], renderer)
        say(preflight(extractor, renderer, plan.todo, spec))
    if options.dry_run:
        return _count(options, plan, extractor, renderer, spec, datasets)
    if spec.overlong == "error":  # stop now rather than in an hour; the tokens are not kept
        for rows in windows(plan.todo, PART_ROWS["cuda"]):
            encode(rows, renderer, spec)
    devices = worker_devices(options.processes, device)
    run = partial(run_here, extractor)
    if len(devices) > 1:
        run = partial(run_in_processes, partial(_worker, options, spec), devices)
        del backbone, decoder, extractor  # the workers load their own: a GPU may not hold two
    _keep(datasets, store)
    embeddings = store.create_embeddings(spec)
    with embeddings.locked():
        opened = Embeddings.open(embeddings.directory)  # as it is now that nobody else writes
        take_over(store, embeddings, options.backbone)  # before there is a vector to be judged on
        if (opened.parts, opened.dropped) != (known.parts, known.dropped):
            plan = _plan(datasets, opened)
        part_rows = options.part_rows or choose_part_rows(len(plan.todo) + plan.reused + len(opened.dropped), device)
        summary = EmbedSummary(spec.fingerprint, tuple(dataset.name for dataset in datasets), reused=plan.reused)
        _fill(summary, fill(plan.todo, part_rows, run, depth, renderer, opened), sum(map(characters, plan.todo)))
    _say_done(summary, spec)
    for dataset in datasets:
        result = probe(dataset, Embeddings.open(embeddings.directory))
        if result is not None:
            summary.probes[dataset.name] = result
    return summary


def make_spec(options: EmbedOptions, backbone: Backbone, renderer: Renderer, *, packed: bool) -> EmbeddingSpec:
    """Everything that can change a vector. Raises ValueError for layers the model does not have."""
    return EmbeddingSpec(
        backbone=backbone.name,
        weights=backbone.weights,
        tokenizer=backbone.tokenizer_hash,
        template=renderer.name,
        template_sha256=renderer.sha256,
        bos=renderer.bos,
        max_length=choose_max_length(options.max_length, backbone),
        overlong=options.overlong,
        layers=parse_layers(options.layers, backbone.layer_count),
        pool=choose_pool(options.pool, options.suffix, options.scalars, backbone),
        compute_dtype=backbone.dtype,
        attention=ATTENTION if packed else backbone.attention,
        stored_dtype=options.store_dtype,
        suffix=options.suffix,
        scalars=tuple(name for name in SCALARS if name in options.scalars),
    )


def parse_layers(layers: Sequence[str], count: int) -> tuple[int, ...]:
    """Layer numbers from numbers, per cent of the depth ("60%") and "last"; ascending, without repeats."""
    numbers = set()
    for text in layers:
        digits = text.removesuffix("%")
        if text == "last":
            numbers.add(count)
        elif not digits.isdigit() or not 0 <= int(digits) <= (100 if text.endswith("%") else count):
            raise ValueError(f"layer {text!r} is not one of 0 to {count}, 0% to 100%, or last; give such a one")
        else:
            numbers.add(round(int(digits) / 100 * count) if text.endswith("%") else int(digits))
    return tuple(sorted(numbers))


def choose_pool(
    asked: Sequence[str] | None, suffix: str, scalars: Sequence[str], backbone: Backbone
) -> tuple[str, ...]:
    """The poolings asked for, without repeats; else at the suffix, a sentence encoder's own, or the last token.

    Raises: ValueError for an unknown one, or one that this backbone or these options cannot give.
    """
    if asked is None:
        return ("suffix",) if suffix else ("sentence",) if backbone.sentence else ("last",)
    unknown = [name for name in asked if name not in POOLINGS]
    if unknown or not asked:
        raise ValueError(f"pooling {(unknown or [''])[0]!r} is not one of {', '.join(POOLINGS)}; give one or more")
    if bool(suffix) != ("suffix" in asked or "yes_no" in scalars):
        raise ValueError("--suffix TEXT goes with --pool suffix or --scalars yes_no; give both or neither")
    if "sentence" in asked and backbone.sentence is None:
        raise ValueError(f"{backbone.name} is not in sentence-transformers' format; pool it by last or mean")
    return tuple(dict.fromkeys(asked))


def make_extractor(
    options: EmbedOptions, backbone: Backbone, spec: EmbeddingSpec, decoder: Decoder | None
) -> Extractor:
    """What runs the backbone for this spec, with the device's token budget."""
    budget = choose_budget(backbone.model.device.type, options.token_budget)
    packed = spec.attention == ATTENTION
    return Extractor(backbone, spec.layers, spec.pool, budget, packed=packed, decoder=decoder, scalars=spec.scalars)


def choose_budget(device: str, asked: int | None = None) -> TokenBudget:
    """The tokens asked for, else the device's own number, which a GPU may raise."""
    return TokenBudget(asked or TOKEN_BUDGET[device], grows=device == "cuda" and asked is None)


def choose_part_rows(responses: int, device: str) -> int:
    """Responses in a part: the device's least, or a thousandth of all, those already in the store included.

    A run that continues another sees as many in all, and cuts its parts where the other would have cut them.
    """
    return max(PART_ROWS[device], -(-responses // MOST_PARTS))


def _keep(datasets: Sequence[Dataset], store: Store) -> None:
    for dataset in datasets:
        if dataset.name not in store.dataset_names() or store.dataset(dataset.name).info != dataset.info:
            store.write_dataset(dataset)


def _plan(datasets: Sequence[Dataset], known: Embeddings) -> Plan:
    """What is to be run, said aloud."""
    plan = pending_responses(datasets, known)
    say(
        f"embedding {known.spec.fingerprint}: {len(plan.todo):,} responses to run, {plan.reused:,} in the store already"
    )
    return plan


def _fill(summary: EmbedSummary, windows_done: Iterator[Done], work: int) -> None:
    """Run what is to be done, counting it in the summary and on the screen."""
    if not work:
        return
    progress = Progress("tokens", total=work)
    started = time.monotonic()
    for done in windows_done:
        for name in ("embedded", "tokens", "computed", "cut", "dropped"):
            setattr(summary, name, getattr(summary, name) + getattr(done, name))
        progress.advance(done.work, done.tokens)
    progress.close()
    summary.seconds = time.monotonic() - started


def _count(
    options: EmbedOptions,
    plan: Plan,
    extractor: Extractor,
    renderer: Renderer,
    spec: EmbeddingSpec,
    datasets: Sequence[Dataset],
) -> EmbedSummary:
    """A dry run: everything is tokenised and nothing run."""
    summary = EmbedSummary(spec.fingerprint, tuple(dataset.name for dataset in datasets), reused=plan.reused)
    rows = options.part_rows or PART_ROWS[extractor.backbone.model.device.type]
    _fill(summary, count(plan.todo, rows, extractor, renderer, spec), sum(map(characters, plan.todo)))
    say(
        f"dry run: {summary.embedded:,} responses of {summary.tokens:,} tokens; {summary.computed:,} tokens would be "
        f"run, and nothing was written"
    )
    say_cut(summary.cut, summary.dropped, max_length=spec.max_length, overlong=spec.overlong)
    return summary


def _worker(options: EmbedOptions, spec: EmbeddingSpec, device: str) -> Extractor:
    """What a worker process runs: the backbone on its device, in the way that was chosen."""
    backbone = load_backbone(
        options.backbone,
        revision=options.backbone_revision,
        device=device,
        dtype=spec.compute_dtype,
        lm_head=bool(spec.scalars),
    )
    packed, decoder = choose_path(backbone, share=options.share)
    assert packed == (spec.attention == ATTENTION), "a worker's backbone takes another path"
    return make_extractor(options, backbone, spec, decoder)


def _say_done(summary: EmbedSummary, spec: EmbeddingSpec) -> None:
    if summary.tokens:
        rate, share = summary.tokens / summary.seconds, summary.computed / summary.tokens
        say(
            f"{summary.embedded:,} responses, {summary.tokens:,} tokens in {clock(summary.seconds)} "
            f"({rate:,.0f} tokens/s; {share:.0%} of the tokens were run)"
        )
    say_cut(summary.cut, summary.dropped, max_length=spec.max_length, overlong=spec.overlong)


def _load(options: EmbedOptions) -> Backbone:
    device = choose_device(options.device)
    dtype = options.dtype or default_dtype(device)
    _check_scalars(options)
    say(f"loading {options.backbone} on {device} in {dtype}")
    return load_backbone(
        options.backbone,
        revision=options.backbone_revision,
        device=device,
        dtype=dtype,
        lm_head=bool(options.scalars),
    )


def _check_scalars(options: EmbedOptions) -> None:
    unknown = [name for name in options.scalars if name not in SCALARS]
    if unknown:
        raise ValueError(f"scalar {unknown[0]!r} is not one of {', '.join(SCALARS)}; give one or more")
    if "yes_no" in options.scalars and not options.suffix:
        raise ValueError("--scalars yes_no is of the word after a question; give one with --suffix TEXT")


def choose_max_length(asked: int | None, backbone: Backbone) -> int:
    """The longest row asked for, else 2,048 tokens or what the model can hold. Raises ValueError outside of that."""
    limit = backbone.max_length
    if asked is not None and not 2 <= asked <= limit:
        raise ValueError(
            f"--max-length {asked} is outside 2 to {limit}, what {backbone.name} can hold; give one inside"
        )
    own = backbone.sentence.max_length if backbone.sentence else None
    return asked or min(own or DEFAULT_MAX_LENGTH, limit)
