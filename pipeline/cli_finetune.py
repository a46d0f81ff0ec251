"""The command that trains a backbone: finetune."""

from pathlib import Path
from typing import Any

import click

from pipeline.command import (
    device_option,
    dtype_option,
    json_option,
    max_length_option,
    one_sentence_errors,
    overlong_option,
    print_rows,
    store_option,
    template_option,
)

SHARE = click.FloatRange(0, 1, max_open=True)
NOT_NEGATIVE = click.FloatRange(0)


@click.command()
@click.option("--backbone", required=True, help="Hub id, directory in HF format, or gemma3-270m (extra: demo).")
@click.option("--backbone-revision", help="Commit, tag or branch of a hub backbone.  [default: the newest]")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the trained backbone, its checkpoints and curves.",
)
@click.option("--pairs", metavar="SOURCE", help="Dataset in the store, file or hub id with preference pairs.")
@click.option("--attributes", metavar="SOURCE", help="The same, with attribute scores.")
@click.option("--use", help="Attributes to train on, joined by commas.  [default: all]")
@click.option(
    "--objective",
    type=click.Choice(["bt", "smorm", "grm", "odin"]),
    default="bt",
    show_default=True,
    help="bt: Bradley-Terry; smorm: and attributes; grm: and text likelihood; odin: and a length head.",
)
@template_option
@max_length_option
@overlong_option
@click.option(
    "--margin-weight",
    type=NOT_NEGATIVE,
    default=0.0,
    show_default=True,
    help="Subtract this times the annotated margin in the loss.",
)
@click.option(
    "--smoothing",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of annotations taken to be wrong.",
)
@click.option(
    "--centring",
    type=NOT_NEGATIVE,
    default=0.0,
    show_default=True,
    help="Weight of (r(chosen) + r(rejected))^2 in the loss.",
)
@click.option("--regression-weight", type=NOT_NEGATIVE, help="smorm: weight of the attributes' error.  [default: 1]")
@click.option("--alpha", type=click.FloatRange(0, 1), help="grm: weight of the text term.  [default: 0.01]")
@click.option("--beta", type=NOT_NEGATIVE, help="grm: factor of the log-likelihood.  [default: 0.1]")
@click.option(
    "--reward-hidden", type=click.IntRange(0), help="grm: hidden layer under the reward, 0: none.  [default: 1024]"
)
@click.option("--length-weight", type=NOT_NEGATIVE, help="odin: weight of the length loss.  [default: 1]")
@click.option("--orthogonality-weight", type=NOT_NEGATIVE, help="odin: weight of the heads' |cosine|.  [default: 1]")
@click.option("--init", metavar="RUN", help="Start from this run of head `linear` on L<last>.last.  [default: from 0]")
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Train LoRA adapters.  [default: all weights]")
@click.option("--lora-alpha", type=click.IntRange(1), help="LoRA's alpha.  [default: 2 RANK]")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Pairs in a step at most; smorm: of pairs or annotated responses, whichever are more.",
)
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Passes over the training data.")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many steps.  [default: no limit]")
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=5e-6,
    show_default=True,
    help="Peak learning rate of AdamW.",
)
@click.option(
    "--warmup",
    type=SHARE,
    default=0.03,
    show_default=True,
    help="Share of the steps with rising learning rate; then a cosine to 0.",
)
@click.option(
    "--weight-decay", type=NOT_NEGATIVE, default=0.0, show_default=True, help="AdamW's decay of weight matrices."
)
@click.option(
    "--max-grad-norm",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Scale longer gradients down to this norm.",
)
@click.option("--every", type=click.IntRange(1), help="Steps between checkpoints.  [default: a tenth of all]")
@click.option(
    "--valid-pairs",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Held-out pairs in each evaluation, at most.",
)
@click.option("--test-share", type=SHARE, default=0.2, show_default=True, help="Share of prompts held out for judging.")
@click.option(
    "--valid-share",
    type=SHARE,
    default=0.15,
    show_default=True,
    help="Share of the other prompts to evaluate on as training goes.",
)
@click.option("--split-seed", type=int, default=0, show_default=True, help="Draws other test prompts.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Draws validation prompts, batches and weights.",
)
@dtype_option
@device_option
@click.option(
    "--token-budget", type=click.IntRange(1), help="Tokens run at once.  [default: 2048 on a CPU, 16384 on a GPU]"
)
@click.option(
    "--recompute/--no-recompute",
    default=True,
    show_default=True,
    help="Gradient checkpointing: compute states again instead of keeping them.",
)
@json_option
@store_option
@one_sentence_errors
def finetune(as_json: bool, use: str | None, **options: Any) -> None:  # noqa: ANN401
    """Fine-tune the backbone with a reward head; the result is a backbone for `embed`.

    The output is a backbone with a score row, for `pipeline embed --backbone DIR` and for transformers'
    AutoModelForSequenceClassification. The same command goes on where a killed one stopped.

    \b
      pipeline finetune --backbone gemma3-270m --template plain --pairs prefs.jsonl.gz -o tuned
      accelerate launch --num_processes 4 -m pipeline.cli finetune ...     several GPUs; --use_fsdp shards
      pipeline embed prefs --backbone tuned && pipeline evaluate --on prefs
    """  # noqa: D301
    from pipeline.finetune import finetune
    from pipeline.finetune_options import FinetuneOptions

    used = tuple(map(str.strip, use.split(","))) if use else ()
    summary = finetune(FinetuneOptions(use=used, **options))
    if summary is not None:  # of several processes one prints
        print_rows([summary.as_row()], as_json)
