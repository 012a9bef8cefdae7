"""What of a written bundle can be checked without a phone: its matrices, each graph, whole conversations.

Each line of the report says "checked here" or "not checkable here".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from attrs import asdict, evolve, field, frozen

from andes_sdk.config import structure
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.inputs.patches import block_order, patchify
from andes_sdk.runtime.engine import Engine
from andes_sdk.runtime.policy import KeepAll

from . import shapes
from .adapters import fitting, made_up, names_of, write
from .bundle import describe, identity, opened
from .compiler import SDK, compiler, taken, vendor, words
from .environment import Tell, _quiet, python, work, workplace
from .export import Lowered, lower
from .options import Options
from .reference import CompiledDimensity, DimensityBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Adapter

MASKED = -100.0
BOUND = 1e-5
"""Of a graph's largest value: what rounding in another order makes of float32."""


@frozen(kw_only=True)
class Line:
    """One line of the report.

    Attributes:
        here: whether it was checked here. fine: what came of it; None where it was not.
        value: the figure, or the reason why it cannot be had.
    """

    what: str
    here: bool
    fine: bool | None
    value: str
    figure: float | None = None


@frozen
class Report:
    """All lines, in order."""

    lines: list[Line] = field(factory=list)

    def add(self, what: str, fine: bool, value: str, figure: float | None = None) -> None:
        """A line that was checked here."""
        self.lines.append(Line(what=what, here=True, fine=bool(fine), value=value, figure=figure))

    def absent(self, what: str, why: str) -> None:
        """A line that nobody can check here."""
        self.lines.append(Line(what=what, here=False, fine=None, value=why))

    @property
    def fine(self) -> bool:
        """Whether all that was checked holds."""
        return all(line.fine is not False for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"fine": self.fine, "lines": [asdict(line) for line in self.lines]}


def check(
    pipeline: Pipeline,
    path: Path,
    conversations: Sequence[Sequence[Mapping[str, Any]]] = (),
    tell: Tell = _quiet,
    adapters: Sequence[Path] = (),
) -> Report:
    """Compare a bundle with the model that it was written from.

    Args:
        conversations: messages of one user's turn or more, pictures as paths; answered by both, greedily.
        adapters: folders of peft; the conversations are answered with each of them as well.

    Raises:
        CheckpointError: it is no bundle, is cut short or was edited. BackendUnavailable: LiteRT is not here.
        ConfigError: adapters without conversations, or one that the bundle does not take.
    """
    named = names_of(adapters)
    if named and not conversations:
        why = "adapters are compared by what they answer"
        raise ConfigError("there are no conversations", who="--adapter", why=why, fix="give --data with a line or more")
    python()
    report, absent = Report(), not_here()
    with workplace() as place:
        tell("opening the bundle")
        said = opened(path, place)
        given = [fitting(pipeline, folder, name, said, path) for name, folder in named.items()]
        options = structure(Options, said["options"], str(path))
        lowered = lower(pipeline, options, pictures="vision" in said["files"])
        tell("comparing matrices")
        coded = {name: file for name, file in said["files"].items() if name in lowered.parts}
        job = lowered.write(place, options.layout, "float") | {"do": "compare", "files": coded}
        told = work(place, job, tell)["files"]
        for name, facts in told.items():
            wrong = [*facts["foreign"], *facts["missing"]]
            value = f"{facts['exact']:,} of {facts['weights']:,} weights" + (f"; not {wrong[0]}" if wrong else "")
            report.add(f"codes and scales: {name}", not wrong, value, facts["exact"] / facts["weights"])
        own = identity(pipeline)["numbers"]
        report.add("numbers of the base", own == said["said"].get("numbers"), own)
        compiled = DimensityBackend(evolve(options, activations="float"), pipeline.artefact).compile(
            pipeline.model, device="cpu", dtype="float32"
        )
        _graphs(report, pipeline, compiled, place, said["files"], lowered, tell)
        for name in ("vision", "projector"):
            if name in said["files"]:
                _compiler(report, f"graph {name}", Path(said["files"][name]), place)
        for adapter in [None, *given] if conversations else []:
            for budget in lowered.buckets or (0,):
                _conversations(report, pipeline, compiled, path, place, conversations, tell, adapter, budget)
    for what, why in absent:
        report.absent(what, why)
    return report


