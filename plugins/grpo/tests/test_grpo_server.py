"""Sampling from a server, against a real HTTP server on this machine that speaks vLLM's replies."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import andes_training.server
import pytest
from andes_grpo.prompts import Prompt
from andes_grpo.server import ServerSampler
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable, TrainingError


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])


@pytest.fixture
def server(pipe):
    """A server that renders prompts as ours; tests change how it replies through its attributes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, status, data):
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            self.reply(200, {"data": [{"id": name} for name in made.models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.seen.append(body)
            if made.failures:
                made.failures -= 1
                return self.reply(503, {"error": "busy"})
            time.sleep(made.delay)
            return self.reply(made.status, made.answer(body))

    def answer(body):
        messages = [dict(m) for m in body["messages"]]
        prepared = pipe.processor.prepare(messages, generate=True)
        text = f"seed {body['seed']}"
        ids = [*pipe.tokenizer.encode(text), pipe.tokenizer.eos]
        content = [{"token": "", "logprob": -0.5 * i} for i in range(len(ids))]
        choice = {"finish_reason": "stop", "token_ids": ids, "logprobs": {"content": content}}
        return {"prompt_token_ids": prepared.ids.tolist(), "choices": [choice]}

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.models, made.seen, made.failures, made.delay, made.status, made.answer = ["student"], [], 0, 0.0, 200, answer
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def prompt(pipe, messages, think=False, seeds=(3, 4)):
    return Prompt({}, messages, pipe.prepare(messages, think=think), seeds, "data.jsonl:1")


def connect(server, pipe, model="", **changes):
    options = {"max_answer": 9, "timeout": 5.0, "concurrency": 4, **changes}
    return ServerSampler.connect(server.url, model, pipe.tokenizer, **options)


WORDS = [{"role": "user", "content": "Say a number."}]


def test_answers_come_with_their_tokens_log_probabilities_and_seeds(server, pipe):
    picture = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", (56, 28))}, *[{"type": "text", "text": "?"}]],
        }
    ]
    first, second = connect(server, pipe).answers([prompt(pipe, WORDS), prompt(pipe, picture, seeds=(7,))])
    assert [a.text for a in first] == ["seed 3", "seed 4"]
    assert [a.text for a in second] == ["seed 7"]
    assert first[0].tokens == (*pipe.tokenizer.encode("seed 3"), pipe.tokenizer.eos)
    assert first[0].finished
    assert first[0].logps == tuple(-0.5 * i for i in range(len(first[0].tokens)))
    for body in server.seen:
        assert body["return_token_ids"]
        assert body["logprobs"]
        assert body["max_tokens"] == 9
        assert body["logit_bias"] == {str(pipe.tokenizer.placeholder("image")): -100}
    sent = next(b for b in server.seen if b["seed"] == 7)["messages"][0]["content"][0]
    assert sent["image_url"]["url"].startswith("data:image/png;base64,")


def test_thinking_is_continued_from_its_prefill(server, pipe):
    ((answer,),) = connect(server, pipe).answers([prompt(pipe, WORDS, think=True, seeds=(1,))])
    assert answer.text == "<think>seed 1"
    assert server.seen[0]["messages"][-1] == {"role": "assistant", "content": "<think>"}
    assert server.seen[0]["continue_final_message"]
    assert not server.seen[0]["add_generation_prompt"]


def test_a_server_that_is_absent_or_has_another_model_is_refused_at_the_start(server, pipe):
    with pytest.raises(BackendUnavailable, match="does not answer"):
        ServerSampler.connect("http://127.0.0.1:9/v1", "", pipe.tokenizer, max_answer=1)
    with pytest.raises(BackendUnavailable, match="student"):
        connect(server, pipe, "teacher")
    server.models = ["a", "b"]
    with pytest.raises(BackendUnavailable, match="has 2 models"):
        connect(server, pipe)
    assert connect(server, pipe, "b").model == "b"


def test_a_slow_server_fails_loudly(server, pipe):
    server.delay = 1.0
    with pytest.raises(TrainingError, match=r"no answer in 0\.2 s"):
        connect(server, pipe, timeout=0.2).answers([prompt(pipe, WORDS)])


def test_a_server_that_breaks_is_asked_again_but_not_for_ever(server, pipe, monkeypatch):
    monkeypatch.setattr(andes_training.server, "PAUSE_SECONDS", 0.01)
    server.failures = 2
    ((answer,),) = connect(server, pipe).answers([prompt(pipe, WORDS, seeds=(1,))])
    assert answer.text == "seed 1"
    assert len(server.seen) == 3
    server.failures = 4
    with pytest.raises(TrainingError, match="failed 4 times") as caught:
        connect(server, pipe).answers([prompt(pipe, WORDS, seeds=(1,))])
    assert "503" in str(caught.value)


def test_a_refusal_is_not_tried_again(server, pipe):
    server.status = 400
    with pytest.raises(TrainingError, match="refuses"):
        connect(server, pipe).answers([prompt(pipe, WORDS, seeds=(1,))])
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.pop("prompt_token_ids"), "lacks token ids"),
        (lambda r: r["choices"][0]["logprobs"]["content"].pop(), "tokens, "),
        (lambda r: r["prompt_token_ids"].append(1), "another prompt"),
    ],
    ids=["no ids", "too few log-probabilities", "another template"],
)
def test_a_reply_that_does_not_fit_is_refused(server, pipe, change, match):
    right = server.answer

    def wrong(body):
        reply = right(body)
        change(reply)
        return reply

    server.answer = wrong
    with pytest.raises(TrainingError, match=match):
        connect(server, pipe).answers([prompt(pipe, WORDS)])
