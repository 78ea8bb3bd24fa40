"""Everything on one machine: what a person types first."""

import asyncio
import json
import os
import re
import subprocess
import sys

import openai
import pytest
from cloud import ROOT, free_ports

from pomona.data.tokenizer import BEGIN
from pomona.device.engine import load
from pomona.model.sampling import Sampling
from pomona.private.client.proxy import request_of


def pomona(cloud, *arguments):
    command = [sys.executable, "-m", "pomona.cli.main", "private", *arguments, "--config", str(cloud.config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_question_is_answered(cloud):
    found = pomona(cloud, "ask", "hello", "--max-tokens", "12", "--temperature", "0")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_an_auditor_sees_every_clause(cloud):
    found = pomona(cloud, "audit")
    assert found.returncode == 0, found.stdout + found.stderr
    nodes = re.findall(r"^node ([0-9a-f]{64}): passed$", found.stdout, re.MULTILINE)
    assert len(nodes) == 2
    assert "pass  replayed" in found.stdout and "FAIL" not in found.stdout
    told = json.loads(pomona(cloud, "audit", "--json").stdout)
    assert all(report["passed"] for report in told) and len(told) == 3
    assert {"listed", "release_in_force"} <= {each["clause"] for each in told[1]["findings"]}


def test_the_official_client_works_through_the_proxy(cloud):
    port = free_ports(1)
    command = [sys.executable, "-m", "pomona.cli.main", "private", "proxy", "--config", str(cloud.config)]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert f"http://127.0.0.1:{port}/v1" in process.stderr.readline()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            name = client.models.list().data[0].id
            turns = [{"role": "user", "content": "hello"}]
            whole = client.chat.completions.create(model=name, messages=turns, max_tokens=9, temperature=0)
            parts = client.chat.completions.create(model=name, messages=turns, max_tokens=9, temperature=0, stream=True)
            text = "".join(each.choices[0].delta.content or "" for each in parts if each.choices)
            assert whole.choices[0].message.content == text and whole.usage.completion_tokens <= 9
            assert client.embeddings.create(model=name, input="hello").data[0].embedding
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                client.chat.completions.create(model="nobody", messages=turns)
            with pytest.raises(openai.BadRequestError, match="max_tokens"):
                client.chat.completions.create(model=name, messages=turns, max_tokens=-1)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_the_answer_through_all_roles_is_the_models_own(cloud, device_file):
    async def asked():
        async with cloud.asker() as asker:
            body = {"model": device_file.stem, "prompt": "hello", "max_tokens": 8, "temperature": 0}
            asking = asker.ask(request_of("/v1/completions", json.dumps(body).encode()), device_file.stem)
            async with asking as answer:
                return json.loads(await answer.whole())["choices"][0]["text"]

    model = load(device_file)
    own = list(model.open(64).generate([BEGIN, *model.tokenizer.encode("hello")], 8, Sampling(temperature=0.0)))
    assert asyncio.run(asked()) == model.tokenizer.decode(own)
