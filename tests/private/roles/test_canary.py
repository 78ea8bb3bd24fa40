"""A secret in prompts, looked for afterwards wherever the cloud could have kept it."""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from cloud import ROOT, free_ports
from looking import (
    Needles,
    Recorder,
    asked,
    files_below,
    forking_processes,
    forms_of,
    in_files,
    in_process,
    open_files,
    parts,
    pried,
    recorded_cloud,
    secret_letters,
    token_forms_of,
)

from pomona.device.engine import load
from pomona.private.client.trust import write_trust
from pomona.private.roles.forgetting import overwriting
from pomona.private.roles.pool import SPARE
from pomona.private.sealing.padding import FLOOR_BYTES

BESIDE = ("log", "issuer", "relay", "gateway", "tpm", "forking0", "forking1", "worker0", "worker1")
"""Processes that have no business with what a request says, or no longer."""


@pytest.fixture(scope="module")
def wired(device_file, tmp_path_factory):
    """A cloud with recorders before relay, gateway and nodes."""
    folder = tmp_path_factory.mktemp("canary")
    for each in ("working", "temporary"):
        (folder / each).mkdir()
    port = free_ports(10)
    at = lambda place: f"http://127.0.0.1:{port + place}"
    recorders = {name: Recorder(port + 4 + n, port + n) for n, name in enumerate(("relay", "gateway"), 2)}
    recorders |= {name: Recorder(port + 4 + n, port + n) for n, name in enumerate(("node0", "node1"), 4)}
    changed = {("relay", at(3) + "/"): at(7) + "/"}
    changed |= {("gateway", f"--node={at(place)}"): f"--node={at(place + 4)}" for place in (4, 5)}
    started = recorded_cloud(folder / "private", device_file, port, changed, folder / "working", folder / "temporary")
    try:
        with started as cloud:
            config = folder / "recorded.json"
            write_trust(dataclasses.replace(cloud.trust(), relay=at(6) + "/"), config)
            yield SimpleNamespace(cloud=cloud, recorders=recorders, folder=folder, config=config, name=device_file.stem)
    finally:
        for each in recorders.values():
            each.close()


def requests_of(name, secret, other):
    """Every kind of request that says a secret, and one that says another in a schema."""
    text, path = f"hello {secret} you", "/v1/chat/completions"
    chat = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 40}
    plain = {"model": name, "prompt": text, "max_tokens": 20}
    schema = {"type": "object", "properties": {other: {"enum": ["a", "b"]}}, "required": [other]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}
    return [
        (path, json.dumps(chat | {"stream": True}), False),
        ("/v1/completions", json.dumps(plain | {"echo": True, "logprobs": 2}), False),
        ("/v1/embeddings", json.dumps({"model": name, "input": text}), False),
        (path, json.dumps(chat | {"response_format": form, "max_tokens": 200}), False),
        ("/v1/completions", json.dumps(plain | {"max_tokens": -1}), False),
        ("/v1/completions", json.dumps(plain | {text: text}), False),
        ("/v1/completions", json.dumps(plain)[:-9], False),
        (f"/v1/{secret}", json.dumps(plain), False),
        (path, json.dumps(chat | {"stream": True, "max_tokens": 400}), True),
    ]


@pytest.fixture(scope="module")
def said(wired, device_file):
    """The secrets' forms, after a client has said them and is gone."""
    secret, other = secret_letters(), secret_letters()
    requests, encode = requests_of(wired.name, secret, other), load(device_file).tokenizer.encode
    tokens = encode(" " + secret)[2:-1]  # those at the ends depend on what stands beside
    assert str(tokens)[1:-1] in str(encode(f"hello {secret} you"))
    answers = asked(wired.config, wired.folder / "client", requests)
    assert [status for status, _ in answers] == [200, 200, 200, 200, 400, 400, 400, 404, 200]
    assert other in answers[3][1] and secret in answers[1][1] and "[DONE]" not in answers[8][1]
    for number in range(2):
        wait_for_idle(wired.cloud.role(f"node{number}"))
    text, schema = forms_of("the text", secret), forms_of("the schema", other)
    return SimpleNamespace(
        text=Needles(text),
        schema=Needles(schema),
        tokens=Needles(token_forms_of("the tokens", tokens)),
        all=Needles([*text, *schema, *token_forms_of("the tokens", tokens)]),
    )


