"""How transformers lays a tokenizer out in a folder: read it, and the chat template it carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from andes_sdk.errors import CheckpointError

from .vocabulary import added_token, assemble

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


def read_layout(path: Path) -> str:
    """A tokenizer.json, or a folder with one, or with vocab.json and merges.txt -> the content of a tokenizer.json.

    Special tokens stated in tokenizer_config.json or added_tokens.json win, id by id, over those of tokenizer.json.
    A vocabulary that still calls AndesVL's two picture slots by Qwen's names gets AndesVL's.

    Raises:
        CheckpointError: nothing there, or a file that is no such JSON.
    """
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if file.is_file():
        text = _read_text(file)
        tokens = _stated_tokens(text)
        if tokens and _changed(tokens, path) == tokens:
            return text  # a vocabulary is large: it is taken apart only where something has to be put right
        content = _read_json(file)
    elif path.is_dir() and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
        content = assemble(_read_json(folder / "vocab.json"), merges)
    else:
        raise CheckpointError(
            "no tokenizer here",
            who=str(path),
            why="neither tokenizer.json nor vocab.json with merges.txt",
            fix="give the path of a tokenizer in the option `tokenizer` of qwen3",
        )
    if not isinstance(content.get("model"), dict):
        raise CheckpointError("not a tokenizer.json", who=str(file), why="it has no 'model'")
    content["added_tokens"] = _changed(content.get("added_tokens", []), path)
    return json.dumps(content, ensure_ascii=False)


def _stated_tokens(text: str) -> list[dict[str, Any]] | None:
    """The added tokens of a tokenizer.json, which stand before its vocabulary; None where they do not."""
    key = '"added_tokens":'
    start = text.find(key)
    at = start + len(key)
    at += len(text[at : at + 64]) - len(text[at : at + 64].lstrip())
    try:
        json.loads(
            text[: max(start, 0)].rstrip().rstrip(",") + "}"
        )  # what precedes is whole: the key is one of the outermost object
        found, _ = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def _changed(added: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Added tokens by id, with what stands beside a folder's tokenizer.json applied, and AndesVL's picture slots."""
    tokens = {token["id"]: dict(token) for token in added}
    if path.is_dir():
        _override(tokens, path)
    names = {token["content"] for token in tokens.values()}
    for token in tokens.values():
        wanted = _RENAMED.get(token["content"])
        if wanted is not None and wanted not in names:
            token["content"] = wanted
    return [tokens[number] for number in sorted(tokens)]


def _override(tokens: dict[int, dict[str, Any]], folder: Path) -> None:
    """Apply what stands beside tokenizer.json."""
    plain = folder / "added_tokens.json"
    if plain.is_file():
        for content, number in _read_json(plain).items():
            previous = tokens.get(number) or added_token(number, content, special=True)
            tokens[number] = {**previous, "content": content}
    config = folder / "tokenizer_config.json"
    if config.is_file():
        for number, token in _read_json(config).get("added_tokens_decoder", {}).items():
            base = added_token(int(number), token["content"], special=bool(token.get("special")))
            tokens[int(number)] = {key: token.get(key, base[key]) for key in base}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read", who=str(path), why=str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read as JSON", who=str(path), why=str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError("expected a JSON object", who=str(path))
    return content
