#!/bin/sh
# The whole road on the demo data: what `make demo` runs. Every line is a command that a user could type.
set -eu
cd "$(dirname "$0")/../.."
PIPELINE_STORE=${PIPELINE_STORE:-store}
PROMPTS=${PROMPTS:-330} # all of them; fewer is quicker
export PIPELINE_STORE

show() { printf '\n$ %s\n' "$*"; "$@"; }

show pipeline embed bench/demo/preferences.jsonl.gz bench/demo/attributes.jsonl.gz bench/demo/pool.jsonl.gz \
    --backbone gemma3-270m --template plain --layers 60%,last --pool last,mean --prompts "$PROMPTS"
for head in linear bt clf lgbm; do
    show pipeline fit --head $head --pairs preferences --features L11.mean --seeds 3
done
show pipeline fit --head ridge --attributes attributes --features L11.mean --seeds 3
show pipeline fit --head smorm --pairs preferences --attributes attributes --features L11.mean --seeds 3
printf '\n$ pipeline evaluate --on preferences --on attributes --on pool\n'
pipeline evaluate --on preferences --on attributes --on pool > /dev/null # the table of every run; the next line sums up
show pipeline query "SELECT dataset, head, scorer, seeds, accuracy, low, high, n, length, shuffled
    FROM leaderboard WHERE dataset = 'preferences' ORDER BY accuracy DESC"
show pipeline report -o report.html
