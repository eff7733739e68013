"""Conversation files: each shape that people have, and a clear word about each that can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem.config import Limits
from localmem.dates import to_iso
from localmem.errors import InvalidInputError, TooLargeError
from localmem.transcripts import Exchange, exchanges, parse, read

FILES = Path(__file__).parent / "data" / "transcripts"


def said(found: list[Exchange]) -> list[list[tuple[str, str]]]:
    """Who said what, exchange by exchange."""
    return [[(m.name or m.role, m.content) for m in each.messages] for each in found]


def when(found: list[Exchange]) -> list[str | None]:
    return [None if each.said_at is None else to_iso(each.said_at) for each in found]


def of(text: str | bytes, name: str = "chat.txt", **options: str) -> list[Exchange]:
    return exchanges(parse(text.encode() if isinstance(text, str) else text, name, **options))


# -------------------------------------------------------------------- JSON


def test_a_list_of_messages() -> None:
    """Greeting with the first words; system prompt, tool call and picture left out; tool result in its exchange."""
    transcript = read(FILES / "messages.json")
    assert said(exchanges(transcript)) == [
        [
            ("assistant", "Hello! What are you growing this year?"),
            ("user", "Tomatoes on the balcony, and I'm Ines by the way."),
            ("assistant", "Lovely. Do they get sun in the morning?"),
        ],
        [
            ("user", "Until noon.\nHere is a picture."),
            ("tool", "sunny, 21 C"),
            ("assistant", "That is enough for tomatoes."),
        ],
    ]
    assert transcript.left_out == 2


def test_conversations_with_dates_and_owners() -> None:
    found = exchanges(read(FILES / "conversations.json"))
    assert [(e.conversation, e.owner, e.number) for e in found] == [
        ("c-1", None, 1),
        ("c-1", None, 2),
        ("c-2", "omar", 3),
    ]
    assert when(found) == ["2025-03-02T19:40:00Z", "2025-03-03T11:06:40Z", "2025-04-01T00:00:00Z"]
    assert [m.role for m in found[2].messages] == ["user", "assistant"]


def test_jsonl_of_conversations_and_of_messages() -> None:
    assert said(exchanges(read(FILES / "finetune.jsonl"))) == [
        [("user", "I play the oboe."), ("assistant", "Since when?")],
        [("user", "I gave up the oboe."), ("assistant", "Oh no.")],
    ]
    found = exchanges(read(FILES / "messages.jsonl"))
    assert [len(each) for each in said(found)] == [2, 1]
    assert when(found) == ["2025-04-30T08:00:00Z", "2025-05-01T08:00:00Z"]  # milliseconds, then text


def test_exports() -> None:
    """ChatGPT's tree: the branch that was shown. Claude's: its own key names."""
    found = exchanges(read(FILES / "chatgpt.json"))
    assert said(found) == [
        [("user", "My sourdough is called Bruno."), ("assistant", "Hello Bruno!")],
        [("user", "He is three years old.")],
    ]
    assert when(found)[0] == "2025-01-01T12:00:01.250000Z"
    assert found[0].conversation == "bread-1"
    assert said(exchanges(read(FILES / "claude.json"))) == [
        [("user", "I run on Tuesdays."), ("assistant", "Which distance?")]
    ]


def test_sessions_between_named_people() -> None:
    """Each turn is one add, dated by its session, and belongs to the conversation."""
    found = exchanges(read(FILES / "sessions.jsonl"))
    assert [each[0][0] for each in said(found)] == ["Tom", "Lena", "Tom"]
    assert {each.messages[0].role for each in found} == {"user"}
    assert when(found) == ["2023-05-08T13:56:00Z", "2023-05-08T13:56:00Z", "2023-05-25T20:21:00Z"]
    assert {each.owner for each in found} == {"duo-7"}


# -------------------------------------------------------------------- text


def test_named_text_with_headings() -> None:
    transcript = read(FILES / "named.txt")
    found = exchanges(transcript)
    assert [each[0][0] for each in said(found)] == ["Ana", "Ben", "Ana", "Ben", "Ana"]
    assert found[1].messages[0].content.endswith("before winter\n\nRemember this: no noise after ten.")
    assert when(found) == [
        "2025-03-01T00:00:00Z",
        "2025-03-01T00:00:00Z",
        "2025-03-01T18:30:00Z",
        "2025-05-08T21:05:00Z",
        "2025-05-08T21:05:00Z",
    ]
    assert transcript.left_out == 1  # the title
    assert len(exchanges(transcript, "session")) == 2


def test_dated_lines() -> None:
    """What the program says itself is left out, a line without a date goes on with the message, 13/03 settles 12/03."""
    transcript = read(FILES / "whatsapp.txt")
    found = exchanges(transcript)
    assert [each[0][0] for each in said(found)] == ["Ana", "+44 7700 900123", "Ana"]
    assert found[1].messages[0].content == "Yes, with my daughter Mia\nShe is four: be warned!"
    assert when(found)[0] == "2024-03-12T21:15:00Z"
    assert transcript.left_out == 1


def test_role_text() -> None:
    found = exchanges(read(FILES / "chat.txt"))
    assert said(found)[0] == [
        ("user", "I started at the bakery on Monday."),
        ("assistant", "Congratulations!\n\nHow are the hours?"),
    ]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("[2025-03-01 09:12] Ana: hi", "2025-03-01T09:12:00Z"),
        ("[2025-03-01T09:12:30+02:00] Ana: hi", "2025-03-01T07:12:30Z"),
        ("2025-03-01 09:12 Ana: hi", "2025-03-01T09:12:00Z"),
        ("[1 March 2025, 9:12 pm] Ana: hi", "2025-03-01T21:12:00Z"),
        ("[3/25/25, 9:12:03\u202fPM] Ana: hi", "2025-03-25T21:12:03Z"),
        ("25/3/2025, 09:12 - Ana: hi", "2025-03-25T09:12:00Z"),
        ("Session 3 - 8 May 2023\nAna: hi", "2023-05-08T00:00:00Z"),
        ("# 1:56 pm on 8 May, 2023\n\nAna: hi", "2023-05-08T13:56:00Z"),
        ("Date: 2025-03-01\nAna: hi", "2025-03-01T00:00:00Z"),
        ("2025-03-01\nAna [10:45 AM]: hi", "2025-03-01T10:45:00Z"),
        ("Ana: hi", None),
        ("Ana (09:12): hi", None),  # a time without a day says nothing
    ],
)
def test_dates_of_lines(text: str, at: str | None) -> None:
    found = of(text)
    assert said(found) == [[("Ana", "hi")]]
    assert when(found) == [at]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ana: hi\nNote: a thing\nBen: yo", ["Ana", "Ben"]),
        ("Ana: see\nhttp://example.org\nBen: yo", ["Ana", "Ben"]),
        ("Ana: I told him this: no\nBen: yo", ["Ana", "Ben"]),
        ("Dr. Mira O'Neil: hi\nJean-Luc: yo", ["Dr. Mira O'Neil", "Jean-Luc"]),
        ("小明：你好\n小红：嗨", ["小明", "小红"]),
        ("Müller: hi\n\n\n\nMüller: again", ["Müller", "Müller"]),
        ("ana: hi\nben: yo\nana: fine\nben: ok", ["ana", "ben", "ana", "ben"]),
        ("Ana:\nstarts on the next line\nBen: yo", ["Ana", "Ben"]),
    ],
)
def test_who_speaks(text: str, names: list[str]) -> None:
    assert [each[0][0] for each in said(of(text))] == names


def test_two_ways_to_read_a_date() -> None:
    text = "[5/6/2024, 10:00] Ana: hi"
    with pytest.raises(InvalidInputError, match=r"chat.txt, line 1: the date '5/6/2024, 10:00' .*--date-order"):
        of(text)
    assert when(of(text, date_order="dmy")) == ["2024-06-05T10:00:00Z"]
    assert when(of(text, date_order="mdy")) == ["2024-05-06T10:00:00Z"]
    growing = "[5/6/2024, 10:00] Ana: hi\n[6/6/2024, 10:00] Ana: hi\n[1/7/2024, 10:00] Ana: hi"
    assert when(of(growing))[0] == "2024-06-05T10:00:00Z"  # the other order would run backwards in time


# -------------------------------------------------------------------- grouping and identity


@pytest.mark.parametrize(("by", "sizes"), [("exchange", [3, 3]), ("turn", [1] * 6), ("session", [6]), (4, [4, 2])])
def test_grouping(by: str | int, sizes: list[int]) -> None:
    assert [len(each.messages) for each in exchanges(read(FILES / "messages.json"), by)] == sizes


def test_a_session_of_any_length_fits_into_adds() -> None:
    text = "\n".join(f"User: number {i}" for i in range(2_500))
    sizes = [len(each.messages) for each in exchanges(parse(text.encode(), "long.txt"), "session")]
    assert sizes == [1_000, 1_000, 500]


def test_source_ids() -> None:
    """The same on every reading and after the file has grown; different for twins, for other files and other modes."""
    text = "User: hi\nAssistant: hello\nUser: hi\nAssistant: hello\n"
    first = [each.source_id for each in of(text)]
    assert first == [each.source_id for each in of(text, "renamed.txt")]
    assert len(set(first)) == 2
    assert [each.source_id for each in of(text + "User: more\nAssistant: ok")][:2] == first
    other = [each.source_id for each in of("User: something else\n" + text)]
    assert not set(first) & set(other)
    raw = exchanges(parse(text.encode(), "chat.txt"), infer=False)
    assert not set(first) & {each.source_id for each in raw}


# -------------------------------------------------------------------- what can't be read


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "chat.json is empty"),
        (b" \n\n ", "chat.json is empty"),
        (b"\x00\x01\x02", "binary"),
        (b"\xff\xd8\xff\xe0jpeg", "not UTF-8"),
        (b"just an essay about things", "no line like `Ana: Good morning`"),
        (b"[]", "no messages"),
        (b"{}", "no messages"),
        (b'{"messages": []}', "no message with text"),
        (b'{"messages": {}}', '"messages" must be a list, not dict'),
        (b'{"messages": ["hi"]}', "chat.json, message 1 is str"),
        (b"[[1], 2]", 'conversation 1 has no "messages"'),
        (b'{"answer": 42}', "the keys 'answer'"),
        (b'[{"role": "user", "content": "a"}, {"role": "king", "content": "b"}]', "message 2: the role is 'king'"),
        (b'[{"content": "a"}]', 'message 1 has no "role"'),
        (b'[{"role": "user"}]', 'message 1 has no "content"'),
        (b'[{"role": "user", "content": 7}]', '"content" must be text, not int'),
        (
            b'[{"role": "user", "content": "a", "timestamp": "soon"}]',
            """message 1: "timestamp": 'soon' is not a date""",
        ),
        (b'[{"role": "user", "content": "a", "timestamp": []}]', "no message|date is list"),
        (b'[{"role": "user", "content": "a\\u0000b"}]', "message 1 holds a NUL"),
        (b'[{"role": "user", "content": "a\\ud800b"}]', "message 1 holds a lone surrogate"),
        (b'[{"role": "user", "content": "a"},]', "not valid JSON: .* line 1, column"),
        (b'{"role": "user", "content": "a"}\n{"role": oops}', "chat.json, line 2 is not valid JSON"),
        (b'{"role": "user", "content": "a"}\n[1]', "line 2 is list"),
        (b'{"messages": [{"role": "user", "content": "a"}], "user_id": []}', '"user_id" must be text'),
        (b'[{"messages": [{"role": "user", "content": "a"}]}, {"no": 1}]', 'conversation 2 has no "messages"'),
        (b"[" * 100_000, "not valid JSON|nested too deeply"),
        (b"x\n" * 50, "line 21: still no line like"),
    ],
)
def test_bad_files_are_told_with_their_place(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        exchanges(parse(raw, "chat.json"))


def test_messages_beyond_the_limit() -> None:
    big = "x" * 10_000_000
    for text in (
        f"Ana: hi\nBen: {big}",
        json.dumps([{"role": "user", "content": "hi"}, {"role": "user", "content": big}]),
    ):
        with pytest.raises(TooLargeError, match=r"(line|message) 2 has 10,000,000 bytes, the limit is 1,000,000"):
            of(text)
    assert len(exchanges(parse(f"Ana: {big}".encode(), "a", limits=Limits(message_bytes_max=20_000_000)))) == 1


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="can't be read: No such file"):
        read(tmp_path / "none.json")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends(encoding: str) -> None:
    text = "Zoë: grüezi\r\nBen: 你好\r\n"
    assert said(of(text.encode(encoding))) == [[("Zoë", "grüezi")], [("Ben", "你好")]]


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(alphabet='[]{}":,AaBb: \n-1/.#*(', max_size=80).map(str.encode)))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        found = exchanges(parse(raw, "any"))
    except InvalidInputError:
        return
    assert all(message.content.strip() for each in found for message in each.messages)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "text", "speaker", "timestamp", "sessions", "mapping", "parent"]
            ),
            inner | st.sampled_from(["user", "assistant", "2025-01-01"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(_JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        exchanges(parse(json.dumps(value).encode(), "any.json"))
    except InvalidInputError:
        return
