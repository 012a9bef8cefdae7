"""Chat completions: each answer is what the pipeline gives alone; what cannot be done is refused by name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from andes_serve.door import Door, keys_of
from andes_serve.limits import Limits
from andes_serve.texts import Splitter

from andes_sdk.errors import ConfigError
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions


def chunks_of(served: Any, **given: Any) -> list[Any]:
    """The chunks of a streamed answer, which ends as it should."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me more."}], "stream": True, **given}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as got:
        assert got.status_code == 200
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_is_what_the_pipeline_gives(served, pipe):
    alone = pipe.generate("Tell me more.", GenerationOptions(max_tokens=8))
    got = served.ask()
    (choice,) = got["choices"]
    assert choice["message"] == {"role": "assistant", "content": alone.text}
    assert choice["finish_reason"] == alone.finish
    assert got["usage"]["prompt_tokens"] == alone.prompt_tokens
    assert got["usage"]["completion_tokens"] == len(alone.tokens)
    assert got["object"] == "chat.completion"


def test_seeds_hold_and_n_answers_have_seeds_that_follow(served, pipe):
    options = [GenerationOptions(max_tokens=8, temperature=1.5, seed=seed) for seed in (7, 8, 9)]
    answers = [pipe.generate("Tell me more.", one) for one in options]
    alone = [answer.text for answer in answers]
    assert len(set(alone)) == 3
    got = served.ask(temperature=1.5, seed=7, n=3)
    assert [c["message"]["content"] for c in got["choices"]] == alone
    assert got["usage"]["completion_tokens"] == sum(len(answer.tokens) for answer in answers)
    assert served.ask(temperature=1.5, seed=8)["choices"][0]["message"]["content"] == alone[1]


def test_a_stream_joined_is_the_answer_and_ends_with_its_usage(served, pipe):
    alone = pipe.generate("Tell me more.", GenerationOptions(max_tokens=12, temperature=1.0, seed=3))
    chunks = chunks_of(served, max_tokens=12, temperature=1.0, seed=3, stream_options={"include_usage": True})
    *told, last = chunks
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in told) == alone.text
    assert [c["choices"][0]["finish_reason"] for c in told][-1] == "length"
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == alone.prompt_tokens + 12


def test_reasoning_is_told_apart_and_counted(served, pipe):
    alone = pipe.generate("Why?", GenerationOptions(max_tokens=6, think=True))
    got = served.ask("Why?", think=True, max_tokens=6)
    message = got["choices"][0]["message"]
    assert (message.get("reasoning_content", ""), message["content"]) == (alone.reasoning, alone.content)
    assert got["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
    assert served.ask("Why?", chat_template_kwargs={"enable_thinking": True}, max_tokens=6)["choices"] == got["choices"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size_are_split_as_the_whole(size):
    text = "<think>\n First </thi nk> then.\n</think>\n\nThe answer </think> stays. "
    splitter, found = Splitter(), ["", ""]
    for start in range(0, len(text), size):
        for which, part in enumerate(splitter.feed(text[start : start + size])):
            found[which] += part
    for which, part in enumerate(splitter.feed("", final=True)):
        found[which] += part
    assert found == ["First </thi nk> then.", "The answer </think> stays. "]


def test_stop_strings_and_log_probabilities_are_those_of_the_pipeline(served, pipe):
    whole = pipe.generate("Tell me more.", GenerationOptions(max_tokens=8)).text
    stop = whole[3:5]
    options = GenerationOptions(max_tokens=8, stop=(stop,), logprobs=2)
    alone = pipe.generate("Tell me more.", options)
    got = served.ask(stop=stop, logprobs=True, top_logprobs=2)["choices"][0]
    assert (got["message"]["content"], got["finish_reason"]) == (alone.text, "stop")
    told = got["logprobs"]["content"]
    # a prompt whose start was copied is read in other shapes, so that sums differ in their last bits
    assert [t["logprob"] for t in told] == pytest.approx([one.logprob for one in alone.logprobs], abs=1e-5)
    top = [t["logprob"] for one in told for t in one["top_logprobs"]]
    assert top == pytest.approx([logprob for one in alone.logprobs for _, logprob in one.top], abs=1e-5)


def test_a_picture_by_data_url_is_seen(served, pipe, picture):
    image, part = picture("teal")
    alone = pipe.generate([user_message("What is it?", [image])], GenerationOptions(max_tokens=8))
    got = served.ask([part, {"type": "text", "text": "What is it?"}])
    assert got["choices"][0]["message"]["content"] == alone.text
    assert got["usage"]["prompt_tokens_details"]["image_tokens"] == 6  # 84 x 56 pixels in blocks of 28


def test_requests_at_the_same_time_are_each_what_they_are_alone(served, pipe):
    asked = [(f"{'more ' * n}please", GenerationOptions(max_tokens=6, temperature=1.0, seed=n)) for n in range(12)]
    alone = [pipe.generate(text, options).text for text, options in asked]

    def ask(pair: Any) -> str:
        return served.ask(pair[0], temperature=1.0, seed=pair[1].seed, max_tokens=6)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, asked)) == alone


