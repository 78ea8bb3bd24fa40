"""Serving beside llama.cpp's server and transformers: the same shapes, prompts and machine, 1 and 8 users at a time.

    make bench-serve

* AFM-on-device's shape with random weights: our server on the 3.7-bit device file, llama.cpp's on Q4_0, turn by turn.
* `afm_85m`'s shape in float32: our server through JAX, and transformers generating one batch of as many prompts.
* What the engine itself takes of a step, with a backend that computes nothing; how long a start takes.

A user sends 256 tokens and hears 128. Rates are of tokens heard, over the whole time from the first request to the last
answer. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from random_models import files

ROOT = Path(__file__).parents[1]
HEARD = 128


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--prompt", type=int, default=256)
    options.add_argument("--only", choices=("device", "jax", "engine"), action="append")
    chosen = options.parse_args()
    parts = {"device": beside_llama, "jax": beside_transformers, "engine": engine_alone}
    found = {}
    for name, part in parts.items():
        if not chosen.only or name in chosen.only:
            found |= part(chosen)
            print(json.dumps(found), file=sys.stderr, flush=True)
    print(json.dumps(found))


def beside_llama(chosen):
    """Both servers are up; only one is asked at a time."""
    paths = files(ROOT / "runs" / "decode")
    llama = ROOT / ".venv" / "llama-server" / "bin" / "llama-server"
    threads, room = str(os.cpu_count()), chosen.prompt + HEARD + 16
    theirs = [
        llama,
        "-m",
        paths["Q4_0"],
        "-t",
        threads,
        "-tb",
        threads,
        "-np",
        "8",
        "-c",
        str(8 * room),
        "--port",
        "8391",
    ]
    ours = pomona(paths["3.7"], "--slots", "8", "--context", str(room), "--port", "8390")
    rates, first = {}, []
    with serving(ours, "http://127.0.0.1:8390"), serving(theirs, "http://127.0.0.1:8391"):
        for number in range(chosen.rounds):
            for users in (1, 8):
                for who, ask in (("ours", ask_openai), ("llama", ask_llama)):
                    rate, waits = load(ask, users, chosen.prompt, number)
                    rates.setdefault((who, users), []).append(rate)
                    if (who, users) == ("ours", 8):
                        first += waits
                    print(f"{who}, {users} users: {rate:.2f} tokens/s", file=sys.stderr, flush=True)
    middle = {key: statistics.median(values) for key, values in rates.items()}
    return {
        "ratio_vs_llama_server_c1": ratio(rates, 1),
        "ratio_vs_llama_server_c8": ratio(rates, 8),
        "ttft_ms_p50": round(1000 * float(np.percentile(first, 50))),
        "ttft_ms_p99": round(1000 * float(np.percentile(first, 99))),
        "tokens_per_second": {f"{who}_c{users}": round(rate, 2) for (who, users), rate in middle.items()},
    }


def ratio(rates, users):
    """The median over rounds of ours over theirs, round by round."""
    return round(statistics.median(a / b for a, b in zip(rates["ours", users], rates["llama", users])), 3)


def beside_transformers(chosen):
    run = random_run(ROOT / "runs" / "bench-serve")
    seconds = []
    own, rates, users = "http://127.0.0.1:8390", [], 8
    command = pomona(run, "--slots", "8", "--context", "512", "--port", "8390")
    for _ in range(2):  # the second start finds the programs compiled
        began = time.perf_counter()
        with serving(command, own):
            seconds.append(time.perf_counter() - began)
    peer = [sys.executable, ROOT / "bench" / "serve_peer.py", str(chosen.prompt), str(HEARD), str(users)]
    with (
        serving(command, own),
        subprocess.Popen(peer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        other.stdout.readline()
        ask = lambda *given: ask_openai(*given, url=own)
        load(ask, users, chosen.prompt, 99)
        for number in range(chosen.rounds):
            rate, _ = load(ask, users, chosen.prompt, number)
            other.stdin.write("go\n")
            other.stdin.flush()
            theirs = users * HEARD / float(other.stdout.readline())
            rates.append((rate, theirs))
            print(f"ours {rate:.1f}, transformers {theirs:.1f} tokens/s", file=sys.stderr, flush=True)
        other.stdin.close()
    return {
        "ratio_vs_transformers_c8": round(statistics.median(a / b for a, b in rates), 3),
        "startup_seconds": round(seconds[1], 2),
        "startup_seconds_first": round(seconds[0], 2),
    }


def engine_alone(chosen):
    """The share of a step of 10 ms that is not the backend's, with 8 and with 64 slots."""
    from pomona.serve.engine import Engine
    from pomona.serve.messages import Submit, framed
    from pomona.serve.mock_backend import MockBackend

    found = {}
    for slots in (8, 64):
        sent = []
        engine = Engine(
            MockBackend(49_152, slots=slots, context=2048, draws=1), lambda event: sent.append(framed(event))
        )
        for number in range(slots):
            engine.receive(Submit(number, list(range(300, 556)), 400, temperature=1.0, principal=str(number % 7)))
        steps = 0
        while not engine.idle:
            engine.step()
            steps += 1
        found[slots] = (engine.busy_seconds - engine.backend_seconds) / steps / 0.01
    return {"engine_overhead": round(found[8], 4), "engine_overhead_64": round(found[64], 4)}


