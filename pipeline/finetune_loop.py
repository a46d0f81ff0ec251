"""The training loop: steps, held-out evaluation, checkpoints and curves, in one process or several.

Gradients are those of the loss over the whole batch, however it is cut up: each part weighs by its share of the batch,
and the mean that several processes take of their gradients is made a sum.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.metrics import pair_accuracy
from cache.files import write_atomically
from heads.criterion import mean_r2
from heads.objectives import attribute_loss, bt_loss
from heads.variants import measure_spread
from pipeline.checkpoints import Checkpoint, find_checkpoints, gather_state, prune_checkpoints, write_checkpoint
from pipeline.finetune_data import SEEDS, Batch, Batches, Micro, Numbers, Texts, share_out
from pipeline.finetune_loss import Counted, Given, Objective, Outputs, coupled_loss, loss_terms
from pipeline.finetune_model import Inputs
from pipeline.finetune_output import CHECKPOINTS, CURVES
from pipeline.forward import batches
from pipeline.progress import Progress, say


@dataclass(frozen=True)
class Settings:
    """How the optimizer goes.

    Attributes:
        steps: in all.
        lr: AdamW's learning rate at its highest; it rises linearly and falls as a half cosine to 0.
        warmup: share of the steps in which it rises.
        weight_decay: AdamW's.
        max_grad_norm: longer gradients are scaled down to this norm.
        every: steps from one evaluation and checkpoint to the next.
        token_budget: tokens that are run at once, padding included.
        seed: draws the batches, and the dropout of backbones that have any.
    """

    steps: int
    lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    every: int
    token_budget: int
    seed: int

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


@dataclass
class Loop:
    """One process's part in a fine-tune.

    Attributes:
        accelerator: of accelerate.
        model: the `RewardModel`, prepared by it.
        optimizer: likewise.
        objective: what is minimised.
        texts: tokens and annotations.
        targets: attribute scores in standardised units, NaN where not annotated; shape (n, k).
        training: the batches.
        held: pairs and annotated rows for evaluation, on prompts that are not trained on.
        settings: how the optimizer goes.
        pad: id of the padding token.
    """

    accelerator: Any
    model: Any
    optimizer: Any
    objective: Objective
    texts: Texts
    targets: NDArray[np.float32]
    training: Batches
    held: Batch
    settings: Settings
    pad: int

    def __post_init__(self) -> None:
        """Measure the rows once."""
        self.lengths = self.texts.lengths

    def step(self, number: int) -> dict[str, float]:
        """Take one step. Returns the loss and its terms, the gradient's norm, the learning rate, tokens and seconds.

        Raises: ValueError if the loss or the gradient is not finite.
        """
        started = time.perf_counter()
        batch = self.training.at(number)
        shares = share_out(
            batch,
            self.texts.data.view.pairs,
            self.lengths,
            processes=self.accelerator.num_processes,
            token_budget=self.settings.token_budget,
        )
        losses = self._gradients(batch, shares[self.accelerator.process_index], number)
        self._require_finite("the loss", losses["loss"], f"at step {number + 1}")
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))
        self._require_finite("the gradient's norm", norm, f"at step {number + 1}")
        lr = self.settings.lr_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = int(sum(self.lengths[part.rows].sum() for share in shares for part in share if not part.stands_in))
        seconds = time.perf_counter() - started
        return {**losses, "grad_norm": norm, "lr": lr, "tokens": tokens, "seconds": seconds}

    def evaluate(self) -> dict[str, Any]:
        """Judge the held-out annotations: accuracy with its interval and loss of pairs, error and R2 of attributes.

        Returns: {} if nothing is held out.

        Raises: ValueError if a score is not finite.
        """
        view, rewards = self.texts.data.view, self.objective.rewards
        pairs = view.pairs[self.held.pairs]
        rows = np.union1d(pairs.ravel(), self.held.annotated)
        if not len(rows):
            return {}
        say(f"evaluating on {len(rows):,} held-out responses")
        scores = self._score(rows)
        self._require_finite("a held-out score", float(scores.sum()), "after the last step")
        found: dict[str, Any] = {}
        if len(pairs):
            chosen, rejected = np.searchsorted(rows, pairs).T
            margin = scores[:, :rewards].sum(1)[chosen] - scores[:, :rewards].sum(1)[rejected]
            found |= _judge_pairs(scores[:, 0].double(), chosen, rejected, view.prompts[pairs[:, 0]])
            found["loss"] = float(bt_loss(margin))
        if len(self.held.annotated):
            predicted = scores[np.searchsorted(rows, self.held.annotated), rewards:]
            target = self.targets[self.held.annotated]
            r2 = mean_r2(predicted.numpy(), target)
            found["attribute_loss"] = float(attribute_loss(predicted, torch.from_numpy(target)))
            found["attribute_r2"] = r2 if math.isfinite(r2) else None
        if self.objective.regression_weight:
            both = torch.stack([scores[:, 0], scores[:, rewards:].mean(1)], dim=1)
            found["spread"] = measure_spread(both).tolist()
        return found

    def _gradients(self, batch: Batch, mine: list[Micro], number: int) -> dict[str, float]:
        """Leave the gradient of the batch's loss in the weights; the loss and its terms, over all processes."""
        processes = self.accelerator.num_processes
        totals: dict[Counted, int] = {
            "pairs": len(batch.pairs),
            "scores": int(np.isfinite(self.targets[batch.annotated]).sum()),
            "parts": processes * len(mine),
        }
        coupled, pull = self._coupled(batch, mine, number) if self.objective.length_weight else (0.0, None)
        self._seed(number)
        summed: dict[str, Tensor] = {}
        for position, part in enumerate(mine):
            with self._apart(position < len(mine) - 1):
                given, out = self._given(part), self._run(part)
                terms = loss_terms(self.objective, out, given)
                shares = [given.counts[term.over] / max(totals[term.over], 1) for term in terms]
                loss = sum(term.weight * share * term.value for term, share in zip(terms, shares, strict=True))
                if pull is not None:
                    loss = loss + (out.scores[:, : self.objective.rewards] * pull(part)).sum()
                self.accelerator.backward(loss * processes)
            for term, share in zip(terms, shares, strict=True):
                value = term.weight * share * term.value.detach().float()
                summed[term.name] = summed.get(term.name, torch.zeros_like(value)) + value
        values = self.accelerator.reduce(torch.stack(list(summed.values())), reduction="sum").tolist()
        named = dict(zip(summed, values, strict=True)) | ({"length": coupled} if pull is not None else {})
        return {"loss": sum(named.values()), **(named if len(named) > 1 else {})}

    def _coupled(self, batch: Batch, mine: list[Micro], number: int) -> tuple[float, Callable[[Micro], Tensor]]:
        """The loss that takes a whole batch at once, and what it pulls each reward of a part by: (r, rewards).

        The rewards are computed without gradients first, and again with them in the parts (the gradient cache of
        arXiv:2101.06983), so that no more than a part is held.
        """
        pairs = self.texts.data.view.pairs[batch.pairs]
        rows, rewards = np.unique(pairs), self.objective.rewards
        table = torch.zeros(len(rows), rewards, device=self.accelerator.device)
        self._seed(number)
        with torch.no_grad():
            for part in mine:
                out = self._run(part)
                if not part.stands_in:
                    table[np.searchsorted(rows, part.rows)] = out.scores[:, :rewards]
        table = self.accelerator.reduce(table, reduction="sum").requires_grad_()
        ends = np.searchsorted(rows, pairs.ravel())
        assert self.texts.data.view.lengths is not None, "texts know their lengths"
        lengths = torch.from_numpy(self.texts.data.view.lengths[rows[ends]]).to(table.device)
        value = coupled_loss(self.objective, table[ends], lengths)
        (gradient,) = torch.autograd.grad(value, table)

        def pull(part: Micro) -> Tensor:
            own: Tensor = gradient[np.searchsorted(rows, part.rows)]
            return torch.zeros_like(own) if part.stands_in else own

        return float(value.detach()), pull

    def _apart(self, more: bool) -> AbstractContextManager[None]:
        """While more parts follow, gradients are not yet exchanged with other processes.

        They are where weights are sharded: there a process would keep whole gradients, four bytes for every weight.
        """
        sharded = self.accelerator.distributed_type.value == "FSDP"
        context: AbstractContextManager[None] = nullcontext()
        return context if sharded or not more else self.accelerator.no_sync(self.model)

    def _run(self, part: Micro) -> Outputs:
        """The model's word on a part; of the chosen responses their likelihood too, where the objective asks for it."""
        rows = [self.texts.rows[number] for number in part.rows.tolist()]
        chosen = np.unique(self.texts.data.view.pairs[part.pairs, 0]) if self.objective.alpha else part.rows[:0]
        texts = np.searchsorted(part.rows, chosen).tolist()
        inputs = Inputs.of(rows, self.pad, self.accelerator.device, texts=texts)
        return Outputs(*self.model(*inputs.arguments()))

    def _given(self, part: Micro) -> Given:
        view = self.texts.data.view
        pairs = np.searchsorted(part.rows, view.pairs[part.pairs])
        tensors = (
            torch.from_numpy(pairs.reshape(-1, 2)),
            torch.from_numpy(view.margins[part.pairs]),
            torch.from_numpy(np.searchsorted(part.rows, part.annotated)),
            torch.from_numpy(self.targets[part.annotated]),
        )
        return Given(*(tensor.to(self.accelerator.device) for tensor in tensors))

    @torch.no_grad()
    def _score(self, rows: Numbers) -> Tensor:
        """Scores of rows, on the CPU: (len(rows), rewards + k). The work is shared among processes."""
        self.model.eval()
        parts = [part.astype(np.int64) for part in batches(self.lengths[rows].tolist(), self.settings.token_budget)]
        count, rank = self.accelerator.num_processes, self.accelerator.process_index
        table = torch.zeros(len(rows), self.objective.rewards + self.targets.shape[1], device=self.accelerator.device)
        progress = Progress("responses", total=len(parts))
        for start in range(0, len(parts), count):  # every process runs a part each time round, the last ones again
            part = parts[min(start + rank, len(parts) - 1)]
            chosen = [self.texts.rows[number] for number in rows[part].tolist()]
            scores = self.model(*Inputs.of(chosen, self.pad, self.accelerator.device).arguments())[0]
            if start + rank < len(parts):
                table[part] = scores.float()
            progress.advance(count, sum(map(len, parts[start : start + count])))
        progress.close()
        self.model.train()
        scored: Tensor = self.accelerator.reduce(table, reduction="sum")
        return scored.cpu()

    def _require_finite(self, what: str, value: float, when: str) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"{what} became {value} {when}; lower --lr ({self.settings.lr}), and give another --output"
            )

    def _seed(self, number: int) -> None:
        """Seed what dropout draws from by the step and the process, so that a resumed run draws the same."""
        drawn = (self.settings.seed * 1_000_003 + number) * 1_009 + self.accelerator.process_index
        torch.manual_seed(drawn % SEEDS)


