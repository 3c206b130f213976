"""OpenAI chat rows: what is read, and one sentence with file, line and remedy for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localsft.data.formats import read_conversations
from localsft.errors import InputError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "data.jsonl"
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def test_a_whole_row(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "this"}'}}
    tool = {"type": "function", "function": {"name": "look"}}
    row = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "seen", "tool_call_id": "1"},
            {**ANSWER, "train": False},
            {**ANSWER, "weight": 0.5},
        ],
        "tools": [tool],
        "tags": ["a", "b"],
    }
    [conversation] = read_conversations(write(tmp_path, row))
    system, _, calling, result, untrained, half = conversation.messages
    assert system.content == "Be brief."
    assert calling.tool_calls[0]["function"] == {"name": "look", "arguments": {"at": "this"}}
    assert result.extra == {"tool_call_id": "1"}
    assert (calling.weight, untrained.weight, half.weight) == (0.0, 0.0, 0.5)
    assert conversation.tools == (tool,)
    assert conversation.tags == ("a", "b")
    assert conversation.source == f"{tmp_path / 'data.jsonl'}:1"


def test_lines_split_on_newline_bytes_only(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be"
    row = json.dumps({"messages": [USER, {"role": "assistant", "content": odd}]}, ensure_ascii=False).replace("\\u000b", "\\u000b")
    file = write(tmp_path, b"\xef\xbb\xbf" + row.encode() + b"\r", b"", b"  \t", row.encode())
    conversations = list(read_conversations(file))
    assert [conversation.line for conversation in conversations] == [1, 4]
    assert conversations[0].messages[1].content == odd


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b'{"messages": [NaN]}', "not valid JSON"),
        (b'{"messages": [1e999]}', "not valid JSON"),
        (b'{"messages": "\\ud800"}', "not valid JSON"),
        (b'{"messages": "\x00"}', "not valid JSON"),
        (b'{"messages": "\xff"}', "not UTF-8 at byte 15"),
        (b'{"messages": 1, "messages": 2}', "'messages' stands twice"),
        (b'{"a"  : 1, "b":1, "b":2}', "'b' stands twice"),
        (b'{"a": "\\u0022:", "b":1, "b":2}', "'b' stands twice"),
        (b'{"a": "\\"\\u003A", "b":1, "b":2}', "'b' stands twice"),
        (b'{"a": {"b":1, "\\u0062":2}}', "'b' stands twice"),
        (b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
        (b'{"messages":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"messages":' * 260 + b"1" + b"}" * 260, "nests deeper than 240 levels"),
        ([], "not an object"),
        ({"tools": []}, '"messages" is missing, which a row of OpenAI chat needs'),
        ({"messages": []}, '"messages" is missing'),
        ({"messages": ["x"]}, "message 1 is not an object"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, "message 2 has the unknown role 'bot'; use one of system, developer"),
        ({"messages": [USER, {"role": ["a"], "content": "x"}]}, "unknown role"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [{"role": "user"}, ANSWER]}, r"message 1 \(user\) has no content"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "has no content"),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "a part that is not text"),
        ({"messages": [USER, {**ANSWER, "weight": -1}]}, "weight of message 2 is -1"),
        ({"messages": [USER, {**ANSWER, "weight": "1"}]}, "weight of message 2"),
        ({"messages": [USER, {**ANSWER, "train": 1}]}, '"train" of message 2'),
        ({"messages": [USER, {**ANSWER, "tool_calls": [3]}]}, '"tool_calls" is not a list of objects'),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {}}]}]}, "no function name"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not a JSON object"),
        ({"messages": [USER, ANSWER], "tools": {}}, '"tools" is not a list'),
        ({"messages": [USER, ANSWER], "tags": [1]}, '"tags" is not a list'),
    ],
)
def test_bad_rows(tmp_path: Path, row: object, message: str) -> None:
    file = write(tmp_path, {"messages": [USER, ANSWER]}, row)
    with pytest.raises(InputError, match=message) as error:
        list(read_conversations(file))
    text = str(error.value)
    assert text.startswith(f"{file}:2: ") and "\n" not in text and len(text) < 400
    skipped: list[InputError] = []
    assert len(list(read_conversations(file, skipped.append))) == 1
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        ("{}\n".encode("utf-16"), "UTF-16"),
        ("{}\n".encode("utf-16-le"), "UTF-16"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_conversations(file))


def test_quotes_and_colons_in_texts_are_no_keys(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": 'say ":" or \\u0022:'}, ANSWER]}
    written = json.dumps(row, separators=(" , ", " : ")).encode(), json.dumps(row).encode().replace(b'\\"', b"\\u0022")
    assert [found.messages[0].content for found in read_conversations(write(tmp_path, *written))] == [row["messages"][0]["content"]] * 2


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * (10 << 20)}, ANSWER]}
    file = write(tmp_path, {"messages": [USER, ANSWER]}, long)
    assert [len(found.messages[0].content or "") for found in read_conversations(file)] == [2, 10 << 20]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=":2: not valid JSON") as error:
        list(read_conversations(file))
    assert len(str(error.value)) < 400


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; check the path"):
        list(read_conversations(tmp_path / "none.jsonl"))


def test_truncated_last_line(tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": [USER, ANSWER]})
    file.write_bytes(file.read_bytes() * 2 + b'{"messages": [{"role": "us')
    with pytest.raises(InputError, match=":3: not valid JSON"):
        list(read_conversations(file))
