"""The vocabulary is built when text needs it, and agrees with what the files stated when they were opened."""

import json
import multiprocessing
import pickle
import sys
import threading
from pathlib import Path

import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact
from andes_qwen3 import small, vocabulary
from andes_qwen3.layout import NAME, OneFile, Packaged, read_stated
from andes_qwen3.tokenizer import QwenTokenizer
from tokenizers import Tokenizer

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError
from andes_sdk.files import FolderFiles
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Inputs, Slot, Turn

TEXT = "The button's at 12 图片 🙂 <|im_end|>"
CONTENT = json.loads(small.TINY.read_text("utf-8"))


class Counted:
    """Files that count how often they are read."""

    def __init__(self, folder):
        self.files, self.reads = FolderFiles(folder), 0

    def __contains__(self, name):
        return name in self.files

    def where(self, name=""):
        return self.files.where(name)

    def read(self, name):
        self.reads += 1
        return self.files.read(name)


class Waiting:
    """Files that are not handed out before they may be, as those of a slow disk."""

    def __init__(self, files):
        self.files, self.asked, self.may = files, threading.Event(), threading.Event()

    def __contains__(self, name):
        return name in self.files

    def where(self, name=""):
        return self.files.where(name)

    def read(self, name):
        self.asked.set()
        assert self.may.wait(60)
        return self.files.read(name)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=3)


@pytest.fixture
def packed(pipeline, tmp_path):
    path = tmp_path / "tiny.andes"
    pack_model(pipeline.model, default_recipe(pipeline.model, "w8"), path, plan=pipeline.plan)
    return path


def written(folder, content, **options):
    path = folder / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, **options), "utf-8")
    return path


def decoded(pipe):
    """Ids in, ids out."""
    session = pipe.compiled.session(KeepAll())
    token = int(session.prefill(Inputs(ids=torch.arange(5))).argmax())
    found = [token, int(session.extend([token])[0][0].argmax())]
    session.commit()
    return found


# ---------------------------------------------------------------- nothing is built before it is needed


def test_an_artefact_is_opened_and_ids_are_decoded_without_a_vocabulary(pipeline, packed):
    pipe = Pipeline.from_pretrained(packed)
    assert f"{pipeline.tokenizer.vocab_size:,} ids" in str(pipe.explain())
    assert all(0 <= i < 512 for i in decoded(pipe))
    assert pipe.processor.tokenizer is pipe.tokenizer
    assert not pipe.tokenizer.built
    assert pipe.tokenizer.encode(TEXT) == QwenTokenizer.load(small.TINY).encode(TEXT)
    assert pipe.tokenizer.built


def test_a_checkpoint_is_saved_and_opened_without_a_vocabulary(tmp_path):
    made = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    made.save_pretrained(tmp_path / "one")
    again = Pipeline.from_pretrained(tmp_path / "one")
    assert decoded(again) == decoded(made)
    again.save_pretrained(tmp_path / "two")
    assert not made.tokenizer.built
    assert not again.tokenizer.built
    one, two = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("one", "two"))
    assert one == two
    assert again.tokenizer.encode(TEXT) == made.tokenizer.encode(TEXT)


def test_the_vocabulary_of_an_artefact_is_never_written_to_a_folder(packed, monkeypatch):
    monkeypatch.setattr(Artefact, "extract", lambda *_: pytest.fail("written"))
    pipe = Pipeline.from_pretrained(packed)
    assert pipe.tokenizer.decode(pipe.tokenizer.encode("two squares")) == "two squares"


# ---------------------------------------------------------------- what is stated is what is built


@pytest.mark.parametrize("files", [OneFile(small.TINY), Packaged()], ids=["tiny", "qwen"])
def test_what_the_files_state_is_what_the_library_finds(files):
    stated, theirs = read_stated(files), Tokenizer.from_buffer(files.read(NAME))
    assert {t["id"]: t["content"] for t in stated.tokens} == {
        number: token.content for number, token in theirs.get_added_tokens_decoder().items()
    }
    assert stated.size == 1 + max(theirs.get_vocab(with_added_tokens=True).values())


