"""Faults of requests are told by the names of their parameters, and by what is wrong with them."""

from __future__ import annotations

import pytest
from andes_serve import app as application
from andes_serve import constraints, responses
from andes_serve.failures import Failure, noted

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LOOP = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
NESTED = "[" * 100_000
CALL = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,QUJD"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"stop": [1]}, "stop"),
        ({"stop": "a" * 200_000}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"tools": [TOOL], "tool_choice": {"function": "x"}}, "tool_choice"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"temperature": -1.0}, "temperature"),
        ({"response_format": LOOP}, "response_format"),
        ({"grammar": "root ::= root"}, "grammar"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function"),
    ],
)
def test_parameters_that_cannot_be(served, given, param):
    error = served.ask(status=400, **given)["error"]
    assert error["param"] == param
    assert "<state>" not in error["message"]
    assert error["message"].count(param) <= 1 or "grammar" in param


def test_a_grammar_that_grows_without_end_is_refused(served):
    error = served.ask(status=400, guided_regex="(a{1000}){1000}")["error"]
    assert "too many" in error["message"] or "too big" in error["message"] or "complex" in error["message"].lower()
    assert "<state>" not in error["message"]
    served.ask()


def test_a_response_to_nothing_is_refused_by_name(served):
    got = served.http.post("/v1/responses", json={"model": "tiny", "input": []})
    assert (got.status_code, got.json()["error"]["param"]) == (400, "input")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": NESTED}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5, "arguments": "{}"}}]}]},
         "messages[0].tool_calls[0].function.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0].tool_calls[0].function"),
        ({"tools": [{**TOOL, "strict": True}]}, "tools[0].strict"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function"),
        ({"tools": [None]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "</tool_call>"}}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": 5}}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
         "tools[0].function"),
        ({"logit_bias": {"\u0661": 1.0}}, "logit_bias"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"max_tokens": None, "max_completion_tokens": 10**6}, "max_completion_tokens"),
    ],
)  # fmt: skip
def test_calls_and_tools_that_cannot_be(served, given, param):
    error = served.ask(status=400, **given)["error"]
    assert error["param"] == param
    assert error["code"] in ("invalid_value", "unknown_parameter")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"guided_regex": "("}, "error: unclosed group"),
        ({"guided_regex": "a" * 200_000}, f"and may have {constraints.LARGEST}"),
        ({"guided_regex": r"[^\s\S]"}, "nothing fits it"),
        ({"guided_grammar": "start: start"}, "nothing fits it"),
        # token 64 is "a": the fault shows while the answer grows
        ({"guided_grammar": 'root ::= "a" root', "logit_bias": {"64": 100.0}}, "Too many items"),
        ({"guided_choice": [str(n) for n in range(10_000)]}, "max is 2000"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_told_by_its_name_and_why(served, given, what):
    error = served.ask(status=400, **given)["error"]
    assert (error["param"], error["code"]) == (next(iter(given)), "invalid_grammar")
    assert error["message"].startswith("the grammar ")
    assert what in error["message"]
    assert "mend it" not in error["message"]
    served.ask()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        ("", "no reason is given"),
        ("\n<state>\nrows: 5", "no reason is given"),
        ("NoExtensionBias<state>5", "nothing fits it"),
        ("bad regex\n  (\nerror: unclosed group\n<state>5", "bad regex error: unclosed group"),
    ],
)
def test_errors_of_the_grammar_library_are_told_without_its_state(error, what):
    class Broken:
        get_error = staticmethod(lambda: error)

    failure = constraints._unusable(Broken, "grammar")
    assert (failure.status, failure.message) == (400, f"the grammar cannot be used: {what}")


def test_a_prompt_that_is_too_long_has_openais_code(served):
    error = served.ask("x " * 9000, status=400)["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert "4096" in error["message"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "x", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "reasoning"}, {"role": "x", "content": "x"}]}, "input[1].role"),
        ({"input": [{"role": "x", "content": "x"}], "instructions": "x"}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call", "name": "a", "arguments": NESTED}]}, "input[0].arguments"),
        ({"input": [CALL, {"type": "function_call", "arguments": "{}"}]}, "input[1].name"),
        ({"input": [{"role": "user", "content": "x"}, CALL, {**CALL, "arguments": "{"}]}, "input[2].arguments"),
        ({"input": [{**CALL, "arguments": "{"}], "instructions": "x"}, "input[0].arguments"),
        (
            {"instructions": "x", "input": [{"role": "user", "content": [IMAGE | {"detail": "low"}]}]},
            "input[0].content[0].detail",
        ),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "a", "x": 5}]}, "tools[0].x"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}}, "text.format"),
        ({"input": "x " * 9000}, "input"),
    ],
)
def test_faults_of_a_response_have_the_names_of_its_parameters(served, given, param):
    got = served.http.post("/v1/responses", json={"model": "tiny", "input": "x", **given})
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (400, param)
    assert not any(word in error["message"] for word in ("messages[", "max_tokens", "response_format", "function."))


def test_plain_words_in_errors_of_a_response_stay(served):
    items = [{"role": "user", "content": "x"}] * 5000
    error = served.http.post("/v1/responses", json={"model": "tiny", "input": items}).json()["error"]
    assert error["param"] == "input"
    assert "there are 5000 messages, the model takes" in error["message"]


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("messages[0].content", "instructions"),
        ("messages[1].content", "previous_response_id"),
        ("messages[2].content", "input[0].content"),
        ("messages[3].tool_calls[1].function.name", "input[2].name"),
        ("messages", "input"),
        ("response_format.json_schema", "text.format.schema"),
    ],
)
def test_places_of_a_response_are_those_of_its_request(place, named):
    items = [{"role": "user", "content": "x"}, CALL, CALL]
    asked = responses.ResponseRequest(model="x", input=items, instructions="y")
    _, origins = responses.messages_of(asked, [{"role": "user", "content": "before"}])
    failure = responses._renamed(Failure(400, f"{place}: no text of messages", param=place), origins)
    assert (failure.param, failure.message) == (named, f"{named}: no text of messages")


def test_numbers_of_messages_in_errors_are_those_that_were_sent(served, picture):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    result = {"role": "tool", "tool_call_id": "a", "content": "5"}
    wrong = {"role": "user", "content": [part]}
    for tools in (None, [TOOL]):
        for before, place in (([], 0), ([result, result], 2), ([{"role": "system", "content": "x"}], 1)):
            error = served.ask(messages=[*before, wrong], tools=tools, status=400)["error"]
            assert error["param"] == f"messages[{place}].content[0].image_url.url"


def test_an_unknown_role_is_told_which_ones_there_are(served):
    error = served.ask(messages=[{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}], status=400)[
        "error"
    ]
    assert error["param"] == "messages[1].role"
    assert "expected system, developer, user, assistant or tool, got 'bot'" in error["message"]


def test_a_failure_is_not_its_own_cause(pipe, start, monkeypatch):
    raised = list[BaseException]()
    monkeypatch.setattr(application, "noted", lambda error: raised.append(error) or noted(error))
    with start(pipe) as served:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
        served.ask([part], status=400)
        item = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,QUJD"}]}
        served.http.post("/v1/responses", json={"model": "tiny", "input": [item]})
    assert [type(one) for one in raised] == [Failure, Failure]
    assert all(one.__cause__ is not one for one in raised)


def test_more_messages_than_the_model_has_positions_are_refused(served):
    error = served.ask(messages=[{"role": "tool", "content": ""}] * 5000, status=400)["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert "5000 messages" in error["message"]
