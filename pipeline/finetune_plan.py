"""Everything before the first step of a fine-tune: data read and tokenised, backbone loaded, the plan made.

What can be refused is refused here, before the long run.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.records import Dataset
from cache.spec import feature_name
from cache.splits import uniform
from cache.store import Store
from heads.attributes import AttributeScale
from heads.linear import Linear
from heads.requirements import require_attributes, require_pairs
from pipeline.backbone import Backbone, load_backbone
from pipeline.classifier import check_tokenizer, choose_pad, classifier_class, ends_in
from pipeline.embed import EmbedOptions, choose_max_length
from pipeline.finetune_data import Batch, Batches, Texts, gather_texts
from pipeline.finetune_loop import Settings
from pipeline.finetune_loss import NEEDS, Objective
from pipeline.finetune_options import FinetuneOptions, choose_hidden, choose_lora
from pipeline.finetuned import read_training
from pipeline.fit_data import Source, Split, check_split
from pipeline.progress import say
from pipeline.render import Renderer
from pipeline.sources import read_datasets
from pipeline.windows import say_cut, show_row

if TYPE_CHECKING:
    from accelerate import Accelerator

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
EVALUATIONS = 10  # in a run, unless `every` says otherwise


@dataclass(frozen=True)
class Prepared:
    """What training needs of the options.

    Attributes:
        objective: what is minimised.
        backbone: loaded on the CPU in float32.
        renderer: of its tokenizer.
        datasets: of pairs and of attributes.
        texts: their responses.
        scale: of the attributes, measured on the training rows; None without attributes.
        targets: attribute scores in standardised units; shape (n, k).
        batches: of training.
        held: what is evaluated on.
        settings: how the optimizer goes.
        start: what the reward's weight starts from; shape (d,); None is 0.
        pad: the padding token of what is written.
        plan: everything that the result depends on, as JSON.
    """

    objective: Objective
    backbone: Backbone
    renderer: Renderer
    datasets: Mapping[str, Dataset | None]
    texts: Texts
    scale: AttributeScale | None
    targets: NDArray[np.float32]
    batches: Batches
    held: Batch
    settings: Settings
    start: Tensor | None
    pad: str
    plan: Mapping[str, Any]


def prepare(options: FinetuneOptions, objective: Objective, accelerator: "Accelerator") -> Prepared:
    """Read the data and load the backbone; everything that can be refused is refused here."""
    read_training(options.backbone)  # it refuses what a kill left, whose seen prompts could not be handed on
    datasets = _datasets(options, accelerator)
    count = accelerator.num_processes
    shared = f" by {count} processes" if count > 1 else ""
    say(f"loading {options.backbone} to train it on {accelerator.device.type} in {precision(accelerator)}{shared}")
    backbone = load_backbone(
        options.backbone,
        revision=options.backbone_revision,
        device="cpu",
        dtype="float32",
        lm_head=bool(objective.alpha),
    )
    tokenizer = backbone.tokenizer_hash  # before it is used: use can change the serialisation
    check_architecture(backbone.model.config)
    renderer = Renderer.of(backbone.tokenizer, options.template)
    max_length, overlong = choose_max_length(options.max_length, backbone), options.overlong
    reading = {
        "tokenizer": tokenizer,
        "template_sha256": renderer.sha256,
        "max_length": max_length,
        "overlong": overlong,
    }
    split = Split(options.test_share, options.valid_share, options.split_seed)
    start = _start(options, backbone, split, reading)
    texts = gather_texts(datasets, renderer, max_length=max_length, overlong=overlong, use=options.use)
    show_row(texts.sample[0], renderer)
    say_cut(texts.cut, texts.data.left_out, max_length=max_length, overlong=overlong)
    pad = _choose_pad(texts, renderer)
    check_split(texts.data, Source((), options.pairs, options.attributes), split, seeds=1)
    training, holding = split.sides(texts.data, options.seed)
    scale, targets = _standardise(texts, training, objective)
    ours = _inside(texts, training)
    if objective.margin_weight and np.isnan(texts.data.view.margins[ours.pairs]).all():
        raise ValueError("--margin-weight is given, but no training pair has a margin; leave it out")
    batches = Batches(ours.pairs, ours.annotated, options.batch_size, options.seed)
    held = _fewer(_inside(texts, holding), texts, options.valid_pairs)
    settings = _settings(options, batches.per_epoch, accelerator.device.type)
    chosen = {**reading, "dtype": precision(accelerator), "attributes_used": list(scale.names) if scale else []}
    plan = _plan(options, objective, backbone, renderer, datasets, settings, chosen, split)
    say(
        f"{len(ours.pairs):,} pairs and {len(ours.annotated):,} annotated responses to train on, "
        f"{len(held.pairs):,} and {len(held.annotated):,} to evaluate on; {settings.steps:,} steps"
    )
    return Prepared(
        objective, backbone, renderer, datasets, texts, scale, targets, batches, held, settings, start, pad, plan
    )


def check_architecture(config: Any) -> None:  # noqa: ANN401 - a configuration of transformers
    """Raise ValueError if what is fine-tuned could not be loaded as a sequence classifier."""
    if classifier_class(config) is None:
        raise ValueError(
            f"transformers has no sequence classifier with a single score row for {type(config).__name__}; "
            "fine-tune a decoder-only language model"
        )


def _choose_pad(texts: Texts, renderer: Renderer) -> str:
    """The token to pad with. Raises ValueError if what is written would read rows otherwise than training does."""
    pad, tokenizer = choose_pad(renderer, texts.rows), cast("Any", renderer.tokenizer)
    if ends_in(texts.rows, tokenizer.convert_tokens_to_ids(pad)):
        raise ValueError(
            "this tokenizer has no token to pad with that rows do not end in; give it a padding token of its own"
        )
    check_tokenizer(renderer, [(row.prompt, row.response) for row in texts.sample], pad)
    return pad


def _start(options: FinetuneOptions, backbone: Backbone, split: Split, reading: Mapping[str, Any]) -> Tensor | None:
    """The weight (d,) of the frozen head to start from: a linear probe first, then all weights (arXiv:2202.10054).

    Args:
        options: with `init`.
        backbone: that is to be trained.
        split: which prompts are held out. A head that was fitted on some of them would be judged too well, and what it
            starts be taken for the best.
        reading: how rows are read, by the spec's names for it.

    Raises: ValueError if the run is no such head, of another backbone, or fitted on other rows or prompts.
    """
    if options.init is None:
        return None
    store, feature = Store(options.store), feature_name(backbone.layer_count, "last")
    if options.init not in store.run_names():
        raise ValueError(f"no run {options.init!r} in {store.root}; `pipeline ls` shows the groups, a run is GROUP-s0")
    run = store.run(options.init)
    if choose_hidden(options) or run["head"] != "linear" or run["features"] != [feature]:
        raise ValueError(
            f"--init takes a linear head on {feature} for a linear reward; {options.init} is a {run['head']} on "
            f"{'+'.join(run['features'])}; fit one with `pipeline fit --head linear --features {feature}`"
        )
    spec = store.embeddings(run["embedding"]).spec
    if spec.weights != backbone.weights:
        raise ValueError(f"run {options.init} was fitted on another backbone, {spec.backbone}; fit one on this")
    theirs = {"split": run["split"], "seed": run["seed"], **{name: getattr(spec, name) for name in reading}}
    for name, value in {"split": asdict(split), "seed": options.seed, **reading}.items():
        if theirs[name] != value:
            why = "it has seen prompts that this is judged on" if name in ("split", "seed") else "it read other rows"
            raise ValueError(
                f"run {options.init} was fitted with {name} {theirs[name]}, not {value}: {why}; fit one as this "
                "fine-tune is, or fine-tune as it was"
            )
    return torch.from_numpy(Linear.load(store.run_directory(options.init)).folded_weight)


def precision(accelerator: "Accelerator") -> str:
    """What is computed in; weights are float32 in any case."""
    return {"bf16": "bfloat16", "no": "float32"}[accelerator.mixed_precision]


def _datasets(options: FinetuneOptions, accelerator: "Accelerator") -> dict[str, Dataset | None]:
    """The datasets by what they are for, kept in the store. Raises ValueError if one lacks its annotations."""
    store = Store(options.store)
    given = {kind: name for kind in ("pairs", "attributes") if (name := getattr(options, kind)) is not None}
    sources = tuple(dict.fromkeys(given.values()))
    read = read_datasets(EmbedOptions(sources=sources, store=options.store, backbone=options.backbone), store)
    by_source = dict(zip(sources, read, strict=True))
    for kind, name in given.items():
        if not len(by_source[name][kind]):
            raise ValueError(f"dataset {name!r} has no {kind}; give one that has")
    accelerator.wait_for_everyone()  # all have read before one writes
    if accelerator.is_main_process:
        for dataset in read:
            if dataset.name not in store.dataset_names():
                store.write_dataset(dataset)
    return {kind: by_source.get(given.get(kind, "")) for kind in ("pairs", "attributes")}


def _standardise(
    texts: Texts, training: NDArray[np.bool_], objective: Objective
) -> tuple[AttributeScale | None, NDArray[np.float32]]:
    """The attributes' scale on the training rows, and all scores by it: (n, k), k = 0 where they are not used."""
    view = texts.data.view.subset(training)
    require_pairs(view, objective.name)
    if "attributes" not in NEEDS[objective.name]:
        return None, np.empty((len(texts.rows), 0), dtype=np.float32)
    require_attributes(view, objective.name)
    scale = AttributeScale.fit(view)
    return scale, scale.standardise(texts.data.view)


