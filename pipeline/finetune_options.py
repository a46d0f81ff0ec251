"""The options of `pipeline finetune`, and which of them belong to which objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.finetune_loss import NEEDS, Objective, ObjectiveName
from pipeline.finetune_model import LoRA

# The options that belong to one objective, and what they are there when they are not given.
OWN: Mapping[str, Mapping[str, float]] = {
    "bt": {},
    "smorm": {"regression_weight": 1.0},
    "grm": {"alpha": 0.01, "beta": 0.1},
    "odin": {"length_weight": 1.0, "orthogonality_weight": 1.0},
}
GRM_HIDDEN = 1024


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of `pipeline finetune`.

    Attributes:
        backbone: hub id, directory, or "gemma3-270m".
        output: the directory that is written.
        store: the store's folder; sources are kept there as datasets, as `pipeline embed` keeps them.
        pairs: dataset in the store, or source, with pairs (D_S).
        attributes: dataset in the store, or source, with attribute scores (D_M).
        use: the attributes to train on; empty takes all.
        objective: "bt", "smorm", "grm" or "odin".
        backbone_revision: commit, tag or branch of a hub backbone.
        template: chat template: "model", a named one, or a Jinja file; None takes the model's own.
        max_length: longest row in tokens; None takes 2,048 or the model's limit.
        overlong: what happens to longer rows: "left", "right", "drop" or "error".
        margin_weight: the chosen response must win by this times the pair's annotated margin.
        smoothing: share of the annotations taken to be wrong.
        centring: weight of (r(chosen) + r(rejected))^2.
        regression_weight: smorm: weight of the attributes' squared error; None is 1.
        alpha: grm: weight of the text term; None is 0.01.
        beta: grm: what the log-likelihood is multiplied by; None is 0.1.
        reward_hidden: grm: width of the hidden layer under the reward, 0 leaves it out; None is 1,024.
        length_weight: odin: weight of the length loss; None is 1.
        orthogonality_weight: odin: weight of the heads' |cosine|; None is 1.
        init: run of a head `linear` on this backbone's final state to start the reward from; None starts it at 0.
        lora: rank of LoRA adapters; None trains every weight.
        lora_alpha: LoRA's scale times the rank; None is twice the rank.
        batch_size: pairs in a step at most; for smorm, of pairs or annotated responses, whichever there are more of.
            The others are spread over the same steps.
        epochs: passes over the training data.
        steps: at most so many steps.
        lr: AdamW's learning rate at its highest.
        warmup: share of the steps in which it rises; then it falls as a cosine.
        weight_decay: AdamW's.
        max_grad_norm: longer gradients are scaled down to this norm.
        every: steps from one evaluation and checkpoint to the next; None takes a tenth of all steps.
        valid_pairs: pairs, and annotated responses, to evaluate on at most.
        test_share: share of prompts held out for judging.
        valid_share: share of the other prompts held out for evaluation during training.
        split_seed: another number draws other test prompts.
        seed: draws the validation prompts, the batches, and what does not start at 0.
        dtype: compute dtype; None takes bfloat16 where the device multiplies in it. Weights are float32 in any case.
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        token_budget: tokens run at once, padding included; None takes the device's default.
        recompute: whether to compute states again on the way back instead of keeping them (gradient checkpointing).
    """

    backbone: str
    output: Path
    store: Path
    pairs: str | None = None
    attributes: str | None = None
    use: tuple[str, ...] = ()
    objective: ObjectiveName = "bt"
    backbone_revision: str | None = None
    template: str | None = None
    max_length: int | None = None
    overlong: str = "left"
    margin_weight: float = 0.0
    smoothing: float = 0.0
    centring: float = 0.0
    regression_weight: float | None = None
    alpha: float | None = None
    beta: float | None = None
    reward_hidden: int | None = None
    length_weight: float | None = None
    orthogonality_weight: float | None = None
    init: str | None = None
    lora: int | None = None
    lora_alpha: int | None = None
    batch_size: int = 16
    epochs: int = 1
    steps: int | None = None
    lr: float = 5e-6
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    every: int | None = None
    valid_pairs: int = 2000
    test_share: float = 0.2
    valid_share: float = 0.15
    split_seed: int = 0
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    token_budget: int | None = None
    recompute: bool = True


def choose_objective(options: FinetuneOptions) -> Objective:
    """The objective with its own options at their defaults where they are not given.

    Raises: ValueError for an unknown one, for an option of another, or without what it is trained on.
    """
    name = options.objective
    if name not in OWN:
        raise ValueError(f"no objective {name!r}; choose {', '.join(OWN)}")
    for owner, defaults in [*OWN.items(), ("grm", {"reward_hidden": 0})]:
        for option in defaults if owner != name else ():
            if getattr(options, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} goes with --objective {owner}, not {name}; leave it out"
                )
    for kind in ("pairs", "attributes"):
        given = getattr(options, kind)
        if kind in NEEDS[name] and given is None:
            raise ValueError(f"objective {name} is trained on {kind}; give --{kind} DATASET")
        if kind not in NEEDS[name] and given is not None:
            raise ValueError(f"objective {name} does not use {kind}; leave out --{kind} {given}")
    if options.use and "attributes" not in NEEDS[name]:
        raise ValueError(f"objective {name} does not use attributes; leave out --use {','.join(options.use)}")
    own = {
        option: value if (value := getattr(options, option)) is not None else default
        for option, default in OWN[name].items()
    }
    return Objective(
        name, margin_weight=options.margin_weight, smoothing=options.smoothing, centring=options.centring, **own
    )


def choose_hidden(options: FinetuneOptions) -> int:
    """Width of the hidden layer under the reward; 0 for none."""
    if options.objective != "grm":
        return 0
    return GRM_HIDDEN if options.reward_hidden is None else options.reward_hidden


def choose_lora(options: FinetuneOptions) -> LoRA | None:
    """The adapters that are asked for; ValueError for a scale without a rank."""
    if options.lora is None:
        if options.lora_alpha is not None:
            raise ValueError("--lora-alpha goes with --lora RANK; give both or neither")
        return None
    return LoRA(options.lora, 2 * options.lora if options.lora_alpha is None else options.lora_alpha)
