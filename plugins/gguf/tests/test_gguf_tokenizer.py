"""Vocabularies and chat templates of files; transformers and llama.cpp are the oracles."""

import multiprocessing
import pickle
import sys
import threading
from pathlib import Path

import pytest
from andes_adapters.contract import text_parts
from andes_gguf import Gguf
from andes_gguf.small import CHATML, vocabulary, write_small
from andes_gguf.tokenizer import GgufTokenizer
from andes_gguf.vocabulary import from_files, from_metadata
from andes_training.data.rows import Thinking
from attrs import evolve

from andes_sdk.errors import CheckpointError, ConfigError, InputError
from andes_sdk.files import FolderFiles
from andes_sdk.types import Slot, Turn

TEXTS = (
    "the rain, the cat's", "  two  spaces\n\n\ttabs ", "1234567 3.14", "naïve 图片 🙂", "DON'T we'll", "a\r\n b",
)  # fmt: skip


def made(changes=None, *, pre="qwen2", **options):
    data = {**vocabulary(pre), **(changes or {})}
    return GgufTokenizer(from_metadata({k: v for k, v in data.items() if v is not None}, "x.gguf", **options))


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2"])
def test_ids_are_llama_cpps(tmp_path, llama_cpp, pre):
    path = write_small(tmp_path / "model.gguf", pre=pre)
    tokenizer, server = Gguf(path=str(path)).andes_tokenizer(None), llama_cpp(path)
    for text in TEXTS:
        assert tokenizer.encode(text) == server.tokenize(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.filterwarnings("ignore")
def test_smollm2s_chats_are_transformers(tmp_path, smollm2):
    from transformers import AutoTokenizer

    ours = Gguf(path=str(smollm2)).andes_tokenizer(None)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [("user", "Hi  there"), ("assistant", "Hello."), ("user", "\nWhy?")]
    rendered = ours.render([Turn(role, (text,)) for role, text in chat], think=False, generate=True)
    messages = [{"role": role, "content": text} for role, text in chat]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert "You are a helpful AI assistant named SmolLM" in expected
    assert list(rendered.ids) == theirs(expected, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "SentencePiece vocabularies"),
        ({"tokenizer.ggml.model": None}, "kind None"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer 'None'"),
        ({"tokenizer.ggml.merges": None}, "lacks tokenizer.ggml.merges"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "lacks tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "not a type for each"),
        ({"tokenizer.ggml.eos_token_id": None}, "no usable eos token"),
        ({"tokenizer.ggml.padding_token_id": 10**6}, "no usable padding token"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "its vocabulary cannot be used"),
        ({"tokenizer.ggml.token_type": [*[1] * 264, 3, 3, 3, 4, 4, 4]}, "no token can stand for pictures"),
    ],
)
def test_vocabularies_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        made(changes).encode("x")


def test_the_image_token_can_be_chosen():
    assert made().vocabulary.image == "<|vision_pad|>"
    tokens = [*vocabulary()["tokenizer.ggml.tokens"], "<pic>"]
    kinds = [*vocabulary()["tokenizer.ggml.token_type"], 3]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    assert made(changes, image="<pic>").placeholder("image") == len(tokens) - 1
    with pytest.raises(ConfigError, match="no control token"):
        made(image="the")


def test_merges_that_spell_a_control_token_are_refused():
    # "()" is a piece of its own, so with this merge users could write it
    tokens = [*vocabulary()["tokenizer.ggml.tokens"], "()"]
    kinds = [*vocabulary()["tokenizer.ggml.token_type"], 3]
    merges = [*vocabulary()["tokenizer.ggml.merges"], "( )"]
    keys = ("tokens", "token_type", "merges")
    with pytest.raises(CheckpointError, match=r"its merges make \(\)"):
        made({f"tokenizer.ggml.{k}": v for k, v in zip(keys, (tokens, kinds, merges), strict=True)}).encode("x")


def test_a_text_that_starts_with_a_token_gets_it_once():
    start = {"tokenizer.ggml.bos_token_id": vocabulary()["tokenizer.ggml.padding_token_id"]}
    turns = [Turn("user", ("Hi",))]
    plain = made(start).render(turns, think=False, generate=True).ids
    added = made({**start, "tokenizer.ggml.add_bos_token": True}).render(turns, think=False, generate=True).ids
    own = made({**start, "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ bos_token }}" + CHATML})
    assert added == (start["tokenizer.ggml.bos_token_id"], *plain)
    assert own.render(turns, think=False, generate=True).ids == added


def test_thinking_is_told_to_the_template_and_opened():
    tokenizer = made({"tokenizer.chat_template": CHATML + "{% if enable_thinking %}{{ 'hm ' }}{% endif %}"})
    thinking = tokenizer.render([Turn("user", ("Hi",))], think=True, generate=True)
    assert thinking.prefix == "<think>"
    assert tokenizer.decode(thinking.ids).endswith("assistant\nhm <think>")
    plain = vocabulary()
    kinds = [1 if t in ("<think>", "</think>") else k for t, k in zip(plain["tokenizer.ggml.tokens"],
             plain["tokenizer.ggml.token_type"], strict=True)]  # fmt: skip
    without = made({"tokenizer.ggml.token_type": kinds})
    with pytest.raises(InputError, match="no <think>"):
        without.render([Turn("user", ("Hi",))], think=True, generate=True)
    # such a model is trained, and has a contract, all the same
    assert Thinking.of(without) == Thinking("", ())
    assert Thinking.of(tokenizer).text == "<think>"
    assert text_parts(without)["template"] != text_parts(tokenizer)["template"]


def test_an_open_answer_is_continued():
    tokenizer = made()
    whole = [Turn("user", ("Hi",)), Turn("assistant", ("Hello the",))]
    rendered = tokenizer.render(whole, think=False, generate=True)
    closed = tokenizer.render(whole, think=False, generate=False)
    assert rendered.prefix == "Hello the"
    assert closed.ids[: len(rendered.ids)] == rendered.ids
    assert closed.ids[len(rendered.ids)] == tokenizer.eos


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "leaves out or repeats"),
        ("nothing", "leaves out or repeats"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
        ("", "the file has none"),
    ],
)
def test_templates_that_fail_or_reach_out_are_refused(template, message):
    with pytest.raises(InputError, match=message):
        made({"tokenizer.chat_template": template}).render([Turn("user", ("Hi",))], think=False, generate=True)


