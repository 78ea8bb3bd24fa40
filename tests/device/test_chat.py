"""A conversation: what the model is given, what stays computed, and what is forgotten; and the verbs around it."""

import io
import json

import pytest

from pomona.cli.main import main
from pomona.core.errors import UserError
from pomona.device.engine import load
from pomona.device.speculate import LookUp, generate
from pomona.infer.chat import Chat
from pomona.infer.slots import Slots
from pomona.model.sampling import Sampling

GREEDY = Sampling(0.0)


@pytest.fixture(scope="module")
def model(pom):
    return load(pom)


def test_a_turn_continues_the_whole_text_and_recomputes_none_of_it(model, monkeypatch):
    session = model.open(300)
    chat = Chat(model.tokenizer, session, "Q: {}\nA:", "Be brief.\n", GREEDY)
    first = "".join(chat.say("one", 10))
    expected = "".join(model.stream("Be brief.\nQ: one\nA:", 10, GREEDY, stops=("\nQ:",)))
    assert first == expected and chat.tokens == 10 and chat.seconds >= chat.first > 0
    ran, advance = [], session.advance
    monkeypatch.setattr(session, "advance", lambda tokens, *rest: ran.append(len(tokens)) or advance(tokens, *rest))
    second = "".join(chat.say("two", 10))
    text = f"Be brief.\nQ: one\nA:{first.rstrip()}\nQ: two\nA:"
    assert second == "".join(model.stream(text, 10, GREEDY, stops=("\nQ:",)))
    assert ran[0] < len(model.encode(text)) - len(model.encode("Be brief.\nQ: one\nA:")) + 3
    chat.forget()
    assert "".join(chat.say("one", 10)) == first
    other = model.open(300)
    speak = lambda rest, most, sampling, seed: generate(other, rest, LookUp(), most, sampling, seed)
    guessing = Chat(model.tokenizer, other, "Q: {}\nA:", "Be brief.\n", GREEDY, speak)
    assert ["".join(guessing.say(said, 10)) for said in ("one", "two")] == [first, second]


def test_the_oldest_turns_go_where_the_context_ends(model):
    chat = Chat(model.tokenizer, model.open(100), "Q: {}\nA:", sampling=GREEDY)
    for number in range(12):
        "".join(chat.say(f"this is number {number}", 6))
    assert 0 < chat.forgotten < 12 and chat.session.length <= 100
    with pytest.raises(UserError, match="tokens long"):
        list(chat.say("a long text " * 100))
    assert len(chat.turns) == 12, "what had no room was not said"


def test_a_stopped_answer_is_what_was_said(model):
    chat = Chat(model.tokenizer, model.open(300), sampling=GREEDY)
    answer = chat.say("hello", 40)
    said = next(answer) + next(answer)
    answer.close()
    assert chat.turns == [f"User: hello\nAssistant:{said.rstrip()}\n"]


def test_the_verb_talks_through_a_pipe(pom, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/what\n/forget\nhello\n/quit\nnever\n"))
    words = ["--temperature", "0", "--max-tokens", "8", "--speculate", "lookup"]
    assert main(["chat", str(pom), *words]) == 0
    out, err = capsys.readouterr()
    assert len(set(out.split("\n")[:-1])) == 1, "the same answer twice"
    assert err.count("8 tokens") == 2 and "there is no /what" in err


def test_a_run_talks_too_and_computes_what_came_before_once(palettized, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand now\n/forget\nhello\n"))
    read = []
    original = Slots.read
    monkeypatch.setattr(Slots, "read", lambda self, *given: read.append(len(given[2])) or original(self, *given))
    assert main(["chat", str(palettized), "--temperature", "0", "--max-tokens", "8", "--context", "128"]) == 0
    out, err = capsys.readouterr()
    assert err.count("8 tokens") == 3 and "step 1" in err
    assert out[: len(out) // 2].split("\n")[0] == out.rstrip("\n").split("\n")[-1] or out.count("\n") > 3
    assert 0 < read[1] < read[0] + 20 and read[2] <= read[0]


def test_mistakes_are_one_clear_error(pom, palettized, tmp_path, capsys):
    for words, problem in (
        (["chat", str(palettized), "--threads", "2"], "--threads with a run folder"),
        (["chat", str(tmp_path / "none.pom")], "is not there"),
        (["chat", str(pom), "--turn", "no braces"], "a turn has {} once"),
        (["chat", str(pom), "--speculate", "luck"], "it is none, lookup, or the path"),
        (["chat", str(pom), "--top-p", "0"], "top-p 0"),
        (["bench", str(palettized)], "is a folder"),
        (["bench", str(pom), "--tokens", "0"], "at least 1"),
        (["generate", str(palettized), "a", "--speculate", "lookup"], "--speculate with a run folder"),
    ):
        assert main(words) == 2
        assert problem in capsys.readouterr().err


def test_the_bench_tells_what_a_token_reads(pom, model, monkeypatch, capsys):
    monkeypatch.setattr("pomona.device.bench.bandwidth", lambda threads: 1e9)  # a gibibyte is much for a test
    words = ["bench", str(pom), "--threads", "1", "--tokens", "3", "--prefill", "16", "--contexts", "8", "20"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    a = model.file.architecture
    kept = 2 * a.num_layers * a.num_kv_heads * (a.head_dim + 4)
    assert found["bytes"] == {str(n): model.file.weight_bytes + kept * (n + 1) for n in (8, 20)}
    assert min(found["decode"].values()) > 0 and found["prefill"] > 0 and found["threads"] == 1
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "prompt of 16" in table and "a token after 20" in table and "%" in table
