"""Curation: data filters on whole data sets, a reason for every dropped sample, and baselines to beat.

A run writes `kept.jsonl`, `dropped.jsonl` and a report into a folder, with two more sets of as many samples as were
kept: `random.jsonl`, drawn by chance, and `length.jsonl`, those with the longest answers. A selection that trains no
better than these has not earned its cost.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_training.data.samples import Samples, stage_samples
from andes_training.recipe import DataRecipe, read_recipe
from attrs import define, field, frozen
from attrs.validators import deep_iterable, ge, in_, min_len
from PIL import Image

from andes_curation.facts import BLOCK, ENGINES, WAITING_BLOCK, Describe, Engine, Facts, Identify, entry_of
from andes_curation.references import answers, change_pictures, is_path
from andes_curation.selection import write_report
from andes_sdk.assembling.assembly import assemble
from andes_sdk.config import structure, suggestion
from andes_sdk.errors import PluginBroken, TrainingError
from andes_sdk.files import appearing_file, write_atomically, writing
from andes_sdk.reading import parse_json
from andes_sdk.types import DataFilter, TableFilter

Progress = Callable[[str, int, int], None]
"""Called with a filter's name, samples done, samples in all."""
READING = "reading"
"""Stands where a filter's name stands for samples that cannot be read."""


@frozen(kw_only=True)
class CurationRecipe:
    """What to curate, and how.

    Attributes:
        data: files, folders of shards or patterns; relative to the recipe.
        plugins: as in `Pipeline.from_plugins`, but only those that bring filters.
        filters: names, applied one after another: each sees what the one before kept.
        engine: 'local', or 'ray' for many machines (RAY_ADDRESS names the cluster).
        workers: processes, or requests at a time; 0 for one per core.
        seed: of the random baseline.
    """

    data: list[Path] = field(validator=min_len(1))
    plugins: list[object] = field(validator=min_len(1))
    filters: list[str] = field(validator=[min_len(1), deep_iterable(min_len(1))])
    engine: str = field(default="local", validator=in_(ENGINES))
    workers: int = field(default=0, validator=ge(0))
    seed: int = 0
    folder: Path = Path()


def load_curation(path: Path, **changes: object) -> CurationRecipe:
    """Read a TOML file; `changes` replace what stands in it.

    Raises:
        TrainingError: the file cannot be read. AssemblyError: every option that is unknown or does not fit.
    """
    return structure(CurationRecipe, {**read_recipe(path), **changes, "folder": path.parent.resolve()}, path.name)


