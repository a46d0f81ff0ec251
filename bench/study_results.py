"""What a study's fits came to, one row for each fit, each thing it was judged on and each score: the shape on disk."""

import pyarrow as pa

RESULTS = pa.schema(
    [
        ("cell", pa.string()),  # the fit's place in the grid, in words
        ("pool", pa.string()),
        ("features", pa.string()),
        ("head", pa.string()),
        ("pairing", pa.string()),
        ("choice", pa.string()),
        ("beta", pa.float64()),
        ("pairs", pa.int64()),  # annotated, those for early stopping included
        ("seed", pa.int64()),
        ("judged_on", pa.string()),  # a pool, or a dataset of pairs; null where the fit failed
        ("scorer", pa.string()),
        ("error", pa.string()),  # why the fit failed
        ("gain", pa.float64()),  # gold of best-of-N less the mean, over held-out prompts, in gold's units
        ("oracle", pa.float64()),  # the same if gold itself chose
        ("spearman", pa.float64()),  # within prompts
        ("accuracy", pa.float64()),  # pairs ranked as gold, or as the annotation, does; ties half
        ("n", pa.int64()),  # held-out prompts, or pairs
        ("error_rate", pa.float64()),  # of the annotations fitted on
        ("mean_gap", pa.float64()),  # their mean |dr|, in standard deviations of their pool's gold within a prompt
        ("scale", pa.float64()),  # standard deviation of gold within a prompt of `judged_on`; null for pairs
        ("epochs", pa.int64()),
        ("fit_seconds", pa.float64()),
        ("seconds", pa.float64()),  # with annotating and judging
        ("best_of_n", pa.list_(pa.float64())),  # expected gold of best of n less the mean, n = 1..
        ("proxy_best_of_n", pa.list_(pa.float64())),  # the same of the score, in its standard deviations in a prompt
        ("gains", pa.list_(pa.float32())),  # each held-out prompt's part in `gain`, in one order for all fits
        ("accuracies", pa.list_(pa.float32())),  # each held-out prompt's own accuracy; null where no gold differs
        ("curves", pa.list_(pa.list_(pa.float32()))),  # each held-out prompt's own best_of_n, up to its last response
    ]
)
TIMES = ("fit_seconds", "seconds")  # the columns that differ when a fit is made again
