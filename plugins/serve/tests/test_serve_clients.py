"""OpenAI's own client, on chat completions and on responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from andes_sdk.runtime.generation import GenerationOptions

openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")

SCHEMA = {
    "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture
def client(served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=120)


def test_chat_streams_and_fails_as_the_client_expects(client, served, pipe):
    asked: Any = [{"role": "user", "content": "Tell me more."}]
    alone = pipe.generate("Tell me more.", GenerationOptions(max_tokens=8)).text
    whole = client.chat.completions.create(model="tiny", messages=asked, max_tokens=8)
    assert whole.choices[0].message.content == alone
    stream = client.chat.completions.create(model="tiny", messages=asked, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == alone
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=asked, frequency_penalty=1)
    assert caught.value.param == "frequency_penalty"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=asked)
    assert [m.id for m in client.models.list()] == ["tiny"]


def test_chat_parses_into_a_class_of_pydantic(client):
    from typing import Literal

    from pydantic import BaseModel

    class Turn(BaseModel):
        side: Literal["left", "right"]
        sure: bool

    got = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "Which?"}], response_format=Turn, max_tokens=60
    )
    assert got.choices[0].message.parsed.side in ("left", "right")


def test_a_response_and_the_one_that_goes_on_from_it(client, pipe, picture):
    image, part = picture("navy")
    shown = {"type": "input_image", "image_url": part["image_url"]["url"]}
    asked: Any = [{"role": "user", "content": [shown, {"type": "input_text", "text": "What is it, please?"}]}]
    first = client.responses.create(model="tiny", input=asked, max_output_tokens=8)
    assert (first.status, first.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert first.usage.output_tokens == 8
    second = client.responses.create(model="tiny", input="And?", previous_response_id=first.id, max_output_tokens=8)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it, please?"}]
    own: Any = [
        {"role": "user", "content": content}, {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    assert second.output_text == pipe.generate(own, GenerationOptions(max_tokens=8)).text
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    kept = client.responses.create(model="tiny", input="x", max_output_tokens=2, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="y", previous_response_id=kept.id)


def test_a_streamed_response_has_its_events_in_order(client, pipe):
    alone = pipe.generate("Why?", GenerationOptions(max_tokens=8)).text
    events = list(client.responses.create(model="tiny", input="Why?", max_output_tokens=8, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == alone
    assert events[-1].response.output_text == alone
    thought = client.responses.create(model="tiny", input="Why?", max_output_tokens=4, reasoning={"effort": "low"})
    assert thought.output[0].type == "reasoning"
    assert thought.usage.output_tokens_details.reasoning_tokens == 4


def test_a_response_fits_a_schema_and_calls_a_tool(client):
    form: Any = {"format": {"type": "json_schema", "name": "turn", "schema": SCHEMA, "strict": True}}
    got = client.responses.create(model="tiny", input="Which?", text=form, max_output_tokens=60)
    assert json.loads(got.output_text)["side"] in ("left", "right")
    tool: Any = {"type": "function", "name": "turn", "parameters": SCHEMA, "strict": True}
    for stream in (False, True):
        got = client.responses.create(
            model="tiny", input="Turn.", tools=[tool], tool_choice="required", parallel_tool_calls=False,
            max_output_tokens=120, stream=stream,
        )  # fmt: skip
        if stream:
            got = list(got)[-1].response
        (call,) = got.output
        assert (call.type, call.name) == ("function_call", "turn")
        assert json.loads(call.arguments)["side"] in ("left", "right")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "turned"}]
    after = client.responses.create(model="tiny", input=result, previous_response_id=got.id, max_output_tokens=4)
    assert after.output_text


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"include": ["x"]}, "include"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ],
)
def test_what_runs_elsewhere_is_refused_by_name(served, given, param):
    got = served.http.post("/v1/responses", json={"model": "tiny", "input": "x", **given})
    assert (got.status_code, got.json()["error"]["param"]) == (400, param)
