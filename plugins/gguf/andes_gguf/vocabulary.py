"""The vocabulary of a file as a tokenizer.json of the `tokenizers` library, and the other way round.

Byte-level BPE ("gpt2" in llama.cpp's words) with the pre-tokenizers of the three families. SentencePiece vocabularies
("llama": Llama 1 and 2) are refused. Qwen's texts are brought to NFC, as its published tokenizer does and llama.cpp
does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_qwen3.layout import read_head
from andes_qwen3.vocabulary import BYTES, PATTERN, added_token, byte_level, split
from attrs import frozen

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from andes_sdk.types import Files

_LLAMA3 = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = {**BYTES, "use_regex": True}

_STEPS: dict[str, list[dict[str, Any]]] = {
    "qwen2": [split(PATTERN), BYTES],
    "llama-bpe": [split(_LLAMA3), BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "gpt-2": [_GPT2],
}
"""`tokenizer.ggml.pre` -> steps of the pre-tokenizer."""
_ALIASES = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<EOT>", "_<EOT>")
"""Tokens by whose text llama.cpp knows the end of a turn, whatever the file calls its end; those of the template."""
_WHOLE = ("llama-bpe",)
"""Kinds that take a whole piece found in the vocabulary before they merge."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
IMAGE = "andes.image_token_id"
"""Key of a file that this plugin wrote."""
PREFERRED = ("<|vision_pad|>", "<|image_pad|>", "<|image|>", "<image>")
"""Control tokens made to stand for pictures."""


@frozen(kw_only=True)
class Vocabulary:
    """A tokenizer as data.

    Attributes:
        added: tokens as in a tokenizer.json; those marked special are control tokens, the others belong to texts.
        read: makes the content of a tokenizer.json.
        size: one more than the highest id in use.
        eos, pad, bos, image: texts of special tokens; `bos` is empty where a text starts without one.
        template: Jinja text of the chat template, or empty.
        source: the file or folder.
    """

    added: Sequence[Mapping[str, Any]]
    read: Callable[[], bytes]
    size: int
    eos: str
    pad: str
    bos: str
    image: str
    template: str
    source: str

    def content(self) -> dict[str, Any]:
        """The content of a tokenizer.json, taken apart.

        Raises:
            CheckpointError: files that are gone or damaged.
        """
        try:
            content = parse_json(self.read())
        except ValueError as error:
            raise CheckpointError("its vocabulary cannot be used", who=self.source, why=str(error)) from error
        if not isinstance(content, dict):
            raise CheckpointError("its vocabulary cannot be used", who=self.source, why="not a tokenizer.json")
        return content


