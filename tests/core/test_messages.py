import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from andes_sdk.errors import InputError
from andes_sdk.inputs.messages import parse_messages, user_message
from andes_sdk.types import Slot, Turn

TEXT = {"type": "text", "text": "what is it?"}


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_is_one_user_message():
    assert parse_messages("hello") == ([Turn("user", ("hello",))], {})


def test_roles_text_and_pictures_keep_their_order():
    picture = Image.new("RGB", (2, 2))
    turns, items = parse_messages(
        [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "first"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "auto"}},
                    {"type": "text", "text": "then"},
                    {"type": "image_url", "image_url": "b.png"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "image", "image": b"\x89PNG"}]},
        ]
    )
    assert turns == [
        Turn("system", ("be brief",)),
        Turn("user", ("first", Slot("image"), "then", Slot("image"))),
        Turn("assistant", ("a cat",)),
        Turn("user", (Slot("image"), Slot("image"))),
    ]
    images = items["image"]
    assert images[:2] == ["data:image/png;base64,AAAA", "b.png"]
    assert images[2] is picture
    assert images[3] == b"\x89PNG"


def test_user_message_puts_the_pictures_before_the_text():
    turns, items = parse_messages([user_message("which is larger?", images=[Path("a.png"), "b.png"])])
    assert turns == [Turn("user", (Slot("image"), Slot("image"), "which is larger?"))]
    assert items["image"] == [Path("a.png"), "b.png"]
    assert parse_messages([user_message("hi")]) == ([Turn("user", ("hi",))], {})


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"\x89PNG", Image.new("RGB", (1, 1))])
def test_user_message_wants_a_list_of_pictures(one):
    with pytest.raises(InputError, match=r"images=\[picture\]"):
        user_message("hi", images=one)


def test_the_messages_are_not_modified():
    messages = user(TEXT, {"type": "image_url", "image_url": {"url": "a.png"}})
    before = copy.deepcopy(messages)
    parse_messages(messages)
    assert messages == before


def test_a_key_whose_value_is_none_counts_as_absent():
    turns, _ = parse_messages([{"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None}])
    assert turns == [Turn("assistant", ("yes",))]


@pytest.mark.parametrize(
    ("messages", "place", "says"),
    [
        ([], "messages", "list is empty"),
        (None, "messages", "got NoneType"),
        (7, "messages", "got int 7"),
        (b"hi", "messages", "got bytes"),
        ({"role": "user", "content": "hi"}, "messages", "write [message]"),
        (["hi"], "messages[0]", "got str 'hi'"),
        ([{"content": "hi"}], "messages[0].role", "it is missing; keys present: content"),
        ([{"role": None, "content": "hi"}], "messages[0].role", "it is None"),
        ([{}], "messages[0].role", "keys present: none"),
        ([{"role": "User", "content": "hi"}], "messages[0].role", "did you mean 'user'?"),
        ([{"role": "developer", "content": "hi"}], "messages[0].role", "did you mean 'system'?"),
        ([{"role": "asistant", "content": "hi"}], "messages[0].role", "did you mean 'assistant'?"),
        ([{"role": "tool", "content": "hi"}], "messages[0].role", "known: system, user, assistant"),
        ([{"role": ["user"], "content": "hi"}], "messages[0].role", "unknown role"),
        ([{"role": "user"}], "messages[0].content", "it is missing"),
        ([{"role": "user", "contnet": "hi"}], "messages[0].contnet", "did you mean 'content'?"),
        ([{"role": "user", "content": "hi", "name": "Ann"}], "messages[0].name", "leave it out"),
        ([{"role": "user", "content": 3}], "messages[0].content", "got int 3"),
        ([{"role": "user", "content": TEXT}], "messages[0].content", "write [part]"),
        (user(), "messages[0].content", "no part"),
        (user("hi"), "messages[0].content[0]", "got text"),
        (user(TEXT, 5), "messages[0].content[1]", "expected a dictionary"),
        (user({"text": "hi"}), "messages[0].content[0].type", "it is missing"),
        (user({"type": "txt", "text": "hi"}), "messages[0].content[0].type", "did you mean 'text'?"),
        (user({"type": "input_image", "image_url": "a"}), "messages[0].content[0].type", "did you mean 'image_url'?"),
        (user({"type": "video", "video": "a"}), "messages[0].content[0].type", "known: text, image_url, image"),
        (user({"type": "text"}), "messages[0].content[0].text", "'text' is needed"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text", "got int 5"),
        (user({"type": "text", "text": "a", "cache": 1}), "messages[0].content[0].cache", "type, text"),
        (user({"type": "image", "url": "a.png"}), "messages[0].content[0].image", "it has 'url' instead"),
        (user({"type": "image", "image": {"url": "a"}}), "messages[0].content[0].image", "got dict"),
        (user({"type": "image", "image": 3}), "messages[0].content[0].image", "not a picture"),
        (user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url", "it is missing"),
        (user({"type": "image_url", "image_url": {"url": 1}}), "messages[0].content[0].image_url.url", "expected text"),
        (user({"type": "image_url", "image_url": 1}), "messages[0].content[0].image_url", "expected a dictionary"),
        (
            user({"type": "image_url", "image_url": {"url": "a", "detail": "high"}}),
            "messages[0].content[0].image_url.detail",
            "no effect",
        ),
        (
            [*user(TEXT), {"role": "assistant", "content": [{"type": "image", "image": "a"}]}],
            "messages[1].content[0]",
            "user messages only",
        ),
        ([{"role": "system", "content": [{"type": "image", "image": "a"}]}], "messages[0].content[0]", "the system's"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_a_remedy(messages, place, says):
    with pytest.raises(InputError) as caught:
        parse_messages(messages)
    assert caught.value.who == place
    assert says in str(caught.value)
    assert caught.value.fix


def test_an_error_does_not_repeat_a_long_value():
    with pytest.raises(InputError) as caught:
        parse_messages(["x" * 100_000])
    assert len(str(caught.value)) < 300


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "text", "image_url"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image", "image_url", "url"]), inner)
    ),
    max_leaves=12,
)


@given(json_like)
def test_anything_is_parsed_or_refused_with_an_input_error(messages):
    try:
        turns, items = parse_messages(messages)
    except InputError:
        return
    assert sum(map(len, items.values())) == sum(isinstance(part, Slot) for turn in turns for part in turn.parts)
