"""The official client against the server: what it sends is understood, what comes back it can read."""

import json

import openai
import pytest

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": f"the {name}", "parameters": parameters}}


TOOLS = [tool("weather", city={"enum": ["Rome", "Oslo"]}), tool("add", a={"type": "integer"}, b={"type": "integer"})]


def test_the_models_are_the_base_and_its_adapters(client):
    assert [model.id for model in client.models.list()] == ["toy", "toy:red", "toy:blue"]
    assert client.models.retrieve("toy:red").id == "toy:red"


def test_a_chat_whole_and_in_pieces_says_the_same(client):
    asked = {"model": "toy", "messages": HELLO, "max_tokens": 40, "seed": 4, "temperature": 0.9}
    whole = client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 40 and whole.usage.total_tokens == 40 + whole.usage.prompt_tokens
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert said == choice.message.content and len(parts) > 10
    assert parts[0].choices[0].delta.role == "assistant" and parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].choices == [] and parts[-1].usage.completion_tokens == 40
    assert len({part.id for part in parts}) == 1


def test_several_choices_are_those_of_their_seeds(client):
    asked = {"model": "toy", "messages": HELLO, "max_tokens": 12, "temperature": 1}
    three = client.chat.completions.create(**asked, n=3, seed=5)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[1] == client.chat.completions.create(**asked, seed=6).choices[0].message.content
    parts = list(client.chat.completions.create(**asked, n=3, seed=5, stream=True))
    streamed = ["".join(p.choices[0].delta.content or "" for p in parts if p.choices[0].index == i) for i in range(3)]
    assert streamed == texts