def load(ask, users, length, seed):
    """So many users at once, each with a prompt of its own: tokens heard a second, and the waits for the first."""
    rng, waits, told = np.random.default_rng((seed, users)), [], []
    prompts = [[1, *rng.integers(3, 299, length - 1).tolist()] for _ in range(users)]

    def one(prompt):
        wait, count = ask(prompt, HEARD)
        waits.append(wait)
        told.append(count)

    crowd = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    began = time.perf_counter()
    for user in crowd:
        user.start()
    for user in crowd:
        user.join()
    seconds = time.perf_counter() - began
    assert len(told) == users and all(count >= HEARD * 0.9 for count in told), told
    return sum(told) / seconds, waits


def ask_openai(prompt, count, url="http://127.0.0.1:8390"):
    """A stream of our server: seconds to the first event, tokens heard."""
    body = {"model": "model", "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}
    body |= {"logprobs": None, "stream_options": {"include_usage": True}}
    wait, last = stream(f"{url}/v1/completions", body)
    return wait, last["usage"]["completion_tokens"]


def ask_llama(prompt, count):
    """The same of llama.cpp's."""
    body = {
        "prompt": prompt,
        "n_predict": count,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
    }
    wait, last = stream("http://127.0.0.1:8391/completion", body)
    return wait, last["tokens_predicted"]


def stream(url, body):
    """Seconds to the first event of a stream, and its last."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    began, wait, last = time.perf_counter(), None, None
    with urllib.request.urlopen(request, timeout=3600) as found:
        for line in found:
            if line.startswith(b"data: {"):
                wait = wait or time.perf_counter() - began
                last = json.loads(line[6:])
    return wait, last


def pomona(model, *options):
    return [sys.executable, "-m", "pomona.cli.main", "serve", model, "--name", "model", *options]


@contextlib.contextmanager
def serving(command, url):
    """A server that answers, until the block ends."""
    with open(os.devnull, "w") as nothing:
        process = subprocess.Popen([str(word) for word in command], stdout=nothing, stderr=nothing)
    try:
        while True:
            assert process.poll() is None, f"{command[0]} has ended"
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{url}/health", timeout=5).status == 200:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def random_run(path):
    """A run folder of `afm_85m`'s shape with drawn weights, made where it is not there yet."""
    if path.exists():
        return path
    import jax
    from random_models import any_tokenizer

    from pomona.checkpoint.config import CheckpointConfig
    from pomona.checkpoint.store import Store
    from pomona.core.config import to_json
    from pomona.core.files import write_json
    from pomona.core.run_folder import RunFolder
    from pomona.data.tokenizer import MODEL_FILE
    from pomona.model.decoder import parameter_specs
    from pomona.model.spec import initialize
    from pomona.recipes.registry import RECIPES

    run = RECIPES["afm_85m"]()
    draft = RunFolder(path.with_name(f"draft-{path.name}"))
    draft.tokenizer.mkdir(parents=True)
    write_json(draft.config, to_json(run))
    (draft.tokenizer / MODEL_FILE).write_bytes(any_tokenizer(run.architecture.vocab_size))
    store = Store(draft.checkpoints, CheckpointConfig())
    store.save(1, {"params": jax.jit(lambda: initialize(parameter_specs(run.architecture), jax.random.key(5)))()}, {})
    store.close()
    draft.path.rename(path)
    return path


if __name__ == "__main__":
    main()
