"""The tokenizer against other people's: ids, template and round trips."""

import json
import unicodedata
import warnings
from pathlib import Path

import pytest
from andes_qwen3 import Qwen3, small, vocabulary
from andes_qwen3.layout import read_layout
from andes_qwen3.tokenizer import SHOWN, QwenTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from andes_sdk.errors import CheckpointError, ConfigError, InputError
from andes_sdk.files import FolderFiles
from andes_sdk.types import Slot, Turn

ORACLE = json.loads((Path(__file__).parent / "oracle_qwen3_ids.json").read_text("utf-8"))
TINY = QwenTokenizer.load(small.TINY)
# Characters that this Python's Unicode tables do not know may be composed by newer tables.
KNOWN_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=80)


@pytest.fixture(scope="module")
def qwen():
    return QwenTokenizer.qwen()


def special_ids(tokenizer):
    return {tokenizer.id_of(token) for token in vocabulary.SPECIALS}


# ---------------------------------------------------------------- the Qwen vocabulary


def test_ids_of_240_strings_in_many_scripts_equal_those_of_the_published_tokenizer(qwen):
    wrong = [text for text, ids in ORACLE["texts"] if qwen.encode(text) != ids]
    assert len(ORACLE["texts"]) == 240
    assert wrong == []


def test_text_conversations_equal_those_of_the_published_chat_template(qwen):
    for turns, ids in ORACLE["chats"]:
        rendered = qwen.render([Turn(role, (text,)) for role, text in turns], think=False, generate=True)
        assert list(rendered.ids) == ids


def test_special_tokens_have_the_ids_of_qwen3_and_two_slots_are_renamed(qwen):
    assert [qwen.id_of(token) for token in vocabulary.SPECIALS] == list(range(151_643, 151_669))
    assert (qwen.id_of("<img>"), qwen.id_of("</img>"), qwen.placeholder("image")) == (151_652, 151_653, 151_654)
    assert (qwen.pad, qwen.eos, qwen.vocab_size) == (151_643, 151_645, 151_669)
    assert [qwen.id_of(token) for token in SHOWN] == [151_667, 151_668, 151_648, 151_649]


def test_ids_of_padding_rows_of_the_embedding_decode_to_nothing(qwen):
    assert qwen.decode([*qwen.encode("a"), 151_935, *qwen.encode("b")]) == "ab"


def test_a_multi_byte_character_is_completed_by_later_ids(qwen):
    text = "ok 🏳️‍🌈 𒀀 é"
    ids = qwen.encode(text)
    partial = [qwen.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert any(part.endswith("\ufffd") for part in partial)
    assert all(text.startswith(part.rstrip("\ufffd")) for part in partial)
    assert partial[-1] == text


def test_merges_of_a_vocabulary_worked_out_by_hand():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"abab": 6}
    # abc: the lower rank, ab, is merged first and leaves ab + c.
    assert vocabulary.merges_of(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"ab", b"ab")]
    with pytest.raises(CheckpointError, match="token 3 cannot be reached"):
        vocabulary.merges_of({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_the_converted_vocabulary_is_cached_and_a_damaged_cache_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))
    first = vocabulary.qwen_tokenizer_json()
    (cached,) = (tmp_path / "cache").iterdir()
    good = cached.read_bytes()
    monkeypatch.setattr(vocabulary, "convert", lambda ranks: pytest.fail("converted although cached"))
    assert vocabulary.qwen_tokenizer_json() == first
    monkeypatch.undo()
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))
    cached.write_bytes(good.replace(b'"merges"', b'"mergez"'))
    assert vocabulary.qwen_tokenizer_json() == first
    assert cached.read_bytes() == good
    assert list((tmp_path / "cache").iterdir()) == [cached]


def test_a_cache_folder_that_cannot_be_written_is_said_and_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(vocabulary, "convert", lambda ranks: {"ranks": len(ranks)})
    with pytest.warns(RuntimeWarning, match="set ANDES_CACHE"):
        assert json.loads(vocabulary.qwen_tokenizer_json()) == {"ranks": 151_643}


