"""The sources that a stage is given: read as datasets, shown, and held against those in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cache.records import Dataset
from cache.store import Store
from pipeline.progress import say
from pipeline.readers import read_source

if TYPE_CHECKING:
    from pipeline.embed import EmbedOptions


def read_datasets(options: "EmbedOptions", store: Store) -> list[Dataset]:
    """Read every source and show what was refused; a name the store has is taken from there."""
    if options.name is not None and len(options.sources) != 1:
        raise ValueError(
            f"--name {options.name} names one dataset, got {len(options.sources)} sources; embed them apart"
        )
    known = store.dataset_names()
    datasets: list[Dataset] = []
    for source in options.sources:
        if source in known and not Path(source).exists():
            datasets.append(store.dataset(source))
            continue
        dataset = read_source(
            source,
            name=options.name,
            format=options.format,
            config=options.config,
            split=options.split,
            revision=options.revision,
            prompts=options.prompts,
        )
        if dataset.name in [other.name for other in datasets]:
            raise ValueError(f"two sources have the name {dataset.name!r}; embed them apart with --name")
        refuse_other_content(dataset, store, refresh=options.refresh)
        show_dataset(dataset)
        datasets.append(dataset)
    return datasets


def show_dataset(dataset: Dataset) -> None:
    """Say what was read, and what was not and why."""
    counts: Mapping[str, int] = dataset.info["counts"]
    say(f"{dataset.name}: {dataset.info['format']}, " + ", ".join(f"{n:,} {table}" for table, n in counts.items()))
    for refused in dataset.info["refused"]:
        shown = ", ".join(map(str, refused["rows"][:5])) + (", ..." if refused["count"] > 5 else "")
        say(f"  refused {refused['count']:,}: {refused['reason']} ({dataset.info['row_numbers']} {shown})")
    for left_out in dataset.info["left_out"]:
        say(f"  {left_out['count']:,} rows {left_out['reason']}")
    if dataset.info["unused_columns"]:
        say(f"  columns not used: {', '.join(dataset.info['unused_columns'])}")
    for note in dataset.info["notes"]:
        say(f"  note: {note}")


def refuse_other_content(dataset: Dataset, store: Store, *, refresh: bool) -> None:
    """Raise ValueError if the store has another dataset of this name, unless it is to be replaced."""
    if refresh or dataset.name not in store.dataset_names():
        return
    if store.dataset(dataset.name).info["content_hash"] != dataset.info["content_hash"]:
        raise ValueError(
            f"the store has a dataset {dataset.name!r} with other content; "
            "give this one another --name, or replace the old one with --refresh"
        )
