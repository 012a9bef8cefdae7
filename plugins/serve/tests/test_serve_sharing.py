"""What was read before is not read again: counted in calls of the encoder and in rows that are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from andes_serve.limits import Limits
from andes_serve.sharing import Features, common, cut

from andes_sdk import Pipeline
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
LONG = "Tell me more about circles, squares and triangles, please, and then some more about lines."


@pytest.fixture
def counted(served, monkeypatch) -> dict[str, Any]:
    """How often the encoder was called, and how many rows steps computed."""
    found: dict[str, Any] = {"encoder": 0, "rows": 0}
    model, compiled = served.server.pipeline.model, served.server.scheduler.shared.inner
    forward, step = model.vision_encoder.forward, compiled.step

    def seeing(*given: Any) -> Any:
        found["encoder"] += 1
        return forward(*given)

    def stepping(work: Any) -> Any:
        found["rows"] += sum(len(one.tokens) for one in work)
        return step(work)

    monkeypatch.setattr(model.vision_encoder, "forward", seeing)
    monkeypatch.setattr(compiled, "step", stepping)
    return found


def test_a_second_turn_about_a_picture_encodes_nothing_and_reads_only_what_is_new(served, pipe, picture, counted):
    image, part = picture("orange")
    first = [{"role": "user", "content": [part, {"type": "text", "text": LONG}]}]
    told = served.ask(None, messages=first)
    assert counted["encoder"] == 1
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    answer = told["choices"][0]["message"]["content"]
    asked = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    counted.update(encoder=0, rows=0)
    second = served.ask(None, messages=asked)
    assert counted["encoder"] == 0
    usage = second["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached >= told["usage"]["prompt_tokens"]
    # the rest of the prompt, and each token of the answer but the last
    assert counted["rows"] == usage["prompt_tokens"] - cached + usage["completion_tokens"] - 1
    own = [user_message(LONG, [image]), *asked[1:]]
    alone = pipe.generate(own, GenerationOptions(max_tokens=8))
    assert second["choices"][0]["message"]["content"] == alone.text
    # the same picture elsewhere: its rows are found, its place is not
    counted.update(encoder=0)
    again = served.ask([{"type": "text", "text": "Look:"}, part])
    assert counted["encoder"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_another_picture_and_another_text_share_only_what_is_the_same(served, pipe, picture, counted):
    (_, one), (blue, other) = picture("red"), picture("blue")
    parts = [{"type": "text", "text": LONG}, one, {"type": "text", "text": "What is it?"}]
    served.ask(parts)
    got = served.ask([parts[0], other, parts[2]])
    before = len(pipe.tokenizer.encode(LONG))
    cached = got["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert before <= cached < before + 10
    assert counted["encoder"] == 2
    message = user_message("What is it?", [blue])
    message["content"].insert(0, {"type": "text", "text": LONG})
    assert got["choices"][0]["message"]["content"] == pipe.generate([message], GenerationOptions(max_tokens=8)).text


def test_a_running_answer_lends_its_prompt(served, pipe):
    scheduler = served.server.scheduler
    scheduler.call(lambda: scheduler.shared.shrink(0)).result()
    text = f"{LONG} {LONG}"
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2000, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as got:
        next(got.iter_lines())
        usage = served.ask(text, max_tokens=4, n=2)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert served.idle()


def test_kept_prefixes_are_bounded_and_make_room(pipe, start, monkeypatch):
    limits = Limits(memory=1 << 20, prefixes=200_000)
    with start(pipe, limits=limits) as served:
        memory, shared = served.server.scheduler.memory, served.server.scheduler.shared
        for n in range(6):
            served.ask(f"{n} {LONG}")
            assert served.idle()
            assert 0 < memory.kept <= 200_000
            assert memory.kept == sum(k.session.kv_bytes() for k in shared.kept)
        count = len(shared.kept)
        rows = int(0.9 * limits.memory / memory.rows(1))
        served.ask("x", max_tokens=rows - 40)
        assert served.idle()
        assert len(shared.kept) < count + 1
    with start(pipe, limits=Limits(prefixes=0, chunk=16)) as served:
        compiled, read = served.server.scheduler.shared.inner, list[int]()
        monkeypatch.setattr(compiled, "step", lambda work: read.extend(len(w.tokens) for w in work) or step(work))
        step = type(compiled).step.__get__(compiled)
        served.ask(LONG)
        assert max(read) == 16  # rows of a prompt in one pass, with or without prefixes
        assert served.ask(LONG)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_drafter_and_an_evicting_policy_work_as_alone(start):
    for more in ("speculative", {"okv": {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}}):
        own = Pipeline.from_plugins([*TINY, more], image={"min_size": 28})
        alone = own.generate(LONG, GenerationOptions(max_tokens=24))
        with start(own) as served:
            for _ in range(2):
                got = served.ask(LONG, max_tokens=24)
                assert got["choices"][0]["message"]["content"] == alone.text
                assert got["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("rows", [1, 17, 40])
def test_a_cut_session_goes_on_as_one_that_read_no_more(pipe, rows):
    ids = torch.arange(10, 50)
    from andes_sdk.types import Inputs

    whole, short = pipe.session(), pipe.session()
    whole.prefill(Inputs(ids))
    short.prefill(Inputs(ids[:rows]))
    part = cut(whole, rows)
    assert part.length == rows
    assert part.stats.rows == short.stats.rows
    logits, _ = part.extend([7, 8])
    wanted, _ = short.extend([7, 8])
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert whole.length == len(ids)


def test_features_are_bounded_and_the_least_recently_used_go_first():
    features = Features(limit=100)
    for name in (b"a", b"b"):
        features.put(name, torch.zeros(12))  # 48 bytes
    assert features.get(b"a") is not None
    features.put(b"c", torch.zeros(12))
    assert list(features.found) == [b"a", b"c"]
    features.put(b"d", torch.zeros(1000))
    assert features.held == 96


def test_common_starts():
    import numpy as np

    one = np.array([1, 2, 3])
    assert [common(one, np.array(other)) for other in ([1, 2, 4, 5], [1, 2], [1, 2, 3, 4], [9])] == [2, 2, 3, 0]
