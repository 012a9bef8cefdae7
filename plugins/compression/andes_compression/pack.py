"""A model into an artefact: round to nearest with searched scales, or the codes of a compressor that trained them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import attrs
import numpy as np
from andes_packing import Artefact, Entry, Header, Place, aligned, matrix, raw_dtype, row_chunk
from andes_packing.formats import LANES, Codes, Format, known
from numpy.typing import NDArray

from andes_compression import recipe as recipes
from andes_sdk.errors import AndesError, CheckpointError, ConfigError
from andes_sdk.files import appearing_file, at_home
from andes_sdk.numbers import digest, numbers, quantised, refuse_ranges
from andes_sdk.storage.checkpoint import aliases, portable, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan
    from andes_sdk.types import Range

Progress = Callable[[str, int], None]
"""Called with a tensor's name and its number of weights after it was written."""


def pack_model(
    model: VisionLanguageModel,
    recipe: Mapping[str, str],
    path: str | Path,
    *,
    plan: Plan,
    codes: Mapping[str, Codes] | None = None,
    ranges: Mapping[str, Range] | None = None,
    formats: Iterable[Format] = (),
    search: bool = True,
    progress: Progress | None = None,
) -> Artefact:
    """Write an artefact; the file appears whole or not at all.

    Args:
        recipe: name or pattern -> format; see `default_recipe`. Vectors are stored in float32.
        plan: of the model's pipeline; options that hold on one machine only are left out.
        codes: for some tensors, codes that a compressor made, stored as they are; so are those of `Quantised` modules.
            The others are rounded to nearest.
        ranges: of inputs, by name of the module; those of `Quantised` modules are added.
        formats: of plugins.
        search: choose scales by squared error.

    Raises:
        ConfigError: a recipe that does not fit the model. CheckpointError: weights or codes that a format cannot
        hold, or a file that cannot be written.
    """
    formats, target = tuple(formats), at_home(path).absolute()
    if model.device.type == "meta":
        raise ConfigError("a model without weights cannot be packed", who="pack_model", fix="load its weights")
    saved = _tokenizer_files(model)
    header = arrange(model, recipe, plan, formats=formats, files={n: len(b) for n, b in saved.items()})
    given, ranged = _given(model, header, codes or {}, ranges or {})
    header = attrs.evolve(header, ranges=ranged)
    seen: dict[str, bytes] = {}
    content = _contents(model, header, known(formats), given, search, seen)
    try:
        if target.is_dir():
            raise CheckpointError("is a folder", who=str(target), fix="give the name of a file, such as model.andes")
        with appearing_file(target) as temporary, open(temporary, "xb") as file:
            _write(file, header, content, saved, progress or (lambda name, count: None), seen)
    except OSError as error:
        raise CheckpointError("cannot be written", who=str(target), why=str(error), fix="nothing was changed") from None
    return Artefact.open(target, formats=formats)


def _write(
    file: BinaryIO,
    header: Header,
    contents: Iterator[tuple[str, NDArray[np.uint8]]],
    saved: Mapping[str, bytes],
    progress: Progress,
    seen: Mapping[str, bytes],
) -> None:
    """The data, one tensor in memory at a time, and then the header with its checksums in front of it."""
    start = len(header.to_bytes())
    digests: dict[str, str] = {}
    for name, content in contents:
        digests[name] = _put(file, start, header.tensors[name], content)
        progress(name, header.tensors[name].weights)
    for name, place in header.files.items():
        digests[name] = _put(file, start, place, np.frombuffer(saved[name], np.uint8))
    file.truncate(start + header.nbytes)
    file.seek(0)
    file.write(_sealed(header, digests, numbers(seen, header.ranges)).to_bytes())


def arrange(
    model: VisionLanguageModel,
    recipe: Mapping[str, str],
    plan: Plan,
    *,
    formats: Iterable[Format] = (),
    files: Mapping[str, int] | None = None,
) -> Header:
    """The header of what `pack_model` would write, but for checksums; a model on the meta device will do.

    Args:
        files: name -> bytes.

    Raises:
        ConfigError: as `pack_model`.
    """
    formats = tuple(formats)
    chosen, group, available = recipes.resolve(model, recipe, formats), recipes.groups(model), known(formats)
    entries: dict[str, Entry] = {}
    places: dict[str, Place] = {}
    end = 0
    for name, tensor in stored_tensors(model).items():
        size = _nbytes(tensor, chosen[name], available)
        entries[name] = Entry(
            shape=tuple(tensor.shape), format=chosen[name], group=group[name], offset=end, nbytes=size
        )
        end = aligned(end + size)
    for name, size in (files or {}).items():
        places[name] = Place(offset=end, nbytes=size)
        end = aligned(end + size)
    used = sorted({e.format for e in entries.values()} & available.keys())
    return Header(
        plan=portable(plan),
        formats={name: available[name].facts() for name in used},
        tensors=entries,
        tied=aliases(model),
        files=places,
        nbytes=end,
        numbers="0" * 64,
        ranges={},
    )


