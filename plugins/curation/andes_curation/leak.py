"""Samples that stand in a benchmark as well: the same picture, or much of the same question.

n-gram overlap as in the contamination studies of GPT-3 (arXiv 2005.14165, appendix C); short questions, which every
benchmark shares ("What colour is it?"), count only together with their picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from attrs import define

from andes_curation.facts import entry_of
from andes_curation.references import questions
from andes_sdk.errors import TrainingError

from .table import Table, far, perceptual_hashes
from .words import normalised


def passages(text: str, size: int) -> set[int]:
    """Hashes of every run of `size` words; none in a shorter text."""
    words = normalised(text).split()
    runs = (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
    return {int.from_bytes(blake2b(run.encode(), digest_size=8).digest()) for run in runs}


@define(eq=False, slots=False)
class Leak(Table):
    """Drops samples that share a picture or a passage with a benchmark."""

    benchmarks: tuple[str, ...]
    ngram: int
    overlap: float
    distance: int
    name = "leak"

    @property
    def version(self) -> str:
        """Depends on what the benchmarks hold."""
        sha = sha256(f"leak/2 {self.ngram} {self.overlap} {self.distance}".encode())
        for path in self.benchmarks:
            if not Path(path).is_file():
                raise TrainingError(
                    "no such benchmark", who=path, fix="give data files that `andes data check` can read"
                )
            sha.update(Path(path).read_bytes())
        return sha.hexdigest()

    @cached_property
    def known(self) -> tuple[dict[int, str], list[tuple[str, str]]]:
        """Passage -> where it stands, and (hash, where) of every picture of the benchmarks."""
        texts: dict[int, str] = {}
        hashes: list[tuple[str, str]] = []
        if self.benchmarks:
            samples = stage_samples([DataRecipe(path=Path(path).absolute()) for path in self.benchmarks], Path())
            for index in range(len(samples)):
                entry, where = entry_of(samples, index), samples.where(index)
                texts |= dict.fromkeys(passages(questions(entry), self.ngram), where)
                hashes += [(one, where) for one in perceptual_hashes(entry) if one]
        return texts, hashes

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where the sample stands in a benchmark, and in which way."""
        texts, hashes = self.known
        for mine in perceptual_hashes(sample) if hashes else []:
            for theirs, where in hashes:
                if far(mine, theirs) <= self.distance:
                    return {"where": where, "what": "a picture", "share": 1.0}
        mine_all = passages(questions(sample), self.ngram)
        shared = [texts[p] for p in sorted(mine_all) if p in texts]
        share = len(shared) / len(mine_all) if mine_all else 0.0
        return {"where": shared[0] if share >= self.overlap else "", "what": "its question", "share": round(share, 4)}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        return [f"{row['what']} stands in a benchmark: {row['where']}" if row["where"] else None for row in facts]
