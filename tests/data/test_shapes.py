"""Every shape and container is told from the file, read, and written back without a loss."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsft.data.conversation import Conversation, Message
from localsft.data.convert import TARGETS, convert, find_target
from localsft.data.formats import open_data, parse_mapping, read_conversations
from localsft.errors import InputError, LocalsftError, UsageError

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
SHAPES: list[tuple[str, dict[str, Any], list[tuple[str, str | None]]]] = [
    (
        "OpenAI chat",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
    ("prompt/completion", {"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
    ("prompt/completion", {"system": "s", "prompt": "q", "completion": "a"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
    (
        "prompt/completion",
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
    ("Alpaca", {"instruction": "q", "input": "", "output": "a"}, [("user", "q"), ("assistant", "a")]),
    ("Alpaca", {"instruction": "q", "input": "i", "output": "a", "system": "s"}, [("system", "s"), ("user", "q\n\ni"), ("assistant", "a")]),
    (
        "Alpaca",
        {"instruction": "q", "output": "a", "history": [["x", "y"]]},
        [("user", "x"), ("assistant", "y"), ("user", "q"), ("assistant", "a")],
    ),
    (
        "ShareGPT",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    (
        "ShareGPT",
        {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
    (
        "ShareGPT",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "o"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "f"}]',
        },
        [("user", "q"), ("assistant", None), ("tool", "o"), ("assistant", "a")],
    ),
    ("input/ideal", {"input": "q", "ideal": "a"}, [("user", "q"), ("assistant", "a")]),
    (
        "input/ideal",
        {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "ideal": ["a", "b"]},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    ("plain text", {"text": "once"}, [("text", "once")]),
]


def lines(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def turns(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(("name", "row", "expected"), SHAPES)
def test_shapes(tmp_path: Path, name: str, row: dict[str, Any], expected: list[tuple[str, str | None]]) -> None:
    file = lines(tmp_path, {**row, "tags": "t"}, {**row, "tags": ["t", "u"]})
    assert open_data(file).label == f"{name} in JSON Lines"
    first, second = read_conversations(file)
    assert turns(first) == turns(second) == expected
    assert (first.tags, second.tags) == (("t",), ("t", "u"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 1, "completion": "a"}, '"prompt" is missing or is not text'),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, '"history" is not a list'),
        ({"instruction": "q", "output": "a", "history": [["x", 1]]}, '"history" holds something'),
        ({"conversations": []}, '"conversations" is empty'),
        ({"conversations": [{"from": "human"}]}, "turn 1 is not"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "turn 1 is from the unknown 'alien'"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, r"turn 1 \(function_call\): not valid JSON"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no assistant turn"),
        ({"input": 1, "ideal": "x"}, '"input" is neither'),
        ({"input": "x", "ideal": []}, '"ideal" is not text'),
        ({"text": " "}, '"text" is empty'),
        ({"chosen": "x", "rejected": "y"}, "preference pairs"),
        ({"question": "x", "answer": "y"}, "no known shape of row .*'answer', 'question'.*--map"),
    ],
)
def test_bad_rows_of_each_shape(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"data.jsonl:1: {message}"):
        list(read_conversations(lines(tmp_path, row)))


def test_a_mixed_file_is_an_error_with_the_line(tmp_path: Path) -> None:
    file = lines(tmp_path, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}, {"prompt": "q", "completion": "a"})
    with pytest.raises(InputError, match=r"data.jsonl:2: this row is Alpaca, but the file began as prompt/completion on line 1"):
        list(read_conversations(file))
    skipped: list[InputError] = []
    assert len(list(read_conversations(file, skipped.append))) == 2 and len(skipped) == 1


def test_mapping(tmp_path: Path) -> None:
    file = lines(tmp_path, {"question": "q", "answer": "a", "topic": "t"})
    mapping = parse_mapping("prompt=question, completion=answer,tags=topic")
    [conversation] = read_conversations(file, mapping=mapping)
    assert turns(conversation) == [("user", "q"), ("assistant", "a")] and conversation.tags == ("t",)
    with pytest.raises(InputError, match="no column 'quest'"):
        list(read_conversations(file, mapping=parse_mapping("prompt=quest,completion=answer")))
    for bad in ("prompt", "prompt=", "nothing=x", "prompt=a,,"):
        with pytest.raises(UsageError, match="--map"):
            parse_mapping(bad)


ROW = {"prompt": 'q, "quoted"\nnext', "completion": "ä"}


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", json.dumps(ROW), "JSON Lines"),
        ("a.json", json.dumps(ROW), "JSON Lines"),
        ("a", json.dumps(ROW), "JSON Lines"),
        ("a.json", json.dumps([ROW]), "JSON array"),
        ("a.jsonl", json.dumps([ROW], indent=2), "JSON array"),
        ("a.csv", 'prompt,completion\n"q, ""quoted""\nnext",ä\n', "CSV"),
        ("a.tsv", 'prompt\tcompletion\r\n"q, ""quoted""\nnext"\tä\r\n', "TSV"),
    ],
)
def test_containers(tmp_path: Path, name: str, content: str, kind: str) -> None:
    file, packed = tmp_path / name, tmp_path / (name + ".gz")
    for start in ("", "\ufeff"):
        file.write_text(start + content, encoding="utf-8", newline="")
        packed.write_bytes(gzip.compress((start + content).encode()))
        assert open_data(file).label == f"prompt/completion in {kind}"
        assert open_data(packed).label == f"prompt/completion in {kind}, gzip"
        for path in (file, packed):
            [conversation] = read_conversations(path)
            assert turns(conversation) == [("user", ROW["prompt"]), ("assistant", ROW["completion"])]


def test_plain_text_documents_are_separated_by_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf\r\none\r\nstill one\r\n\r\n \n\ntwo")
    assert open_data(file).label == "plain text"
    assert [(row.line, row.messages[0].content) for row in read_conversations(file)] == [(2, "one\nstill one"), (7, "two")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row for name, row, _ in SHAPES if name == "OpenAI chat"] * 300
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = list(read_conversations(file))
    assert len(found) == 300 and turns(found[299]) == [("user", "q"), ("assistant", "a")] and found[299].line == 300
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="not a Parquet file, or damaged"):
        list(read_conversations(file))


def test_json_array_lines_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": 'a "}]{[\\" b'}, {"text": 1}], indent=1))
    with pytest.raises(InputError, match=r'a.json:5: "text" is missing or is not text'):
        list(read_conversations(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the file is empty"),
        ("[", ":1: the file ends before its array does"),
        ('[{"text": "a"}', ":1: the file ends before its array does"),
        ('[{"text": "a"},\n{"text": "b', ":2: the file ends inside a string"),
        ('[{"text": "a"},\n[1]]', ":2: the array holds something that is not an object"),
        ('[{"text": "a"}, 1, {"text": "b"}]', "not an object"),
        ('[{"text": "a"} 1]', ":1: not valid JSON around the end"),
        ('[{"text": "a"}] x', ":1: not valid JSON around the end"),
        ('[{"text": "a"}}', ":1: not valid JSON around the end"),
        ('[{"text": "a",}]', ":1: not valid JSON"),
    ],
)
def test_broken_arrays(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_conversations(file))


def test_a_damaged_rest_counts_as_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"text": "a"},\n{"text": "b"}, {"te')
    skipped: list[InputError] = []
    assert len(list(read_conversations(file, skipped.append))) == 2 and len(skipped) == 1
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n".join(json.dumps({"text": str(i) * 50}).encode() for i in range(9999)))[:-20])
    with pytest.raises(InputError, match="damaged or cut off"):
        list(read_conversations(packed))
    damaged = bytearray(gzip.compress(b'{"text": "abcabcabc"}\n' * 9, 1))
    for position in range(10, len(damaged)):
        packed.write_bytes(damaged[:position] + bytes([damaged[position] ^ 0x55]) + damaged[position + 1 :])
        with pytest.raises(InputError, match=r"a.jsonl.gz:?\d*: "):
            list(read_conversations(packed))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,completion\na\n", ":2: 1 cells under 2 columns"),
        ("a.csv", b"prompt,prompt\na,b\n", ":1: the header has an empty or repeated"),
        ("a.csv", b"prompt,completion\n\xff,b\n", "not UTF-8"),
        ("a.csv", b'prompt,completion\n"a"x,b\n', ":2: not valid CSV"),
        ("a.csv", b"prompt,completion\n", "the file is empty"),
        ("a.csv", b"prompt,other\na,\n", "no known shape"),
        ("a.txt", b"a\n\xff\n", ":2: not UTF-8"),
        ("a.bin", b"abc", "not a kind of data file"),
    ],
)
def test_bad_tables_and_texts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_conversations(file))


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
simple = st.builds(
    lambda system, pairs, tags: Conversation(
        (
            *((Message("system", system),) if system else ()),
            *(message for q, a in pairs for message in (Message("user", q), Message("assistant", a))),
        ),
        tags=tuple(tags),
        file="x",
        line=1,
    ),
    st.none() | text,
    st.lists(st.tuples(text, text), min_size=1, max_size=3),
    st.lists(text, max_size=2),
)


@given(simple)
def test_what_is_written_reads_back(conversation: Conversation) -> None:
    for name, target in TARGETS.items():
        short = len(conversation.messages) - (conversation.messages[0].role == "system") == 2
        if name == "text" or (name == "prompt-completion" and not short):
            with pytest.raises(InputError, match="without losing"):
                target.row(conversation)
        else:
            row = json.loads(json.dumps(target.row(conversation)))
            assert target.shape.read(row, "x", 1) == conversation


@pytest.mark.parametrize("name", ["prompt-completion", "alpaca", "sharegpt", "input-ideal", "text"])
@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "q"), Message("assistant", "a", weight=0)),
        (Message("user", "q"), Message("assistant", "a"), Message("user", "b")),
        (Message("developer", "q"), Message("assistant", "a")),
        (Message("user", "q", extra={"name": "x"}), Message("assistant", "a")),
        (Message("user", "q"), Message("assistant", None, tool_calls=(CALL, CALL))),
    ],
)
def test_nothing_is_lost_silently(name: str, messages: tuple[Message, ...]) -> None:
    conversation = Conversation(messages, file="x", line=1)
    assert TARGETS["openai"].row(conversation)
    try:
        row = TARGETS[name].row(conversation)
    except InputError as error:
        assert "x:1: this conversation can't be written as" in str(error)
    else:
        assert TARGETS[name].shape.read(row, "x", 1) == conversation


@pytest.mark.parametrize(
    ("name", "messages", "lost"),
    [
        ("alpaca", (Message("user", "q"), Message("assistant", "a", weight=0)), "the weights of its messages"),
        ("sharegpt", (Message("user", "q", extra={"name": "x"}), Message("assistant", "a")), "further keys of its messages"),
        ("prompt-completion", (Message("developer", "q"), Message("assistant", "a")), "the order or the roles of its turns"),
        ("alpaca", (Message("user", "q"), Message("assistant", None, tool_calls=(CALL,))), "its tool calls or the order"),
    ],
)
def test_what_would_be_lost_is_named(name: str, messages: tuple[Message, ...], lost: str) -> None:
    with pytest.raises(InputError, match=f"x:1: this conversation can't be written as .* without losing {lost}"):
        TARGETS[name].row(Conversation(messages, file="x", line=1))


def test_convert_writes_files(tmp_path: Path) -> None:
    file = lines(tmp_path, {"prompt": "q", "completion": "a, b", "tags": "t"}, {"system": "s", "prompt": "q\n2", "completion": "c"})
    for name in ("o.jsonl", "o.csv", "o.tsv", "o.csv.gz"):
        out = tmp_path / name
        assert convert(read_conversations(file), find_target("prompt-completion"), out) == 2
        assert [(turns(row), row.tags) for row in read_conversations(out)] == [(turns(row), row.tags) for row in read_conversations(file)]
    before = (tmp_path / "o.csv.gz").read_bytes()
    convert(read_conversations(file), find_target("prompt-completion"), tmp_path / "o.csv.gz")
    assert (tmp_path / "o.csv.gz").read_bytes() == before
    for target, name, error in (("openai", "o.csv", UsageError), ("text", "new.jsonl", InputError), ("openai", "o.xls", UsageError)):
        with pytest.raises(error):
            convert(read_conversations(file), find_target(target), tmp_path / name)
    assert not (tmp_path / "new.jsonl").exists()
    with pytest.raises(LocalsftError, match="--to nothing"):
        find_target("nothing")
