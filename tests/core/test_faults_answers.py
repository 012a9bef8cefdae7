"""Faults that users of similar software met, each with the right value; the letters are rows of the list of faults."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import AndesError, AssemblyError, ConfigError, InputError, NotFinite
from andes_sdk.reading import json_lines, parse_json, parse_toml
from andes_sdk.runtime.generation import Answer, GenerationOptions
from andes_sdk.runtime.sampling import TokenSampler

PARTS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)


@pytest.fixture
def pipe():
    return Pipeline.from_plugins(PARTS, image={"min_size": 28})


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "my photo.png"
    Image.new("RGB", (1200, 900), (200, 30, 30)).save(path)
    return path


# ---------------------------------------------------------------- A1: output that is not finite


def test_a1_output_that_is_not_finite_names_its_first_part_and_the_precision():
    pipe = Pipeline.from_plugins(PARTS, image={"min_size": 28}, dtype="float16")
    with torch.no_grad():
        for weight in pipe.model.projector.parameters():
            weight.mul_(3e4).add_(3e4)
    asked = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (56, 56))}]}]
    for how in ({}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}):
        with pytest.raises(NotFinite) as caught:
            pipe.generate(asked, GenerationOptions(max_tokens=3, **how))
        assert "not finite" in str(caught.value)
        assert "mlp" in str(caught.value)
        assert "float16" in str(caught.value)


def test_a1_a_weight_that_is_not_a_number_is_named(pipe):
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        pipe.model.get_parameter(name)[0, 0] = torch.nan
    with pytest.raises(NotFinite, match=r"layers\.1\.mlp\.up_proj"):
        pipe.generate("hello", GenerationOptions(max_tokens=2))


# ---------------------------------------------------------------- A2: a limit reached midway


def test_a2_a_full_context_ends_the_answer_and_keeps_its_text():
    small = {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": 64}}}
    pipe = Pipeline.from_plugins([*PARTS[:2], small], image={"min_size": 28})
    pipe.tokenizer.eos = pipe.tokenizer.pad  # an answer that would not end
    options = GenerationOptions(max_tokens=500, temperature=1.0, seed=3)
    answer = pipe.generate("tell me", options)
    if answer.finish == "stop":
        pytest.fail("the answer ended before the context was full: choose another seed")
    assert answer.finish == "length"
    assert answer.prompt_tokens + len(answer.tokens) == 65  # the last token need not be read
    assert "".join(pipe.stream("tell me", options)) == answer.text
    assert pipe.generate_batch(["tell me", "hello"], options)[0].text == answer.text


# ---------------------------------------------------------------- A3: the size of pictures


def test_a3_pictures_have_their_size_at_load_and_per_request(pipe, picture, tmp_path):
    asked = [{"role": "user", "content": [{"type": "image", "image": str(picture)}]}]
    with pytest.raises(InputError, match="image_size"):
        Pipeline.from_plugins(
            [*PARTS[:2], {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": 256}}}]
        ).prepare(asked)
    wide = pipe.prepare(asked).media["image"].rows[0]
    small = pipe.prepare(asked, image_size=112).media["image"].rows[0]
    assert small <= (112 // 28 + 1) ** 2 < wide
    assert pipe.prepare(asked, image_size=10**4).media["image"].rows[0] == wide  # never enlarged
    answer = pipe.generate(asked, GenerationOptions(max_tokens=1, image_size=112))
    assert answer.prompt_tokens == len(pipe.prepare(asked, image_size=112).ids)
    folder = pipe.save_pretrained(tmp_path / "model")
    opened = Pipeline.from_pretrained(folder, image={"min_size": 28, "max_size": 112})
    assert opened.prepare(asked).media["image"].rows[0] == small


# ---------------------------------------------------------------- A4, A6: options


def test_a4_one_stop_string_is_one_string():
    assert GenerationOptions(stop="red").stop == ("red",)
    assert GenerationOptions(stop=["red", "blue"]).stop == ("red", "blue")
    assert structure(GenerationOptions, {"stop": ["red"]}, "generation").stop == ("red",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", float("inf")), ("repetition_penalty", 0.0), ("temperature", 1e-320),
        ("temperature", float("nan")), ("temperature", -1.0), ("presence_penalty", float("nan")), ("seed", 2**64),
        ("seed", -1), ("max_tokens", "5"), ("max_tokens", 2.0), ("max_tokens", True), ("top_p", float("nan")),
        ("min_p", 1.5), ("top_k", "3"), ("logprobs", 10**6), ("stop", 5), ("stop", [""]), ("image_size", 0),
    ],
)  # fmt: skip
def test_a6_a_number_out_of_range_is_refused_however_it_comes(name, value):
    with pytest.raises(ConfigError, match=name):
        GenerationOptions(**{name: value})
    with pytest.raises(AssemblyError) as caught:
        structure(GenerationOptions, {name: value}, "generation")
    assert name in str(caught.value.problems[0])


# ---------------------------------------------------------------- A5: lines


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a5_lines_end_at_line_feeds_alone_and_blank_ones_do_not_count(tmp_path, start):
    file = tmp_path / "in.jsonl"
    file.write_text(start + '"one\u2028two"\n\n  \n"three\x85"\r\n', encoding="utf-8", newline="")
    assert [(number, parse_json(line)) for number, _, line in json_lines(file)] == [
        (1, "one\u2028two"),
        (4, "three\x85"),
    ]


def test_a5_batches_take_what_training_takes(pipe, tmp_path):
    from andes_evaluation.batch import BatchJob
    from andes_training.data.lines import JsonLines

    file = tmp_path / "in.jsonl"
    row = {"messages": [{"role": "user", "content": "a\u2028b"}]}
    file.write_text(
        "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for _ in range(2)) + "\n", encoding="utf-8"
    )
    assert [JsonLines(file).entry(i) for i in range(2)] == [row, row]
    file.write_text("\ufeff" + '"a\u2028b"\n\n"c"\n', encoding="utf-8")
    done = BatchJob(pipe, GenerationOptions(max_tokens=1), file, tmp_path / "out.jsonl").run()
    assert (done["answered"], done["failed"]) == (2, 0)


@pytest.mark.parametrize("read", [lambda: parse_json("[" * 10**5), lambda: parse_toml("a = " + "[" * 10**4)])
def test_a5_what_is_nested_too_deeply_is_no_json(read):
    with pytest.raises(ValueError, match=r"inside one another|Invalid|invalid|Expecting"):
        read()


# ---------------------------------------------------------------- A8, A10: the terminal, and parts of messages


def test_a8_a_terminal_without_unicode_gets_what_it_can_show(tmp_path):
    code = (
        "import typer, andes_sdk.cli as c; c.app.command('say')(lambda: typer.echo('a \\U0001f600 b')); "
        "import sys; sys.argv = ['andes', 'say']; c.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"}
    )
    assert done.stdout == b"a ? b\n", done.stderr


def test_a8_json_stays_whole_in_a_terminal_without_unicode():
    code = "from andes_sdk.cli.console import print_json, tolerate; tolerate(); print_json({'text': '\\U0001f600'})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"}
    )
    assert json.loads(done.stdout) == {"text": "\U0001f600"}, done.stderr


def test_a10_a_part_in_another_library_s_form_says_what_was_meant(pipe):
    for key in ("url", "path"):
        with pytest.raises(InputError, match=r"did you mean .*'image'") as caught:
            pipe.prepare([{"role": "user", "content": [{"type": "image", key: "a.png"}]}])
        assert caught.value.who == "messages[0].content[0].image"


# ---------------------------------------------------------------- A11: penalties


def test_a11_penalties_spare_the_tokens_that_end_answers():
    logits = torch.zeros(8)
    logits[5], logits[2] = 3.0, 2.0
    prompt = [5, 2, 5]
    options = GenerationOptions(repetition_penalty=100.0, presence_penalty=0.0)
    assert TokenSampler(options, prompt, {5}).next(logits, 0) == 5
    assert (
        TokenSampler(GenerationOptions(repetition_penalty=100.0, penalise_ends=True), prompt, {5}).next(logits, 0) == 5
    )
    logits[5] = 1.5  # penalised it is 0.015, the other 0.02
    assert (
        TokenSampler(GenerationOptions(repetition_penalty=100.0, penalise_ends=True), prompt, {5}).next(logits, 0) == 2
    )
    assert TokenSampler(options, prompt, {5}).next(logits, 0) == 5


# ---------------------------------------------------------------- what was missing


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nTwo and two.\n</think>\n\n4", "Two and two.", "4"),
        ("<think>cut", "cut", ""),
        ("4", "", "4"),
        ("a <think>b</think>", "", "a <think>b</think>"),
    ],
)
def test_reasoning_stands_apart_from_the_answer(text, reasoning, content):
    answer = Answer(text=text, tokens=(1,), finish="stop", prompt_tokens=1, seconds={"first_token": 1.0}, kv_bytes=0)
    assert (answer.reasoning, answer.content) == (reasoning, content)
    assert answer.to_dict()["reasoning"] == reasoning


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "andes_sdk", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("andes_sdk ")


def test_errors_are_ours():
    assert issubclass(ConfigError, AndesError)
