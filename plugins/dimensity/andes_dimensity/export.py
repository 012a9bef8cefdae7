"""A pipeline as a file for Dimensity phones: graphs by LiteRT, with the codes and scales that the model has."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from attrs import frozen
from safetensors.numpy import save_file

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import appearing_file, at_home

from .adapters import promised, shapes
from .codes import Codebook, ranges_of, refuse_unfit
from .environment import Tell, _quiet, python, refuse_full, work, workplace
from .lowering import Part, embedding_part, projector_part, text_part, vision_part

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Grid

    from .options import Options

GRAPHS = ".tflite"
"""Suffix of files with the language model's graphs alone; all others are bundles."""

EACH = 8
"""Bytes of disk for a weight while a file is written: its code, its float32 graph, the graph of codes, the bundle."""


@frozen(eq=False)
class Lowered:
    """A model as plain tables, ready for the worker.

    Attributes:
        parts: text, embedder, and vision and projector where pictures are wanted.
        grids: rows and columns of patches of the pictures that it takes.
        buckets: or tokens of its graphs for pictures of any shape, least first.
    """

    parts: Mapping[str, Part]
    grids: tuple[Grid, ...]
    buckets: tuple[int, ...] = ()

    @property
    def matrices(self) -> dict[str, Any]:
        """Of all parts, as `part/name`."""
        return {f"{part}/{name}": one for part, p in self.parts.items() for name, one in p.matrices.items()}

    @property
    def sources(self) -> dict[str, int]:
        """Weights by where their codes come from."""
        out: dict[str, int] = {}
        for one in self.matrices.values():
            out[one.source] = out.get(one.source, 0) + one.codes.size
        return out

    def write(self, place: Path, layout: str, kind: str) -> dict[str, Any]:
        """Tables as files in the worker's folder -> the job."""
        job: dict[str, Any] = {"do": "export", "layout": layout, "kind": kind, "grids": [list(g) for g in self.grids]}
        job["buckets"] = list(self.buckets)
        job["bits"] = {name: one.bits for p in self.parts.values() for name, one in p.matrices.items()}
        for name, part in self.parts.items():
            save_file(part.arrays(), place / f"{name}.safetensors")
            job[name] = dict(part.plan)
        return job