def curate(recipe: CurationRecipe, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Apply the filters and write the folder `out` -> the report.

    What filters found out about samples is kept in `facts.sqlite` by the samples' content, so a run that was stopped,
    and a run with one filter more, compute only what is new.

    Raises:
        AssemblyError, TrainingError: plugins, filters or data that cannot be used. PluginBroken: a filter that loses
        samples.
    """
    filters = _filters(recipe)
    samples = stage_samples([DataRecipe(path=path) for path in recipe.data], recipe.folder)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    facts = Facts(out / "facts.sqlite")
    try:
        run = _Run(samples, Engine(recipe.engine, recipe.workers), facts, progress or (lambda *_: None))
        run.read()
        for one in filters:
            run.apply(one)
    finally:
        facts.close()
    return _write(run, recipe, out)


def _filters(recipe: CurationRecipe) -> list[DataFilter]:
    there = assemble(recipe.plugins, slots_required=False).collections["data_filters"]
    unknown = [name for name in recipe.filters if name not in there]
    if unknown:
        raise TrainingError(f"no filter {unknown[0]!r}", who="filters", fix=suggestion(unknown[0], there))
    twice = [name for name, count in Counter(recipe.filters).items() if count > 1]
    if twice:
        raise TrainingError(f"lists {twice[0]!r} twice", who="filters", fix="name each filter once")
    return [there[name] for name in recipe.filters]


@define(eq=False)
class _Run:
    """Samples on their way through the filters."""

    samples: Samples
    engine: Engine
    facts: Facts
    progress: Progress
    digests: dict[int, str] = field(factory=dict)
    alive: list[int] = field(factory=list)
    dropped: dict[int, tuple[str, str]] = field(factory=dict)
    described: dict[str, dict[int, Mapping[str, Any]]] = field(factory=dict)

    def read(self) -> None:
        """Find what each sample holds, and which cannot be read."""
        for block in _blocks(range(len(self.samples)), BLOCK):
            for index, text in self.engine.run(Identify(self.samples), block):
                found = json.loads(text)
                if "broken" in found:
                    self.dropped[index] = (READING, found["broken"])
                else:
                    self.digests[index] = found["digest"]
                    self.alive.append(index)
            self.progress(READING, block[-1] + 1, len(self.samples))

    def apply(self, one: DataFilter) -> None:
        """Let a filter decide about what is left."""
        reasons = self._table(one) if isinstance(one, TableFilter) else self._stream(one)
        if len(reasons) != len(self.alive) or not all(r is None or (isinstance(r, str) and r.strip()) for r in reasons):
            raise PluginBroken(
                f"decides on {len(self.alive)} samples with {len(reasons)} answers, each None or a reason",
                who=one.name, fix="report it to the plugin's author",
            )  # fmt: skip
        for index, reason in zip(self.alive, reasons, strict=True):
            if reason is not None:
                self.dropped[index] = (one.name, reason)
        self.alive = [i for i, reason in zip(self.alive, reasons, strict=True) if reason is None]

    def _table(self, one: Any) -> Sequence[str | None]:
        rows: dict[int, Mapping[str, Any]] = {}
        for block in _blocks(self.alive, WAITING_BLOCK if one.waits else BLOCK):
            known = self.facts.known(one.version, (self.digests[i] for i in block))
            missing = [i for i in block if self.digests[i] not in known]
            new = list(self.engine.run(Describe(self.samples, one), missing, waits=one.waits))
            self.facts.keep(one.version, ((self.digests[i], text) for i, text in new))
            rows |= {i: parse_json(known[self.digests[i]]) for i in block if self.digests[i] in known}
            rows |= {i: json.loads(text) for i, text in new}
            self.progress(one.name, len(rows), len(self.alive))
        self.described[one.name] = rows
        return list(one.decide([rows[i] for i in self.alive]))

    def _stream(self, one: DataFilter) -> list[str | None]:
        """A filter that wants the samples themselves gets them here, one after another."""
        waiting: dict[int, list[int]] = {}
        reasons: dict[int, str | None] = {}

        def give() -> Iterator[Mapping[str, Any]]:
            for index in self.alive:
                entry = entry_of(self.samples, index)
                held.append(entry)
                waiting.setdefault(id(entry), []).append(index)
                yield entry

        held: list[Mapping[str, Any]] = []  # an address belongs to one sample only as long as the sample lives
        for entry, reason in one.apply(give()):
            if not waiting.get(id(entry)):
                raise PluginBroken("yields a sample that it was not given", who=one.name, fix="yield each sample once")
            reasons[waiting[id(entry)].pop()] = reason
            self.progress(one.name, len(reasons), len(self.alive))
        return [reasons[i] for i in self.alive] if len(reasons) == len(self.alive) else list(reasons.values())


def _blocks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


# ---------------------------------------------------------------- what comes out


def _write(run: _Run, recipe: CurationRecipe, out: Path) -> dict[str, Any]:
    readable = sorted(run.digests)
    count = len(run.alive)
    lengths = {i: len(answers(run.samples[i].entry)) for i in readable}
    sets = {
        "all": readable,
        "kept": run.alive,
        "random": sorted(random.Random(recipe.seed).sample(readable, count)),
        # of equal length the one that comes first
        "length": sorted(sorted(readable, key=lambda i: -lengths[i])[:count]),
    }
    for name in ("kept", "random", "length"):
        _lines(out / f"{name}.jsonl", (_portable(run.samples, i, out) for i in sets[name]))
    order = sorted(run.dropped)
    _lines(
        out / "dropped.jsonl",
        ({"where": run.samples.where(i), "filter": run.dropped[i][0], "reason": run.dropped[i][1]} for i in order),
    )
    return write_report(
        out, recipe.filters, recipe.engine, sets, run.dropped, run.described, lengths, run.samples.where
    )


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with (
        writing(path),
        appearing_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _portable(samples: Samples, index: int, out: Path) -> dict[str, Any]:
    """A sample as a line of JSON: paths relative to `out`, pictures in bytes as files beside it."""
    entry = entry_of(samples, index)

    def place(source: Any) -> Any:
        if isinstance(source, bytes):
            return _picture_file(source, out)
        return os.path.relpath(source, out) if is_path(source) else source

    changed = change_pictures(entry, place)
    pairs = zip(entry.get("images") or (), changed.get("images") or (), strict=True)
    # messages may name a picture of `images`; the names of those that were bytes are now files
    files = {was["path"]: now for was, now in pairs if isinstance(was, Mapping) and was.get("path") and now != was}
    return change_pictures(changed, lambda s: files.get(s, s) if isinstance(s, str) else s) if files else changed


def _picture_file(content: bytes, out: Path) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = (image.format or "bin").lower()
    except OSError:
        suffix = "bin"
    path = out / "pictures" / f"{hashlib.sha256(content).hexdigest()[:24]}.{suffix}"
    if not path.exists():
        with writing(path):
            write_atomically(path, content)
    return str(path.relative_to(out))