@pytest.mark.parametrize(
    "rearranged",
    [
        {k: CONTENT[k] for k in sorted(CONTENT, reverse=True)},
        {k: CONTENT[k] for k in ("model", *(k for k in CONTENT if k != "model"))},
        {**CONTENT, "model": {**CONTENT["model"], "vocab": dict(reversed(CONTENT["model"]["vocab"].items()))}},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_order_and_the_spaces_of_a_file_do_not_matter(tmp_path, rearranged, indent):
    tokenizer = QwenTokenizer.load(written(tmp_path, rearranged, indent=indent))
    assert (tokenizer.vocab_size, tokenizer.eos) == (512, QwenTokenizer.load(small.TINY).eos)
    assert tokenizer.encode(TEXT) == QwenTokenizer.load(small.TINY).encode(TEXT)


@pytest.mark.parametrize("token", ['":9999}', '\\":9999,', '"merges": [', '"}', "\\\\"])
def test_tokens_that_look_like_json_do_not_mislead_the_count_of_ids(tmp_path, token):
    specials = {t["content"]: t["id"] for t in CONTENT["added_tokens"]}
    vocab = {**CONTENT["model"]["vocab"], **specials, token: 512}
    tokenizer = QwenTokenizer.load(written(tmp_path, {**CONTENT, "model": {**CONTENT["model"], "vocab": vocab}}))
    assert tokenizer.vocab_size == 513
    assert tokenizer.encode(TEXT) == QwenTokenizer.load(small.TINY).encode(TEXT)


def test_ids_that_the_library_does_not_keep_are_refused_with_the_files_name(tmp_path):
    # it numbers added tokens itself: those beyond a gap would get other ids than the model was trained with
    tokens = [{**t, "id": t["id"] + 7 * (t["content"] == "</think>")} for t in CONTENT["added_tokens"]]
    tokenizer = QwenTokenizer.load(written(tmp_path, {**CONTENT, "added_tokens": tokens}))
    with pytest.raises(
        CheckpointError, match=r"(?s)tokenizer\.json: does not have the ids that it states.*518 is None"
    ):
        tokenizer.encode("x")


@pytest.mark.parametrize("tokens", [1, [1], [{"id": 1}], [{"id": "1", "content": "x"}], [{"id": 1, "content": ["x"]}]])
def test_special_tokens_that_are_none_are_refused_when_the_file_is_opened(tmp_path, tokens):
    with pytest.raises(CheckpointError, match="special tokens are no such tokens"):
        QwenTokenizer.load(written(tmp_path, {**CONTENT, "added_tokens": tokens}))


# ---------------------------------------------------------------- damage


def test_a_file_cut_short_is_refused_when_it_is_opened(tmp_path):
    text = json.dumps(CONTENT)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as JSON"):
        QwenTokenizer.load(written(tmp_path, text[: text.index('"merges"') - 300]))


def test_damage_behind_the_vocabulary_is_found_at_first_use_and_names_the_file(tmp_path):
    tokenizer = QwenTokenizer.load(written(tmp_path, json.dumps(CONTENT)[:-40]))
    assert tokenizer.vocab_size == 512
    for use in (lambda: tokenizer.encode("x"), lambda: tokenizer.decode([65]), lambda: tokenizer.encode("y")):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer\.json"):
            use()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as JSON"):
        tokenizer.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_that_is_gone_or_another_one_at_first_use_is_refused(tmp_path):
    tokenizer = QwenTokenizer.load(written(tmp_path, CONTENT))
    small.train_small_tokenizer(small.CORPUS, 290).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="does not have the ids that it states"):
        tokenizer.encode("x")
    (tmp_path / "tokenizer.json").unlink()
    for use in (lambda: tokenizer.encode("x"), lambda: tokenizer.save(tmp_path / "copy")):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: is gone since it was opened"):
            use()
    written(tmp_path, CONTENT)
    assert tokenizer.encode(TEXT) == QwenTokenizer.load(small.TINY).encode(TEXT)


def test_one_of_several_files_that_is_gone_is_named(tmp_path):
    model = CONTENT["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    tokenizer = QwenTokenizer.load(tmp_path)
    assert tokenizer.encode(TEXT) == QwenTokenizer.load(small.TINY).encode(TEXT)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: is gone since it was opened"):
        pickle.loads(pickle.dumps(tokenizer)).encode("x")


@pytest.mark.parametrize("name", [".", "tokenizer.json"])
def test_a_relative_path_is_that_of_the_folder_in_which_it_was_opened(tmp_path, monkeypatch, name):
    written(tmp_path, CONTENT)
    monkeypatch.chdir(tmp_path)
    tokenizer = QwenTokenizer.load(Path(name))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    wanted = QwenTokenizer.load(small.TINY).encode(TEXT)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT) == wanted


def test_a_damaged_artefact_is_refused_when_its_tokenizer_is_read(packed):
    data, artefact = packed.read_bytes(), Artefact.open(packed)
    tokenizer = Pipeline.from_pretrained(packed).tokenizer
    at = len(data) - artefact.header.nbytes + artefact.header.files["tokenizer.json"].offset + 5000
    packed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for use in (lambda: tokenizer.encode("x"), lambda: Pipeline.from_pretrained(packed).tokenizer):
        with pytest.raises(CheckpointError, match=r"tiny\.andes: tokenizer\.json: is damaged"):
            use()


# ---------------------------------------------------------------- threads and copies


def test_threads_that_need_the_vocabulary_at_once_build_it_once(tmp_path):
    written(tmp_path, CONTENT)
    files = Counted(tmp_path)
    tokenizer, wanted = QwenTokenizer(files), QwenTokenizer.load(small.TINY).encode(TEXT)
    opened, start, found = files.reads, threading.Barrier(8), []

    def work():
        start.wait()
        found.append(tokenizer.encode(TEXT))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8
    assert files.reads == opened + 1


@pytest.mark.skipif(sys.platform == "win32", reason="no fork() on Windows")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # which is what this is about
def test_a_child_forked_while_a_vocabulary_is_built_builds_its_own():
    files = Waiting(OneFile(small.TINY))
    files.may.set()
    slow, other = QwenTokenizer(files), QwenTokenizer.load(small.TINY)
    files.asked.clear()
    files.may.clear()
    builder = threading.Thread(target=slow.encode, args=("x",))
    builder.start()
    assert files.asked.wait(60)
    child = multiprocessing.get_context("fork").Process(target=other.encode, args=("x",))
    child.start()
    child.join(30)
    code = child.exitcode
    child.kill()
    files.may.set()
    builder.join()
    assert code == 0
    assert slow.built


@pytest.mark.parametrize("built", [False, True])
def test_a_pickled_copy_still_takes_written_out_tokens_for_text(built):
    tokenizer = QwenTokenizer.load(small.TINY)
    turns = [Turn("user", ("".join(vocabulary.SPECIALS), Slot("image"))), Turn("assistant", ("<think>x",))]
    wanted = QwenTokenizer.load(small.TINY).render(turns, think=False, generate=False)
    if built:
        tokenizer.encode("x")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert not copy.built
    assert copy.render(turns, think=False, generate=False) == wanted
