"""Rows out of a dataset in hub layout, on the hub or in a local directory, through the optional `datasets` library.

A hub dataset goes through the library's own download cache; a local directory is streamed, so nothing is written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cache.files import sha256_of_file, sha256_of_json
from pipeline.readers.example import Row

HUB_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class HubDataset:
    """One split: its rows with their numbers, which version it is, and the hash of its files where they are local."""

    rows: Iterator[tuple[int, Row]]
    version: dict[str, Any]
    sha256: Callable[[], str | None]


def open_dataset(source: str, *, config: str | None, split: str | None, revision: str | None) -> HubDataset:
    """Open one split of the dataset at `source`, a local directory or a hub id.

    Raises: ValueError when the library is missing, the dataset cannot be loaded, or the split is not clear.
    """
    builder = _builder(source, config, revision)
    split = _the_split(source, list(map(str, builder.config.data_files or {})), split)
    files = [str(file) for file in builder.config.data_files[split]]
    version = {"config": builder.config.name, "split": split, "fingerprint": builder.hash}
    return HubDataset(_rows(source, builder, split), version, lambda: _sha256_of_files(Path(source), files))


def commit_of(source: str, revision: str | None) -> str | None:
    """The commit that `revision` (by default the newest) of the hub dataset means; offline, `revision` as it stands.

    Asked first and once, because `datasets` retries for half a minute when the hub cannot be reached.

    Raises: ValueError when there is no such dataset or no hub.
    """
    _datasets()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(HfApi().dataset_info(source, revision=revision, timeout=HUB_TIMEOUT_SECONDS).sha)
    except OfflineModeIsEnabled:
        return revision
    except HfHubHTTPError as error:
        raise ValueError(
            f"{source} is no local file, and the hub has no dataset of that name and revision open to you "
            f"({_in_one_line(error)}); check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub, and so do its errors
        raise ValueError(
            f"{source} is no local file, and the hub cannot be reached to look for it ({_in_one_line(error)}); "
            "check the path or the network, or set HF_HUB_OFFLINE=1 to use a downloaded copy"
        ) from error


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "hub datasets and directories need the library `datasets`, which is not installed; "
            "run `pip install rewardheads[hub]`"
        ) from error
    module: ModuleType = datasets
    return module


def _builder(source: str, config: str | None, revision: str | None) -> Any:  # noqa: ANN401 (untyped library)
    datasets = _datasets()
    try:
        return datasets.load_dataset_builder(source, config, revision=revision)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot load {source} as a dataset: {_in_one_line(error)}") from error


def _the_split(source: str, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        problem = "several splits" if split is None else f"no split {split!r}"
        raise ValueError(f"{source} has {problem}; pass --split with one of {', '.join(splits)}")
    return split


def _rows(source: str, builder: Any, split: str) -> Iterator[tuple[int, Row]]:  # noqa: ANN401 (untyped library)
    try:
        if Path(source).is_dir():
            rows = builder.as_streaming_dataset(split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split)
        yield from enumerate(rows, 1)
    except Exception as error:  # whatever the library's readers raise on a damaged file
        raise ValueError(f"cannot read split {split} of {source}: {_in_one_line(error)}") from error


def _sha256_of_files(directory: Path, files: list[str]) -> str | None:
    paths = [Path(file) for file in files]
    if not all(path.is_file() for path in paths):  # inside an archive, or elsewhere by URL
        return None
    return sha256_of_json([[str(path.relative_to(directory)), sha256_of_file(path)] for path in sorted(paths)])


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
