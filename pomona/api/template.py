"""From messages to one text that a model goes on from.

A model that was never taught a form of conversation is best served by a plain one: names and colons, as
`pomona chat` has it. One that was brings its own template, in Jinja as Hugging Face has it, which is the operator's and
never a client's, and runs in Jinja's sandbox all the same.
"""

import json
from pathlib import Path
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
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments }}}
</tool_call>
{% endfor %}
{% endif -%}
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
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=False, lstrip_blocks=False)
        environment.globals["raise_exception"] = _raise
        self.stops = stops
        try:
            self._template = environment.from_string(source)
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
        import jinja2

        text = TOOLS + "\n".join(json.dumps(tool["function"]) for tool in tools) if tools else ""
        try:
            return self._template.render(
                messages=messages, tools=tools, tool_text=text, add_generation_prompt=True, bos_token="", eos_token=""
            )
        except (jinja2.TemplateError, TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error


def read_template(path: Path, stops: tuple[str, ...]) -> Template:
    """A template of the operator's.

    Raises:
        UserError: no file, or no template.
    """
    try:
        return Template(path.read_text(), stops)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the chat template {path} cannot be read: {error}.", "it is a text file.", "leave --chat-template out."
        ) from error


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