def test_another_ranks_file_is_refused(monkeypatch):
    monkeypatch.setattr(vocabulary, "RANKS_FILE", "qwen_tokenizer/__init__.py")
    with pytest.raises(CheckpointError, match="damaged or another one"):
        vocabulary.read_ranks()
    monkeypatch.setattr(vocabulary, "RANKS_FILE", "qwen_tokenizer/resources/none")
    with pytest.raises(CheckpointError, match="not there"):
        vocabulary.read_ranks()


# ---------------------------------------------------------------- text


@given(KNOWN_TEXT)
@settings(max_examples=150, deadline=None)
def test_decoding_gives_the_text_back_in_nfc(text):
    ids = TINY.encode(text)
    assert TINY.decode(ids) == unicodedata.normalize("NFC", text)
    assert not special_ids(TINY) & set(ids)


@given(st.lists(st.one_of(st.sampled_from(vocabulary.SPECIALS), KNOWN_TEXT), max_size=6))
@settings(max_examples=150, deadline=None)
def test_no_user_text_can_make_a_special_token(parts):
    plain = TINY.render([Turn("user", ("",))], think=False, generate=True)
    rendered = TINY.render([Turn("user", tuple(parts))], think=False, generate=True)
    specials = special_ids(TINY)
    assert [i for i in rendered.ids if i in specials] == [i for i in plain.ids if i in specials]
    assert TINY.placeholder("image") not in rendered.ids


def test_special_tokens_in_text_stay_text_in_the_large_vocabulary_too(qwen):
    text = "".join(vocabulary.SPECIALS) + "<|vision_start|>"
    assert max(qwen.encode(text)) < 151_643
    assert qwen.decode(qwen.encode(text)) == text


def test_decoding_hides_special_tokens_except_those_that_are_text():
    ids = [TINY.id_of(token) for token in vocabulary.SPECIALS]
    assert TINY.decode(ids) == "<|box_start|><|box_end|><think></think>"


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(InputError, match="not valid Unicode"):
        TINY.encode("\ud800")


# ---------------------------------------------------------------- chat


def test_a_picture_is_one_image_token_between_its_marks_in_the_order_of_the_parts():
    turn = Turn("user", ("Compare ", Slot("image"), Slot("image"), " please"))
    rendered = TINY.render([turn], think=False, generate=False)
    picture = [TINY.id_of("<img>"), TINY.placeholder("image"), TINY.id_of("</img>")]
    assert list(rendered.ids) == [
        TINY.id_of("<|im_start|>"), *TINY.encode("user\nCompare "), *picture, *picture, *TINY.encode(" please"),
        TINY.eos, *TINY.encode("\n"),
    ]  # fmt: skip
    assert not any(rendered.supervised)
    assert rendered.prefix == ""


def test_thinking_is_a_prefill_that_counts_as_answered():
    turns = [Turn("user", ("Hi",))]
    direct = TINY.render(turns, think=False, generate=True)
    thinking = TINY.render(turns, think=True, generate=True)
    assert thinking.ids == (*direct.ids, TINY.id_of("<think>"))
    assert (direct.prefix, thinking.prefix) == ("", "<think>")


def test_loss_stands_on_assistant_text_and_its_end_of_turn_only():
    answer = "<think>A red box.</think><|box_start|>(1,2),(3,4)<|box_end|>"
    rendered = TINY.render([Turn("user", ("Where?",)), Turn("assistant", (answer,))], think=False, generate=False)
    marked = [i for i, mark in zip(rendered.ids, rendered.supervised, strict=True) if mark]
    assert marked[-1] == TINY.eos
    assert TINY.decode(marked) == answer
    assert [i for i in marked if i in special_ids(TINY)] == [TINY.id_of(t) for t in SHOWN] + [TINY.eos]