def wait_for_idle(node):
    """Until a node has no more workers than wait."""
    [forking], until = forking_processes(node), time.monotonic() + 60
    while len(forking.children()) > SPARE:
        assert time.monotonic() < until, "a worker is still there"
        time.sleep(0.02)


def found_in(wired, needles, kinds):
    """What is found in the memory of processes of some kinds, `node` or `node0`, by these."""
    found = {}
    for kind, processes in parts(wired.cloud).items():
        if kind in kinds or kind.rstrip("01") in kinds:
            found |= {f"{kind} {each.pid}": in_process(each.pid, needles) for each in processes}
    return found


def test_every_form_is_found_wherever_it_begins():
    random.seed(1)
    forms = [*forms_of("the text", secret_letters()), *token_forms_of("tokens", random.sample(range(300, 9000), 40))]
    needles = Needles(forms)
    for name, [form, *_] in forms:
        for at in range(64, 72):
            assert name in needles.in_(random.randbytes(at) + form + random.randbytes(50)), (name, at)
        assert name not in needles.in_(random.randbytes(64) + form[: len(form) // 2 - 1] + random.randbytes(50))


def test_a_secret_that_is_kept_is_found(tmp_path):
    """The same search, of a process and of files that do keep it."""
    forms = forms_of("the text", secret_letters())
    program = "import sys, time; kept = [bytes.fromhex(each) for each in sys.stdin.readline().split()]; print(len(kept)"
    command = [sys.executable, "-c", program + ", flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdin.write(" ".join(form.hex() for _, each in forms for form in each) + "\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == sum(len(each) for _, each in forms)
            assert in_process(process.pid, Needles(forms)) == {name for name, _ in forms}
        finally:
            process.kill()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "said.err").write_bytes(b"Traceback: " + forms[0][1][0])
    (tmp_path / forms[0][1][1].decode()).touch()
    found = in_files(files_below(tmp_path), Needles(forms))
    assert len(found) == 2 and set().union(*found.values()) == {forms[0][0]}


def test_no_process_has_the_text(wired, said):
    kinds = ("log", "issuer", "relay", "gateway", "tpm", "node", "engine", "forking", "worker")
    found = found_in(wired, said.text, kinds)
    assert len(found) >= 10 + 2 * SPARE and not any(found.values()), found


def test_nothing_of_a_request_is_in_processes_that_do_not_compute_it(wired, said):
    found = found_in(wired, said.all, BESIDE)
    assert len(found) >= 6 + 2 * SPARE and not any(found.values()), found


def test_what_a_node_has_passed_on_is_overwritten(wired, said):
    """Its process passes tokens and schemas between worker and engine, and keeps neither in memory that it frees."""
    found = found_in(wired, said.all, ("node",))
    assert len(found) == 2 and not any(found.values()), found


def test_freed_memory_is_overwritten_because_it_is_asked_for():
    """A program that frees a large and a small value, each of which says what it was before it is gone."""
    program = (
        "import os, sys\n"
        "kept = [os.urandom(size).hex().encode() for size in (20, 200, 2000)] * 1\n"
        "for each in kept: sys.stdout.buffer.write(bytes(255 - byte for byte in each[:40]).hex().encode() + b'\\n')\n"
        "sys.stdout.flush()\n"
        "del kept, each\n"
        "sys.stdin.readline()\n"
    )
    told = {}
    for name, environment in (("as it is", {}), ("overwriting", overwriting({}))):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        with process:
            lines = [process.stdout.readline() for _ in range(3)]
            held = [bytes(255 - byte for byte in bytes.fromhex(line.decode())) for line in lines]
            time.sleep(0.05)
            told[name] = in_process(process.pid, Needles([(str(len(each)), [each]) for each in held]))
            process.communicate(b"\n")
    assert told["as it is"] and not told["overwriting"], told


def test_the_engine_forgets_schemas(wired, said):
    found = found_in(wired, said.schema, ("engine",))
    assert not any(found.values()), found


def test_the_engine_has_tokens_until_its_slots_are_used_again(wired, said):
    """It is known, and said in the documentation; what is asked for here is that nobody else has them."""
    found = found_in(wired, said.tokens, ("engine",))
    assert {name.rpartition(" ")[2] for names in found.values() for name in names} <= {"MessagePack", "int32", "int64"}


def test_no_file_has_it(wired, said):
    assert len(files_below(wired.folder)) > 30
    assert in_files(files_below(wired.folder), said.all) == {}
    opened = [file for processes in parts(wired.cloud).values() for each in processes for file in open_files(each.pid)]
    assert len(opened) > 20 and in_files(opened, said.all) == {}


def test_no_metric_has_it(wired, said):
    for place in (4, 5):
        text = httpx2.get(f"http://127.0.0.1:{wired.cloud.port + place}/metrics").content
        assert b"pomona_private_requests_total" in text and not said.all.in_(text)


def test_nothing_on_the_way_has_it(wired, said):
    sizes = {name: len(each.transcript) for name, each in wired.recorders.items()}
    assert min(sizes["relay"], sizes["gateway"]) > 50_000 and sizes["node0"] + sizes["node1"] > 50_000
    for name, each in wired.recorders.items():
        assert not said.all.in_(each.transcript), name
    assert not any(wired.name.encode() in wired.recorders[name].transcript for name in ("relay", "gateway"))


def test_the_gateway_sees_nothing_of_the_clients_connection(wired, said):
    """The heads of all requests that it gets are the same but for their lengths."""
    heads = [
        re.sub(rb"(?i)content-length: \d+", b"", head)
        for sent, _ in wired.recorders["gateway"].connections
        for head in re.findall(rb"POST / HTTP/1\.1\r\n(?:[A-Za-z-]+: [^\r]*\r\n)+\r\n", bytes(sent))
    ]
    assert len(heads) >= 9 and len(set(heads)) == 1
    assert not re.search(rb"forwarded|user-agent|cookie|authorization|python|httpx", heads[0], re.IGNORECASE), heads[0]


def test_lengths_say_nothing_of_prompts_of_one_bucket(wired):
    def lengths(name):
        found = wired.recorders[name].connections
        return [int(each) for sent, _ in found for each in re.findall(rb"(?i)content-length: (\d+)", bytes(sent))]

    bodies = [{"model": wired.name, "prompt": "a" * size, "max_tokens": 1} for size in (1, 80, 333, 700, FLOOR_BYTES)]
    before = {name: len(lengths(name)) for name in wired.recorders}
    requests = [("/v1/completions", json.dumps(each), False) for each in bodies]
    assert [status for status, _ in asked(wired.config, wired.folder / "client", requests)] == [200] * 5
    for name in ("relay", "gateway"):
        new = lengths(name)[before[name] :][1:]  # the first asks for bundles
        assert len(new) == 5 and len(set(new[:4])) == 1 and new[4] > new[0], (name, new)
    new = sorted(size for name in ("node0", "node1") for size in lengths(name)[before[name] :])
    assert len(new) == 5 and len(set(new[:4])) == 1, new


def test_no_role_leaves_core_dumps_or_can_be_read(wired):
    """All their processes, where the machine would allow both; a process that only waits shows that it does."""
    for number in range(2):
        wait_for_idle(wired.cloud.role(f"node{number}"))
    cloud = {name: [each.pid for each in processes] for name, processes in parts(wired.cloud).items()}
    roles = "node|engine|forking|worker|log|issuer|relay|gateway"
    hidden = [pid for name, pids in cloud.items() if re.match(roles, name) for pid in pids]
    assert len(hidden) == 4 + 2 * (3 + SPARE)
    assert all(core_limits(pid) == ["0", "0"] for pid in hidden)
    # The control has no more rights than the roles have, and says when it has given them up.
    program = "import looking, os; looking.give_up_tracing(); os.execlp('sh', 'sh', '-c', 'echo; exec sleep 60')"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"}
    given = {"stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen([sys.executable, "-c", program], **given) as control:
        control.stdout.readline()
        read = pried([*hidden, control.pid])
        control.kill()
    if read is None:
        pytest.skip("the right to read all processes cannot be given up here")
    assert read == {control.pid}


def core_limits(pid):
    """The soft and the hard limit of a process's core dumps."""
    [line] = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in each]
    return line.split()[4:6]