REFUSED = [
    ({"best_of": 2}, 400, "best_of"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"functions": []}, 400, "functions"),
    ({"temperature": "warm"}, 400, "temperature"),
    ({"temperature": -1.0}, 400, "temperature"),
    ({"n": 0}, 400, "n"),
    ({"n": 99}, 400, "n"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"model": "other"}, 404, "model"),
    ({"max_tokens": 10**6}, 400, "max_tokens"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "messages[0].role"),
    ({"store": True}, 400, "store"),
    ({"chat_template_kwargs": {"other": True}}, 400, "chat_template_kwargs.other"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, 400, "messages[0].name"),
]


@pytest.mark.parametrize(("given", "status", "param"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_be_done_is_refused_by_name(served, given, status, param):
    error = served.ask(status=status, **given)["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("http://127.0.0.1/x.png", "remote_images_disabled"),
        ("data:image/png;base64,AAAA", "invalid_image"),
    ],
)
def test_pictures_come_from_data_urls_only(served, url, code):
    error = served.ask([{"type": "image_url", "image_url": {"url": url}}], status=400)["error"]
    assert error["code"] == code
    assert error["param"] == "messages[0].content[0].image_url.url"


def test_a_path_in_a_message_is_not_read(served):
    error = served.ask([{"type": "image", "image": "/etc/hostname"}], status=400)["error"]
    assert error["param"] == "messages[0].content[0].type"


def test_a_body_that_is_no_json_is_refused(served):
    got = served.http.post("/v1/chat/completions", content=b"{nonsense")
    assert (got.status_code, got.json()["error"]["code"]) == (400, "invalid_json")
    assert served.http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_cancels_its_answer(served):
    kinds = ("cancelled", "answered", "failed", "refused")
    names = [f'andes_requests_total{{outcome="{kind}"}}' for kind in kinds]
    before = [served.count(name) for name in names]
    with served.held() as give:
        for stream in (True, False):
            with served.send(max_tokens=2000, stream=stream) as reader:
                assert served.until(lambda: bool(served.server.scheduler.engine.active))
                if stream:
                    give(40)  # the first ones are white space, which waits for what follows
                    assert reader.recv(10)
            assert served.idle()
    assert served.until(lambda: served.count(names[0]) == before[0] + 2)
    assert [served.count(name) for name in names[1:]] == before[1:]


def test_models_health_and_metrics(served):
    assert [m["id"] for m in served.http.get("/v1/models").json()["data"]] == ["tiny"]
    assert served.http.get("/v1/models/tiny").json()["id"] == "tiny"
    assert served.http.get("/v1/models/none").status_code == 404
    assert served.http.get("/health").json() == {"status": "ok"}
    served.ask()
    text = served.http.get("/metrics").text
    assert {"andes_first_token_seconds_count", "andes_queue", "andes_memory_bytes"} <= {
        line.split("{")[0].split(" ")[0] for line in text.splitlines()
    }
    assert served.http.get("/docs").status_code == 404  # its page would fetch scripts from elsewhere


def test_requests_for_answers_alone_are_counted(pipe, start):
    with start(pipe, door=Door((), ("boss",), 0)) as served:
        served.http.get("/v1/models/none")
        served.http.post("/v1/adapters", json={"name": "a", "folder": "b"})
        served.http.delete("/v1/adapters/none")
        names = [f'andes_requests_total{{outcome="{kind}"}}' for kind in ("answered", "refused", "failed", "cancelled")]
        assert [served.count(name) for name in names] == [0, 0, 0, 0]
        served.http.post("/v1/responses", json={"model": "none", "input": "x"})
        served.ask(model="none", status=404)
        served.http.post("/v1/responses", json={"model": "tiny", "input": "x", "max_output_tokens": 2})
        assert [served.count(name) for name in names] == [1, 2, 0, 0]


def test_a_server_has_keys_rates_and_limits(pipe, start):
    limits = Limits(body=2000, prompt=60, memory=1 << 20, rate=4, answer=200)
    with start(pipe, limits=limits, door=Door(("one", "two"), ("boss",), 0)) as served:
        assert served.ask(status=401)["error"]["code"] == "invalid_api_key"
        assert served.http.get("/metrics").status_code == 401
        served.http.headers["Authorization"] = "Bearer wrong"
        assert served.ask(status=401)["error"]["type"] == "authentication_error"
        served.http.headers["Authorization"] = "Bearer two"
        served.ask()
        assert served.ask("x" * 3000, status=413)["error"]["code"] == "request_too_large"
        assert served.ask("x " * 100, status=400)["error"]["code"] == "context_length_exceeded"
        told = served.ask(max_tokens=200, n=8, status=400)["error"]
        assert (told["code"], str(limits.memory) in told["message"]) == ("memory_exceeded", True)
        assert served.http.post("/v1/adapters", json={"name": "a", "folder": "b"}).status_code == 401
        served.http.headers["Authorization"] = "Bearer boss"
        got = served.http.post("/v1/adapters", json={"name": "a", "folder": "/nowhere"})
        assert (got.status_code, got.json()["error"]["code"]) == (400, "adapter_refused")
        served.server.door.rate = 2
        served.ask()
        served.ask()
        got = served.http.get("/v1/models")
        assert (got.status_code, got.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(got.headers["retry-after"]) >= 1


def test_a_full_queue_a_late_answer_and_a_shutdown_are_told(pipe, start):
    limits = Limits(concurrency=1, queue=0, timeout=3600.0)
    with start(pipe, limits=limits) as served, ThreadPoolExecutor(1) as pool:
        scheduler = served.server.scheduler
        refused, failed = (f'andes_requests_total{{outcome="{kind}"}}' for kind in ("refused", "failed"))
        with served.held():
            late = pool.submit(served.ask, status=504)
            assert served.until(lambda: bool(scheduler.engine.active))
            assert served.ask(status=429)["error"]["code"] == "queue_full"
            scheduler._running[0].start -= 2 * limits.timeout  # an hour has passed, twice
            assert late.result()["error"]["code"] == "timeout"
            assert served.idle()
        assert (served.count(refused), served.count(failed)) == (1, 1)  # each once
        scheduler.drain()
        assert served.ask(status=503)["error"]["code"] == "shutting_down"
        assert (served.count(refused), served.count(failed)) == (1, 2)
        assert served.http.get("/health").status_code == 503


def test_a_request_that_is_late_before_its_turn_is_told_and_counted_once(pipe, start):
    limits = Limits(concurrency=1, queue=1, timeout=3600.0)
    with start(pipe, limits=limits) as served, ThreadPoolExecutor(2) as pool:
        scheduler, failed = served.server.scheduler, 'andes_requests_total{outcome="failed"}'
        with served.held():
            first = pool.submit(served.ask, status=200)
            assert served.until(lambda: bool(scheduler.engine.active))
            late = pool.submit(served.ask, status=504)
            assert served.until(lambda: bool(scheduler._waiting))
            scheduler._waiting[0].start -= 2 * limits.timeout
            assert late.result()["error"]["code"] == "timeout"
            assert served.count(failed) == 1
        assert first.result()["choices"]
        assert served.count('andes_requests_total{outcome="answered"}') == 1


def test_keys_come_from_the_environment_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nthree\n\nfour\n")
    assert keys_of("one, two", file) == ("one", "two", "three", "four")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="no key"):
        keys_of(None, file)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.png",
        "http://localhost:1/x.png",
        "http://169.254.169.254/latest",
        "http://[::ffff:10.0.0.1]/",
    ],
)
def test_addresses_of_private_networks_are_never_asked(served, url):
    served.server.remote = True
    try:
        error = served.ask([{"type": "image_url", "image_url": {"url": url}}], status=400)["error"]
    finally:
        served.server.remote = False
    assert "no public address" in error["message"]
    assert error["code"] == "invalid_image"
