"""A server in a process of its own, over the mock engine."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "reference"


class Server:
    """A running server: its address, its process and the official client."""

    def __init__(self, process, url):
        self.process, self.url = process, url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@contextlib.contextmanager
def serving(**options):
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "serve_mock.py"), str(TOKENIZER), json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?(?=,)", line)
        if not found:
            process.kill()
            raise AssertionError(line + process.communicate()[1])
        yield Server(process, found.group())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
