"""A server over the mock engine, for tests: `serve_mock.py TOKENIZER OPTIONS`, where OPTIONS is JSON."""

import json
import sys
from pathlib import Path

from pomona.api.keys import Keys, read_keys
from pomona.api.server import Listening, run_server
from pomona.api.template import Template
from pomona.data.tokenizer import load_tokenizer
from pomona.serve.messages import Start

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
keys = options.pop("keys", None)
waiting, mock = options.pop("waiting", 64), {"tokenizer": str(folder)} | options.pop("mock", {})
start = Start("mock", adapters={"red": "", "blue": ""}, mock=mock, **options)
listening = Listening(
    start, "toy", load_tokenizer(folder), Template(), read_keys(Path(keys)) if keys else Keys(), port=0
)
run_server(Listening(**{**vars(listening), "most_waiting": waiting}), lambda text: print(text, flush=True))
