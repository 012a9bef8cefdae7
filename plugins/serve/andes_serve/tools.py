"""Tools: told to the model as Qwen3's chat template tells them, and found in its answer.

A call is `<tool_call>`, JSON with name and arguments, `</tool_call>`, written as text. A grammar holds each call to the
schema of its tool, so an answer that is complete has calls that can be read. Source of the wording: the chat template
published with Qwen3.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
from attrs import define

from andes_serve.constraints import TIGHT
from andes_serve.failures import Failure

NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
BEGIN, END = "<tool_call>", "</tool_call>"
ROLES = ("system", "developer", "user", "assistant", "tool")
HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def checked(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Functions by name.

    Raises:
        Failure: what is no function, or two of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise Failure(400, f"{place}: expected type 'function'", param=f"{place}.type", code="invalid_value")
        for key in tool:
            if key not in ("type", "function"):
                raise Failure(400, f"unknown key {key!r}", param=f"{place}.{key}", code="unknown_parameter")
        for key in function:
            if key not in ("name", "description", "parameters", "strict"):
                raise Failure(400, f"unknown key {key!r}", param=f"{place}.function.{key}", code="unknown_parameter")
        name, schema = function.get("name"), function.get("parameters")
        schema = {"type": "object", "properties": {}} if schema is None else schema
        wrong = ""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            wrong = "name: 1 to 128 letters, digits and _ . : / - are needed"
        elif name in found:
            wrong = f"name: there are two functions {name!r}"
        elif not isinstance(function.get("description", ""), str | None):
            wrong = "description: text is needed"
        elif not isinstance(schema, dict) or schema.get("type", "object") != "object":
            wrong = "parameters: a JSON schema of an object is needed"
        if wrong:
            raise Failure(400, f"{place}.function.{wrong}", param=f"{place}.function", code="invalid_value")
        found[str(name)] = {**{k: v for k, v in function.items() if k != "strict"}, "parameters": schema}
    return found


def chosen(functions: Mapping[str, Any], choice: Any, *, parallel: bool) -> tuple[Mapping[str, Any], str | None]:
    """Functions that may be called, and the grammar of an answer, or None: no tools.

    Raises:
        Failure: a choice that is none.
    """
    if choice == "none" or not functions:
        if choice not in (None, "none", "auto"):
            raise Failure(400, "tool_choice needs tools", param="tool_choice", code="invalid_value")
        return {}, None
    if isinstance(choice, dict):
        inner = choice.get("function") or choice
        name = inner.get("name") if isinstance(inner, dict) else inner
        if not isinstance(name, str) or name not in functions:
            raise Failure(400, f"there is no tool {name!r}", param="tool_choice", code="invalid_value")
        return functions, _calls({name: functions[name]}, several=False)
    if choice == "required":
        return functions, _calls(functions, several=parallel)
    if choice not in (None, "auto"):
        what = "tool_choice: expected 'none', 'auto', 'required' or a function"
        raise Failure(400, what, param="tool_choice", code="invalid_value")
    tags = [
        llguidance.StructTag(trigger=BEGIN, begin=_begin(name), grammar=_tight(one), end="}\n" + END)
        for name, one in functions.items()
    ]
    return functions, llguidance.StructTag.to_grammar(tags, assume_special=False)


def _begin(name: str) -> str:
    return f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": '


def _tight(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of arguments, without room for white space."""
    return {**function["parameters"], "x-guidance": TIGHT}


def _calls(functions: Mapping[str, Any], *, several: bool) -> str:
    """A Lark grammar of one call, or of at least one."""
    end = json.dumps("}\n" + END)
    rules = [
        f"call_{n}: {json.dumps(_begin(name))} %json {json.dumps(_tight(one))} {end}"
        for n, (name, one) in enumerate(functions.items())
    ]
    either = " | ".join(f"call_{n}" for n in range(len(rules)))
    start = '(either ("\\n" either)*)' if several else "either"
    return "\n".join([f"start: {start}", f"either: {either}", *rules])


