"""The adapters of one base: a folder beside it, with the hash of every file. The base itself is never written.

model.andes                       the base: a packed file, or a checkpoint folder
model.andes.adapters/
    registry.json                 names, hashes, ranks, contracts
    receipts/                     adapter_config.json, adapter_model.safetensors, as peft reads them; or int8
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, field, frozen
from safetensors import SafetensorError, safe_open

from andes_adapters.contract import contract_of, refuse_other_contract
from andes_adapters.reading import CONFIG, INT8, WEIGHTS, contract_mark, read_adapter, weights_file
from andes_sdk.config import suggestion
from andes_sdk.errors import CheckpointError, ConfigError, DuplicateName
from andes_sdk.files import appearing, appearing_file, at_home, regular
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Adapter

NAME = re.compile(r"[A-Za-z][\w.-]{0,63}")
FILES = ({CONFIG, WEIGHTS}, {CONFIG, INT8})
REGISTRY = "registry.json"


@frozen(kw_only=True)
class Entry:
    """One adapter. sha256: of each of its files. contract: its hash, "" for none. base_checked: it names this base."""

    sha256: Mapping[str, str]
    rank: int
    nbytes: int
    contract: str
    base_checked: bool

    @property
    def int8(self) -> bool:
        """Whether it is stored as int8."""
        return INT8 in self.sha256


@frozen
class Registry:
    """The adapters beside a base; a base without any has an empty one.

    Attributes:
        base: a file or a folder. folder: where the adapters lie.
    """

    base: Path
    folder: Path = field()

    @folder.default
    def _beside(self) -> Path:
        return self.base.with_name(f"{self.base.name}.adapters")

    @classmethod
    def beside(cls, base: str | Path) -> Registry:
        """That of a base.

        Raises:
            ConfigError: there is no file or folder of that name.
        """
        path = Path(base).expanduser().absolute()
        if not path.exists():
            fix = "give a packed file or a checkpoint folder"
            raise ConfigError("there is no such base", who=str(base), fix=fix)
        return cls(path)

    def entries(self) -> dict[str, Entry]:
        """Adapters by name.

        Raises:
            CheckpointError: the registry is damaged.
        """
        path = self.folder / REGISTRY
        if not path.exists():
            return {}
        try:
            facts: Any = parse_json(regular(path).read_bytes())
            if facts["version"] != 1 or not all(NAME.fullmatch(name) for name in facts["adapters"]):
                raise ValueError("another version, or names that cannot be")
            found = {name: Entry(**one) for name, one in facts["adapters"].items()}
            if any(set(one.sha256) not in FILES for one in found.values()):
                raise ValueError("hashes of other files than an adapter has")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why, fix = f"{type(error).__name__}: {error}", "delete it, and add the adapters again"
            raise CheckpointError("is damaged", who=str(path), why=why, fix=fix) from None
        return found

    def add(self, name: str, source: str | Path, pipeline: Pipeline) -> Entry:
        """Copy an adapter beside the base, if it belongs to it.

        Args:
            pipeline: of the base; its weights need not be read.

        Raises:
            ConfigError: a name that cannot be, or an adapter of another base or contract. DuplicateName: there is one.
            CheckpointError: files that are damaged, or do not fit.
        """
        if not NAME.fullmatch(name) or name.casefold() == REGISTRY:
            fix = "use letters, digits, '.', '_' and '-', a letter first"
            raise ConfigError(f"{name!r} cannot be a name", who="adapters", fix=fix)
        entries = self.entries()
        if name in entries:
            raise DuplicateName("there is an adapter of this name", who=name, fix="remove it first, or choose another")
        folder = at_home(source, "folder")
        adapter = read_adapter(name, folder, pipeline.meta_model().language_model)
        mark = contract_mark(folder)
        _refuse_other(adapter, mark, pipeline)
        with appearing(self.folder / name) as temporary:
            for path in (folder / CONFIG, weights_file(folder)):
                shutil.copyfile(regular(path), temporary / path.name)
        rank = max(len(low.a) for low in adapter.layers.values())
        entry = self.entry(name, rank, "" if mark is None else str(mark["hash"]), bool(mark or adapter.base))
        self.write({**entries, name: entry})
        return entry

    def entry(self, name: str, rank: int, contract: str, base_checked: bool) -> Entry:
        """What the registry says of an adapter whose files lie here."""
        weights = weights_file(self.folder / name)
        hashes = {path.name: _sha256(path) for path in (self.folder / name / CONFIG, weights)}
        size = weights.stat().st_size
        return Entry(sha256=hashes, rank=rank, nbytes=size, contract=contract, base_checked=base_checked)

    def memory(self, name: str) -> dict[str, int]:
        """Bytes of A and B of an adapter in memory, by how they are held: float32, float16, int8 with row scales.

        Backend torch holds float32, numba float16; both hold int8 where the adapter is int8, or made so at loading.

        Raises:
            CheckpointError: its file cannot be read.
        """
        path = weights_file(self.folder / name)
        try:
            with safe_open(regular(path), "pt") as file:
                names = [name for name in list(file.keys()) if not name.endswith(".scale")]
                shapes = [file.get_slice(name).get_shape() for name in names]
            numbers, rows = sum(a * b for a, b in shapes), sum(a for a, _ in shapes)
        except (OSError, SafetensorError, ValueError) as error:
            fix = f"remove {name!r} and add it again"
            raise CheckpointError("cannot be read", who=str(path), why=str(error), fix=fix) from None
        floats = {} if path.name == INT8 else {"float32": 4 * numbers, "float16": 2 * numbers}
        return {**floats, "int8": numbers + 4 * rows}

    def remove(self, name: str) -> None:
        """Forget an adapter and delete its files.

        Raises:
            ConfigError: there is none of that name.
        """
        entries = self.entries()
        self._known(name, entries)
        self.write({other: one for other, one in entries.items() if other != name})
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def verified(self, name: str) -> Path:
        """Folder of an adapter whose files are those that were added.

        Raises:
            ConfigError: there is none of that name. CheckpointError: a file is missing or was changed.
        """
        entry = self._known(name, self.entries())
        for file, wanted in entry.sha256.items():
            path = self.folder / name / file
            try:
                found = _sha256(path)
            except OSError as error:
                fix = f"remove {name!r} and add it again"
                raise CheckpointError("cannot be read", who=str(path), why=str(error), fix=fix) from None
            if found != wanted:
                why, fix = "its hash is not the registry's", f"remove {name!r} and add it again"
                raise CheckpointError("was changed since it was added", who=str(path), why=why, fix=fix)
        return self.folder / name

    def _known(self, name: str, entries: Mapping[str, Entry]) -> Entry:
        if name not in entries:
            fix = suggestion(name, entries) if entries else f"add it: andes adapters add {self.base.name} {name} FOLDER"
            raise ConfigError(f"no adapter {name!r}", who=str(self.folder), fix=fix)
        return entries[name]

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Say in `registry.json` that these are the adapters."""
        facts = {"version": 1, "adapters": {name: asdict(one) for name, one in sorted(entries.items())}}
        with appearing_file(self.folder / REGISTRY) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _refuse_other(adapter: Adapter, mark: Mapping[str, Any] | None, pipeline: Pipeline) -> None:
    """What a packed file's header tells at once; weights of a float base are compared when it is loaded."""
    artefact, who = pipeline.artefact, f"adapter {adapter.name!r}"
    if artefact is None:
        if mark is not None or (adapter.base and not adapter.base.startswith("weights:")):
            fix = "give the packed base that it was trained for"
            raise ConfigError("was trained on a packed base", who=who, why="this base is in floats", fix=fix)
        return
    if mark is not None:
        own = contract_of(artefact, pipeline.meta_model().tokenizer, mark["rank"])
        refuse_other_contract(mark, own.mark, who)
    elif adapter.base and adapter.base != artefact.numbers:
        why = f"it was trained on {adapter.base}, this base has {artefact.numbers}"
        raise ConfigError("belongs to another base", who=who, why=why, fix="give the base that it was trained on")


def _sha256(path: Path) -> str:
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
