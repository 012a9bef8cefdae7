"""The quantisation contract: what of a packed base an adapter was trained for, as hashes that never change.

After MediaTek's fine-tuning on quantised models: the base publishes codes, scales, ranges of activations, tokenizer and
chat template once; an adapter carries the contract's hash, and is refused where any of it is another.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from andes_sdk.errors import CheckpointError, ConfigError, InputError
from andes_sdk.files import appearing_file, at_home, regular
from andes_sdk.numbers import half_scales, refuse_ranges
from andes_sdk.reading import parse_json
from andes_sdk.types import Range, Turn

if TYPE_CHECKING:
    from andes_sdk.types import Tokenizer

FIELD = "andes_contract"
"""Our own field of `adapter_config.json`: the contract's mark."""
FILE = "contract.json"
VERSION = 3
PARTS = ("codes", "scales", "floats", "ranges", "tokenizer", "template")
"""What is hashed: codes and scales of matrices, tensors without codes, ranges of inputs, vocabulary, chat template."""
WORDS = {
    "codes": "codes of weights", "scales": "scales of weights", "floats": "weights that are not quantised",
    "ranges": "ranges of activations", "tokenizer": "tokenizer", "template": "chat template", "rank": "rank",
    "numbers": "codes, scales or ranges",
}  # fmt: skip
AGAIN = "write it again with `andes qalft contract`"


