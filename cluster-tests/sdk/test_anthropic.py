"""The Anthropic Python SDK against the gateway."""

import asyncio

import anthropic
import pytest

from conftest import KEY, MODEL

PROMPT = [{"role": "user", "content": "Tell me about gateways."}]
TOOLS = [
    {
        "name": "weather",
        "description": "The weather in a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


def client(cluster, **settings):
    settings = {"api_key": KEY, "max_retries": 0, "timeout": 20, **settings}
    return anthropic.Anthropic(base_url=cluster.url, **settings)


def ask(api, **more):
    return api.messages.create(model=MODEL, max_tokens=16, messages=PROMPT, **more)


def fault(text):
    return {"x-mock-fault": text}


def test_message(cluster):
    answer = ask(client(cluster))
    assert answer.role == "assistant"
    assert answer.content[0].text
    assert answer.usage.input_tokens > 0
    assert answer._request_id.startswith("msg_")


def test_message_streams(cluster):
    with client(cluster).messages.stream(model=MODEL, max_tokens=16, messages=PROMPT) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    assert final.stop_reason


def test_async_messages(cluster):
    async def run():
        async with anthropic.AsyncAnthropic(base_url=cluster.url, api_key=KEY, max_retries=0) as api:
            answers = await asyncio.gather(*[ask(api) for _ in range(8)])
            async with api.messages.stream(model=MODEL, max_tokens=16, messages=PROMPT) as stream:
                streamed = "".join([text async for text in stream.text_stream])
            return answers, streamed

    answers, streamed = asyncio.run(run())
    assert {answer.content[0].text for answer in answers} == {streamed}


def test_tools(cluster):
    answer = client(cluster).messages.create(
        model=MODEL,
        max_tokens=64,
        tools=TOOLS,
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": "call the tool weather"}],
    )
    assert [block.name for block in answer.content if block.type == "tool_use"] == ["weather"]


def test_count_tokens_and_models(cluster):
    api = client(cluster)
    assert api.messages.count_tokens(model=MODEL, messages=PROMPT).input_tokens > 0
    assert [model.id for model in api.models.list()] == [MODEL]


@pytest.mark.parametrize(
    "settings,request_settings,expected",
    [
        ({"api_key": "sk-wrong"}, {}, anthropic.AuthenticationError),
        ({}, {"model": "nothing"}, anthropic.NotFoundError),
    ],
)
def test_errors_have_anthropics_shape(cluster, settings, request_settings, expected):
    request = {"model": MODEL, "max_tokens": 16, "messages": PROMPT, **request_settings}
    with pytest.raises(expected) as caught:
        client(cluster, **settings).messages.create(**request)
    assert caught.value.body["type"] == "error"
    assert caught.value.request_id


def test_overload_is_retried_by_the_sdk(cluster):
    for engine in range(2):
        cluster.fault(engine, fault="status=529", count=1)
    assert ask(client(cluster, max_retries=4)).content[0].text


@pytest.mark.parametrize("text", ["rst@event:4", "fin@event:4", "garble@event:4", "stall@event:4"])
def test_a_broken_stream_is_an_error(cluster, text):
    with pytest.raises(anthropic.APIError):
        with client(cluster).messages.stream(
            model=MODEL, max_tokens=16, messages=PROMPT, extra_headers=fault(text)
        ) as stream:
            for _ in stream.text_stream:
                pass


@pytest.mark.parametrize("text,status", [("rst@head", 502), ("stall@head", 504), ("status=500", 500)])
def test_a_message_that_fails_has_a_status(cluster, text, status):
    with pytest.raises(anthropic.APIStatusError) as caught:
        with client(cluster).messages.stream(
            model=MODEL, max_tokens=16, messages=PROMPT, extra_headers=fault(text)
        ) as stream:
            list(stream.text_stream)
    assert caught.value.status_code == status
    assert len(cluster.ledger()) == 1