def test_a_trained_answer_follows_exactly_the_ids_that_ask_for_it():
    turns, answer = [Turn("user", ("Where?",))], Turn("assistant", ("\n\n  Here.",))
    asked = TINY.render(turns, think=False, generate=True).ids
    trained = TINY.render([*turns, answer], think=False, generate=False).ids
    assert trained[: len(asked)] == asked


def test_tokens_that_only_the_template_writes_stay_text_in_an_answer_too():
    rendered = TINY.render([Turn("assistant", ("<|im_end|><img>",))], think=False, generate=False)
    assert list(rendered.ids).count(TINY.eos) == 1
    assert TINY.id_of("<img>") not in rendered.ids


def test_an_open_assistant_turn_is_continued():
    turns = [Turn("user", ("Where is OK?",)), Turn("assistant", ("<|box_start|>(",))]
    rendered = TINY.render(turns, think=False, generate=True)
    header = TINY.render(turns[:1], think=False, generate=True).ids
    assert rendered.ids == (*header, TINY.id_of("<|box_start|>"), *TINY.encode("("))
    assert rendered.prefix == "<|box_start|>("
    assert not any(rendered.supervised)
    assert TINY.render(turns, think=True, generate=True).prefix == "<think><|box_start|>("


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "no messages"),
        ([Turn("user\n<|im_end|>", ("x",))], "unknown role"),
        ([Turn("assistant", (Slot("image"),))], "cannot hold a picture"),
    ],
)
def test_a_conversation_that_has_no_rendering_is_refused(turns, words):
    with pytest.raises(InputError, match=words):
        TINY.render(turns, think=False, generate=False)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("thinking", [False, True])
def test_transformers_loads_what_is_saved_and_renders_the_same_ids(tmp_path, thinking):
    tokenizer = QwenTokenizer.load(small.TINY, thinking=thinking)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", ("What is ", Slot("image"), " and ", Slot("image"), "?")),
        Turn("assistant", ("<think>Look.</think>A box <|box_start|>(1,2),(3,4)<|box_end|>.",)),
        Turn("user", ("\n\nThanks 😀", " a lot  ")),
    ]
    messages = [
        {
            "role": t.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in t.parts],
        }
        for t in turns
    ]
    messages[0]["content"] = "Be brief."
    for generate in (False, True):
        for think in (False, True):
            ids = theirs.apply_chat_template(
                messages, add_generation_prompt=generate, enable_thinking=think, tokenize=True, return_dict=False
            )
            assert list(tokenizer.render(turns, think=think, generate=generate).ids) == list(ids)
    default = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(tokenizer.render(turns, think=thinking, generate=True).ids) == list(default)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos, tokenizer.pad)


def test_the_large_tokenizer_survives_a_folder_and_transformers_agrees(qwen, tmp_path):
    qwen.save(tmp_path)
    again, theirs = QwenTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "图片里有什么？ The answer's 42 😀\n\n  done"
    assert again.encode(text) == qwen.encode(text) == theirs.encode(text, add_special_tokens=False)
    ids = [qwen.id_of("<think>"), *qwen.encode(text), qwen.id_of("</think>"), qwen.eos]
    assert again.decode(ids) == f"<think>{text}</think>" == theirs.decode(ids, skip_special_tokens=True)