def _inside(texts: Texts, rows: NDArray[np.bool_]) -> Batch:
    """The pairs and annotated rows that lie among these rows (n,)."""
    view = texts.data.view
    annotated = np.isfinite(view.attributes).any(axis=1) & rows
    return Batch(np.flatnonzero(rows[view.pairs].all(axis=1)), np.flatnonzero(annotated))


def _fewer(held: Batch, texts: Texts, most: int) -> Batch:
    """At most so many pairs and annotated rows, prompt by prompt in an order by hash."""
    view = texts.data.view
    turn = uniform(texts.data.prompt_ids, "finetune")
    pairs = held.pairs[np.argsort(turn[view.prompts[view.pairs[held.pairs, 0]]], kind="stable")]
    annotated = held.annotated[np.argsort(turn[view.prompts[held.annotated]], kind="stable")]
    return Batch(np.sort(pairs[:most]), np.sort(annotated[:most]))


def _settings(options: FinetuneOptions, per_epoch: int, device: str) -> Settings:
    steps = options.epochs * per_epoch
    steps = steps if options.steps is None else min(steps, options.steps)
    return Settings(
        steps=steps,
        lr=options.lr,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        every=options.every or math.ceil(steps / EVALUATIONS),
        token_budget=options.token_budget or TOKEN_BUDGET[device],
        seed=options.seed,
    )


def _plan(
    options: FinetuneOptions,
    objective: Objective,
    backbone: Backbone,
    renderer: Renderer,
    datasets: Mapping[str, Dataset | None],
    settings: Settings,
    chosen: Mapping[str, Any],
    split: Split,
) -> dict[str, Any]:
    """Everything that the result depends on but for rounding: what a resumed run must share with its beginning.

    What was left to a default stands in it as it was `chosen`, so that another device's default is another plan.
    """
    lora = choose_lora(options)
    plan: dict[str, Any] = {
        "backbone": backbone.name,
        "weights": backbone.weights,
        "template": renderer.name,
        **chosen,
        "objective": asdict(objective),
        "reward_hidden": choose_hidden(options),
        "init": options.init,
        "lora": asdict(lora) if lora else None,
    }
    for kind, dataset in datasets.items():
        plan[f"{kind}_dataset"] = dataset.name if dataset else None
        plan[f"{kind}_hash"] = dataset.info["content_hash"] if dataset else None
    own = {name: value for name, value in asdict(settings).items() if name != "token_budget"}
    return {
        **plan,
        "split": asdict(split),
        "batch_size": options.batch_size,
        "valid_pairs": options.valid_pairs,
        **own,
    }