def from_metadata(data: Mapping[str, Any], who: str, *, image: str = "", template: str = "") -> Vocabulary:
    """The vocabulary of a file.

    Args:
        image, template: in place of those that the file has.

    Raises:
        CheckpointError: another kind of vocabulary or pre-tokenizer, or keys that are missing or do not fit.
    """
    kind, pre = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        why = {"llama": "SentencePiece vocabularies (Llama 1 and 2) are not read"}.get(str(kind), "")
        fix = "use a file with a byte-level vocabulary: Llama 3 and later, SmolLM, Qwen2, Qwen3"
        raise CheckpointError(f"has a vocabulary of the kind {kind!r}", who=who, why=why, fix=fix)
    pre = _ALIASES.get(str(pre), str(pre))
    if pre not in _STEPS:
        fix = f"known are {', '.join([*_STEPS, *_ALIASES])}"
        raise CheckpointError(f"has the pre-tokenizer {pre!r}", who=who, why="this plugin does not know it", fix=fix)
    tokens, merges = (_texts(data, f"tokenizer.ggml.{key}", who) for key in ("tokens", "merges"))
    kinds = data.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(set(tokens)) != len(tokens) or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError("has tokens twice, or not a type for each", who=who, fix="convert the model again")
    ids = {key: data.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot", "padding")}
    wrong = [k for k, i in ids.items() if i is not None and not (isinstance(i, int) and 0 <= i < len(tokens))]
    if wrong or ids["eos"] is None:
        raise CheckpointError(f"has no usable {', '.join(wrong) or 'eos'} token", who=who, fix="convert it again")
    text = {key: "" if i is None else tokens[i] for key, i in ids.items()}
    template = template or str(data.get("tokenizer.chat_template", ""))
    eos = text["eot"] or next((t for t in _ENDS if t in tokens and t in template), "") or text["eos"]
    control = [t for t, k in zip(tokens, kinds, strict=True) if k in (UNKNOWN, CONTROL)]
    meant = {*text.values(), eos}
    spared = [t for t in control if t not in meant and (t in PREFERRED or t not in template)]
    stated = data.get(IMAGE)
    if not image and isinstance(stated, int) and 0 <= stated < len(tokens):
        image = tokens[stated]
    added = _added(tokens, kinds, must=[t for t in meant if t])
    return Vocabulary(
        added=added,
        read=partial(_content, tokens, merges, pre, added),
        size=len(tokens),
        eos=eos,
        pad=text["eos"] if eos not in (text["eot"], text["eos"]) else text["padding"] or text["eos"],
        bos=text["bos"] if data.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") else "",
        image=_image(image, spared, control, who),
        template=template,
        source=who,
    )


def _texts(data: Mapping[str, Any], key: str, who: str) -> list[str]:
    found = data.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise CheckpointError(f"lacks {key}", who=who, fix="convert the model again")
    return found


def _image(wanted: str, spared: Sequence[str], control: Sequence[str], who: str) -> str:
    if wanted:
        if wanted not in control:
            raise ConfigError(f"{wanted!r} is no control token of the vocabulary", who=f"{who}: image token")
        return wanted
    found = [t for t in PREFERRED if t in spared] or list(spared[-1:])
    if not found:
        why = "every control token has a meaning of its own"
        raise CheckpointError("no token can stand for pictures", who=who, why=why, fix="set gguf.image_token")
    return found[0]


def _added(tokens: Sequence[str], kinds: Sequence[int], must: Sequence[str]) -> list[dict[str, Any]]:
    special = {t for t, k in zip(tokens, kinds, strict=True) if k in (UNKNOWN, CONTROL)} | set(must)
    return [
        added_token(i, t, special=t in special)
        for i, (t, k) in enumerate(zip(tokens, kinds, strict=True))
        if t in special or k == USER_DEFINED
    ]


def _content(tokens: Sequence[str], merges: Sequence[str], pre: str, added: Sequence[Mapping[str, Any]]) -> bytes:
    content = byte_level(
        {text: number for number, text in enumerate(tokens)},
        [merge.split(" ") for merge in merges],
        added,
        steps=_STEPS[pre],
        nfc=pre == "qwen2",
        ignore_merges=pre in _WHOLE,
    )
    return json.dumps(content, ensure_ascii=False).encode()


# ---------------------------------------------------------------- a saved tokenizer


def from_files(files: Files, *, image: str = "", template: str = "") -> Vocabulary:
    """A tokenizer that this plugin saved (`GgufTokenizer.save`).

    Raises:
        CheckpointError: files that are missing, damaged or of another tokenizer.
    """
    try:
        if "tokenizer.json" not in files:
            raise ValueError("no tokenizer.json")
        raw, config = files.read("tokenizer.json"), parse_json(files.read("tokenizer_config.json"))
        own = config["andes_gguf"]
        return Vocabulary(
            added=(read_head(raw) or parse_json(raw))["added_tokens"],
            read=partial(files.read, "tokenizer.json"),
            size=own["size"],
            eos=config["eos_token"],
            pad=config["pad_token"],
            bos=own["bos"],
            image=image or own["image"],
            template=template or config["chat_template"],
            source=files.where(),
        )
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        fix = "load a checkpoint that was saved with this plugin, or give gguf.path"
        raise CheckpointError("holds no tokenizer of this plugin", who=files.where(), why=why, fix=fix) from None


# ---------------------------------------------------------------- writing


def to_metadata(folder: Path, rows: int) -> dict[str, Any]:
    """A saved tokenizer -> the `tokenizer.*` keys of a file, lists of texts and of types included.

    Args:
        folder: with tokenizer.json and tokenizer_config.json, as transformers writes them.
        rows: of the embedding; ids without a token become unused ones.

    Raises:
        ConfigError: no byte-level BPE, or a pre-tokenizer that llama.cpp would need another name for.
    """
    try:
        content = parse_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
        config = parse_json((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "use a language model whose tokenizer is saved as tokenizer.json"
        raise ConfigError("the tokenizer cannot be written", who="gguf-export", why=str(error), fix=fix) from None
    model, pre = content["model"], _kind(content)
    added = {token["content"]: token for token in content["added_tokens"]}
    ids = {**model["vocab"], **{text: token["id"] for text, token in added.items()}}
    if max(ids.values()) >= rows:
        why = f"the highest id is {max(ids.values())}, the embedding has {rows} rows"
        raise ConfigError("the tokenizer does not fit the model", who="gguf-export", why=why)
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for text, number in ids.items():
        tokens[number] = text
        kinds[number] = NORMAL if text not in added else CONTROL if added[text]["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    named = {key: _text(config, f"{name}_token") for key, name in (("eos", "eos"), ("padding", "pad"), ("bos", "bos"))}
    template = config.get("chat_template") or ""
    if not template and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    made: dict[str, Any] = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges,
        "add_bos_token": bool(config["andes_gguf"]["bos"] if "andes_gguf" in config else config.get("add_bos_token")),
        **{f"{key}_token_id": ids[text] for key, text in named.items() if text in ids},
    }  # fmt: skip
    found = {f"tokenizer.ggml.{key}": value for key, value in made.items()}
    return {**found, "tokenizer.chat_template": template} if template else found


def _text(config: Mapping[str, Any], key: str) -> str:
    """transformers writes a special token as a text or as a table."""
    value = config.get(key) or ""
    return str(value["content"]) if isinstance(value, Mapping) else str(value)


def _kind(content: Mapping[str, Any]) -> str:
    """Which of llama.cpp's pre-tokenizers a tokenizer.json has."""
    model, step = content["model"], content.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    if model.get("type") == "BPE" and not model.get("byte_fallback"):
        for kind, known in _STEPS.items():
            if list(map(_signature, steps)) == list(map(_signature, known)):
                return kind
    fix = f"known are those of {', '.join(_STEPS)}"
    raise ConfigError("llama.cpp has no name for this tokenizer", who="gguf-export", why=str(steps)[:200], fix=fix)


def _signature(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a step changes the pieces."""
    keys = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex", "individual_digits")
    return tuple(str(step.get(key)) for key in keys)