def _nbytes(tensor: Tensor, kind: str, formats: Mapping[str, Format]) -> int:
    if kind in formats:
        return formats[kind].nbytes(*matrix(tensor.shape))
    return tensor.numel() * raw_dtype(kind.partition(":")[2]).itemsize


def _tokenizer_files(model: VisionLanguageModel) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        model.tokenizer.save(root)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _sealed(header: Header, digests: Mapping[str, str], hashed: str) -> Header:
    """The header with its checksums; they are as long as those they replace."""
    return attrs.evolve(
        header,
        numbers=hashed,
        tensors={n: attrs.evolve(e, sha256=digests[n]) for n, e in header.tensors.items()},
        files={n: attrs.evolve(p, sha256=digests[n]) for n, p in header.files.items()},
    )


def _given(
    model: VisionLanguageModel, header: Header, codes: Mapping[str, Codes], ranges: Mapping[str, Range]
) -> tuple[dict[str, Codes], dict[str, Range]]:
    """Codes by stored name and ranges by module: what the caller gives, and what `Quantised` modules say.

    Raises:
        ConfigError: codes or ranges that do not fit the model.
    """
    own, measured = quantised(model)
    given = {header.tied.get(name, name): one for name, one in {**own, **codes}.items()}
    _check_codes(given, header)
    ranged = {**measured, **ranges}
    refuse_ranges(ranged)
    for name in ranged:
        if header.tied.get(f"{name}.weight", f"{name}.weight") not in header.tensors:
            raise ConfigError("a range for what has no weight", who=name, fix="use the names of modules with `weight`")
    return given, ranged


def _check_codes(codes: Mapping[str, Codes], header: Header) -> None:
    for name, one in codes.items():
        entry = header.tensors.get(name)
        if entry is None or entry.format.startswith("raw:"):
            raise ConfigError("codes for a tensor that is not packed", who=name, fix="use the names of the recipe")
        if one.values.shape != entry.matrix:
            why = f"they are {one.values.shape}, the weights {entry.matrix}"
            raise ConfigError("codes of another shape", who=name, why=why, fix="give codes for the whole matrix")


def _contents(
    model: VisionLanguageModel,
    header: Header,
    formats: Mapping[str, Format],
    codes: Mapping[str, Codes],
    search: bool,
    seen: dict[str, bytes],
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and bytes of every tensor, made when asked for; `seen` gets the digest of the codes that count."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, tensor in stored_tensors(model).items():
            entry = header.tensors[name]
            if entry.format.startswith("raw:"):
                kind = raw_dtype(entry.format.partition(":")[2])
                raw = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
                yield name, np.ascontiguousarray(raw, kind).reshape(-1).view(np.uint8)
                continue
            try:
                form, one = formats[entry.format], codes.get(name)
                made, parts = _packed(tensor, entry.matrix, form, one, search, pool, keep=not codes)
                if one is not None or not codes:
                    seen[name] = digest(name, one or _joined(parts, entry.matrix))
            except AndesError as error:
                who = f"{name} ({entry.format})"
                raise type(error)(error.what, who=who, why=error.why, fix=error.fix) from None
            yield name, made


def _joined(parts: Sequence[Codes], shape: tuple[int, int]) -> Codes:
    """Codes of a whole matrix."""
    if not parts:
        return Codes(np.zeros(shape, np.int8), np.zeros((0, 0), np.float16), 1)
    values, scales = (np.concatenate([getattr(p, n) for p in parts]) for n in ("values", "scales"))
    return Codes(values, scales, parts[0].group)


def _packed(
    tensor: Tensor,
    shape: tuple[int, int],
    form: Format,
    codes: Codes | None,
    search: bool,
    pool: ThreadPoolExecutor,
    *,
    keep: bool,
) -> tuple[NDArray[np.uint8], list[Codes]]:
    """The bytes of one matrix, worked on in parts by several threads, and their codes if they are to be kept."""
    (rows, cols), weight = shape, tensor.reshape(shape)
    out = np.empty(form.packed_shape(rows, cols), np.uint8)
    step = row_chunk(cols)

    def fill(at: int) -> Codes | None:
        end = min(at + step, rows)
        if codes is None:
            part = form.quantise(weight[at:end].float().cpu().numpy(), search=search)
        else:
            part = Codes(codes.values[at:end], codes.scales[at:end], codes.group)
        out[at // LANES : -(-end // LANES)] = form.pack(part)
        return part if keep else None

    # numpy leaves the interpreter's lock while it computes
    parts = list(pool.map(fill, range(0, rows, step)))
    return out.reshape(-1), [p for p in parts if p is not None]


def _put(file: BinaryIO, start: int, place: Place, content: NDArray[np.uint8]) -> str:
    file.seek(start + place.offset)
    file.write(content.data)
    return hashlib.sha256(content.data).hexdigest()
