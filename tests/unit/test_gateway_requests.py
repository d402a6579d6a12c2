"""What may be asked, and what an engine is asked instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.refusals import Refusal
from deployer.gateway.requests import CHAT, COMPLETIONS, EMBEDDINGS, MAX_DEPTH, read_request

MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode()


def refused(raw: bytes, path: str = CHAT) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_request(path, raw)
    assert caught.value.status == 400
    return caught.value


def test_the_model_is_renamed_and_unknown_fields_pass_through() -> None:
    asked = read_request(CHAT, chat(temperature=0, grammar="x", user="u"))
    assert (asked.model, asked.stream, asked.max_tokens, asked.user) == ("m", False, None, "u")
    sent = json.loads(asked.for_server("alias"))
    assert sent == {"model": "alias", "messages": MESSAGES, "temperature": 0, "grammar": "x",
                    "user": "u"}  # fmt: skip


def test_a_stream_is_asked_for_its_usage() -> None:
    asked = read_request(CHAT, chat(stream=True, stream_options={"x": 1, "include_usage": False}))
    assert (asked.stream, asked.wants_usage) == (True, False)
    sent = json.loads(asked.for_server("alias"))
    assert sent["stream_options"] == {"x": 1, "include_usage": True}
    assert read_request(CHAT, chat(stream=True, stream_options={"include_usage": True})).wants_usage


@pytest.mark.parametrize("body", [{"max_tokens": 7}, {"max_completion_tokens": 7},
                                  {"max_tokens": 7, "max_completion_tokens": 3},
                                  {"max_tokens": 3, "n_predict": 7},
                                  {"max_tokens": 7.0}])  # fmt: skip
def test_the_larger_limit_counts(body: dict[str, int]) -> None:
    assert read_request(CHAT, chat(**body)).max_tokens == 7


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b'{"model": "\\ud800"}', b"{} {}",
     b'{"model": NaN}', b'{"n": Infinity}', b'{"temperature": 1e999}', b'{"a":' * 50_000,
     b"[" * 200_000,
     ('{"model":"' + "ü" * 9 + '"}').encode("utf-16")],
)  # fmt: skip
def test_bodies_that_are_no_json_object(raw: bytes) -> None:
    refused(raw)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("model", {"model": None}),
        ("model", {"model": ""}),
        ("model", {"model": ["m"]}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "hi"}),
        ("messages", {"messages": ["hi"]}),
        ("messages", {"messages": [{"content": "no role"}]}),
        ("messages", {"messages": [{"role": "user", "content": 7}]}),
        ("n", {"n": 0}),
        ("n", {"n": 9}),
        ("n", {"n": True}),
        ("n", {"n": "2"}),
        ("best_of", {"best_of": 100}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_tokens", {"max_tokens": True}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("max_completion_tokens", {"max_completion_tokens": "9"}),
        ("n_predict", {"n_predict": -1}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("logprobs", {"logprobs": 21}),
        ("n_probs", {"n_probs": 50_000}),
        ("id_slot", {"id_slot": 0}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 10}),
        ("stream", {"stream": 1}),
        ("stream", {"stream": "false"}),
        ("stream_options", {"stream_options": []}),
        ("stream_options.include_usage", {"stream_options": {"include_usage": 1}}),
    ],
)
def test_fields_the_gateway_decides_by_are_checked(param: str, fields: dict[str, Any]) -> None:
    assert refused(chat(**fields)).param == param


@pytest.mark.parametrize(
    ("part", "good"),
    [
        ({"type": "text", "text": "http://x"}, True),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, True),
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, False),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, False),
        ({"type": "video_url", "video_url": {"url": " http://x"}}, False),
    ],
)
def test_an_engine_is_not_made_to_fetch_anything(part: dict[str, Any], good: bool) -> None:
    raw = chat(messages=[{"role": "user", "content": [part]}])
    if good:
        read_request(CHAT, raw)
    else:
        assert refused(raw).param == "messages"


@pytest.mark.parametrize("value", ["x", "", [1, 2], ["a", "b"], [[1], [2, 3]], ["a"] * 8])
def test_prompts_that_may_be(value: object) -> None:
    raw = json.dumps({"model": "m", "prompt": value}).encode()
    assert read_request(COMPLETIONS, raw).body["prompt"] == value


@pytest.mark.parametrize("value", [None, 7, [], {}, [True], [-1], [[]], [[True]], ["a", 1],
                                   ["a"] * 9, [[1]] * 9])  # fmt: skip
def test_prompts_that_may_not_be(value: object) -> None:
    raw = json.dumps({"model": "m", "prompt": value}).encode()
    assert refused(raw, COMPLETIONS).param == "prompt"


def test_embeddings_take_many_texts() -> None:
    raw = json.dumps({"model": "m", "input": ["a"] * 2048}).encode()
    assert not read_request(EMBEDDINGS, raw).stream
    refused(json.dumps({"model": "m", "input": ["a"] * 2049}).encode(), EMBEDDINGS)


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return chat(x=json.loads("[" * levels + "]" * levels))

    read_request(CHAT, nested(MAX_DEPTH - 2))
    assert "nested" in refused(nested(MAX_DEPTH)).message


JSON = st.sampled_from(
    [None, True, 0, 1, -1, 2**70, 1.5, "", "x", [], {}, [1], ["x"], [{}], [[1]], MESSAGES,
     [{"role": "user", "content": []}], {"include_usage": 1}, {"include_usage": True}]
)  # fmt: skip
FIELDS = ("model", "messages", "stream", "stream_options", "n", "max_tokens", "user", "prompt")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from([CHAT, COMPLETIONS]))
def test_any_object_is_read_or_refused(body: dict[str, Any], path: str) -> None:
    raw = json.dumps({"model": "m", "messages": MESSAGES, "prompt": "x", **body}).encode()
    try:
        asked = read_request(path, raw)
    except Refusal as refusal:
        assert refusal.status == 400
        return
    assert json.loads(asked.for_server("alias"))["model"] == "alias"
