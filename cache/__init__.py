"""What is on disk: records and their ids, the embedding spec and its fingerprint, the store, views and splits.

Knows nothing of torch, transformers, click or DuckDB: arrays and files only.
"""
