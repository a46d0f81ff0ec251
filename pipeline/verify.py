"""The proof that a store is what it says: files against their hashes, and vectors against the backbone.

`cache.verify` checks what needs no backbone. Here the spec is made again from the backbone, tokenizer and template as
they are now and compared field by field; when nothing that counts has changed, random rows are embedded again, one at
a time and without packing, and compared with what is stored.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.embeddings import Embeddings
from cache.spec import NAMES, EmbeddingSpec
from cache.store import Store
from cache.vectors import RMS
from cache.verify import (
    DAMAGED,
    NOTE,
    OK,
    WRONG,
    Finding,
    check_dataset,
    check_embedding,
    check_leftovers,
    content_hashes,
    in_words,
    run_defects,
)
from heads.registry import load_head
from heads.saving import saved_name
from pipeline.backbone import Backbone, choose_device, hub_commit, load_backbone
from pipeline.forward import Extractor, choose_path
from pipeline.packing import ATTENTION
from pipeline.progress import say
from pipeline.render import NAMED, Renderer, TokenRow, fit_length
from pipeline.rerun import allowed_difference
from pipeline.windows import Pending

ROUNDING = ("compute_dtype", "attention")  # fields that move a vector within the compute dtype's rounding only
_FIXES = {
    "weights": "give what it was made with (--backbone, --backbone-revision), or embed again",
    "tokenizer": "restore the tokenizer's files, or embed again",
    "template_sha256": "give the text it was made with as --template FILE, or embed again",
}


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `pipeline verify`.

    Attributes:
        embeddings: fingerprints, or how they begin; empty means every embedding and run in the store.
        store: the store's folder.
        rows: rows of each embedding to embed again; 0 loads no backbone.
        backbone: where the backbone is now; None takes the name in the spec.
        backbone_revision: commit, tag or branch of a hub backbone; None takes the commit in the spec.
        template: the chat template; None takes the name in the spec.
        dtype: compute dtype; None takes the spec's.
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        seed: draws the rows; None takes another one each time, and says which.
    """

    embeddings: tuple[str, ...]
    store: Path
    rows: int = 8
    backbone: str | None = None
    backbone_revision: str | None = None
    template: str | None = None
    dtype: str | None = None
    device: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A backbone, and its tokenizer's hash from before it was used: use can change the serialisation."""

    backbone: Backbone
    tokenizer: str


@dataclass(frozen=True)
class Drawn:
    """Random rows of an embedding: their numbers, (n,), their texts, and the seed that drew them."""

    rows: NDArray[np.int64]
    texts: list[Pending]
    seed: int


def verify(options: VerifyOptions) -> list[Finding]:
    """Check datasets, embeddings and runs; nothing is written.

    Raises: ValueError for options that fit nothing: what is wrong in the store is a finding.
    """
    store = Store(options.store)
    chosen = _chosen(store, options.embeddings)
    opened = [embeddings for name in chosen if (embeddings := _open(store, name)) is not None]
    _check_options(options, [embeddings.spec for embeddings in opened])
    findings = [found for name in store.dataset_names() for found in check_dataset(store.root / "data" / name)]
    on_disk = [found for name in chosen for found in check_embedding(store.root / "embeddings" / name)]
    findings += on_disk + _check_runs(store, set(chosen) if options.embeddings else None)
    if options.rows:
        damaged = {found.subject for found in on_disk if found.status == WRONG}
        findings += _check_vectors(options, store, opened, damaged)
    return findings + check_leftovers(store.root)


def spec_now(spec: EmbeddingSpec, loaded: Loaded, renderer: Renderer | None) -> EmbeddingSpec:
    """The spec that the same options give with the backbone, tokenizer and template as they are now.

    Without a renderer the template's fields stay as they are.
    """
    backbone = loaded.backbone
    packed = spec.attention == ATTENTION and choose_path(backbone)[0]
    now = replace(
        spec,
        backbone=backbone.name,
        weights=backbone.weights,
        tokenizer=loaded.tokenizer,
        max_length=min(spec.max_length, backbone.max_length),
        layers=tuple(layer for layer in spec.layers if layer <= backbone.layer_count),
        compute_dtype=backbone.dtype,
        attention=ATTENTION if packed else backbone.attention,
    )
    if renderer is None:
        return now
    return replace(now, template=renderer.name, template_sha256=renderer.sha256, bos=renderer.bos)


