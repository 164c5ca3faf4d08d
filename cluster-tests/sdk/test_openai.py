"""The OpenAI Python SDK against the gateway: what its users do, and what goes wrong for them."""

import asyncio
import json
import time

import openai
import pytest

from conftest import KEY, MODEL

PROMPT = [{"role": "user", "content": "Tell me about gateways."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def client(cluster, **settings):
    settings = {"api_key": KEY, "max_retries": 0, "timeout": 20, **settings}
    return openai.OpenAI(base_url=f"{cluster.url}/v1", **settings)


def async_client(cluster, **settings):
    settings = {"api_key": KEY, "max_retries": 0, "timeout": 20, **settings}
    return openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", **settings)


def fault(text):
    return {"x-mock-fault": text}


def test_chat(cluster):
    answer = client(cluster).chat.completions.create(model=MODEL, messages=PROMPT)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("chatcmpl-")


def test_chat_streams_with_usage(cluster):
    stream = client(cluster).chat.completions.create(
        model=MODEL, messages=PROMPT, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client(cluster).chat.completions.create(model=MODEL, messages=PROMPT)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0


def test_async_chat_and_stream(cluster):
    async def run():
        async with async_client(cluster) as api:
            answers = await asyncio.gather(
                *[api.chat.completions.create(model=MODEL, messages=PROMPT) for _ in range(8)]
            )
            assert len({answer.choices[0].message.content for answer in answers}) == 1
            stream = await api.chat.completions.create(model=MODEL, messages=PROMPT, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(run())[-1].choices[0].finish_reason


def test_tools(cluster):
    messages = [{"role": "user", "content": "call the tool weather"}]
    answer = client(cluster).chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = client(cluster).chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert again.choices[0].message.content


def test_completions(cluster):
    api = client(cluster)
    assert api.completions.create(model=MODEL, prompt="once").choices[0].text
    assert list(api.completions.create(model=MODEL, prompt="once", stream=True))[-1].choices[0].finish_reason


def test_responses_stay_with_their_worker(cluster):
    api = client(cluster)
    first = api.responses.create(model=MODEL, input="remember this")
    assert first.output_text
    for _ in range(4):
        assert api.responses.retrieve(first.id).id == first.id
    second = api.responses.create(model=MODEL, input="go on", previous_response_id=first.id)
    assert second.output_text
    engines = {entry["engine"] for entry in cluster.ledger() if entry["path"].startswith("/v1/responses")}
    assert len(engines) == 1, engines


def test_responses_stream(cluster):
    events = list(client(cluster).responses.create(model=MODEL, input="hello", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert client(cluster).responses.retrieve(events[-1].response.id).id == events[-1].response.id


def test_embeddings_and_models(cluster):
    api = client(cluster)
    assert len(api.embeddings.create(model=MODEL, input=["a", "b"]).data) == 2
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("nothing")


def test_transcription(cluster):
    answer = client(cluster).audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF" + b"\0" * 70_000))
    assert answer.text


def test_wrong_key(cluster):
    with pytest.raises(openai.AuthenticationError) as caught:
        client(cluster, api_key="sk-wrong").chat.completions.create(model=MODEL, messages=PROMPT)
    assert caught.value.code == "invalid_api_key"


def test_unknown_model_names_the_models(cluster):
    with pytest.raises(openai.NotFoundError) as caught:
        client(cluster).chat.completions.create(model="nothing", messages=PROMPT)
    assert MODEL in caught.value.message
    assert caught.value.code == "model_not_found"


def test_bad_parameter_is_the_engines_word(cluster):
    body = {"error": {"message": "temperature must be below 2", "type": "BadRequestError", "code": 400}}
    with pytest.raises(openai.BadRequestError) as caught:
        client(cluster).chat.completions.create(
            model=MODEL, messages=PROMPT, extra_headers=fault(f"status=400,body={json.dumps(body)}")
        )
    assert "temperature" in caught.value.message
    assert len(cluster.ledger()) == 1


def test_server_error_is_not_sent_twice(cluster):
    with pytest.raises(openai.InternalServerError):
        client(cluster).chat.completions.create(model=MODEL, messages=PROMPT, extra_headers=fault("status=500"))
    assert len(cluster.ledger()) == 1


def test_server_error_is_retried_where_the_caller_allows_it(cluster):
    for engine in range(2):
        cluster.fault(engine, fault="status=500", count=1)
    answer = client(cluster).chat.completions.create(
        model=MODEL, messages=PROMPT, extra_headers={"x-smg-allow-replay": "true"}
    )
    assert answer.choices[0].message.content
    assert len(cluster.ledger()) == 3


def test_busy_worker_is_passed_over(cluster):
    cluster.fault(0, fault="status=503,retry-after=1", count=100)
    api = client(cluster)
    for _ in range(4):
        assert api.chat.completions.create(model=MODEL, messages=PROMPT).choices[0].message.content


def test_rate_limit_reaches_the_sdk_with_its_time(cluster):
    with pytest.raises(openai.RateLimitError) as caught:
        client(cluster).chat.completions.create(
            model=MODEL, messages=PROMPT, extra_headers=fault("status=429,retry-after=3600")
        )
    assert caught.value.response.headers["retry-after"] == "3600"


def test_sdk_retries_a_dead_worker_by_itself(cluster):
    for engine in range(2):
        cluster.fault(engine, fault="rst@head", count=1)
    answer = client(cluster, max_retries=4).chat.completions.create(model=MODEL, messages=PROMPT)
    assert answer.choices[0].message.content


@pytest.mark.parametrize("text", ["rst@event:3", "fin@event:3", "garble@event:3", "stall@event:3", "nodone"])
def test_a_broken_stream_is_an_error_and_never_looks_finished(cluster, text):
    stream = client(cluster).chat.completions.create(
        model=MODEL, messages=PROMPT, stream=True, extra_headers=fault(text)
    )
    seen = []
    if text == "nodone":
        # The finish reason came, so nothing is missing.
        assert list(stream)[-1].choices[0].finish_reason
        return
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            seen.append(chunk)
    assert not any(chunk.choices and chunk.choices[0].finish_reason for chunk in seen)
    assert caught.value.message


@pytest.mark.parametrize("text,status", [("rst@body", 502), ("stall@body", 504), ("garbage", 502), ("stall@head", 504)])
def test_a_stream_that_breaks_before_its_first_event_has_a_status(cluster, text, status):
    with pytest.raises(openai.APIStatusError) as caught:
        client(cluster).chat.completions.create(
            model=MODEL, messages=PROMPT, stream=True, extra_headers=fault(text)
        )
    assert caught.value.status_code == status
    assert len(cluster.ledger()) == 1


def test_client_timeout_aborts_the_engine(cluster):
    with pytest.raises(openai.APITimeoutError):
        client(cluster, timeout=0.3).chat.completions.create(
            model=MODEL, messages=PROMPT, extra_headers=fault("delay=20s@head")
        )

    def aborted():
        return [entry["outcome"] for entry in cluster.ledger()] == ["aborted"]

    deadline = time.monotonic() + 5
    while not aborted():
        assert time.monotonic() < deadline, cluster.ledger()
        time.sleep(0.01)
