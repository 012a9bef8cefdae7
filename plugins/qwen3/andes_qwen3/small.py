"""Small tokenizers for small models: byte-level BPE trained on given texts, with the special tokens of Qwen3.

`python -m andes_qwen3.small` writes `data/tiny_tokenizer.json` again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from andes_sdk.errors import ConfigError
from andes_sdk.files import write_atomically

from .vocabulary import PATTERN, SPECIALS, assemble, byte_alphabet

TINY = Path(__file__).parent / "data" / "tiny_tokenizer.json"
TINY_SIZE = 512
CORPUS = (
    "user assistant system\nDescribe this picture. What is written in the picture? What is the colour of the square?",
    "The square is red, the circle is blue and the triangle is green. There are two shapes in the picture.",
    "Where is the button? The button is at the top left of the screen. Tap the button, then open the settings.",
    "How many circles are there? There are three circles. The answer is 3. Left, right, top, bottom, centre.",
    "First look at the picture, then count the shapes, then answer the question. Think before the answer.",
    "Box: (120,250),(480,730) (10,20),(300,400) (0,0),(999,1000) (512,64),(768,128)",
    "图片里有什么？图片里有一个红色的方块。按钮在屏幕的左上角。答案是三。",
    "def area(width, height):\n    return width * height\n\nfor line in lines:\n    print(line)\n",
)


def train_small_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids: 256 bytes, merges learned from `texts`, then the special tokens.

    Deterministic. Save it with `tokenizer.save("tokenizer.json")` and load it with `QwenTokenizer.load`.

    Raises:
        ConfigError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIALS)
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size must be at least {smallest}, got {vocab_size}", who="train_small_tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Pattern(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        initial_alphabet=sorted(byte_alphabet().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return Tokenizer.from_str(json.dumps(assemble(learned["vocab"], learned["merges"])))


def write_tiny(path: Path = TINY) -> None:
    """Write the tokenizer of the tiny preset."""
    write_atomically(path, train_small_tokenizer(CORPUS, TINY_SIZE).to_str(pretty=True).encode() + b"\n")


if __name__ == "__main__":
    write_tiny()
