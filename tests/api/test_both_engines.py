"""The same endpoints over the real engines: a run folder through JAX, a device file through the native runtime."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["run folder", "device file"])
def client(request, both):
    model = both[0] if request.param == "run folder" else both[1]
    options = ["--slots", "2", "--context", "256", "--port", "0", "--name", "small"]
    options += ["--speculate", "lookup"] if request.param == "device file" else ["--cache", "int8", "--draws", "3"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pomona.cli.main", "serve", str(model), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = ""
        while "curl" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        url = re.search(r"http://[0-9.:]+", said).group()
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_chat(client):
    asked = {"model": "small", "messages": HELLO, "max_tokens": 20, "temperature": 0.8, "seed": 3}
    whole = client.chat.completions.create(**asked)
    parts = client.chat.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert 0 < whole.usage.completion_tokens <= 20
    again = client.chat.completions.create(**asked)
    assert again.usage.prompt_tokens_details.cached_tokens > 0, "its beginning is known by now"
    assert again.choices[0].message.content == whole.choices[0].message.content


def test_json_and_log_probabilities(client):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    found = client.chat.completions.create(model="small", messages=HELLO, response_format=form, logprobs=True).choices[
        0
    ]
    assert json.loads(found.message.content)["yes"] in (True, False) and found.finish_reason == "stop"
    assert all(one.logprob <= 0 for one in found.logprobs.content)


def test_completions_and_embeddings(client):
    found = client.completions.create(
        model="small", prompt=["one", "two two"], max_tokens=5, echo=True, logprobs=2, n=2
    )
    assert [choice.text.split()[0][:3] for choice in found.choices] == ["one", "one", "two", "two"]
    one, other, same = (
        each.embedding for each in client.embeddings.create(model="small", input=["a b", "c", "a b"]).data
    )
    assert one == pytest.approx(same, abs=1e-5) and one != pytest.approx(other, abs=1e-3)
