"""Every decoder with every cache policy, on one model: they meet only through a session."""

from __future__ import annotations

import itertools

import pytest
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.reference import ReferenceBackend, ReferenceDecoder, ReferencePolicy

DECODERS = {"autoregressive": [], "prompt-lookup": [ReferenceDecoder(depth=4)]}
POLICIES = {"keep-all": [], "recent": [ReferencePolicy(rows=12)]}
BACKENDS = {"torch": [], "reference-backend": [ReferenceBackend()]}
OPTIONS = [GenerationOptions(max_tokens=24), GenerationOptions(max_tokens=24, temperature=0.9, top_p=0.9, seed=5)]


def built(tiny, decoder: str, policy: str, backend: str = "torch") -> Pipeline:
    return Pipeline.from_plugins([*tiny, *DECODERS[decoder], *POLICIES[policy], *BACKENDS[backend]], backend=backend)


def question() -> list:
    content = [
        {"type": "image", "image": Image.new("RGB", (80, 60), "teal")},
        {"type": "text", "text": "is it, is it, is it?"},
    ]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(("decoder", "policy", "backend"), list(itertools.product(DECODERS, POLICIES, BACKENDS)))
def test_every_combination_answers_streams_and_batches_alike(tiny, decoder: str, policy: str, backend: str) -> None:
    pipeline = built(tiny, decoder, policy, backend)
    for options in OPTIONS:
        answer = pipeline.generate(question(), options)
        assert len(answer.tokens) == 24 or answer.finish == "stop"
        assert "".join(pipeline.stream(question(), options)) == answer.text
        assert [a.tokens for a in pipeline.generate_batch([question(), question()], options)] == [answer.tokens] * 2


@pytest.mark.parametrize("options", OPTIONS)
def test_a_guessing_decoder_gives_the_text_of_the_default_one(tiny, options: GenerationOptions) -> None:
    plain = built(tiny, "autoregressive", "keep-all").generate(question(), options)
    guessed = built(tiny, "prompt-lookup", "keep-all").generate(question(), options)
    assert guessed.tokens == plain.tokens


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_evicting_policy_bounds_memory_under_every_decoder(tiny, decoder: str) -> None:
    options = GenerationOptions(max_tokens=24)
    full = built(tiny, decoder, "keep-all").generate(question(), options)
    small = built(tiny, decoder, "recent").generate(question(), options)
    # two layers, two KV heads of 16, keys and values in float32; the last proposal may still be uncommitted
    assert small.kv_bytes <= (12 + 5) * 2 * 2 * 2 * 16 * 4
    assert small.kv_bytes < full.kv_bytes


def test_two_decoders_or_two_policies_are_refused(tiny) -> None:
    from andes_sdk.errors import AssemblyError

    with pytest.raises(AssemblyError, match="cannot assemble") as caught:
        Pipeline.from_plugins([*tiny, ReferenceDecoder(), ReferenceDecoder()])
    assert "referencedecoder" in str(caught.value)
