"""The fine-tuning stage: the backbone itself trained on pairs and attributes, and back through the same door.

What comes out is a backbone directory (`pipeline.finetuned`) that `pipeline embed` takes. The same command again goes
on from the last checkpoint; under `accelerate launch` several processes share each batch.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cache.splits import is_test
from cache.store import Store
from heads.protocol import Head
from pipeline.backbone import Backbone, load_backbone
from pipeline.checkpoints import Checkpoint
from pipeline.finetune_loop import Loop, best_of, read_curves, train
from pipeline.finetune_model import RewardModel, build_model, merged, weight_groups
from pipeline.finetune_options import FinetuneOptions, choose_hidden, choose_lora, choose_objective
from pipeline.finetune_output import CURVES, check_ours, finished, held_for_writing
from pipeline.finetune_plan import Prepared, prepare
from pipeline.finetune_processes import memory_told, shared_work
from pipeline.finetuned import hold_together, proof_scores, read_training, write_finetuned
from pipeline.fit_data import trained_prompts
from pipeline.progress import say
from pipeline.render import TokenRow

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class FinetuneSummary:
    """What a fine-tune did: its directory, steps in all, the step whose weights were kept, how those were judged."""

    output: Path
    steps: int
    best_step: int
    valid: Mapping[str, Any]

    def as_row(self) -> dict[str, Any]:
        """The summary as one row of a table."""
        names = ("loss", "accuracy", "low", "high", "n", "attribute_r2")
        judged = {name: self.valid[name] for name in names if name in self.valid}
        return {"output": str(self.output), "steps": self.steps, "best_step": self.best_step, **judged}


def finetune(options: FinetuneOptions) -> FinetuneSummary | None:
    """Run the stage, or what is left of it.

    Returns: None in the processes beside the main one.
    Raises: ValueError with what, got and fix: an option of another objective, annotations that are missing, a backbone
        that cannot be written as a sequence classifier, or an output directory of another fine-tune.
    """
    objective = choose_objective(options)
    with shared_work(options) as accelerator:
        check_ours(options.output)
        prepared = prepare(options, objective, accelerator)
        with held_for_writing(options.output) if accelerator.is_main_process else nullcontext():
            accelerator.wait_for_everyone()
            summary = _run(options, prepared, accelerator)
        return summary if accelerator.is_main_process else None


def _run(options: FinetuneOptions, prepared: Prepared, accelerator: "Accelerator") -> FinetuneSummary:
    """Train and write, unless that is done."""
    record = finished(options.output, prepared.plan)
    if record is not None:
        say(f"{options.output} is complete; nothing is left to do")
        best = record["best"]
        return FinetuneSummary(options.output, prepared.settings.steps, best["step"], best["valid"])
    kept = _train(options, prepared, accelerator)
    if accelerator.is_main_process:
        _write(options, prepared, kept, accelerator.num_processes)
    accelerator.wait_for_everyone()
    last = best_of(kept)
    return FinetuneSummary(options.output, prepared.settings.steps, last.step, last.content["valid"])


def _train(options: FinetuneOptions, prepared: Prepared, accelerator: "Accelerator") -> list[Checkpoint]:
    """Take the steps that are left; the checkpoints that are kept."""
    model = _build(options, prepared, prepared.backbone)
    unread = sum(weight.numel() for weight in model.base.parameters() if not weight.requires_grad)
    if unread and options.lora is None:
        say(f"{unread:,} weights of the backbone are not read for text; they stay as they are")
    groups = weight_groups(model, prepared.settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=prepared.settings.lr, fused=True)
    with memory_told(prepared.settings.token_budget):
        ready, optimizer = accelerator.prepare(model, optimizer)
        if model.lm_head is not None:
            model.lm_head = model.lm_head.to(accelerator.device)
        return train(_loop(prepared, accelerator, ready, optimizer), options.output, prepared.plan)


def _loop(prepared: Prepared, accelerator: "Accelerator", model: Any, optimizer: Any) -> Loop:  # noqa: ANN401 - prepared
    return Loop(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        objective=prepared.objective,
        texts=prepared.texts,
        targets=prepared.targets,
        training=prepared.batches,
        held=prepared.held,
        settings=prepared.settings,
        pad=_pad(prepared.backbone),
    )


def _write(options: FinetuneOptions, prepared: Prepared, kept: list[Checkpoint], processes: int) -> None:
    """Write the best checkpoint's weights as a backbone with its head."""
    best = best_of(kept)
    if best.step == 0:
        start = f"the head {options.init} on it" if options.init else "a head as it starts out"
        say(f"WARNING: no step had less held-out loss than none; what is kept is the backbone as it was, and {start}")
    # Loaded again: the trained one may be sharded over processes, and on a GPU.
    again = load_backbone(
        options.backbone, revision=options.backbone_revision, device="cpu", dtype="float32", lm_head=False
    )
    model = _build(options, prepared, again)
    best.load_model(model)
    spread = torch.tensor(best.content["valid"].get("spread", [[0.0, 0.0], [1.0, 1.0]]))
    head = model.heads.as_head(prepared.objective, prepared.scale, spread)
    rows, pad = prepared.texts.rows, prepared.pad
    base, apart = _merge(model, head, rows)
    before, already = read_training(options.backbone) or (None, [])
    record = {**_record(options, prepared, best), "processes": processes, "merged": apart, "before": before}
    store = Store(options.store)
    fitted = sorted(trained_prompts(store, store.run(options.init))) if options.init else []
    seen = list(dict.fromkeys([*already, *fitted, *_seen(prepared)]))
    write_finetuned(options.output, base, head, prepared.renderer, rows, pad, seen, record)
    say(
        f"{options.output}: the weights of step {best.step:,}; "
        f"`pipeline embed DATASET --backbone {options.output}` takes it from here"
    )


