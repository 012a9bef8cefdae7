"""The data of a stage: samples of several files as one sequence, and the order in which an epoch shows them.

An epoch takes from each file all its samples (`repeat` times), or a share of the mixture (`weight`), or a budget
(`samples`, `tokens`). Where a file gives less than all, the next epoch goes on where this one stopped, through a
permutation of the file that is drawn anew each time it has been seen once. Everything follows from (seed, epoch).
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from attrs import evolve, field, frozen

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample
from andes_training.data.entry import checked_entry
from andes_training.data.shards import Shard, find_files, open_shard

if TYPE_CHECKING:
    from andes_training.recipe import DataRecipe

MOST_DRAWN = 100_000_000
"""Samples of an epoch that draws or repeats; their order takes eight bytes each."""
PROBES = 32
"""Samples whose mean length stands for their file where a budget is given in tokens."""


@frozen
class Sample:
    """One sample of a data file.

    Attributes:
        entry: as plain data; the stage makes conversations of it.
        where: `file:line`, for messages.
        folder: what relative picture paths are relative to.
        source: the recipe's options for this file.
    """

    entry: Mapping[str, Any]
    where: str
    folder: Path
    source: DataRecipe


@frozen(eq=False)
class Source:
    """One entry of a stage's data: a file or several shards.

    Attributes:
        mean_tokens: mean length of a sample, where a budget of tokens asks for it.
    """

    recipe: DataRecipe
    shards: Sequence[Shard]
    mean_tokens: float = 0.0
    starts: Sequence[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "starts", [0, *accumulate(len(s) for s in self.shards)])

    @property
    def count(self) -> int:
        """Samples in the files."""
        return self.starts[-1]

    @property
    def drawn(self) -> bool:
        """Whether an epoch takes another number than all of them."""
        return bool(self.recipe.weight or self.recipe.samples or self.recipe.tokens)

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard of a sample, and its index there."""
        number = bisect_right(self.starts, index) - 1
        return self.shards[number], index - self.starts[number]

    def draws(self, number: int, taken: int, seed: int, epoch: int) -> Iterator[int]:
        """Indices of the `taken` samples that belong to an epoch; `number` tells sources apart."""
        turn, order = -1, array("Q")
        for draw in range(epoch * taken, (epoch + 1) * taken):
            if draw // self.count != turn:
                turn = draw // self.count
                order = _shuffled(self.count, f"{seed}/{number}/{turn}")
            yield order[draw % self.count]


