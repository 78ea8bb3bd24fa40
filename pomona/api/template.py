"""From messages to one text that a model goes on from.

A model that was never taught a form of conversation is best served by a plain one: names and colons, as
`pomona chat` has it. One that was brings its own template, in Jinja as Hugging Face has it, which is the operator's and
never a client's, and runs in Jinja's sandbox all the same: no files, and so many steps.
"""

import datetime
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from pomona.core.errors import UserError

PLAIN = """\
{%- if tools %}{{ tool_text }}
{% endif -%}
{%- for message in messages -%}
{%- if message.role in ("system", "developer") %}{{ message.content }}
{% elif message.role == "user" %}User: {{ message.content }}
{% elif message.role == "tool" %}Tool: {{ message.content }}
{% else %}Assistant: {{ message.content }}{% for call in message.tool_calls or () %}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{% endfor %}
{{- "\n" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}Assistant:{% endif -%}
"""
PLAIN_STOPS = ("\nUser:", "\nTool:")
TOOLS = """\
These functions can be called, each call in a line of its own between tags:
<tool_call>
{"name": NAME, "arguments": {...}}
</tool_call>
Functions:
"""
MOST_STEPS = 1_000_000
"""Lines of a template that are run for one text."""


class Refused(ValueError):
    """What a template says itself of messages that it does not take."""


class Template:
    """How a conversation reads."""

    def __init__(self, source: str = PLAIN, stops: tuple[str, ...] = PLAIN_STOPS) -> None:
        """
        Args:
            stops: what never belongs to an answer.

        Raises:
            UserError: it is no template.
        """
        import jinja2

        self.stops = stops
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template cannot be read: {error}.",
                "it is a Jinja template, as Hugging Face has it.",
                "leave --chat-template out for a plain one.",
            ) from error

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        """The text up to where the answer begins.

        Raises:
            ValueError: these messages do not go with this template.
        """
        text = TOOLS + "\n".join(json.dumps(tool["function"]) for tool in tools) if tools else ""
        given = {"messages": messages, "tools": tools, "tool_text": text, "add_generation_prompt": True}
        try:
            return _counted(lambda: self._template.render(**given, bos_token="", eos_token=""))
        except Refused:
            raise
        except Exception as error:  # a template is a program
            raise ValueError(str(error) or type(error).__name__) from error


def read_template(path: Path, stops: tuple[str, ...]) -> Template:
    """A template of the operator's, tried with a question.

    Raises:
        UserError: no file, no template, or one that fails.
    """
    try:
        template = Template(path.read_text(), stops)
        template.render([{"role": "user", "content": "Hello"}], None)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the chat template {path} cannot be read: {error}.", "it is a text file.", "leave --chat-template out."
        ) from error
    except Refused:  # it may want more than a question
        pass
    except ValueError as error:
        raise UserError(
            f"the chat template {path} fails: {error}.",
            "it makes a text of any question, opens no files, and comes to an end.",
            "leave --chat-template out for a plain one.",
        ) from error
    return template


def _environment() -> Any:
    """Jinja as Hugging Face's `apply_chat_template` has it; a template renders the same in both."""
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """Marks what a model said, for training: here it is text as any."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _counted(work: Callable[[], str]) -> str:
    """The text of a template, in so many steps at most: in Jinja's sandbox loops are short, but loops in loops are not.

    Raises:
        ValueError: it takes more.
    """
    left = MOST_STEPS

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != "<template>":
            return None
        left -= 1
        if left < 0:
            raise ValueError(f"it takes more than {MOST_STEPS} steps")
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        return work()
    finally:
        sys.settrace(before)


def _raise(message: str) -> None:
    raise Refused(message)