def _chosen(store: Store, wanted: Sequence[str]) -> list[str]:
    """Fingerprints to check. Raises ValueError if a name fits none or several, or the folder is no store."""
    known = store.fingerprints()
    if not (known or store.dataset_names() or store.run_names()):
        raise ValueError(f"no datasets, embeddings or runs in {store.root}; name a store with --store")
    chosen = []
    for start in wanted:
        found = [name for name in known if name.startswith(start)]
        if len(found) != 1:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{len(found)} embeddings in {store.root} match {start!r} (it has {listed}); give one")
        chosen += found
    return list(dict.fromkeys(chosen)) or known


def _open(store: Store, fingerprint: str) -> Embeddings | None:
    """The embedding, or None if it cannot be opened; `check_embedding` says why."""
    try:
        return Embeddings.open(store.root / "embeddings" / fingerprint)
    except DAMAGED:
        return None


def _check_options(options: VerifyOptions, specs: Sequence[EmbeddingSpec]) -> None:
    """One backbone or template cannot stand for several: the others would all look changed."""
    choose_device(options.device)
    given = {
        "--backbone": (options.backbone or options.backbone_revision, {spec.weights for spec in specs}),
        "--template": (options.template, {spec.template_sha256 for spec in specs}),
    }
    for option, (value, different) in given.items():
        if value and len(different) > 1:
            raise ValueError(
                f"{option} {value} is one, the {len(specs)} embeddings to verify have {len(different)}; "
                "name the embedding that it belongs to"
            )


def _check_runs(store: Store, embeddings: set[str] | None) -> list[Finding]:
    """One finding for each defect, and one for all sound runs together. None takes the runs of every embedding."""
    findings: list[Finding] = []
    sound = 0
    hashes = content_hashes(store)
    for run_id in store.run_names():
        subject, fix = f"runs/{run_id}", "fit it again (`pipeline fit`, with --refit where the data is the same)"
        try:
            run = store.run(run_id)
            if embeddings is not None and run["embedding"] not in embeddings:
                continue
            defects = [*run_defects(store, run_id, run, hashes), *_head_defects(store.run_directory(run_id), run)]
        except DAMAGED as error:
            defects = [in_words(error)]
        except ImportError as error:  # the embed stage's machine may have no lightgbm
            findings.append(Finding(NOTE, subject, f"head not loaded: {error}"))
            continue
        findings += [Finding(WRONG, subject, what, fix) for what in defects]
        sound += not defects
    if sound:
        findings.append(Finding(OK, "runs", f"{sound:,} runs: heads load, their embeddings and datasets are unchanged"))
    return findings


def _head_defects(directory: Path, run: Mapping[str, Any]) -> Iterator[str]:
    try:
        name = saved_name(directory)
        load_head(directory)
    except DAMAGED as error:
        yield in_words(error)
        return
    if name != run["head"]:
        yield f"head.json is of a head {name!r}, run.json of {run['head']!r}"


def _check_vectors(
    options: VerifyOptions, store: Store, opened: Sequence[Embeddings], damaged: set[str]
) -> Iterator[Finding]:
    """Embeddings against their backbones, of which one is in memory at a time."""

    def source(embeddings: Embeddings) -> tuple[str, str, str, bool]:
        return (*_source(embeddings.spec, options), bool(embeddings.spec.scalars))

    for (name, revision, dtype, lm_head), members in groupby(sorted(opened, key=source), source):
        try:
            loaded = _load(name, revision or None, dtype, choose_device(options.device), lm_head=lm_head)
        except ValueError as error:
            if options.backbone:
                raise
            fix = "--backbone says where it is now"
            yield from (Finding(NOTE, _subject(one), f"not re-embedded: {in_words(error)}", fix) for one in members)
            continue
        for embeddings in members:
            yield from _moved(embeddings.spec, options)
            yield from _check_embedding(options, store, embeddings, loaded, sound=_subject(embeddings) not in damaged)


