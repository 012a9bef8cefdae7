"""Preference pairs from a model's own answers (MPO, arXiv 2411.10442, section 3.1).

Each prompt is answered `k` times. Where a verifier says which answers are right, a pair is a right and a wrong one.
Where none is wrong, or there is no verifier, the rejected answer is made by Dropout-NTP: a right answer is cut in half
and finished without the pictures. Left out: the paper's choice of data, and answers of several models.

Everything depends on the seed alone: not on the batch, nor on a restart. Each prompt's result is one line of a progress
file; the pairs are written from it when all prompts are done.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.bad import BadSample
from andes_training.data.boxes import find_boxes
from andes_training.data.pictures import Pictures
from andes_training.data.samples import Sample, stage_samples
from andes_training.recipe import DataRecipe
from andes_training.rewards import reward_of
from attrs import asdict, evolve, field, frozen
from attrs.validators import ge, gt, le

from andes_sdk.errors import TrainingError
from andes_sdk.files import Journal, write_atomically, writing
from andes_sdk.numbers import numbers_of, weights_of
from andes_sdk.runtime.engine import raise_errors
from andes_sdk.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import Answer
    from andes_sdk.types import Reward

Messages = list[Any]

REASONS = {
    "verified": "a right and a wrong answer",
    "blind": "a right answer, and its first half finished without the pictures",
    "all right": "every answer is right, and none was made wrong",
    "all wrong": "no answer is right",
    "unfinished": "no answer came to its end, or none that training would take (boxes that are not closed)",
}
"""What can become of a prompt."""


@frozen(kw_only=True)
class PairOptions:
    """How pairs are made.

    Attributes:
        reward: name of the verifier; empty: every answer counts as right, and the rejected ones are made blind.
        threshold: the score from which an answer is right.
        k: answers per prompt. pairs: pairs per prompt, at most.
        blind: make a wrong answer where there is none.
        temperature, top_k, top_p, max_tokens: as in `GenerationOptions`.
        think: whether answers reason first; None: as each line's own `think` says, or the model does.
        batch: prompts that are answered together.
    """

    reward: str = "exact"
    threshold: float = 1.0
    k: int = field(default=8, validator=ge(1))
    pairs: int = field(default=1, validator=ge(1))
    blind: bool = True
    temperature: float = field(default=1.0, validator=gt(0.0))
    top_k: int = field(default=0, validator=ge(0))
    top_p: float = field(default=1.0, validator=[gt(0.0), le(1.0)])
    max_tokens: int = field(default=512, validator=ge(1))
    think: bool | None = None
    seed: int = field(default=0, validator=ge(0))
    batch: int = field(default=16, validator=ge(1))

    def generation(self, think: bool, *name: object) -> GenerationOptions:
        """Sampling options whose noise belongs to a name."""
        key = hashlib.sha256("/".join(map(str, (self.seed, *name))).encode()).digest()
        return GenerationOptions(
            max_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            think=think, seed=int.from_bytes(key[:6], "big"),
        )  # fmt: skip


@frozen(eq=False)
class Prompt:
    """One line of a prompt file: its number, messages with pictures as paths, URLs or bytes, and the whole entry.

    `think` in the entry, which rewards see, is what was asked for, never missing or null.
    """

    number: int
    messages: Messages
    entry: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, number: int, sample: Sample, think: bool | None = None, *, thinking: bool = False) -> Prompt:
        """`{"prompt": [messages]}`, or `{"messages": [...]}`, whose last assistant text is the answer if none is given.

        Args:
            think: whether the answer reasons first; None: as the line says.
            thinking: where neither says.

        Raises:
            TrainingError: neither, or a `think` that is no truth value.
        """
        own = sample.entry.get("think")
        if not isinstance(own, bool | None):
            fix = "write true, false or null"
            raise TrainingError(f"`think` is {repr(own)[:80]}", who=sample.where, fix=fix)
        asked = next((x for x in (think, own) if x is not None), thinking)
        entry = {**sample.entry, "think": asked}
        messages = entry.get("prompt", entry.get("messages"))
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            fix = 'write {"prompt": [messages], "answer": "…"}'
            raise TrainingError("is not a prompt", who=sample.where, fix=fix)
        if messages[-1].get("role") == "assistant":
            entry.setdefault("answer", messages[-1].get("content"))
            messages = messages[:-1]
        return cls(number, Pictures(sample, lambda source: source).fill(messages), entry, sample.where)


@frozen(eq=False)
class PairBuilder:
    """Makes pairs of a file of prompts.

    Attributes:
        pipeline: answers; its plugins bring the verifier.
        prompts: file of prompts. out: the pairs, JSON Lines as the stage `mpo` reads them.
        show: told after each prompt how many are done, and of how many.
    """

    pipeline: Pipeline
    prompts: Path
    out: Path
    options: PairOptions = field(factory=PairOptions)
    show: Callable[[int, int], None] = field(default=lambda done, of: None)

    def run(self) -> dict[str, int]:
        """Make the pairs, or go on with a run that was stopped -> prompts by what became of them, and `pairs`.

        Raises:
            TrainingError: prompts that cannot be used, a progress file of other options, prompts or weights, or an
                output that cannot be written. ConfigError: no such reward.
        """
        if self.options.reward:
            self.pipeline.pick("rewards", self.options.reward)
        if self.out.is_dir():
            raise TrainingError("is a folder", who=str(self.out), fix="give a file, such as pairs.jsonl")
        samples = stage_samples([DataRecipe(path=self.prompts.resolve())], Path())
        progress = _Progress(Journal(self.out.with_name(f"{self.out.name}.progress")), self._digest())
        done = progress.read()
        if [result.get("prompt") for result in done] != list(range(min(len(done), len(samples)))):
            why, fix = f"{len(done)} results for {len(samples)} prompts, or not in their order", "delete it"
            raise TrainingError("the progress file is damaged", who=str(progress.journal.path), why=why, fix=fix)
        for start in range(len(done), len(samples), self.options.batch):
            numbers = range(start, min(start + self.options.batch, len(samples)))
            for result in self._results([self._prompt(n, samples[n]) for n in numbers]):
                progress.append(result)
                done.append(result)
                self.show(len(done), len(samples))
        lines = [json.dumps(pair, ensure_ascii=False) for result in done for pair in result["pairs"]]
        with writing(self.out):
            write_atomically(self.out, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        counts = Counter(result["reason"] for result in done)
        return {**{reason: counts[reason] for reason in REASONS}, "pairs": len(lines)}

    def _prompt(self, number: int, sample: Sample) -> Prompt:
        thinking = bool(getattr(self.pipeline.tokenizer, "thinking", False))
        return Prompt.of(number, sample, self.options.think, thinking=thinking)

    def _digest(self) -> str:
        """A hash of everything that decides the pairs."""
        found = hashlib.sha256(self.prompts.read_bytes() if self.prompts.is_file() else b"")
        # how many are answered together changes nothing
        facts = {**asdict(self.options), "batch": 0, "plan": self.pipeline.plan.to_dict()}
        found.update(json.dumps(facts, sort_keys=True, default=str).encode())
        packed, model = self.pipeline.artefact, self.pipeline.model
        found.update((packed.digest if packed else numbers_of(model) + weights_of(model, exact=True)).encode())
        return found.hexdigest()

    def _results(self, prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
        conversations = [p.messages for p in prompts]
        rounds = [
            self.pipeline.generate_batch(conversations, [self.options.generation(p.entry["think"], i) for p in prompts])
            for i in range(self.options.k)
        ]
        for number, prompt in enumerate(prompts):
            reason, chosen = self._pairs(prompt, [answers[number] for answers in rounds])
            shown = portable(prompt.messages, self.out.resolve().parent)
            extra = {"id": prompt.entry["id"]} if "id" in prompt.entry else {}
            meta = {"made": reason, "reward": self.options.reward, "prompt": prompt.number}
            pairs = [{"prompt": shown, "chosen": a, "rejected": b, "meta": meta, **extra} for a, b in chosen]
            yield {"prompt": prompt.number, "reason": reason, "pairs": pairs}

    def _pairs(self, prompt: Prompt, answers: Sequence[Answer]) -> tuple[str, list[tuple[str, str]]]:
        """What becomes of a prompt with its answers, and its pairs of texts."""
        finished = {a.text: a for a in answers if a.finish == "stop" and _usable(a.text)}
        if not finished:
            return "unfinished", []
        right = [a for a in finished.values() if self._right(prompt, a.text)]
        wrong = [a for a in finished.values() if a not in right]
        if not right:
            return "all wrong", []
        if wrong:
            both = [(a.text, b.text) for a, b in product(right, wrong)]
            rng = random.Random(f"{self.options.seed}/{prompt.number}")
            return "verified", rng.sample(both, min(self.options.pairs, len(both)))
        made = self._blind(prompt, right) if self.options.blind else []
        return ("blind", made) if made else ("all right", [])

    def _right(self, prompt: Prompt, text: str) -> bool:
        if not self.options.reward:
            return True
        reward: Reward = self.pipeline.pick("rewards", self.options.reward)
        return reward_of(reward, prompt.entry, text, prompt.where) >= self.options.threshold

    def _blind(self, prompt: Prompt, right: Sequence[Answer]) -> list[tuple[str, str]]:
        """Dropout-NTP: the first half of right answers, finished without the pictures, where that comes out wrong."""
        without = without_pictures(prompt.messages)
        if without == prompt.messages:
            return []
        made, ends = [], {self.pipeline.tokenizer.eos, self.pipeline.tokenizer.pad}
        for number, answer in enumerate(right[: self.options.pairs]):
            options = self.options.generation(prompt.entry["think"], "blind", prompt.number, number)
            tokens = [token for token in answer.tokens if token not in ends]
            text = finish(self.pipeline, without, tokens[: len(tokens) // 2], options)
            different = text is not None and text != answer.text and _usable(text)
            if text and different and not (self.options.reward and self._right(prompt, text)):
                made.append((answer.text, text))
        return made


def _usable(text: str) -> bool:
    """Whether training takes an answer: it says something, and its boxes are well formed."""
    try:
        find_boxes(text)
    except BadSample:
        return False
    return bool(text.strip())


def finish(pipeline: Pipeline, messages: Messages, begun: Sequence[int], options: GenerationOptions) -> str | None:
    """Go on with an answer of which the first ids are given -> its whole text, or None if it comes to no end."""
    prompt = pipeline.prepare(messages, think=options.think)
    ids = torch.cat([prompt.ids, torch.tensor(list(begun), dtype=torch.int64)])
    engine = pipeline.engine()
    rest = evolve(options, max_tokens=max(1, options.max_tokens - len(begun)))
    one = engine.join(evolve(prompt, ids=ids, supervised=None), rest)
    engine.run()
    raise_errors([one])
    one.session.close()
    if one.finish != "stop":
        return None
    return prompt.prefix + pipeline.tokenizer.decode([*begun, *one.tokens[:-1]])


def without_pictures(messages: Messages) -> Messages:
    """The same messages with their text parts only."""
    return [
        {**m, "content": [p for p in m["content"] if p.get("type") == "text"] or ""}
        if isinstance(m.get("content"), list)
        else m
        for m in messages
    ]


def portable(messages: Messages, folder: Path) -> Messages:
    """Messages as JSON for a file in `folder`: paths relative to it, bytes as data URLs."""

    def part(value: Any) -> Any:
        if value.get("type") != "image":
            return value
        source = value["image"]
        if isinstance(source, bytes | bytearray):
            url = f"data:application/octet-stream;base64,{base64.b64encode(source).decode()}"
        else:
            url = Path(os.path.relpath(source, folder)).as_posix() if isinstance(source, Path) else str(source)
        return {"type": "image_url", "image_url": {"url": url}}

    return [
        {**m, "content": [part(p) for p in m["content"]]} if isinstance(m.get("content"), list) else m for m in messages
    ]


def _written(row: Any) -> bool:
    """True for a row of a progress file. Raises LookupError, TypeError: it is none."""
    if isinstance(row, dict) and row.keys() == {"made_with"}:
        return True
    number, reason, pairs = row["prompt"], row["reason"], row["pairs"]
    texts = [pair[key] for pair in pairs for key in ("chosen", "rejected")]
    if type(number) is not int or reason not in [*REASONS] or not all(isinstance(text, str) for text in texts):
        raise TypeError("no number of a prompt, a reason that is not known, or pairs that are none")
    return True


@frozen
class _Progress:
    """One line per prompt that is done, after one that says what they were made with."""

    journal: Journal
    digest: str

    def read(self) -> list[dict[str, Any]]:
        """Results so far.

        Raises:
            TrainingError: the file was made with something else. InputError: a row that no run writes.
        """
        head, *results = self.journal.keep(_written) or [None]
        if head is None:
            self.journal.add({"made_with": self.digest})
        elif head != {"made_with": self.digest}:
            why, fix = "other options, prompts, plugins or weights", "delete it, or choose another output"
            who = str(self.journal.path)
            raise TrainingError("the progress file belongs to something else", who=who, why=why, fix=fix)
        return results

    def append(self, result: Mapping[str, Any]) -> None:
        """One more line."""
        self.journal.add(result)