def test_the_template_can_be_replaced_and_may_reorder():
    turns = [Turn("system", ("S",)), Turn("user", ("U",))]
    template = "{{ messages[1].content | trim }} after {{ messages[0]['content'] }}<|im_end|>"
    tokenizer = made(template=template)
    rendered = tokenizer.render(turns, think=False, generate=False)
    assert tokenizer.decode(rendered.ids) == "U after S"
    assert rendered.ids[-1] == tokenizer.eos
    assert not any(rendered.supervised)


def test_pictures_are_wrapped_where_the_vocabulary_has_words_for_it():
    tokens = [*vocabulary()["tokenizer.ggml.tokens"], "<|vision_start|>", "<|vision_end|>"]
    kinds = [*vocabulary()["tokenizer.ggml.token_type"], 3, 3]
    tokenizer = made({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    ids = tokenizer.render([Turn("user", ("a", Slot("image"), "b"))], think=False, generate=False).ids
    at = ids.index(tokenizer.placeholder("image"))
    assert (ids[at - 1], ids[at + 1]) == (len(tokens) - 2, len(tokens) - 1)


# ---------------------------------------------------------------- built late


def test_relative_paths_are_those_of_the_folder_in_which_they_were_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path / "model.gguf")
    whole = Gguf(path="model.gguf").andes_tokenizer(None)
    whole.save(Path("saved"))
    saved = GgufTokenizer(from_files(FolderFiles(Path("saved"))))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    copies = [pickle.loads(pickle.dumps(tokenizer)) for tokenizer in (whole, saved)]
    assert not saved.built
    assert [t.encode(TEXTS[0]) for t in (whole, saved, *copies)] == [made().encode(TEXTS[0])] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="no fork() on Windows")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # which is what this is about
def test_a_child_forked_while_a_vocabulary_is_built_builds_its_own():
    asked, may, data = threading.Event(), threading.Event(), made().vocabulary

    def read():
        asked.set()
        assert may.wait(60)
        return data.read()

    slow, other = GgufTokenizer(evolve(data, read=read)), GgufTokenizer(data)
    builder = threading.Thread(target=slow.encode, args=("x",))
    builder.start()
    assert asked.wait(60)
    child = multiprocessing.get_context("fork").Process(target=other.encode, args=("x",))
    child.start()
    child.join(30)
    code = child.exitcode
    child.kill()
    may.set()
    builder.join()
    assert code == 0
    assert slow.built