def lower(pipeline: Pipeline, options: Options, *, pictures: bool = True) -> Lowered:
    """The tables of a pipeline's model.

    Raises:
        ConfigError: modules that do not describe themselves, or codes that the chip cannot take, by name.
    """
    if pipeline.model.senses:
        names = ", ".join(pipeline.model.senses)
        raise ConfigError("only text and pictures can be deployed", who=names, fix="assemble it without this modality")
    model, book = pipeline.model, Codebook.of(pipeline.model, pipeline.artefact)
    text = text_part(model, book, options)
    parts = {"text": text, "embedder": embedding_part(model, book, text, options)}
    grids: tuple[Grid, ...] = ()
    if pictures:
        if not options.tokens:
            patch = model.vision.patch_size
            high, wide = options.side(pipeline.processor.preprocessor.min_size, patch * model.vision.merge)
            grids = ((high // patch, wide // patch),)
        vision = vision_part(model, book, options, grids, options.tokens)
        parts |= {"vision": vision, "projector": projector_part(model, book, options)}
    return Lowered(parts, grids, options.tokens if pictures else ())


@frozen(eq=False)
class DimensityExporter:
    """An `andes_sdk.types.Exporter`: a `.tflite` has the language model's graphs alone, any other name is a bundle."""

    options: Options
    name: str = "dimensity"

    def export(self, pipeline: Pipeline, path: Path) -> Mapping[str, Any]:
        """Write `path`, whole or not at all -> the report."""
        return export(pipeline, path, self.options)


def export(
    pipeline: Pipeline, path: Path, options: Options, tell: Tell = _quiet, *, contract: Path | None = None
) -> dict[str, Any]:
    """Lower, write and compare -> facts: `files`, `weights_exact`, `sources` of the codes, `left_out`, `versions`.

    contract: that adapters of this base are trained for; its hash goes into the bundle.

    Raises:
        ConfigError: a bundle of the layout npu, or a model that cannot be lowered.
        BackendUnavailable: LiteRT is not here, died or hangs, or the disk is full.
        CheckpointError: the file cannot be written.
    """
    path = at_home(path)
    bundled = path.suffix != GRAPHS
    if bundled and options.layout == "npu":
        why = "the bundle for the NPU holds graphs that MediaTek's compiler has made, which is not here"
        raise ConfigError("layout npu is written as .tflite", who="--layout", why=why, fix="name the file model.tflite")
    if options.activations != "float" and (bundled or options.layout != "npu" or options.activations == "a8"):
        why, fix = "static activations are for the NPU's graphs", "use a16, layout=npu and a name that ends in .tflite"
        raise ConfigError(f"cannot write activations={options.activations}", who="dimensity", why=why, fix=fix)
    if options.activations != "float" and options.lora:
        why, fix = "adapters are floats, and the graph's products are int16", "use --lora 0, or --activations float"
        raise ConfigError("static int16 takes no adapters", who="--lora", why=why, fix=fix)
    if contract is not None and not bundled:
        raise ConfigError("a contract goes into a bundle", who="--contract", fix="name the file model.litertlm")
    python()
    promise = {} if contract is None else promised(pipeline, contract, options.lora)
    tell("reading codes and scales")
    lowered: Lowered | None = lower(pipeline, options, pictures=bundled)
    assert lowered is not None
    refuse_full(sum(one.codes.size for one in lowered.matrices.values()) * EACH)
    with workplace() as place:
        job = lowered.write(place, options.layout, "float")
        job["lora"] = shapes(pipeline, options.lora) if options.lora else {}
        if bundled:
            from .bundle import describe

            job["bundle"] = describe(pipeline, place, options)
            job["bundle"]["identity"] |= promise
        if options.activations != "float":
            job |= {"kind": options.activations, "ranges": calibration(pipeline, options, place)}
        sources = lowered.sources
        grids, lowered = lowered.grids, None  # codes are in files now: of a large model they would be twice in memory
        _trim()
        result = work(place, job, tell)
        made = place / ("model.litertlm" if bundled else "text.tflite")
        try:
            with appearing_file(path) as whole:
                copyfile(made, whole)
        except OSError as error:
            raise CheckpointError("cannot be written", who=str(path), why=str(error), fix="choose another") from None
    return report(path, sources, grids, result, options)


def _trim() -> None:
    """Freed memory goes back to the system: glibc keeps a gigabyte of AndesVL-1B's tables, which the worker needs."""
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def calibration(pipeline: Pipeline, options: Options, place: Path, seed: int = 0) -> dict[str, float]:
    """Write prompts whose values set the ranges that training left open -> the trained scales, by name in the graph.

    Prompts are random tokens: every embedding of the vocabulary is as likely.
    """
    import numpy as np
    import torch

    model, rng = pipeline.model, np.random.default_rng(seed)
    prompts = {}
    with torch.inference_mode():
        for number in range(32):
            ids = torch.from_numpy(rng.integers(0, model.text.vocab_size, int(rng.integers(4, options.prompt + 1))))
            prompts[f"{number:03d}"] = model.llm.embed(ids).float().numpy()
    save_file(prompts, place / "prompts.safetensors")
    return trained(pipeline)


def trained(pipeline: Pipeline) -> dict[str, float]:
    """Scales of inputs that training or the packed file left, by name of the matrix in the language model's graphs.

    Raises:
        ConfigError: a range that int16 with its zero at 0 is not, by name.
    """
    prefix, out = "language_model.", {}
    for name, one in ranges_of(pipeline.model, pipeline.artefact).items():
        if name.startswith(prefix):
            refuse_unfit(name, one, 16, exactly=True)
            out[f"{name.removeprefix(prefix)}.weight"] = one.scale
    return out


def report(
    path: Path, sources: Mapping[str, int], grids: Sequence[Grid], result: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    """What was written, as plain data."""
    files, weights = result["files"], sum(f["weights"] for f in result["files"].values())
    return {
        "path": str(path), "bytes": path.stat().st_size, "layout": options.layout, "files": files,
        "weights": weights, "weights_exact": sum(f["exact"] for f in files.values()) / weights,
        "sources": dict(sources),
        "pictures": [list(g) for g in grids], "buckets": list(options.tokens) if "vision" in files else [],
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"], "peak_bytes": result["peak_bytes"],
        "versions": result["versions"], "left_out": left_out(path, options),
    }  # fmt: skip


def left_out(path: Path, options: Options) -> list[str]:
    """What the file does not hold, or nobody could check here."""
    out = ["compiled code for the NPU: MediaTek's compiler is not in this process", "anything on a device"]
    if path.suffix == GRAPHS:
        out.insert(0, "encoder, projector, embedding and tokenizer: the file holds the language model's graphs")
    if options.layout == "cpu":
        out.insert(0, "the NPU's layout: write it with layout=npu")
    return out
