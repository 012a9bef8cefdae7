"""Answers that fit: schemas, expressions, grammars, tools, biases. The model's weights are random."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from andes_serve.tools import Calls

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "sides": {"type": "integer", "minimum": 0, "maximum": 9},
        "label": {"type": "string", "maxLength": 5},
        "points": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["colour", "sides", "label"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}}


def content(got: Any) -> str:
    (choice,) = got["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_fits_its_schema(served, seed):
    form = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}
    got = served.ask(response_format=form, temperature=1.5, seed=seed, max_tokens=200)
    jsonschema.validate(json.loads(content(got)), SCHEMA)


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"guided_regex": "[0-9]{3}-[a-z]{2}"}, r"[0-9]{3}-[a-z]{2}"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"grammar": 'root ::= "x" [0-9] [0-9]?'}, r"x[0-9]{1,2}"),
        ({"guided_grammar": 'start: "a" /b{2,3}/'}, "ab{2,3}"),
        ({"json_schema": {"type": "string", "enum": ["é", "日本"]}}, '"é"|"日本"'),
    ],
    ids=lambda v: str(v)[:30],
)
def test_an_answer_fits_an_expression_or_a_grammar(served, given, fits):
    assert re.fullmatch(fits, content(served.ask(temperature=1.0, seed=1, max_tokens=60, **given)))


def test_n_answers_fit_each_by_itself_and_after_reasoning_too(served):
    got = served.ask(guided_regex="[ab]{4}c", n=3, temperature=1.0, seed=1, max_tokens=40)
    found = [choice["message"]["content"] for choice in got["choices"]]
    assert all(re.fullmatch("[ab]{4}c", text) for text in found)
    thought = served.ask(guided_regex="[ab]{4}", think=True, max_tokens=12)["choices"][0]["message"]
    assert thought["content"] == ""  # the reasoning is free, and this model's never ends
    assert thought["reasoning_content"]


def test_a_bias_chooses_and_bans(served, pipe):
    (token,) = pipe.tokenizer.encode("x")
    got = served.ask(logit_bias={str(token): 100}, max_tokens=4)
    assert got["choices"][0]["message"]["content"] == "xxxx"
    got = served.ask(logit_bias={str(token): 100}, guided_regex="[xy]{3}", max_tokens=9)
    assert content(got) == "xxx"
    got = served.ask(logit_bias={str(token): -100}, guided_regex="[xy]{3}", max_tokens=9)
    assert content(got) == "yyy"
    assert served.ask(logit_bias={"999999": 1}, status=400)["error"]["param"] == "logit_bias"


def test_a_required_call_fits_the_schema_of_its_tool(served):
    got = served.ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, temperature=1.0, max_tokens=200)
    (choice,) = got["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "paint")
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    # and back: the call and its result are part of the conversation
    turns = [
        {"role": "user", "content": "Paint."}, choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "done"},
    ]  # fmt: skip
    served.ask(None, messages=turns, tools=[TOOL])


def test_a_streamed_call_comes_whole(served):
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "Paint."}], "stream": True, "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "paint"}}, "max_tokens": 200, "temperature": 1.0,
    }  # fmt: skip
    with served.http.stream("POST", "/v1/chat/completions", json=body) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    (call,) = [c for one in choices for c in one["delta"].get("tool_calls", ())]
    assert call["index"] == 0
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    assert not "".join(one["delta"].get("content", "") for one in choices)
    assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_found_in_pieces_of_any_size(size):
    calls = '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>'
    other = calls.replace('"a"', '"b"')
    text = f"Let me <tool look.\n{calls}\n{other}"
    finder, plain, found = Calls(), "", []
    for start in range(0, len(text), size):
        more, some = finder.feed(text[start : start + size])
        plain, found = plain + more, found + some
    more, some = finder.feed("", final=True)
    assert (plain + more).strip() == "Let me <tool look."
    assert len(found + some) == text.count("</tool_call>")


REFUSED = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"json_schema": {"type": "nothing"}}, "json_schema"),
    ({"guided_regex": "(("}, "guided_regex"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
]


@pytest.mark.parametrize(("given", "param"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_is_no_grammar_and_no_tool_is_refused_by_name(served, given, param):
    assert served.ask(status=400, **given)["error"]["param"] == param
