"""`--chat-template`: a template of the operator's, from the command line to the tokens that the engine gets."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from pomona.api.template import Template
from pomona.cli.main import main
from pomona.core.run_folder import RunFolder
from pomona.data.tokenizer import BEGIN, load_tokenizer

OWN = """\
{#- Written over several lines, as Hugging Face's are: those of blocks leave nothing behind. -#}
{% set first = messages[0].content %}
{% if first == "refuse" %}
    {{ raise_exception("nobody answers this") }}
{% elif first == "loop" %}
    {% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{% elif first == "read" %}
    {% include "/etc/hostname" %}
{% elif first == "fail" %}
    {{ first.nothing.at.all }}
{% endif %}
{% for message in messages %}
    {% if "tool_calls" in message %}
        {% for call in message.tool_calls %}
({{ call.function.name }} {{ call.function.arguments.city | tojson }})
        {% endfor %}
        {% continue %}
    {% endif %}
<{{ message.role }}>{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{%- endif %}
"""
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 1 < 2 & so?"}]
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "<Łódź>"}'}}
CALLED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "tool_call_id": "a"},
]


@contextlib.contextmanager
def started(model, *options):
    """The command on a free port: its official client."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pomona.cli.main", "serve", str(model), "--port", "0", "--name", "small"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = ""
        while "curl" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        url = re.search(r"http://[0-9.:]+", said).group()
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def client(both, tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "own.jinja"
    path.write_text(OWN, encoding="utf-8")
    with started(both[1], "--chat-template", str(path), "--template-stop", "o", "--context", "256") as client:
        yield client


def known(client, text, tokenizer):
    """How many of a text's tokens the engine has been given before, of how many."""
    ids = [BEGIN, *tokenizer.encode(text)]
    found = client.completions.create(model="small", prompt=ids, max_tokens=1)
    return found.usage.prompt_tokens_details.cached_tokens, len(ids)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (HELLO, "<system>Be brief.\n<user>Is 1 < 2 & so?\n<assistant>"),
        (CALLED, '<user>Rain?\n(weather "<Łódź>")\n<tool>7\n<assistant>'),
    ],
    ids=["chat", "calls"],
)
def test_the_engine_gets_what_the_template_makes(client, both, messages, text):
    """The beginning of a prompt is computed once: that all of these tokens are known says that they were the prompt."""
    tokenizer = load_tokenizer(RunFolder(both[0]).tokenizer)
    asked = {"model": "small", "messages": messages, "temperature": 0, "max_tokens": 1}
    before, length = known(client, "x" + text, tokenizer)
    assert before <= 1, "the begin token"
    whole = client.chat.completions.create(**asked)
    assert whole.usage.prompt_tokens == length - 1
    assert known(client, text, tokenizer) == (length - 2, length - 1), "all but the last, which is computed again"
    assert list(client.chat.completions.create(**asked, stream=True))[-1].choices[0].finish_reason
    plain = Template().render(messages, None)
    assert plain != text and known(client, plain, tokenizer)[0] <= 2


def test_what_never_belongs_to_an_answer(client):
    text = "<user>Hi\n<assistant>"
    asked = {"model": "small", "temperature": 1, "max_tokens": 200}
    stopped = 0
    for seed in range(4):
        free = client.completions.create(**asked, seed=seed, prompt=text).choices[0].text
        own = client.chat.completions.create(**asked, seed=seed, messages=[{"role": "user", "content": "Hi"}]).choices[
            0
        ]
        assert own.message.content == free.partition("o")[0].lstrip(" ")
        stopped += "o" in free and own.finish_reason == "stop"
    assert stopped


@pytest.mark.parametrize(
    ("content", "problem"),
    [("refuse", "nobody answers this"), ("loop", "steps"), ("read", "no loader"), ("fail", "has no attribute")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_messages_that_a_template_does_not_take(client, content, problem, stream):
    asked = {"model": "small", "max_tokens": 2, "stream": stream}
    with pytest.raises(openai.BadRequestError, match=problem) as caught:
        client.chat.completions.create(**asked, messages=[{"role": "user", "content": content}])
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")
    assert caught.value.body["message"].startswith("these messages do not go with the chat template")
    assert client.chat.completions.create(**asked | {"stream": False}, messages=HELLO).choices


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for %}", "cannot be read"),
        ("{{ messages | nonsense }}", "cannot be read: No filter named 'nonsense'"),
        ("{% include '/etc/hostname' %}", "fails: no loader"),
        ("{% extends 'other' %}", "fails: no loader"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails: Range too big"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "fails: it takes more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: maximum recursion depth"),
        ("{{ messages.append(1) }}", "fails: access to attribute 'append'"),
        ("{{ '{0}'.format() }}", "fails: tuple index out of range"),
        ("{{ today() }}", "fails: 'today' is undefined"),
        (b"\xff\xfe", "cannot be read"),
    ],
    ids=str,
)
def test_a_template_that_makes_no_text_of_a_question(both, tmp_path, source, problem, capsys):
    path = tmp_path / "own.jinja"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    assert main(["serve", str(both[1]), "--port", "0", "--chat-template", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert problem in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", ["", "no JSON", "[1]", '{"city": "\\ud800"}', '{"a":' * 20000])
def test_calls_with_other_arguments(server, arguments):
    call = CALL | {"function": {"name": "weather", "arguments": arguments}}
    messages = [CALLED[0], CALLED[1] | {"tool_calls": [call]}, CALLED[2]]
    asked = {"model": "toy", "messages": messages, "max_tokens": 2}
    if len(arguments) < 1000:
        assert server.client.chat.completions.create(**asked).choices[0].finish_reason == "length"
    else:
        with pytest.raises(openai.BadRequestError, match="context"):
            server.client.chat.completions.create(**asked)


def test_what_hugging_faces_templates_use():
    source = """\
{% generation %}{{ {"a": "<é>"} | tojson }}{% endgeneration %}
    {% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}
{{ strftime_now("%Y") | length }}{{ bos_token }}
"""
    assert Template(source).render([], None) == '{"a": "<é>"}14'