def test_an_adapter_says_something_else(client):
    said = [
        client.chat.completions.create(model=name, messages=HELLO, max_tokens=12).choices[0].message.content
        for name in ("toy", "toy:red", "toy:blue")
    ]
    assert len(set(said)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_is_left_out_and_ends(client, stream):
    asked = {"model": "toy", "prompt": "a", "max_tokens": 60, "seed": 1, "temperature": 0}
    free = client.completions.create(**asked).choices[0].text
    stop = free[20:24]
    found = client.completions.create(**asked, stop=[stop, "never comes"], stream=stream, logprobs=0)
    parts = list(found) if stream else [found]
    text = "".join(part.choices[0].text for part in parts)
    assert text == free[: free.index(stop)]
    assert parts[-1].choices[0].finish_reason == "stop"
    tokens = [token for part in parts if part.choices[0].logprobs for token in part.choices[0].logprobs.tokens]
    assert "".join(tokens).startswith(text) and len("".join(tokens)) < len(text) + 12, "none of what was cut off"


def test_log_probabilities_of_a_chat(client, tokenizer):
    asked = {"model": "toy", "messages": HELLO, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    for seed in range(5):
        found = client.chat.completions.create(**asked, seed=seed)
        content = found.choices[0].logprobs.content
        assert len(content) == 6 and all(len(one.top_logprobs) == 3 for one in content)
        spoken = b"".join(bytes(one.bytes) for one in content).decode("utf-8", "replace")
        assert spoken.lstrip(" ") == found.choices[0].message.content
        assert content[0].top_logprobs[0].token == content[0].token and content[0].logprob < 0


def test_completions_of_several_prompts_echo_and_tell(client, tokenizer):
    ids = tokenizer.encode("def main")
    found = client.completions.create(
        model="toy", prompt=["def main", "import"], max_tokens=3, echo=True, logprobs=2, n=2
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    first = found.choices[0]
    assert first.text.startswith("def main") and found.choices[2].text.startswith("import")
    assert "".join(first.logprobs.tokens) == first.text and len(first.logprobs.tokens) == len(ids) + 3
    assert first.logprobs.text_offset == [len("".join(first.logprobs.tokens[:i])) for i in range(len(ids) + 3)]
    assert all(len(one) == 2 for one in first.logprobs.top_logprobs)
    by_ids = client.completions.create(model="toy", prompt=ids, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert by_ids.text == "def main" and by_ids.logprobs.token_logprobs[0] is None, "nothing is known of the first"
    assert len(by_ids.logprobs.tokens) == len(ids) and by_ids.finish_reason == "length"


def test_json_of_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        asked = {"model": "toy", "messages": HELLO, "response_format": form, "seed": seed, "temperature": 1}
        found = client.chat.completions.create(**asked)
        trip = json.loads(found.choices[0].message.content)
        assert set(trip) == {"city", "days"} and 1 <= trip["days"] <= 9 and found.choices[0].finish_reason == "stop"
        parts = client.chat.completions.create(**asked, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == found.choices[0].message.content


def test_any_json_object(client):
    """The mock draws from all that may follow, so it seldom ends by itself: what there is, is the beginning of JSON."""
    found = client.chat.completions.create(
        model="toy", messages=HELLO, response_format={"type": "json_object"}, max_tokens=30
    ).choices[0]
    assert found.message.content.startswith("{")
    if found.finish_reason == "stop":
        assert isinstance(json.loads(found.message.content), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_functions_that_have_to_be_called(client, choice):
    asked = {"model": "toy", "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "max_tokens": 300}
    found = client.chat.completions.create(**asked, parallel_tool_calls=False, seed=2).choices[0]
    if found.finish_reason == "length":
        pytest.skip("the mock wrote digits to the end")
    (call,) = found.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert found.finish_reason == "tool_calls" and found.message.content is None
    assert arguments.keys() == ({"city"} if call.function.name == "weather" else {"a", "b"})
    if choice != "required":
        assert call.function.name == "add"
    follow = [
        *HELLO,
        found.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "7"},
    ]
    assert client.chat.completions.create(
        model="toy", messages=follow, tools=TOOLS, tool_choice="none", max_tokens=5
    ).choices


def test_several_calls_at_once_also_in_pieces(client):
    only = [tool("weather", city={"enum": ["Rome", "Oslo"]})]
    most = 0
    for seed in range(6):
        asked = {
            "model": "toy",
            "messages": HELLO,
            "tools": only,
            "tool_choice": "required",
            "max_tokens": 200,
            "seed": seed,
        }
        found = client.chat.completions.create(**asked, temperature=1).choices[0]
        parts = list(client.chat.completions.create(**asked, temperature=1, stream=True))
        calls = [call for part in parts for call in part.choices[0].delta.tool_calls or ()]
        assert [call.index for call in calls] == list(range(len(calls)))
        own = [(call.function.name, call.function.arguments) for call in found.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == own
        assert parts[-1].choices[0].finish_reason == found.finish_reason
        assert all(json.loads(arguments)["city"] in ("Rome", "Oslo") for _, arguments in own)
        most = max(most, len(own))
    assert most > 1


def test_functions_that_may_be_called(client):
    found = client.chat.completions.create(model="toy", messages=HELLO, tools=TOOLS, max_tokens=40).choices[0]
    assert found.message.tool_calls or not found.message.content.startswith("<")


def test_embeddings(client):
    found = client.embeddings.create(model="toy", input=["one text", "another", "one text"])
    first, second, third = (each.embedding for each in found.data)
    assert first == third and sum(x * x for x in first) == pytest.approx(1, abs=1e-5) and len(second) == len(first)
    assert found.usage.prompt_tokens > 3
    plain = client.embeddings.create(model="toy", input="one text", encoding_format="float").data[0].embedding
    assert plain == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "code", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "toy:green"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "unknown_parameter", "nonsense"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"top_p": 0}, openai.BadRequestError, "invalid_value", "top_p"),
        ({"n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"max_tokens": "many"}, openai.BadRequestError, "invalid_type", "max_tokens"),
        ({"stop": [""]}, openai.BadRequestError, "invalid_value", "stop"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "unsupported_parameter", "logit_bias"),
        ({"presence_penalty": 1}, openai.BadRequestError, "unsupported_parameter", "presence_penalty"),
        ({"top_logprobs": 2}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": "x " * 4000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            openai.BadRequestError,
            "unsupported_content",
            "messages",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}},
            openai.BadRequestError,
            "invalid_schema",
            "response_format",
        ),
        ({"tools": [tool("a"), tool("a")]}, openai.BadRequestError, "invalid_value", "tools"),
        ({"tools": [tool("a b")]}, openai.BadRequestError, "invalid_value", "tools"),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_value", "tool_choice"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "invalid_value", "stream_options"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_named(client, changes, error, code, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": "toy", "messages": HELLO, "max_tokens": 3} | changes))
    assert (caught.value.code, caught.value.param) == (code, param), caught.value
    assert caught.value.body["message"] and caught.value.body["type"]
