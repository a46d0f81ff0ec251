"""Make the demo data: prompts with checkable constraints, responses of known worth, and preferences among them.

    python bench/demo/make_demo.py --from-samples              # rebuild from samples.jsonl.gz, seconds, no model
    python bench/demo/make_demo.py --backbone gemma3-270m      # sample anew first, about ten minutes on a quiet core

Writes preferences, attributes and pool (`*.jsonl.gz`) beside itself, or where `--output` says.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script: runs from anywhere, installed or not

from bench.demo.constraints import Prompt
from bench.demo.edits import worked_answer
from bench.demo.pools import BLOCKED, Response, agreement, clean_samples, make_pairs, make_pool
from bench.demo.prompts import make_prompts
from bench.demo.qualities import attributes

HERE = Path(__file__).resolve().parent
SOURCE = "rewardheads-demo"
JUDGE = "constraints-met"
FOREIGN = 30  # how many responses to other prompts "off-topic" and padding choose from

# What a head could see without understanding anything; no one of them should tell gold.
MARKS: Mapping[str, Callable[[Response], float]] = {
    "longer": lambda r: len(r.text),
    "more words": lambda r: len(r.text.split()),
    "sampled": lambda r: r.sampled,
    "capital first": lambda r: r.text[0].isupper(),
    "full stop last": lambda r: r.text[-1] == ".",
    "more lines": lambda r: r.text.count("\n"),
}


def main() -> None:
    """Sample if asked to, build the three files and print what is in them."""
    options = _options()
    samples = HERE / "samples.jsonl.gz"
    if not options.from_samples:
        write_rows(samples, _sample(options.backbone, options.threads))
    pools = build_pools(read_rows(samples))
    for name, rows in build_files(pools).items():
        write_rows(options.output / f"{name}.jsonl.gz", rows)
        print(f"{name}: {len(rows)} rows, {(options.output / f'{name}.jsonl.gz').stat().st_size} bytes")
    for line in summary(pools):
        print(line)


def build_pools(samples: Iterable[Mapping[str, Any]]) -> list[tuple[Prompt, list[Response]]]:
    """Every prompt with its twelve responses, in file order."""
    prompts = make_prompts()
    sampled = clean_samples(samples)
    answers = [worked_answer(prompt) for prompt in prompts]
    pools = []
    for place, prompt in enumerate(prompts):
        foreign = list(_foreign(place, prompts, answers, sampled))
        pools.append((prompt, make_pool(prompt, sampled.get(prompt.text, []), foreign)))
    return pools


def build_files(pools: Sequence[tuple[Prompt, Sequence[Response]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the three files by file name, prompts in the same order in each."""
    files: dict[str, list[dict[str, Any]]] = {"preferences": [], "attributes": [], "pool": []}
    for prompt, pool in pools:
        for number, (chosen, rejected) in enumerate(make_pairs(prompt, pool)):
            files["preferences"].append(_pair_row(f"{prompt.id}-{number}", prompt, chosen, rejected))
        for number, response in enumerate(pool):
            name = f"{prompt.id}-r{number:02d}"
            files["attributes"].append(_attribute_row(name, prompt, response))
            files["pool"].append(_pool_row(name, prompt, response))
    return files


def summary(pools: Sequence[tuple[Prompt, Sequence[Response]]]) -> Iterator[str]:
    """Gold by generator, and how well trivial marks of a response tell gold within a prompt."""
    everything = [response for _, pool in pools for response in pool]
    for generator in sorted({response.generator for response in everything}):
        golds = [response.gold for response in everything if response.generator == generator]
        perfect = _mean([gold == 1 for gold in golds])
        yield f"{generator:16} n {len(golds):5}  mean gold {_mean(golds):.3f}  perfect {perfect:.2f}"
    for name, mark in MARKS.items():
        right = _mean([agreement(pool, {r.text: mark(r) for r in pool}) for _, pool in pools])
        sampled = _mean([mark(response) for response in everything if response.sampled])
        edited = _mean([mark(response) for response in everything if not response.sampled])
        yield f"{name:16} right in {right:.3f} of a pool's pairs; mean {sampled:.2f} sampled, {edited:.2f} edited"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, gzipped without name or time so that equal rows give equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    # Not gzip.compress: its header names the operating system up to Python 3.12 and not from 3.13 on.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as file:
        file.write(text.encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_rows` wrote."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--from-samples", action="store_true", help="rebuild from samples.jsonl.gz, without the model")
    start.add_argument("--backbone", help="sample anew with this model: a directory, a hub id or gemma3-270m")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for sampling")
    parser.add_argument("--output", type=Path, default=HERE, help="folder for the three files")
    return parser.parse_args()


def _sample(backbone: str, threads: int) -> list[dict[str, Any]]:
    """Raw samples for all prompts, offensive ones left out: the file is published too."""
    from bench.demo.sampling import sample  # torch and transformers: only where a model is run

    directory: Path | str = backbone
    if backbone == "gemma3-270m":
        from pipeline.backbone import resolve

        directory = resolve(backbone)
    rows = sample(make_prompts(), directory, threads=threads)
    return [row for row in rows if not BLOCKED.search(str(row["response"]))]


def _foreign(
    place: int, prompts: Sequence[Prompt], answers: Sequence[str], sampled: Mapping[str, Sequence[tuple[str, str]]]
) -> Iterator[str]:
    """Responses to the prompts that follow in file order and are about something else, half of them sampled."""
    for step in range(1, FOREIGN + 1):
        other = (place + step) % len(prompts)
        if prompts[other].topic == prompts[place].topic:
            continue
        yield answers[other]
        yield from (text for text, _ in sampled.get(prompts[other].text, [])[:1])


def _pair_row(name: str, prompt: Prompt, chosen: Response, rejected: Response) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "margin": round(chosen.gold - rejected.gold, 6),
        "subset": prompt.subset,
        "source": SOURCE,
    }


def _attribute_row(name: str, prompt: Prompt, response: Response) -> dict[str, Any]:
    scores = {key: round(value, 6) for key, value in attributes(prompt, response.text).items()}
    origin = {"generator": response.generator, "subset": prompt.subset, "source": SOURCE}
    return {"id": name, "prompt": prompt.text, "response": response.text, **scores, **origin}


def _pool_row(name: str, prompt: Prompt, response: Response) -> dict[str, Any]:
    return {
        "id": name,
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "response": response.text,
        "generator": response.generator,
        "gold_score": round(response.gold, 6),
        "judge": JUDGE,
        "subset": prompt.subset,
        "source": SOURCE,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


if __name__ == "__main__":
    main()