def told(messages: Sequence[dict[str, Any]], functions: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    """The same conversation without what only tools need: their list, calls and results become text.

    Returns:
        The messages, and of each the number of the one that it comes from.

    Raises:
        Failure: a call or a result that cannot be read.
    """
    made: list[dict[str, Any]] = []
    origins: list[int] = []
    results: list[str] = []  # of tools, which the last message holds
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message.get("role") not in ROLES:
            got = str(message.get("role"))[:64]
            what = f"{place}.role: expected {', '.join(ROLES[:-1])} or {ROLES[-1]}, got {got!r}"
            raise Failure(400, what, param=f"{place}.role", code="invalid_value")
        if message.get("role") == "tool":
            text = f"<tool_response>\n{_plain(message.get('content'), place)}\n</tool_response>"
            if not results:
                origins.append(number)
                made.append({"role": "user", "content": ""})
            results.append(text)
            continue
        _close(made, results)
        origins.append(number)
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise Failure(400, "tool_calls is no list", param=f"{place}.tool_calls", code="invalid_type")
        if calls:
            content = _plain(message.get("content") or "", place)
            written = [_written(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(calls)]
            text = "\n".join([*([content] if content else []), *written])
            made.append({"role": message.get("role"), "content": text})
            continue
        role = "system" if message.get("role") == "developer" else message.get("role")
        made.append({**{k: v for k, v in message.items() if k not in ("tool_calls", "refusal")}, "role": role})
    _close(made, results)
    if functions:
        lines = [json.dumps({"type": "function", "function": f}, ensure_ascii=False) for f in functions.values()]
        text = HEAD + "\n".join(lines) + TAIL
        if made and made[0]["role"] == "system":
            made[0] = {**made[0], "content": f"{_plain(made[0].get('content'), 'messages[0]')}\n\n{text}"}
        else:
            made.insert(0, {"role": "system", "content": text})
            origins.insert(0, 0)
    return made, origins


def _close(made: Sequence[dict[str, Any]], results: list[str]) -> None:
    """Results of tools become the text of the last message."""
    if results:
        made[-1]["content"] = "\n".join(results)
        results.clear()


def _plain(content: Any, place: str) -> str:
    """Text, or parts of text."""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Failure(400, f"{place}.content: expected text", param=f"{place}.content", code="invalid_value")
    return content


def _written(call: Any, place: str) -> str:
    place += ".function"
    try:
        function, own = call["function"], place
        place = f"{own}.name"
        name = function["name"]
        if not isinstance(name, str):
            raise TypeError("the name of a function is text")
        place = f"{own}.arguments"
        arguments = json.loads(function["arguments"])
        return f"{BEGIN}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{END}"
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{place}: cannot be read ({type(error).__name__}: {error})"
        raise Failure(400, what, param=place, code="invalid_value") from None


@define
class Calls:
    """Finds calls in an answer that comes in pieces."""

    count: int = 0
    _held: str = ""

    def feed(self, piece: str, *, final: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """-> content that is certain, and calls that are complete."""
        calls: list[dict[str, Any]] = []
        text, self._held, plain = self._held + piece, "", ""
        while BEGIN in text:
            before, _, rest = text.partition(BEGIN)
            end, call = rest.find(END), None
            while end >= 0 and (call := self._read(rest[:end])) is None:  # an argument may have the mark in a text
                end = rest.find(END, end + 1)
            if call is None and not final:
                self._held = BEGIN + rest
                return plain + before, calls
            if call is None:  # cut short, or none of the grammar's: it stays text
                return plain + before + BEGIN + rest, calls
            plain, text = plain + before.rstrip("\n"), rest[end + len(END) :].lstrip("\n")
            calls.append(call)
        keep = 0
        if not final:
            keep = next((n for n in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:n])), 0)
        self._held = text[len(text) - keep :] if keep else ""
        return plain + text[: len(text) - keep], calls

    def _read(self, text: str) -> dict[str, Any] | None:
        try:
            found = json.loads(text)
            arguments = json.dumps(found["arguments"], ensure_ascii=False)
            function = {"name": found["name"], "arguments": arguments}
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
        self.count += 1
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
