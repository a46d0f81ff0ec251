"""Write docs/replication.md and its figures: python bench/studies/render.py STORE STUDY PAGE."""

import sys
from pathlib import Path

from bench.replication_page import write_replication

if __name__ == "__main__":
    store, study, page = sys.argv[1:]
    for found in write_replication(Path(store), study, Path(page)):
        print(f"{found.verdict}: {found.claim} ({found.setup})")