@frozen(kw_only=True)
class Contract:
    """A contract. Its hash is over the version, parts, the base's `numbers`, the rank and every tensor's hash.

    Attributes:
        parts: name -> sha256. numbers: of the base (`Artefact.numbers`). rank: of every adapter.
        ranges: of inputs, by module. tensors: name -> sha256 of its float32 weights, to name what differs.
    """

    parts: Mapping[str, str]
    numbers: str
    rank: int
    ranges: Mapping[str, Range]
    tensors: Mapping[str, str]

    @property
    def mark(self) -> dict[str, Any]:
        """What an adapter carries: version, parts, numbers, rank, one hash of all tensors, and the hash over them."""
        weights = hash_of(dict(self.tensors))
        facts = {"version": VERSION, **self.parts, "numbers": self.numbers, "rank": self.rank, "weights": weights}
        return {**facts, "hash": hash_of(facts)}

    @property
    def hash(self) -> str:
        """sha256, in hex."""
        return str(self.mark["hash"])

    def write(self, path: Path) -> bool:
        """Write the file, read-only -> whether it is new. It appears whole or not at all.

        Raises:
            CheckpointError: there is another contract, which is never changed.
        """
        if path.exists():
            if read_contract(path).hash == self.hash:
                return False
            why = f"it has {read_contract(path).hash}, this one {self.hash}"
            fix = "give another file: adapters trained for the old one still need it"
            raise CheckpointError("a contract is never changed", who=str(path), why=why, fix=fix)
        ranges = {n: {"bits": r.bits, "scale": r.scale, "zero": r.zero} for n, r in sorted(self.ranges.items())}
        facts = {**self.mark, "inputs": ranges, "tensors": dict(sorted(self.tensors.items()))}
        with appearing_file(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
        path.chmod(0o444)
        return True


def hash_of(facts: Mapping[str, Any]) -> str:
    """sha256 over facts as sorted JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def contract_of(artefact: Any, tokenizer: Tokenizer, rank: int) -> Contract:
    """The contract of a packed base, an `andes_packing.Artefact`. Reads and dequantises every matrix once.

    Raises:
        ConfigError: a rank below 1, or ranges that cannot be. CheckpointError: the file was changed.
    """
    if rank < 1:
        raise ConfigError(f"rank {rank}", who="contract", fix="give the rank that adapters will have, such as 16")
    refuse_ranges(artefact.ranges)
    sums = {name: hashlib.sha256() for name in ("codes", "scales", "floats")}
    tensors: dict[str, str] = {}
    for name in sorted(artefact.tensors):
        entry = artefact.tensors[name]
        head = f"{len(name.encode())}:{name}:{entry.shape}".encode()
        if not artefact.stored_raw(name):
            codes = artefact.formats[entry.format].unpack(artefact.packed(name), *entry.matrix)
            weights = codes.weights()
            for part, array in (("codes", codes.values), ("scales", half_scales(codes.scales, name))):
                sums[part].update(head + np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        else:
            weights = np.asarray(artefact.array(name))
            sums["floats"].update(head + np.ascontiguousarray(weights).tobytes())
        tensors[name] = weights_hash(weights)
    ranges = {n: (r.bits, r.scale, r.zero) for n, r in sorted(artefact.ranges.items())}
    parts = {part: made.hexdigest() for part, made in sums.items()}
    parts |= {"ranges": hash_of(ranges), **text_parts(tokenizer)}
    return Contract(
        parts=parts, numbers=artefact.numbers, rank=rank, ranges=dict(artefact.ranges), tensors=tensors
    )  # fmt: skip


def weights_hash(weights: Any) -> str:
    """sha256 over numbers as little-endian float32 (or what whole numbers they are)."""
    array = np.asarray(weights)
    kind = np.dtype("<f4") if array.dtype.kind == "f" else array.dtype.newbyteorder("<")
    return hashlib.sha256(np.ascontiguousarray(array, kind).tobytes()).hexdigest()


def text_parts(tokenizer: Tokenizer) -> dict[str, str]:
    """Hashes of a tokenizer and of a chat template.

    Of the tokenizer: `tokenizer.json` as it saves it, with vocabulary, merges, normalisation and how texts are split;
    of one that writes no such file, all its files. Of the template: conversations that are rendered, and whether chats
    think unless told otherwise.
    """
    words = hashlib.sha256(f"{tokenizer.vocab_size}:{tokenizer.eos}:{tokenizer.pad}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in [one for one in files if one.name == "tokenizer.json"] or files:
            content = path.read_bytes()
            if path.suffix == ".json":  # however it is indented
                content = json.dumps(parse_json(content), sort_keys=True, separators=(",", ":")).encode()
            words.update(f"{path.name}:{len(content)}:".encode() + content)
    turns = [Turn("system", ("s",)), Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    thinks = bool(getattr(tokenizer, "thinking", False))
    shown = [
        _rendered(tokenizer, some, think=think, generate=generate)
        for think in (False, True)
        for generate in (False, True)
        for some in (turns, turns[1:])
    ]
    return {"tokenizer": words.hexdigest(), "template": hash_of({"shown": shown, "thinking": thinks})}


def _rendered(tokenizer: Tokenizer, turns: Sequence[Turn], *, think: bool, generate: bool) -> list[Any]:
    try:
        one = tokenizer.render(turns, think=think, generate=generate)
    except InputError:  # a vocabulary without thoughts
        if not think:
            raise
        return []
    return [list(one.ids), list(one.supervised), one.prefix]


def read_contract(path: str | Path) -> Contract:
    """A contract from its file.

    Raises:
        CheckpointError: it cannot be read, or its hash is not that of what it says.
    """
    file = at_home(path, "file")
    try:
        facts: Any = parse_json(regular(file).read_bytes())
        if facts["version"] != VERSION:
            raise ValueError(f"version {facts['version']!r}, this andes-adapters reads {VERSION}")
        ranges = {n: Range(bits=r["bits"], scale=r["scale"], zero=r["zero"]) for n, r in facts["inputs"].items()}
        found = Contract(
            parts={p: str(facts[p]) for p in PARTS}, numbers=str(facts["numbers"]), rank=facts["rank"], ranges=ranges,
            tensors=dict(facts["tensors"]),
        )  # fmt: skip
        refuse_ranges(ranges)
        plain = {n: (r.bits, r.scale, r.zero) for n, r in sorted(ranges.items())}
        if found.hash != facts["hash"] or hash_of(plain) != found.parts["ranges"]:
            raise ValueError("its hash is not that of what it says")
        if type(found.rank) is not int or found.rank < 1:
            raise ValueError(f"rank {found.rank!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        why = error.why if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot be read as a contract", who=str(file), why=why, fix=AGAIN) from None
    return found


def mark_of(config: Mapping[str, Any], who: str) -> Mapping[str, Any] | None:
    """The contract that an adapter carries, checked against its own hash; None where it carries none.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    mark = config.get(FIELD)
    if mark is None:
        return None
    names = {"version", *PARTS, "numbers", "rank", "weights", "hash"}
    if isinstance(mark, dict) and set(mark) >= names - {"version", "floats"}:
        version = mark.get("version", "1 or 2")  # which adapters did not carry
        if version != VERSION:
            why = f"contract of version {version}, this andes-adapters reads {VERSION}"
            fix = "write the contract again with `andes qalft contract`, and train the adapter again"
            raise CheckpointError("carries a contract of another version", who=who, why=why, fix=fix)
    if not isinstance(mark, dict) or set(mark) != names:
        raise CheckpointError("carries a contract that is none", who=who, fix="train the adapter again")
    if hash_of({k: v for k, v in mark.items() if k != "hash"}) != mark["hash"]:
        why = "its hash is not that of what it says"
        raise CheckpointError("carries a contract that is damaged", who=who, why=why, fix="train the adapter again")
    return mark


def differing(mark: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """In words, the parts of two contracts that differ; only parts that both have."""
    return [WORDS[part] for part in (*PARTS, "numbers", "rank") if part in own and mark[part] != own[part]]


def refuse_other_contract(mark: Mapping[str, Any], own: Mapping[str, Any], who: str) -> None:
    """Refuse an adapter of another contract.

    Raises:
        ConfigError: naming every part that differs.
    """
    if found := differing(mark, own):
        specific = [word for word in found if word != WORDS["numbers"]] or found
        fix = "open the base that it was trained for, or train it again for this one: `andes qalft train`"
        raise ConfigError(
            "was trained for another contract", who=who, why=f"other {', other '.join(specific)}", fix=fix
        )
