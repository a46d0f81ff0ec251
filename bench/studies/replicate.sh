#!/bin/sh
# The replication study from data to page: what `make replicate` runs. A killed run goes on where it was.
# DATA holds the pools (see docs/study.md); the demo pool is this repository's own.
set -eu
cd "$(dirname "$0")/../.."
PIPELINE_STORE=${PIPELINE_STORE:-store}
DATA=${DATA:-../shared/data}
export PIPELINE_STORE

show() { printf '\n$ %s\n' "$*"; "$@"; }

for backbone in "gemma3-270m --layers 66%,last --pool last,mean" "all-minilm-l6-v2"; do
    # shellcheck disable=SC2086 # the backbone's options are words of their own
    show pipeline embed "$DATA/pool_tulu2dpo13b_bon11_gpt4turbo.parquet" "$DATA/pool_gsm8k_4solutions_exact.parquet" \
        "$DATA/attr_summeval_human.jsonl.gz" bench/demo/pool.jsonl.gz bench/demo/attributes.jsonl.gz \
        --backbone $backbone --template plain
done
show pipeline study bench/studies/replication.yaml
show python bench/studies/render.py "$PIPELINE_STORE" replication docs/replication.md