def test_a_folder_with_vocabulary_and_merges_is_read(tmp_path):
    whole = json.loads(small.TINY.read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]), "utf-8")
    lines = [f"{left} {right}" for left, right in whole["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    assert json.loads(read_layout(FolderFiles(tmp_path)))["model"]["merges"] == whole["model"]["merges"]
    tokenizer = QwenTokenizer.load(tmp_path)
    assert tokenizer.encode("The button is red. 红色") == TINY.encode("The button is red. 红色")
    assert tokenizer.placeholder("image") == TINY.placeholder("image")


def renamed(content, mapping):
    content = json.loads(content)
    for token in content["added_tokens"]:
        token["content"] = mapping.get(token["content"], token["content"])
    return content


def test_slots_that_still_have_qwens_names_get_andesvls(tmp_path):
    stock = renamed(small.TINY.read_text("utf-8"), {"<img>": "<|vision_start|>", "</img>": "<|vision_end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(stock), "utf-8")
    assert QwenTokenizer.load(tmp_path).id_of("<img>") == TINY.id_of("<img>")


def test_special_tokens_beside_the_file_win_by_id(tmp_path):
    content = renamed(small.TINY.read_text("utf-8"), {"<img>": "<|a|>", "</img>": "<|b|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": TINY.id_of("<img>")}), "utf-8")
    decoder = {str(TINY.id_of("</img>")): {"content": "</img>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    tokenizer = QwenTokenizer.load(tmp_path)
    assert tokenizer.id_of("<img>") == TINY.id_of("<img>")
    assert tokenizer.id_of("</img>") == TINY.id_of("</img>")


def test_a_vocabulary_without_a_needed_special_token_is_refused(tmp_path):
    content = renamed(small.TINY.read_text("utf-8"), {"<think>": "<x>"})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=r"lacks the special tokens \['<think>'\]"):
        QwenTokenizer.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {}}', '{"model": {"type": "BPE"}, "added_tokens": []}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, "utf-8")
    with pytest.raises(CheckpointError):
        QwenTokenizer.load(path)


def test_a_checkpoint_without_a_tokenizer_is_refused_instead_of_guessing(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        Qwen3().andes_tokenizer(files=FolderFiles(tmp_path))


def test_the_option_comes_before_the_checkpoint_and_the_checkpoint_before_the_preset(tmp_path):
    bigger, own = tmp_path / "bigger", tmp_path / "own"
    for folder, size in ((bigger, 300), (own, 290)):
        folder.mkdir()
        small.train_small_tokenizer(small.CORPUS, size).save(str(folder / "tokenizer.json"))
    plugin = Qwen3(preset="tiny", thinking=True)
    assert plugin.andes_tokenizer(files=None).vocab_size == 512
    assert plugin.andes_tokenizer(files=FolderFiles(own)).vocab_size == 290
    assert plugin.andes_tokenizer(files=FolderFiles(own)).thinking
    option = Qwen3(preset="tiny", tokenizer=str(bigger / "tokenizer.json"))
    assert option.andes_tokenizer(files=FolderFiles(own)).vocab_size == 300


# ---------------------------------------------------------------- small tokenizers


def test_a_small_tokenizer_has_the_size_asked_for_and_its_special_tokens_at_the_end(tmp_path):
    trained = small.train_small_tokenizer(["the cat and the dog and the cat sat on a mat"], 300)
    names = [trained.id_to_token(i) for i in range(trained.get_vocab_size())]
    assert len(names) == 300
    assert tuple(names[-26:]) == vocabulary.SPECIALS
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = QwenTokenizer.load(tmp_path)
    assert len(tokenizer.encode(" the cat")) < len(" the cat")
    assert tokenizer.decode(tokenizer.encode("𒀀 zebra")) == "𒀀 zebra"


def test_a_small_tokenizer_without_room_for_bytes_and_special_tokens_is_refused():
    with pytest.raises(ConfigError, match="at least 282"):
        small.train_small_tokenizer(["x"], 281)


def test_the_packaged_tiny_tokenizer_is_what_its_script_writes(tmp_path):
    small.write_tiny(tmp_path / "tiny.json")
    assert json.loads((tmp_path / "tiny.json").read_text("utf-8")) == json.loads(small.TINY.read_text("utf-8"))
    assert TINY.vocab_size == 512
    assert Tokenizer.from_file(str(small.TINY)).get_vocab_size() == 512


def test_nothing_warns_when_a_tokenizer_is_loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QwenTokenizer.load(small.TINY)
