#!/bin/sh
# The replication study from data to page: what `make replicate` runs. A killed run goes on where it was.
# DATA holds the pools (see docs/study.md); the demo pool is this repository's own. GEMMA: which states of the backbone
# are embedded; a store that has more of them already needs no others (GEMMA="--layers 33%,66%,last --pool last,mean").
set -eu
cd "$(dirname "$0")/../.."
PIPELINE_STORE=${PIPELINE_STORE:-store}
DATA=${DATA:-../shared/data}
GEMMA=${GEMMA:---layers 66% --pool mean}
export PIPELINE_STORE

study="$PIPELINE_STORE/studies/replication"
show() { printf '\n$ %s\n' "$*"; "$@"; }
theory() { # NAME OPTION...: as JSON beside the study's results, where the page finds it
    name=$1
    shift
    printf '\n$ pipeline theory %s\n' "$*"
    pipeline theory "$@" --json >"$study/theory-$name.json"
}

for backbone in "gemma3-270m $GEMMA" "all-minilm-l6-v2"; do
    # shellcheck disable=SC2086 # the backbone's options are words of their own
    show pipeline embed "$DATA/pool_tulu2dpo13b_bon11_gpt4turbo.parquet" "$DATA/pool_gsm8k_4solutions_exact.parquet" \
        "$DATA/attr_summeval_human.jsonl.gz" bench/demo/pool.jsonl.gz bench/demo/attributes.jsonl.gz \
        --backbone $backbone --template plain
done
show pipeline study bench/studies/replication.yaml

gemma=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["features"]["gemma"]["embedding"])' "$study/study.json")
show pipeline annotate attr_summeval_human --judge coherence --pairing same --beta 3 --pairs 4000 --name replication-summeval
show pipeline annotate pool --pairing same --beta 1 --pairs 4000 --name replication-demo
theory summeval --pairs replication-summeval --attributes attr_summeval_human --use consistency,fluency,relevance \
    --features L12.mean --embedding "$gemma" --pool attr_summeval_human --judge coherence --beta 1 --beta 3 --beta 10
theory demo --pairs replication-demo --attributes attributes --use brevity,no_repetition,on_topic,own_words \
    --features L12.mean --embedding "$gemma" --pool pool --beta 0.5 --beta 1 --beta 2
theory tulu --pool pool_tulu2dpo13b_bon11_gpt4turbo --beta 3 --beta 30 --beta 300
theory gsm8k --pool pool_gsm8k_4solutions_exact --beta 0.25 --beta 0.75 --beta 2
show python bench/studies/render.py "$PIPELINE_STORE" replication docs/replication.md