def train(loop: Loop, output: Path, plan: Mapping[str, Any]) -> list[Checkpoint]:
    """Take all steps that are left, from the last checkpoint on. Returns the checkpoints that are kept."""
    folder, main = output / CHECKPOINTS, loop.accelerator.is_main_process
    known = find_checkpoints(folder)
    done = known[-1].step if known else 0
    if known:
        known[-1].load_model(loop.model)
        known[-1].load_optimizer(loop.model, loop.optimizer.optimizer)
        say(f"going on from step {done:,} of {loop.settings.steps:,}")
    loop.model.train()
    if main:
        _rewind(output / CURVES, done if known else -1)
    loop.accelerator.wait_for_everyone()
    if not known:
        _evaluate_and_keep(loop, output, 0, plan)
    progress = Progress("tokens", total=loop.settings.steps - done)
    for number in range(done, loop.settings.steps):
        line = loop.step(number)
        progress.advance(1, int(line["tokens"]))
        if main:
            _append(output / CURVES, {"step": number + 1, **line})
        if (number + 1) % loop.settings.every == 0 or number + 1 == loop.settings.steps:
            progress.close()
            _evaluate_and_keep(loop, output, number + 1, plan, trained=line["loss"])
    return find_checkpoints(folder)


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the least held-out loss of pairs, the earliest of equals; the last where nothing was held out."""
    judged = [one for one in checkpoints if "loss" in one.content["valid"]]
    return min(judged, key=lambda one: float(one.content["valid"]["loss"])) if judged else checkpoints[-1]


def read_curves(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of curves.jsonl; a last line that a kill cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _evaluate_and_keep(
    loop: Loop, output: Path, step: int, plan: Mapping[str, Any], *, trained: float | None = None
) -> None:
    """Evaluate, write a checkpoint, and remove those that are neither the last nor the best."""
    valid = loop.evaluate()
    _say_evaluated(step, loop.settings.steps, trained, valid, " of q + l" if loop.objective.rewards == 2 else "")
    weights, state = gather_state(loop.model, loop.optimizer.optimizer)
    if loop.accelerator.is_main_process:
        if valid:
            _append(output / CURVES, {"step": step, "valid": valid})
        folder = output / CHECKPOINTS
        write_checkpoint(folder, step, weights, state, {"plan": plan, "valid": valid})
        prune_checkpoints(folder, {step, best_of(find_checkpoints(folder)).step})
    loop.accelerator.wait_for_everyone()


def _say_evaluated(step: int, steps: int, trained: float | None, valid: Mapping[str, Any], of: str) -> None:
    """Tell how it goes; ODIN's loss is `of` both its rewards, and its accuracy of the quality, which is the score."""
    words = [f"step {step:,} of {steps:,}"]
    if trained is not None:
        words.append(f"loss {trained:.4f}")
    if "loss" in valid:
        words.append(f"held-out loss{of} {valid['loss']:.4f}")
    if valid.get("accuracy") is not None:
        interval = f"[{valid['low']:.1%}, {valid['high']:.1%}], n = {valid['n']:,}"
        words.append(f"accuracy{' of q' if of else ''} {valid['accuracy']:.1%} {interval}")
    if valid.get("attribute_r2") is not None:
        words.append(f"attribute R2 {valid['attribute_r2']:.3f}")
    say(": ".join([words[0], ", ".join(words[1:]) or "nothing is held out"]))


def _judge_pairs(scores: Tensor, chosen: Numbers, rejected: Numbers, prompts: Numbers) -> dict[str, Any]:
    """Accuracy over untied pairs with its interval, and the share of ties; None for what is not defined."""
    judged = pair_accuracy((scores[chosen] - scores[rejected]).numpy(), prompts)
    values = vars(judged.accuracy) | {"tie_share": judged.tie_share.value}
    values["accuracy"] = values.pop("value")
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _rewind(path: Path, step: int) -> None:
    """Keep the curves up to a step: a killed run wrote more steps than it kept."""
    lines = [json.dumps(line) + "\n" for line in read_curves(path) if line["step"] <= step]
    write_atomically(path, lambda temporary: _write(temporary, lines))


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")
