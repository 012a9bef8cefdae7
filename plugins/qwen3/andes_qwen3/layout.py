"""How transformers lays a tokenizer out in files: read them, and the chat template they carry."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from andes_sdk.errors import CheckpointError
from andes_sdk.files import FolderFiles, absolute, write_atomically
from andes_sdk.reading import parse_json

from .vocabulary import added_token, assemble, qwen_tokenizer_json

if TYPE_CHECKING:
    from andes_sdk.types import Files

NAME = "tokenizer.json"
_PARTS = ("vocab.json", "merges.txt")
"""In its place."""
_BESIDE = ("added_tokens.json", "tokenizer_config.json")
_MODEL = re.compile(rb',\s*"model"\s*:\s*\{')
_VOCAB = re.compile(rb'"vocab"\s*:\s*\{')
_ENTRY = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*:\s*(\d+)\s*([,}])')
"""A token of the vocabulary, its id, and what follows."""

_RENAMED = {"<|vision_start|>": "<img>", "<|vision_end|>": "</img>"}
"""Qwen's name of a slot -> AndesVL's."""

_TEMPLATE = """\
{%- set think = enable_thinking if enable_thinking is defined else @DEFAULT@ -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<img><|vision_pad|></img>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if think -%}
{{- '<think>' -}}
{%- endif -%}
{%- endif -%}
"""


def chat_template(*, thinking: bool) -> str:
    """The template in Jinja, for other people's loaders; `enable_thinking` overrides the default mode.

    It writes one picture token per picture. As any template made of text, it cannot tell a special token from the same
    characters typed by a user; `QwenTokenizer.render` can.
    """
    return _TEMPLATE.replace("@DEFAULT@", "true" if thinking else "false")


@frozen
class Stated:
    """What a tokenizer's files say of it without its vocabulary being taken apart.

    Attributes:
        tokens: added tokens, as in a tokenizer.json, by id.
        size: one more than the highest id.
        names: of the files that were read.
    """

    tokens: Sequence[Mapping[str, Any]]
    size: int
    names: Sequence[str]


@frozen
class OneFile:
    """A tokenizer.json of any name, with nothing beside it; an `andes_sdk.types.Files`.

    Attributes:
        path: absolute.
    """

    path: Path = field(converter=absolute)

    def __contains__(self, name: object) -> bool:
        return name == NAME and os.path.isfile(self.path)

    def where(self, name: str = "") -> str:
        """The file."""
        return str(self.path)

    def read(self, name: str) -> bytes:
        """Its content. Raises CheckpointError if it cannot be read."""
        return FolderFiles(self.path.parent).read(self.path.name)


@frozen
class Packaged:
    """The Qwen vocabulary of the distribution `qwen-tokenizer` as a tokenizer.json; an `andes_sdk.types.Files`."""

    def __contains__(self, name: object) -> bool:
        return name == NAME

    def where(self, name: str = "") -> str:
        """The distribution."""
        return "qwen-tokenizer"

    def read(self, name: str) -> bytes:
        """A tokenizer.json. Raises CheckpointError if the distribution is not installed or damaged."""
        return qwen_tokenizer_json()


def read_stated(files: Files) -> Stated:
    """The facts of a tokenizer. Special tokens as `read_content` says.

    Raises:
        CheckpointError: nothing there, or a file that is no such JSON as far as it is looked at.
    """
    raw = files.read(NAME) if NAME in files else b""
    head, highest = read_head(raw), _highest(raw)
    if head is None or highest is None:
        content = _whole(files)
        head, highest = content, max(content["model"]["vocab"].values(), default=-1)
    tokens = _changed(head, files)
    names = [name for name in (*((NAME,) if NAME in files else _PARTS), *_BESIDE) if name in files]
    size = 1 + max([highest, *(token["id"] for token in tokens)])
    if size > 1 << 31:
        raise CheckpointError("has ids that cannot be", who=files.where(), why=f"one of {size.bit_length()} bits")
    return Stated(tokens, size, names)


def refuse_gone(files: Files, stated: Stated) -> None:
    """Refuse files that are no longer all there.

    Raises:
        CheckpointError: names the first that is missing.
    """
    for name in stated.names:
        if name not in files:
            fix = "leave a tokenizer's files where they are for as long as it is in use"
            raise CheckpointError("is gone since it was opened", who=files.where(name), fix=fix)


def read_content(files: Files) -> dict[str, Any]:
    """A tokenizer.json, or vocab.json and merges.txt -> the content of a tokenizer.json, taken apart.

    Special tokens stated in tokenizer_config.json or added_tokens.json win, id by id, over those of tokenizer.json.
    A vocabulary that still calls AndesVL's two picture slots by Qwen's names gets AndesVL's.

    Raises:
        CheckpointError: nothing there, or a file that is no such JSON.
    """
    content = _whole(files)
    model = content.pop("model")
    return {**content, "added_tokens": _changed(content, files), "model": model}


def read_layout(files: Files) -> bytes:
    """`read_content` as text. A vocabulary is large: it is taken apart only where something has to be put right.

    Raises:
        CheckpointError: as `read_content`; a tokenizer.json is handed on without a look at its vocabulary.
    """
    if NAME in files:
        raw = files.read(NAME)
        head = read_head(raw)
        if head is not None and _changed(head, files) == head["added_tokens"]:
            return raw
    return json.dumps(read_content(files), ensure_ascii=False).encode()


def write_layout(
    folder: Path,
    content: Mapping[str, Any],
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    chat_template: str,
    **more: object,
) -> None:
    """Write tokenizer.json and tokenizer_config.json; `transformers.AutoTokenizer` reads them too.

    Args:
        content: of the tokenizer.json.
        eos, pad, bos: texts of special tokens.
        more: further entries of tokenizer_config.json.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": pad,
        "bos_token": bos,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
        **more,
    }
    write_atomically(folder / NAME, json.dumps(content, ensure_ascii=False).encode())
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode() + b"\n")


