"""What models read from files compute: against llama.cpp and against transformers' own reading of GGUF."""

import numpy as np
import pytest
import torch
from andes_gguf.small import write_small

from andes_sdk import Pipeline
from andes_sdk.runtime.attention import PackedAttention, Segment

IDS = [5, 77, 200, 12, 130, 9, 33, 250, 61, 18] * 8
ARCHITECTURES = ("llama", "qwen2", "qwen3")


def pipeline(path, *more):
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"gguf": {"path": str(path)}}, *more])


@torch.no_grad()
def logprobs(pipe, ids):
    model, ids = pipe.model.language_model, torch.tensor(ids)
    hidden = model.hidden_states(model.embed(ids), torch.arange(len(ids)), PackedAttention([Segment(len(ids))]))
    return torch.log_softmax(model.logits(hidden)[-1].double(), -1).numpy()


def scaled(kind, architecture):
    found = {f"{architecture}.rope.scaling.type": kind, f"{architecture}.rope.scaling.factor": 4.0}
    if kind == "yarn":  # 512 positions are four times 128
        found[f"{architecture}.rope.scaling.original_context_length"] = 128
    return found


def variants():
    for name in ARCHITECTURES:
        yield name, "plain", {}
        yield name, "head of its own", {"tied": False}
        yield (
            name,
            "other base and epsilon",
            {"extra": {f"{name}.rope.freq_base": 500.0, f"{name}.attention.layer_norm_rms_epsilon": 1e-2}},
        )
        yield name, "linear", {"extra": scaled("linear", name)}
        yield name, "yarn", {"extra": scaled("yarn", name)}
        yield name, "wide", {"width": 64, "head": 16}
    # Llama 3.1 and later state the divisors of their frequencies
    yield "llama", "factors", {"arrays": {"rope_freqs.weight": np.array([1, 1.5, 3, 8], np.float32)}}
    yield "qwen3", "heads wider than the model", {"head": 32}


VARIANTS = list(variants())


@pytest.mark.parametrize(
    ("name", "variant", "options"), list(variants()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_logits_are_those_of_llama_cpp(tmp_path, llama_cpp, name, variant, options):
    path = write_small(tmp_path / "model.gguf", name, half=False, **options)
    ours, plain = logprobs(pipeline(path), IDS), None
    # float32 matrices: llama.cpp rounds nothing, what is left is the order of additions (seen: 6e-6)
    assert np.abs(ours - llama_cpp(path).logprobs(IDS, len(ours))).max() < 1e-4
    if "extra" in options or "arrays" in options:
        plain = logprobs(pipeline(write_small(tmp_path / "plain.gguf", name, half=False)), IDS)
        assert np.abs(ours - plain).max() > 1e-2, "the variant changes nothing, so the comparison shows nothing"


@pytest.mark.filterwarnings("ignore")  # transformers warns of what it does itself
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_and_logits_are_those_that_transformers_reads(tmp_path, name):
    from transformers import AutoModelForCausalLM

    # of Qwen3 transformers reads no head size, and takes 128
    path = write_small(tmp_path / "model.gguf", name, **({"head": 128} if name == "qwen3" else {}))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    pipe = pipeline(path)
    ours = pipe.model.language_model.state_dict()
    assert set(theirs.state_dict()) == set(ours)
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())
    with torch.no_grad():
        logits = theirs(torch.tensor([IDS])).logits[0, -1]
    # the same weights and arithmetic, but for another attention kernel
    assert np.abs(logprobs(pipe, IDS) - torch.log_softmax(logits.double(), -1).numpy()).max() < 1e-4


def test_a_checkpoint_needs_the_file_no_more(tmp_path):
    path = write_small(tmp_path / "model.gguf", "qwen2", extra=scaled("yarn", "qwen2"))
    pipe = pipeline(path)
    answer, before = pipe.chat("the cat", max_tokens=4), logprobs(pipe, IDS)
    pipe.save_pretrained(tmp_path / "saved")
    path.unlink()
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert "path" not in next(p for p in again.plan.plugins if p.name == "gguf").options
    assert np.array_equal(logprobs(again, IDS), before)
    assert again.chat("the cat", max_tokens=4) == answer


# ---------------------------------------------------------------- the real SmolLM2


def test_smollm2_answers(smollm2):
    assert pipeline(smollm2).chat("What is the capital of France?", max_tokens=16) == "The capital of France is Paris."


def test_smollm2_with_float32_numbers_is_llama_cpps_and_its_tokens_are(tmp_path, smollm2, llama_cpp):
    pipe = pipeline(smollm2, {"gguf-export": {"type": "F32"}})
    assert pipe.tokenizer.vocabulary.image == "<empty_output>"
    path = tmp_path / "model.gguf"
    assert pipe.pick("exporters", "gguf").export(pipe, path)["lossless"]
    server = llama_cpp(path)
    for text in ("Hello,  world! 1234 + 5", "<|im_end|> naïve 图片 🙂\n\n\tdef f(x):\n        return x"):
        assert pipe.tokenizer.encode(text) == server.tokenize(text)
    ids = pipe.tokenizer.encode("The capital of France is Paris. The capital of Germany is")
    ours = logprobs(pipe, ids)
    assert pipe.tokenizer.decode([int(ours.argmax())]) == " Berlin"
    # the same float32 numbers in 30 layers, added in another order (seen: 4e-5)
    assert np.abs(ours - server.logprobs(ids, len(ours))).max() < 1e-3


def test_smollm2_as_it_is_stays_near_llama_cpp(smollm2, llama_cpp):
    pipe = pipeline(smollm2)
    ids = pipe.tokenizer.encode("The capital of France is Paris. The capital of Germany is")
    ours, theirs = logprobs(pipe, ids), llama_cpp(smollm2).logprobs(ids, pipe.tokenizer.vocab_size)
    # llama.cpp rounds every activation to 8 bits before a Q4_1 product, 211 times (seen: mean 0.29 of a range of 30)
    assert ours.argmax() == theirs.argmax()
    assert np.abs(ours - theirs).mean() < 0.6
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