def _source(spec: EmbeddingSpec, options: VerifyOptions) -> tuple[str, str, str]:
    """Name, revision ("" for none) and compute dtype to load: the spec's own where the options say nothing."""
    kind, _, commit = spec.weights.partition(":")
    recorded = commit if kind == "revision" and options.backbone is None else ""
    dtype = options.dtype or spec.compute_dtype
    return options.backbone or spec.backbone, options.backbone_revision or recorded, dtype


def _subject(embeddings: Embeddings) -> str:
    return f"embeddings/{embeddings.directory.name}"


def _load(name: str, revision: str | None, dtype: str, device: str, *, lm_head: bool) -> Loaded:
    say(f"loading {name} on {device} in {dtype}")
    backbone = load_backbone(name, revision=revision, device=device, dtype=dtype, lm_head=lm_head)
    return Loaded(backbone, backbone.tokenizer_hash)


def _moved(spec: EmbeddingSpec, options: VerifyOptions) -> Iterator[Finding]:
    """A hub's main may have left the commit that was embedded: no defect, but another embedding from now on."""
    kind, _, commit = spec.weights.partition(":")
    if kind != "revision" or options.backbone or options.backbone_revision:
        return
    try:
        main = hub_commit(spec.backbone, None)
    except OSError:
        return
    if main != commit:
        what = f"main of {spec.backbone} is at {main} now, these vectors are of {commit}"
        yield Finding(NOTE, f"embeddings/{spec.fingerprint}", what, "embed with --backbone-revision to add to them")


def _check_embedding(
    options: VerifyOptions, store: Store, embeddings: Embeddings, loaded: Loaded, *, sound: bool
) -> Iterator[Finding]:
    """The spec field by field, then random rows."""
    subject, spec = _subject(embeddings), embeddings.spec
    renderer, no_template = _renderer(loaded, spec, options.template)
    changed = list(_changes(subject, spec, spec_now(spec, loaded, renderer)))
    yield from changed
    if renderer is None and spec.template in ("model", *NAMED):
        yield Finding(WRONG, subject, f"template was {spec.template}, is gone: {no_template}", "embed again")
    elif renderer is None:
        yield Finding(
            NOTE, subject, f"not re-embedded: its template {spec.template} is not here", "--template gives it"
        )
    elif not sound or any(found.status == WRONG for found in changed):
        yield Finding(NOTE, subject, "not re-embedded: " + ("its spec changed" if sound else "its files are damaged"))
    else:
        seed = secrets.randbelow(10**6) if options.seed is None else options.seed
        drawn = _draw(store, embeddings, options.rows, seed)
        if drawn.texts:
            yield _compare(embeddings, loaded.backbone, renderer, drawn)
        else:
            yield Finding(NOTE, subject, "not re-embedded: no dataset has its rows' texts")


def _renderer(loaded: Loaded, spec: EmbeddingSpec, given: str | None) -> tuple[Renderer | None, str]:
    """The renderer of the template given, else of the one recorded, or None and why that one is not to be had."""
    try:
        return Renderer.of(loaded.backbone.tokenizer, given or spec.template, spec.suffix), ""
    except ValueError as error:
        if given:
            raise
        return None, in_words(error)


def _changes(subject: str, was: EmbeddingSpec, now: EmbeddingSpec) -> Iterator[Finding]:
    """Each field that differs, with both values; what moves vectors within rounding only is a note."""
    for field, (old, new) in was.differences(now).items():
        what = f"{field} was {old}, is now {new}"
        # A hub's commit and a directory's hash may name the same weights: the rows decide.
        other_kind = field == "weights" and old.partition(":")[0] != new.partition(":")[0]
        if field in ROUNDING or other_kind:
            yield Finding(NOTE, subject, what)
        elif field not in NAMES:
            name = f" (template {now.template})" if field == "template_sha256" else ""
            yield Finding(WRONG, subject, what + name, _FIXES.get(field, "embed again"))


def _draw(store: Store, embeddings: Embeddings, count: int, seed: int) -> Drawn:
    """Random rows of the embedding whose texts a dataset of the store has; fewer where there are not so many."""
    paths = [store.root / "data" / name / "responses.parquet" for name in store.dataset_names()]
    known = {row["response_id"] for path in paths for row in _texts(path, ["response_id"], None)}
    there = [(row, key) for row, key in enumerate(embeddings.ids()) if key in known]
    wanted = [there[number] for number in np.random.default_rng(seed).permutation(len(there))[:count]]
    columns, keys = ["response_id", "prompt", "response"], [key for _, key in wanted]
    found = {row["response_id"]: Pending(**row) for path in paths for row in _texts(path, columns, keys)}
    rows = np.array([row for row, key in wanted if key in found], dtype=np.int64)
    return Drawn(rows, [found[key] for key in keys if key in found], seed)


