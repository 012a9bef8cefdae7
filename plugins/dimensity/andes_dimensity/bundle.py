"""What a bundle holds beside graphs: tokenizer, chat template, sampling defaults, how pictures come in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.numbers import weights_of

from .environment import work
from .options import Options

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def _own(field: attrs.Attribute[Any], _: object) -> bool:
    return field.name in {f.name for f in attrs.fields(Options)}


def identity(pipeline: Pipeline) -> dict[str, str]:
    """What names the base: `numbers` of its codes, scales and ranges, or where it has none, of its weights."""
    return {"numbers": pipeline.model.numbers or weights_of(pipeline.model)}


def describe(pipeline: Pipeline, place: Path, options: Options) -> dict[str, Any]:
    """Write the tokenizer into the worker's folder -> facts of the bundle.

    Raises:
        ConfigError: a tokenizer without a tokenizer.json or a chat template, or without a token for pictures.
    """
    folder, tokenizer = place / "tokenizer", pipeline.tokenizer
    folder.mkdir()
    tokenizer.save(folder)
    who = type(tokenizer).__name__
    try:
        stated = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except OSError:
        fix = "use a language model with a Hugging Face tokenizer, such as qwen3"
        raise ConfigError(
            "saves no tokenizer.json", who=who, why="LiteRT-LM reads that or SentencePiece", fix=fix
        ) from None
    except ValueError as error:
        raise CheckpointError("is no JSON", who=who, why=str(error)) from None
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    if not isinstance(template, str):
        raise ConfigError("saves no chat template", who=who, fix="give the model one")
    texts = {token["id"]: token["content"] for token in stated.get("added_tokens", ())}
    mark = texts.get(tokenizer.placeholder("image"))
    if mark is None:
        raise ConfigError("has no text for the place of a picture", who=who, why="it is no added token")
    end = behind(template, mark, texts.values(), who, options)
    return {
        "template": template, "image": mark, "stop": sorted({tokenizer.eos, tokenizer.pad}), "rows": options.rows,
        "image_end": end, "image_end_id": next((n for n, text in texts.items() if text == end), -1),
        "thinking": bool(getattr(tokenizer, "thinking", False)), "identity": identity(pipeline),
        "options": attrs.asdict(options, filter=_own),
    }  # fmt: skip


def behind(template: str, mark: str, texts: Iterable[str], who: str, options: Options) -> str:
    """The token that the template writes behind a picture; LiteRT-LM writes it itself for pictures of any shape.

    Raises:
        ConfigError: there is none, and `buckets` want it.
    """
    if not options.tokens:
        return ""
    after = template.partition(mark)[2]
    found = max((text for text in texts if text and after.startswith(text)), key=len, default="")
    if not found or template.count(mark) != template.count(mark + found):
        why = f"LiteRT-LM ends pictures of any shape with a token, and the chat template has none behind {mark}"
        raise ConfigError("pictures of any shape need another template", who=who, why=why, fix="deploy with --picture")
    return found


def opened(path: Path, place: Path) -> dict[str, Any]:
    """Unpack a bundle of ours.

    Raises:
        CheckpointError: it is none, or not whole.
    """
    fix = "write it again: andes deploy dimensity"
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix="check the path") from None
    if magic != b"LITERTLM":
        raise CheckpointError("is no .litertlm bundle", who=str(path), why=f"it starts with {magic!r}", fix=fix)
    try:
        said = work(place, {"do": "unpack", "file": str(path.absolute())}, limit=300)
    except ConfigError as error:
        raise CheckpointError("cannot be unpacked", who=str(path), why=error.why, fix=fix) from None
    if not said["options"] or not said["whole"]:
        raise CheckpointError("was not written by andes deploy", who=str(path), why="it names no options", fix=fix)
    if said["broken"]:
        why = f"these are not as they were written: {', '.join(said['broken'])}"
        raise CheckpointError("was cut short or edited", who=str(path), why=why, fix=fix)
    return said
