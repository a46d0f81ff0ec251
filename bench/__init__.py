"""How good the scores are: metrics, intervals, best-of-n, results over the store, the report.

Knows nothing of what made a score.
"""
