"""Functions that a model calls: what it may write, and what of it are calls.

A call is `<tool_call>` with a JSON object of a name and arguments, as Hermes and Qwen models write it. The text is
followed by a grammar, so that every call has a known name and arguments that its schema allows.
"""

import json
import re
import uuid
from typing import Any

from pomona.api.errors import wrong
from pomona.api.wire import MOST_TOOLS, ChatRequest, ToolChoice

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>\n?", re.DOTALL)
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def lark(request: ChatRequest) -> str | None:
    """The grammar of an answer to a request with tools; None where it may call none.

    Raises:
        ApiError: names that are not unique or not allowed, or a choice that is no tool.
    """
    tools = {tool.function.name: tool.function for tool in request.tools or ()}
    choice = request.tool_choice or ("auto" if tools else "none")
    if len(tools) != len(request.tools or ()) or len(tools) > MOST_TOOLS:
        raise wrong("tools", f"tools have different names, and are at most {MOST_TOOLS}.")
    for name in tools:
        if not NAME.fullmatch(name):
            raise wrong("tools", f"a function is named {name!r}; letters, digits, _ . and - are allowed, 64 at most.")
    if isinstance(choice, ToolChoice):
        if choice.function.name not in tools:
            raise wrong("tool_choice", f"tool_choice names {choice.function.name!r}, which is none of the tools.")
        tools = {choice.function.name: tools[choice.function.name]}
    elif choice == "none":
        return None
    elif not tools:
        raise wrong("tool_choice", f"tool_choice is {choice!r}, and there are no tools.")
    several = request.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
    calls = "call+" if several else "call"
    start = f"start: {calls}\n" if choice != "auto" else f"start: text | {calls}\ntext: /[^<](.|\\n)*/\n"
    names = [f"call{number}" for number in range(len(tools))]
    rules = f"call: {' | '.join(names)}\n"
    for rule, function in zip(names, tools.values()):
        rules += f'{rule}: "<tool_call>\\n" %json {json.dumps(_object(function.name, function.parameters))}'
        rules += ' "\\n</tool_call>\\n"\n'
    return start + rules


def calls_of(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and the calls as OpenAI has them; what is no whole call stays text."""
    calls = []
    for found in CALL.finditer(text):
        try:
            called = json.loads(found.group(1))
            name, arguments = called["name"], json.dumps(called["arguments"])
        except (ValueError, KeyError, TypeError):
            return text, []
        function = {"name": name, "arguments": arguments}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return CALL.sub("", text), calls


def _object(name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    arguments = parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    own = {key: arguments[key] for key in ("$defs", "definitions") if key in arguments}
    schema = {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    return schema | own