def _merge(model: RewardModel, head: Head, rows: Sequence[TokenRow]) -> tuple[nn.Module, float | None]:
    """The backbone without adapters, and how far its scores are from theirs; None if there were none."""
    adapted = proof_scores(model.base, head, rows)
    base = merged(model)
    if base is model.base:
        return base, None
    return base, hold_together(proof_scores(base, head, rows), adapted, "the backbone with its adapters merged scores")


def _build(options: FinetuneOptions, prepared: Prepared, backbone: Backbone) -> RewardModel:
    model = build_model(
        backbone,
        prepared.objective if backbone.lm_head is not None else replace(prepared.objective, alpha=0.0),
        attributes=prepared.targets.shape[1],
        hidden=choose_hidden(options),
        lora=choose_lora(options),
        recompute=options.recompute,
        seed=options.seed,
    )
    if prepared.start is not None:
        model.heads.start_from(prepared.start)
    return model


def _record(options: FinetuneOptions, prepared: Prepared, best: Checkpoint) -> dict[str, Any]:
    """finetune.json, but for what writing the directory adds."""
    curves = list(read_curves(options.output / CURVES))
    evaluated = [line for line in curves if "valid" in line]
    batches, per_epoch = prepared.batches, prepared.batches.per_epoch
    return {
        "plan": prepared.plan,
        "layer": prepared.backbone.layer_count,
        "max_length": prepared.plan["max_length"],
        "overlong": prepared.plan["overlong"],
        "best": {"step": best.step, "valid": best.content["valid"]},
        "counts": {
            "train_pairs": len(batches.pairs),
            "valid_pairs": len(prepared.held.pairs),
            "left_out": prepared.texts.data.left_out,
            "train_annotated": len(batches.annotated),
        },
        "history": {
            "epochs": math.ceil(prepared.settings.steps / per_epoch),
            "best_epoch": math.ceil(best.step / per_epoch),
            "train_loss": [],
            "valid_loss": [line["valid"]["loss"] for line in evaluated if "loss" in line["valid"]],
        },
        "datasets": {
            kind: {"name": dataset.name, "content_hash": dataset.info["content_hash"], "origin": dataset.info["origin"]}
            for kind, dataset in prepared.datasets.items()
            if dataset is not None
        },
        "seconds": sum(line.get("seconds", 0.0) for line in curves),  # of all steps, whatever killed the run between
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("rewardheads", "torch", "transformers", "accelerate")},
    }


def _seen(prepared: Prepared) -> list[str]:
    """Prompts that were trained or evaluated on, or would have been with more steps: all but the test prompts."""
    split = prepared.plan["split"]
    prompts = prepared.texts.prompt_ids
    held_out = is_test(prompts, share=split["test_share"], seed=split["seed"])
    return [prompt for prompt, out in zip(prompts, held_out, strict=True) if not out]


def _pad(backbone: Backbone) -> int:
    """Any token: padding is masked, and states are read by position."""
    pad = backbone.tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0