def _texts(path: Path, columns: list[str], wanted: list[str] | None) -> list[dict[str, str]]:
    """Rows of a responses table, none where it cannot be read: `check_dataset` has said so."""
    try:
        rows: list[dict[str, str]] = pq.read_table(
            path, columns=columns, filters=None if wanted is None else [("response_id", "in", wanted)]
        ).to_pylist()
    except DAMAGED:
        return []
    return rows


def _compare(embeddings: Embeddings, backbone: Backbone, renderer: Renderer, drawn: Drawn) -> Finding:
    """Run rows one at a time and hold them against what is stored: token counts, then every feature."""
    subject, spec = _subject(embeddings), embeddings.spec
    fix = f"if the datasets are ok, remove {embeddings.directory} and embed again"
    rows = f"{len(drawn.texts)} rows (--seed {drawn.seed}) embedded again one at a time"
    try:
        tokens = _tokens(renderer, embeddings, drawn)
    except ValueError as error:
        return Finding(WRONG, subject, in_words(error), fix)
    extractor = Extractor(backbone, spec.layers, spec.pool, token_budget=1, scalars=spec.scalars)
    found, _ = extractor.run(tokens, range(len(tokens)))
    names = (*spec.features, *spec.scalars)
    allowed = np.array([allowed_difference(spec, name, (spec.compute_dtype, backbone.dtype)) for name in names])
    differences = np.array([_differences(embeddings, drawn, name, found[name]) for name in names])
    column, row = divmod(int(np.argmax(differences / allowed[:, None])), len(tokens))
    unit = "nats" if names[column] in spec.scalars else "relative"
    worst = f"{differences[column, row]:.1e} {unit} ({names[column]} of {drawn.texts[row].response_id})"
    off = int((~(differences <= allowed[:, None])).any(axis=0).sum())  # a NaN is no agreement
    if off:
        what = f"{rows}: {off} give other vectors, the worst by {worst}, allowed {allowed[column]:.1e}"
        return Finding(WRONG, subject, what, fix)
    return Finding(OK, subject, f"{rows}: within {worst}, allowed {allowed[column]:.1e}")


def _tokens(renderer: Renderer, embeddings: Embeddings, drawn: Drawn) -> list[TokenRow]:
    """The rows as they would be run now. Raises ValueError if one has other token counts, or is left out."""
    spec = embeddings.spec
    tokens, cut = (embeddings.scalar(name)[drawn.rows] for name in ("tokens", "cut_tokens"))
    rows = []
    for number, whole in enumerate(renderer.encode([(one.prompt, one.response) for one in drawn.texts])):
        row = fit_length(whole, max_length=spec.max_length, overlong=spec.overlong, bos=spec.bos != "none")
        if row is None or (len(row), len(whole) - len(row)) != (tokens[number], cut[number]):
            was = f"{tokens[number]} tokens of {tokens[number] + cut[number]}"
            now = "none" if row is None else str(len(row))
            raise ValueError(f"{drawn.texts[number].response_id} was run as {was}, now it is {now} of {len(whole)}")
        rows.append(row)
    return rows


def _differences(embeddings: Embeddings, drawn: Drawn, feature: str, found: NDArray[np.float32]) -> NDArray[np.float32]:
    """|stored - found| / |found| of each row, stored vectors multiplied by their RMS again; shape (rows,).

    Of a scalar |stored - found|.
    """
    stored = embeddings.gather([one.response_id for one in drawn.texts], [feature])
    if feature in embeddings.spec.scalars:
        shifts: NDArray[np.float32] = np.abs(stored - found)[:, 0]
        return shifts
    if feature + RMS in pq.read_schema(embeddings.directory / embeddings.parts[0].file).names:
        stored *= embeddings.scalar(feature + RMS)[drawn.rows, None]
    differences: NDArray[np.float32] = np.linalg.norm(stored - found, axis=1) / np.linalg.norm(found, axis=1)
    return differences