def check_graphs(path: Path) -> Report:
    """What can be checked of a .tflite alone: which operators MediaTek's plugin takes.

    Raises:
        CheckpointError: it is none. BackendUnavailable: LiteRT is not here.
    """
    python()
    try:
        with open(path, "rb") as file:
            mark = file.read(8)[4:]
    except OSError as error:
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix="check the path") from None
    if mark != b"TFL3":
        fix = "write it again: andes deploy dimensity"
        raise CheckpointError("is no .tflite file", who=str(path), why=f"its mark is {mark!r}", fix=fix)
    report, absent = Report(), not_here()
    with workplace() as place:
        _compiler(report, "graphs", path, place)
    for what, why in absent:
        report.absent(what, why)
    return report


def _compiler(report: Report, what: str, file: Path, place: Path) -> None:
    """A line on what MediaTek's plugin takes, over the vendor's library or the stand-in for it."""
    own = vendor()
    title = f"MediaTek's plugin{'' if own is None else ' and compiler'}: {what}"
    if own is None and compiler() is None:
        report.absent(title, "there is no C compiler for the stand-in")
        return
    told = taken(file, place)
    left = words(told["refused"])
    value = f"{told['taken']} of {told['operators']} operators" + (f"; left to the CPU: {left}" if left else "")
    share = told["taken"] / max(told["operators"], 1)
    report.add(title, share == 1.0, value, share)


def not_here() -> list[tuple[str, str]]:
    """What nobody can check here, and why.

    Raises:
        ConfigError: an SDK of the vendor that is empty.
    """
    phone = [(what, "there is no phone here") for what in ("speed, memory and heat", "the NPU's own rounding")]
    if vendor() is not None:
        return phone
    return [("MediaTek's own compiler", f"{SDK} names no SDK of the vendor; its plugin ran over a stand-in"), *phone]


# ---------------------------------------------------------------- graphs


def _graphs(
    report: Report,
    pipeline: Pipeline,
    compiled: CompiledDimensity,
    place: Path,
    files: Mapping[str, str],
    lowered: Lowered,
    tell: Tell,
) -> None:
    calls: list[dict[str, Any]] = []
    wanted: list[tuple[str, str, NDArray[Any]]] = []

    def call(part: str, signature: str, inputs: Mapping[str, Any], *, link: Any = None, keep: Any = None) -> str:
        name = f"call{len(calls)}"
        np.savez(place / f"{name}.in.npz", **inputs)
        facts = {"file": files[part], "signature": signature, "link": link or {}, "keep": keep}
        calls.append(facts | {"inputs": f"{name}.in.npz", "outputs": f"{name}.out.npz"})
        return f"{name}.out.npz"

    with torch.inference_mode():
        if "vision" in files:
            (shapes.picture_calls if lowered.buckets else _picture_calls)(compiled, lowered, call, wanted)
        if "end" in files:
            behind = torch.tensor([describe(pipeline, place, compiled.options)["image_end_id"]])
            row = compiled.model.llm.embed(behind).numpy()
            wanted.append(("end of a picture", f"{call('end', 'end', {})}:embedding", row))
        _text_calls(pipeline, compiled, lowered, call, wanted)
    tell("running the graphs")
    work(place, {"do": "run", "calls": calls}, tell)
    worst: dict[str, float] = {}
    same: dict[str, list[bool]] = {}
    for what, key, value in wanted:
        file, _, output = key.partition(":")
        with np.load(place / file) as got:
            mine = got[output].reshape(-1)[: value.size].reshape(value.shape)  # a graph may hold more than the picture
        error = float(np.abs(mine - value).max() / max(float(np.abs(value).max()), 1e-12))
        worst[what] = max(worst.get(what, 0.0), error)
        if what == "decode":
            same.setdefault(what, []).append(bool(mine.argmax() == value.argmax()))
    for what, error in worst.items():
        report.add(f"graph {what}", error <= BOUND, f"{error:.1e} of the largest value", error)
    for what, hits in same.items():
        share = sum(hits) / len(hits)
        report.add(f"next token of {what}", share == 1.0, f"{sum(hits)} of {len(hits)} prompts", share)