@frozen(eq=False)
class Samples(Sequence[Sample]):
    """All samples of a stage, read when they are asked for. With `repeat = n` a sample has n indices.

    Attributes:
        sources: in the recipe's order.
    """

    sources: tuple[Source, ...]
    _starts: Sequence[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", [0, *accumulate(s.count * s.recipe.repeat for s in self.sources)])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        """One sample. Raises BadSample: it cannot be read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, place = self._locate(index)
        return _sample(shard, place, self.source_of(index))

    def source_of(self, index: int) -> DataRecipe:
        """The recipe of a sample's file, whether or not the sample can be read."""
        return self.sources[bisect_right(self._starts, self._checked(index)) - 1].recipe

    def where(self, index: int) -> str:
        """`file:line` of a sample, whether or not it can be read."""
        shard, place = self._locate(index)
        return shard.where(place)

    def _locate(self, index: int) -> tuple[Shard, int]:
        index = self._checked(index)
        number = bisect_right(self._starts, index) - 1
        source = self.sources[number]
        return source.locate((index - self._starts[number]) % source.count)

    def _checked(self, index: int) -> int:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return place

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """Indices of an epoch's samples in their order.

        Raises:
            TrainingError: more than `MOST_DRAWN`, and more than the files hold.
        """
        self._bounded()
        if not any(s.drawn for s in self.sources):
            return _shuffled(len(self), f"{seed}/{epoch}")
        order = array("Q")
        for number, (source, taken, start) in enumerate(zip(self.sources, self.shares(), self._starts, strict=False)):
            if source.drawn:
                order.extend(start + i for i in source.draws(number, taken, seed, epoch))
            else:
                order.extend(range(start, start + taken))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        return order

    def _bounded(self) -> None:
        shares = self.shares()
        if sum(shares) <= max(MOST_DRAWN, sum(s.count for s in self.sources)):
            return
        most, source = max(zip(shares, self.sources, strict=True), key=lambda pair: pair[0])
        raise TrainingError(
            "an epoch is too long", who=str(source.recipe.path),
            why=f"it takes {sum(shares):,} samples, {most:,} of them from here; their order has to fit into memory",
            fix=f"lower samples, tokens or repeat: {MOST_DRAWN:,} at most; epochs may be many",
        )  # fmt: skip

    def once(self, seed: int) -> Sequence[int]:
        """Indices of each sample once, in the files' order; of a file with `samples` as many, the same each time."""
        chosen = array("Q")
        for number, (source, start) in enumerate(zip(self.sources, self._starts, strict=False)):
            taken = min(source.recipe.samples or source.count, source.count)
            chosen.extend(sorted(start + i for i in source.draws(number, taken, seed, 0)))
        return chosen

    def shares(self) -> list[int]:
        """How many samples an epoch takes from each source.

        The files with a weight share as many samples as they hold together, by largest remainder.
        """
        weighted = [s for s in self.sources if s.recipe.weight]
        total = sum(s.count for s in weighted)
        whole = sum(s.recipe.weight for s in weighted)
        exact = {id(s): total * s.recipe.weight / whole for s in weighted}
        left = total - sum(int(x) for x in exact.values())
        rounded_up = set(sorted(exact, key=lambda key: int(exact[key]) - exact[key])[:left])
        return [self._share(s, exact.get(id(s), 0.0), id(s) in rounded_up) for s in self.sources]

    def _share(self, source: Source, exact: float, up: bool) -> int:
        recipe = source.recipe
        if recipe.weight:
            return int(exact) + up
        if recipe.samples:
            return recipe.samples
        if recipe.tokens:
            return max(1, round(recipe.tokens / source.mean_tokens))
        return source.count * recipe.repeat

    def measured(self, seed: int, length: Callable[[Sample], int]) -> Samples:
        """The same samples, knowing their mean lengths where a budget of tokens needs them.

        Args:
            seed: which samples stand for a file.
            length: tokens of a sample, pictures included. Raises BadSample for one that cannot be used.

        Raises:
            TrainingError: none of the probed samples can be used.
        """
        return evolve(self, sources=tuple(self._measured(s, seed, length) for s in self.sources))

    def _measured(self, source: Source, seed: int, length: Callable[[Sample], int]) -> Source:
        if not source.recipe.tokens:
            return source
        lengths = []
        rng = random.Random(f"{seed}/{source.recipe.path}")
        for index in rng.sample(range(source.count), min(PROBES, source.count)):
            shard, place = source.locate(index)
            try:
                lengths.append(length(_sample(shard, place, source.recipe)))
            except BadSample:  # counted when an epoch comes to it
                continue
        if not lengths:
            raise TrainingError(
                f"none of {min(PROBES, source.count)} samples can be used", who=str(source.recipe.path),
                fix="run `andes data check` on it",
            )  # fmt: skip
        return evolve(source, mean_tokens=sum(lengths) / len(lengths))

    def facts(self) -> list[dict[str, Any]]:
        """What an epoch takes from each source."""
        shares = self.shares()
        return [
            {"path": str(s.recipe.path), "files": len(s.shards), "samples": s.count, "per_epoch": n}
            | {"share": n / sum(shares)}
            | ({"mean_tokens": s.mean_tokens} if s.mean_tokens else {})
            for s, n in zip(self.sources, shares, strict=True)
        ]


def _sample(shard: Shard, place: int, source: DataRecipe) -> Sample:
    where = shard.where(place)
    return Sample(checked_entry(shard.entry(place), where), where, shard.path.parent, source)


def whole(samples: Samples) -> Samples:
    """The same files, each sample once, with all its conversations and without random changes."""
    plain: dict[str, Any] = {"questions": 0, "repeat": 1, "flip": False, "shift": 0.0, "rotate": 0.0}
    return evolve(samples, sources=tuple(evolve(s, recipe=evolve(s.recipe, **plain)) for s in samples.sources))


def stage_samples(recipes: Sequence[DataRecipe], folder: Path) -> Samples:
    """Find the samples of a stage; relative paths are relative to `folder`.

    Raises:
        TrainingError: a file that is missing, damaged, empty or of an unknown format, or a contradictory mixture.
    """
    check_mixture(recipes)
    sources = [Source(r, [open_shard(path) for path in find_files(folder / r.path)]) for r in recipes]
    return Samples(tuple(sources))


def check_mixture(recipes: Sequence[DataRecipe]) -> None:
    """Refuse data that says two things about how much of it an epoch takes.

    Raises:
        TrainingError: it does.
    """
    for recipe in recipes:
        given = [name for name in ("weight", "samples", "tokens") if getattr(recipe, name)]
        given += ["repeat"] if recipe.repeat > 1 else []
        if len(given) > 1:
            what = f"the data says twice how much an epoch takes: {' and '.join(given)}"
            raise TrainingError(what, who=str(recipe.path), fix="keep one of them")
    plain = [r for r in recipes if not (r.weight or r.samples or r.tokens)]
    if plain and any(r.weight for r in recipes):
        what, fix = "some files have a weight and this one has none", "give it a weight or a budget"
        raise TrainingError(what, who=str(plain[0].path), fix=fix)


def _shuffled(count: int, key: str) -> array[int]:
    # eight bytes each, and the permutation that a list would get
    order = array("Q", range(count))
    random.Random(key).shuffle(order)
    return order