def _whole(files: Files) -> dict[str, Any]:
    """All of a tokenizer.json, its own added tokens in it."""
    if NAME in files:
        content = _read_json(files, NAME)
    elif all(name in files for name in _PARTS):
        content = assemble(_read_json(files, "vocab.json"), _merges(files))
    else:
        raise CheckpointError(
            "no tokenizer here",
            who=files.where(),
            why="neither tokenizer.json nor vocab.json with merges.txt",
            fix="give the path of a tokenizer in the option `tokenizer` of qwen3",
        )
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(isinstance(number, int) for number in vocab.values()):
        raise CheckpointError("not a tokenizer.json", who=files.where(NAME), why="it has no model with a vocabulary")
    return content


def _merges(files: Files) -> list[list[str]]:
    try:
        lines = files.read("merges.txt").decode().split("\n")
    except ValueError as error:
        raise CheckpointError("cannot be read as text", who=files.where("merges.txt"), why=str(error)) from error
    return [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]


def read_head(raw: bytes) -> dict[str, Any] | None:
    """What stands before the model in a tokenizer.json; None where that is not whole, or lacks the added tokens.

    The vocabulary is large and not taken apart for it.
    """
    model = _MODEL.search(raw)
    if model is None:
        return None
    try:
        head = parse_json(raw[: model.start()] + b"}")
    except ValueError:
        return None
    return head if isinstance(head, dict) and "added_tokens" in head else None


def _highest(raw: bytes) -> int | None:
    """The highest id in the vocabulary of a tokenizer.json; None where it does not end as one does."""
    model = _MODEL.search(raw)
    vocab = _VOCAB.search(raw, model.end()) if model else None
    highest = -1
    for entry in _ENTRY.finditer(raw, vocab.end()) if vocab else ():
        if len(entry[1]) > 19:  # no id has so many digits; of very many Python makes no number
            return None
        highest = max(highest, int(entry[1]))
        if entry[2] == b"}":
            return highest
    return None


def _changed(content: Mapping[str, Any], files: Files) -> list[dict[str, Any]]:
    """Added tokens by id, with what stands beside tokenizer.json applied, and AndesVL's picture slots."""
    tokens: dict[int, dict[str, Any]] = {}
    try:
        tokens |= {token["id"]: dict(token) for token in content.get("added_tokens", [])}
        _override(tokens, files)
        names = {token["content"] for token in tokens.values()}
        if not all(isinstance(n, int) for n in tokens) or not all(isinstance(name, str) for name in names):
            raise TypeError("an id that is no integer, or a content that is no text")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("its special tokens are no such tokens", who=files.where(), why=why) from error
    for token in tokens.values():
        wanted = _RENAMED.get(token["content"])
        if wanted is not None and wanted not in names:
            token["content"] = wanted
    return [tokens[number] for number in sorted(tokens)]


def _override(tokens: dict[int, dict[str, Any]], files: Files) -> None:
    """Apply what stands beside tokenizer.json."""
    if "added_tokens.json" in files:
        for content, number in _read_json(files, "added_tokens.json").items():
            previous = tokens.get(number) or added_token(number, content, special=True)
            tokens[number] = {**previous, "content": content}
    if "tokenizer_config.json" in files:
        for number, token in _read_json(files, "tokenizer_config.json").get("added_tokens_decoder", {}).items():
            base = added_token(int(number), token["content"], special=bool(token.get("special")))
            tokens[int(number)] = {key: token.get(key, base[key]) for key in base}


def _read_json(files: Files, name: str) -> dict[str, Any]:
    """An object. Raises CheckpointError with the file's name if it is none."""
    try:
        content = parse_json(files.read(name))
    except ValueError as error:
        raise CheckpointError("cannot be read as JSON", who=files.where(name), why=str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError("expected a JSON object", who=files.where(name))
    return content