def _picture_calls(compiled: CompiledDimensity, lowered: Lowered, call: Any, wanted: Any) -> None:
    model, (rows, columns) = compiled.model, lowered.grids[0]
    spec, names = model.vision, torch.Generator().manual_seed(0)
    pixels = torch.rand(3, rows * spec.patch_size, columns * spec.patch_size, generator=names)
    mean, std = (torch.tensor(t)[:, None, None] for t in (spec.mean, spec.std))
    features = model.vision_encoder(patchify((pixels - mean) / std, spec.patch_size, spec.merge), [(rows, columns)])
    order = block_order(torch.arange(rows * columns).reshape(rows, columns), spec.merge)
    raster = torch.empty_like(features)
    raster[order] = features
    out = call("vision", "vision", {"images": pixels.permute(1, 2, 0)[None].numpy()})
    wanted.append(("vision", f"{out}:features", raster.numpy()))
    out = call("projector", "projector", {"soft_tokens": raster[None].numpy()})
    wanted.append(("projector", f"{out}:mm_embedding", model.projector(features).numpy()))


def _text_calls(
    pipeline: Pipeline, compiled: CompiledDimensity, lowered: Lowered, call: Any, wanted: Any, prompts: int = 100
) -> None:
    """Prompts of random tokens: read, and one token more. Graphs that take adapters get a random one."""
    rank, arrays, adapter = compiled.options.lora, dict[str, Any](), None
    if rank:
        adapter, arrays = made_up(pipeline, rank)
        compiled.add_adapter(adapter)
    plan, model = lowered.parts["text"].plan, compiled.model
    rng, rows, t = np.random.default_rng(0), plan["rows"], plan["prompt"]
    ids = np.array([[int(rng.integers(plan["vocab"]))]], np.int32)
    out = call("embedder", "embedder", {"token_ids": ids})
    wanted.append(("embedder", f"{out}:embeddings", model.llm.embed(torch.from_numpy(ids[0]).long()).numpy()))
    sizes = (1, plan["kv_heads"], rows, plan["head"])
    cache = {f"kv_cache_k_{n}": np.zeros(sizes, np.float32) for n in range(plan["layers"])}
    cache |= {f"kv_cache_v_{n}": np.zeros((*sizes[:2], sizes[3], rows), np.float32) for n in range(plan["layers"])}
    link = {name: name for name in cache}
    for _ in range(prompts):
        count = int(rng.integers(1, min(t, 48)))
        tokens = torch.from_numpy(rng.integers(0, plan["vocab"], count + 1))
        embeds = model.llm.embed(tokens)
        session = compiled.session(KeepAll())
        session.adapter = None if adapter is None else adapter.name
        logits = session.extend(tokens.tolist())[0][-1]
        session.close()
        padded = np.zeros((1, t, plan["width"]), np.float32)
        padded[0, :count] = embeds[:count].numpy()
        mask = np.full((1, 1, t, rows), MASKED, np.float32)
        mask[0, 0][np.tril_indices(t, 0, rows)] = 0
        first = {"embeddings": padded, "input_pos": np.arange(t, dtype=np.int32), "mask": mask}
        call("text", f"prefill_{t}", first | cache | arrays, keep=["kv_cache_k_0"])
        mask = np.full((1, 1, 1, rows), MASKED, np.float32)
        mask[..., : count + 1] = 0
        one = {"embeddings": embeds[count:][None].numpy(), "input_pos": np.array([count], np.int32), "mask": mask}
        out = call("text", "decode", one | arrays, link=link, keep=["logits"])
        wanted.append(("decode", f"{out}:logits", logits.numpy()))


