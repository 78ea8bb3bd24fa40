"""The requests of EleutherAI's lm_eval 0.4.13, as its `local-completions` and `local-chat-completions` send them."""

import json
import urllib.error
import urllib.request

import pytest
from mock_server import serving

from pomona.data.tokenizer import BEGIN, END
from pomona.model.sampling import Sampling
from pomona.serve.backend import Choice, Work
from pomona.serve.mock_backend import MockBackend

SCORE = {"model": "toy", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
UNTIL = {"model": "toy", "max_tokens": 12, "temperature": 0.0, "stop": ["\n", ".", "</s>"], "seed": 1234}
KEY = "sk-one"
CONTEXT, CONTINUATIONS = "def main", [" return", " import os", " żółć <n>\n ok"]


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A server of a model that ends every second text, and of keys."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"alice {KEY}\n")
    with serving(slots=4, context=64, mock={"end_every": 2}, keys=str(path)) as running:
        yield running.url


def ask(url, path, body=None, key=""):
    """(status, answer) of a request as `requests` sends it; without an API key there is an empty one."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def score(url, prompt, key="", **more):
    """The choices of a request for log-likelihoods."""
    status, answer = ask(url, "/v1/completions", {"prompt": prompt} | SCORE | more, key)
    assert status == 200, answer
    return answer["choices"]


def read(choice, context_tokens):
    """As lm_eval reads it: the sum over the continuation, and whether it is the most likely; one token more came."""
    told, most = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    own, others = told[context_tokens:-1], most[context_tokens:-1]
    return sum(own), all(one == max(top.values()) for one, top in zip(own, others)), len(own)


def exact(tokenizer, ids, first):
    """The same of the engine's backend itself."""
    backend = MockBackend(tokenizer.vocab_size, slots=1)
    work = Work(0, 0, ids, Choice(Sampling(0.0), 1234, 1), draws=0, followed_by=ids[1:])
    likely = backend.run([work])[0].prompt[first - 1 :]
    return sum(one.logprob for one in likely), all(one.logprob == one.logprobs[0] for one in likely), len(likely)


def test_log_likelihoods_by_tokens_and_by_texts(server, tokenizer):
    """Tokens are taken as they are; texts get the begin token, which is not among what is echoed."""
    wholes = [CONTEXT + continuation for continuation in CONTINUATIONS]
    ids, length = [tokenizer.encode(whole) for whole in wholes], len(tokenizer.encode(CONTEXT))
    by_tokens, by_texts = score(server.url, ids), score(server.url, wholes)
    for own, whole, tokens, text in zip(ids, wholes, by_tokens, by_texts):
        assert tokens["text"].startswith(whole) and text["text"].startswith(whole)
        assert read(tokens, length) == exact(tokenizer, own, length)
        assert read(text, length) == exact(tokenizer, [BEGIN, *own], 1 + length)
        assert read(tokens, length)[2] == len(own) - length
        assert score(server.url, [own])[0]["logprobs"] == tokens["logprobs"], "alone as in a batch"
        assert score(server.url, whole)[0]["logprobs"] == text["logprobs"]
    rolling = [BEGIN, *ids[1]]  # of a whole text
    assert read(score(server.url, [rolling])[0], 1) == exact(tokenizer, rolling, 1)


def test_what_is_most_likely_is_known_to_be(server, tokenizer):
    draw = MockBackend(tokenizer.vocab_size, slots=1).run([Work(0, 0, [300, 301], Choice(Sampling(0.0), 0))])
    total, greedy, _ = read(score(server.url, [[300, 301, *draw[0].tokens]])[0], 2)
    assert greedy and total > -2
    assert read(score(server.url, [[300, 301, 302]])[0], 2)[1] is False


def test_one_token_more_comes_back_also_at_the_end_of_a_document(ending):
    """Where the model ends the text, the end token is what comes back: else a token of the continuation is lost."""
    prompts = [[300 + i, 310, 320 + i] for i in range(12)]
    choices = score(ending, prompts, KEY)
    assert {choice["finish_reason"] for choice in choices} == {"stop", "length"}
    for prompt, choice in zip(prompts, choices):
        told = choice["logprobs"]
        assert len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(told["tokens"]) == 4
        assert "".join(told["tokens"]) == choice["text"]
        if choice["finish_reason"] == "stop":
            assert told["tokens"][-1] == "" and told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())
            (echoed,) = score(ending, [[*prompt, END]], KEY, max_tokens=0)
            assert echoed["logprobs"]["token_logprobs"] == told["token_logprobs"]


def test_the_end_token_also_comes_in_a_stream(ending):
    asked = SCORE | {"prompt": [300, 310, 320], "max_tokens": 40, "temperature": 1, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{ending}/v1/completions", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as found:
        events = [json.loads(line[6:]) for line in found if line.startswith(b"data: {")]
    streamed = [one for event in events for one in event["choices"][0]["logprobs"]["token_logprobs"]]
    choice = ask(ending, "/v1/completions", asked | {"stream": False}, KEY)[1]["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["logprobs"]["tokens"][-1] == ""
    assert streamed == choice["logprobs"]["token_logprobs"]


def test_texts_until_something_comes(server, tokenizer):
    ids = tokenizer.encode(CONTEXT)
    for prompt in ([ids], CONTEXT, [CONTEXT, "import"]):
        status, answer = ask(server.url, "/v1/completions", {"prompt": prompt} | UNTIL)
        assert status == 200 and all(type(choice["text"]) is str for choice in answer["choices"])
    said = [
        {"role": "user", "content": CONTEXT},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    older = [message | {"type": "text"} for message in said]  # as 0.4.9 has it
    answers = [ask(server.url, "/v1/chat/completions", {"messages": each} | UNTIL) for each in (said, older)]
    assert [status for status, _ in answers] == [200, 200]
    assert answers[0][1]["choices"] == answers[1][1]["choices"]


def test_the_tokenizer_from_afar(server, tokenizer):
    status, info = ask(server.url, "/tokenizer_info")
    assert status == 200 and (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    tokens = lambda text, **more: ask(server.url, "/tokenize", {"prompt": text} | more)[1]["tokens"]
    assert tokens("test", add_special_tokens=False) == tokenizer.encode("test")
    assert tokens("test") == [BEGIN, *tokenizer.encode("test")]
    assert [tokens(info[name], add_special_tokens=False) for name in ("bos_token", "eos_token")] == [[BEGIN], [END]]
    assert BEGIN not in tokens("<s>a", add_special_tokens=False)
    for text in [CONTEXT + continuation for continuation in CONTINUATIONS]:
        assert ask(server.url, "/detokenize", {"tokens": tokens(text)}) == (200, {"prompt": text})
    for path, body, param in [
        ("/detokenize", {"tokens": [tokenizer.vocab_size]}, "tokens"),
        ("/tokenize", {"prompt": "x" * (1 << 20) + "x"}, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model"),
        ("/tokenize", {"prompt": ["x"]}, "prompt"),
        ("/tokenize", {"prompt": "x", "nonsense": 1}, "nonsense"),
    ]:
        status, answer = ask(server.url, path, body)
        assert status in (400, 404) and answer["error"]["param"] == param, answer


def test_the_tokenizer_is_for_who_may_ask(ending):
    for path, body in [("/tokenizer_info", None), ("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [300]})]:
        status, answer = ask(ending, path, body)
        assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        assert ask(ending, path, body, KEY)[0] == 200
