"""`pomona chat URL`: a conversation with a server, in the terminal."""

import io

import pytest
from mock_server import serving

from pomona.api.client import ServedChat
from pomona.cli.main import main
from pomona.core.errors import UserError
from pomona.model.sampling import Sampling

GREEDY = Sampling(0.0)


def test_it_says_what_the_client_of_openai_hears(server, client):
    chat = ServedChat(server.url, system="Be brief.", sampling=GREEDY)
    said = ["".join(chat.say(text, 12)) for text in ("one", "two")]
    messages = [{"role": "system", "content": "Be brief."}]
    for text, answer in zip(("one", "two"), said):
        messages.append({"role": "user", "content": text})
        found = client.chat.completions.create(model="toy", messages=messages, temperature=0, max_tokens=12)
        assert found.choices[0].message.content == answer
        messages.append({"role": "assistant", "content": answer})
    assert chat.tokens == 12 and chat.seconds >= chat.first > 0
    chat.forget()
    assert "".join(chat.say("one", 12)) == said[0]


def test_the_oldest_turns_go_where_the_context_ends():
    with serving(slots=1, context=128) as small:
        chat = ServedChat(small.url, sampling=GREEDY)
        for number in range(9):
            assert "".join(chat.say(f"this is number {number}", 10))
        assert 0 < chat.forgotten < 18 and len(chat.turns) == 18
        with pytest.raises(UserError, match="context is 128 tokens"):
            list(chat.say("a long text " * 60))
        assert len(chat.turns) == 18, "what had no room was not said"


def test_the_verb(server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/forget\nhello\n/quit\n"))
    assert main(["chat", server.url, "--name", "toy:red", "--temperature", "0", "--max-tokens", "9"]) == 0
    out, told = capsys.readouterr()
    first, second = (
        out.strip("\n").split("\n") if out.count("\n") == 2 else (out[: len(out) // 2], out[len(out) // 2 :])
    )
    assert first.strip() == second.strip() and "toy:red at" in told and "9 tokens" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{url}", "--name", "other"], "has no model 'other'"),
        (["{url}", "--threads", "2"], "--threads with a server"),
        (["http://127.0.0.1:9"], "does not answer"),
        (["https://[nonsense"], "does not answer"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input(server, options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", *(option.format(url=server.url) for option in options)]) == 2
    assert message in capsys.readouterr().err