# ---------------------------------------------------------------- conversations


def both(
    pipeline: Pipeline,
    compiled: CompiledDimensity,
    path: Path,
    place: Path,
    conversations: Sequence[Any],
    tell: Tell,
    adapter: Adapter | None = None,
    budget: int = 0,
) -> tuple[list[str], list[str]]:
    """Greedy texts of LiteRT-LM, and of our runtime on the same codes; `adapter`: which both attach.

    budget: tokens of a picture at most, of a bundle with graphs for pictures of any shape; both sides then see pictures
    of the size that LiteRT-LM gives them. Ours end after half of the cache's rows; a longer one of LiteRT-LM is cut
    there.
    """
    from andes_sdk.runtime.generation import GenerationOptions, generate_batch

    block = pipeline.processor.preprocessor.block
    if budget:
        conversations = shapes.resized(conversations, budget, block, place)
    tell(f"LiteRT-LM answers {len(conversations)} conversations")
    job: dict[str, Any] = {"do": "chat", "file": str(path.absolute()), "conversations": list(conversations)}
    job["budget"] = budget
    if rank := compiled.options.lora:
        job |= {"rank": rank, "adapter": str(write(pipeline, adapter, rank, {}, place))}
    theirs: list[str] = work(place, job, tell)["texts"]
    tell("our runtime answers them")
    asked = [[_ours(message) for message in one] for one in conversations]
    backed, mine = _Backed(pipeline, compiled, as_is=bool(budget)), list[str]()
    if adapter is not None:
        compiled.add_adapter(adapter)
    name = None if adapter is None else adapter.name
    limit = GenerationOptions(max_tokens=compiled.options.rows // 2, adapter=name)
    for start in range(0, len(asked), 32):
        answers = generate_batch(cast("Pipeline", backed), asked[start : start + 32], limit)
        mine += [answer.text for answer in answers]
        for number, answer in enumerate(answers, start):
            if answer.finish == "length":
                theirs[number] = theirs[number][: len(answer.text)]
    return theirs, mine


class _Backed:
    """A pipeline whose model runs on the reference, whatever backend it was opened with.

    as_is: pictures of whole blocks are not resized, as LiteRT-LM would not.
    """

    def __init__(self, pipeline: Pipeline, compiled: CompiledDimensity, *, as_is: bool = False) -> None:
        self._pipeline, self._compiled = pipeline, compiled
        self.processor = pipeline.processor
        if as_is:
            own, most = self.processor.preprocessor, 1 << 16
            plain = evolve(own, variant="evaluation", image_scale=1.0, min_size=0, max_size=most, max_side=most)
            pictures = evolve(self.processor.pictures, preprocessor=plain)
            self.processor = evolve(self.processor, modalities={**self.processor.modalities, "image": pictures})

    def engine(self) -> Engine:
        """As a pipeline's."""
        p = self._pipeline
        ends = frozenset((p.tokenizer.eos, p.tokenizer.pad))
        return Engine(self._compiled, p.policy, p.decoder, ends, p.model.text.max_positions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


def _ours(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as andes_sdk takes it: pictures by their path under `image`."""
    parts = [{"type": "image", "image": p["path"]} if p["type"] == "image" else dict(p) for p in message["content"]]
    return {"role": message["role"], "content": parts}


def _conversations(
    report: Report,
    pipeline: Pipeline,
    compiled: CompiledDimensity,
    path: Path,
    place: Path,
    given: Any,
    tell: Tell,
    adapter: Adapter | None = None,
    budget: int = 0,
) -> None:
    theirs, mine = both(pipeline, compiled, path, place, given, tell, adapter, budget)
    same = sum(a.strip() == b.strip() for a, b in zip(theirs, mine, strict=True))
    value = f"{same} of {len(given)} answers of LiteRT-LM equal ours"
    what = "conversations" if adapter is None else f"conversations with adapter {adapter.name}"
    what += f", {budget} tokens a picture" if budget else ""
    report.add(what, same == len(given), value, same / len(given))
