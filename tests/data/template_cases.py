"""Conversations for templates of every family, an oracle in jinja2, and a tokenizer that knows a template's control tokens."""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np

from localsft.data.conversation import Conversation, Message
from localsft.data.render import Rendered
from localsft.data.template import CLOSE, OPEN
from localsft.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_vocab import tiny_metadata

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}}
PROPERTIES = {"city": {"type": "string", "description": "City"}, "days": {"type": "integer", "description": "Days"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]},
    },
}
TURNS = (
    Message("system", "Be brief."),
    Message("user", "Weather in Rome?"),
    Message("assistant", None, tool_calls=(CALL,)),
    Message("tool", '{"sun": true}', extra={"name": "weather", "tool_call_id": "abcdefghi"}),
    Message("assistant", "Sunny."),
    Message("user", "Thanks"),
    Message("assistant", "You are welcome."),
)
CONVERSATIONS = {
    "tools": Conversation(TURNS, tools=(TOOL,), file="tools"),
    "plain": Conversation(TURNS[:2] + TURNS[4:], file="plain"),
    "no system": Conversation((TURNS[1], *TURNS[4:]), file="no system"),
}

# Messages as a template gets them, for the comparison with jinja2.
HI, HELLO = {"role": "user", "content": "Hi <b> & \"q\" 'é' 日本"}, {"role": "assistant", "content": "Hello!"}
SYSTEM, BYE = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Good bye."}
CALLING = [
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"sun": true}'},
]
RENDERED: dict[str, list[dict[str, Any]]] = {
    "prompt": [SYSTEM, HI],
    "single": [HI, HELLO],
    "system": [SYSTEM, HI, HELLO, HI, BYE],
    "thinking": [HI, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"}, HI, BYE],
    "reasoning": [HI, {**HELLO, "reasoning_content": "hm"}],
    "calling": [SYSTEM, *CALLING],
    "called": [SYSTEM, *CALLING, HELLO],
}

_CONTROL = re.compile(
    r"<\|[A-Za-z0-9_/\- ]+?\|>|<｜[^<>｜]+｜>"
    r"|<\|(?:tool_call|tool_response|turn|think|channel|tool)>|<(?:tool_call|tool_response|turn|channel|tool)\|>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT|ARGS|CALL_ID|TOOL_CONTENT|THINK|MODEL_SETTINGS)\]"
    r"|</?(?:start|end)_of_(?:turn|sentence)>|〈\|[A-Z_]+\|〉|\]~b\]|\[e~\[|\]~!b\[|</?(?:seed|SPECIAL)[:_][^<>]+>|<SPECIAL_\d+>|<sep>|</assistant>"
)


def tokenizer_of(source: str) -> Tokenizer:
    """A small vocabulary with the control tokens that stand in a template; <s> and </s> begin and end."""
    metadata = tiny_metadata()
    new = sorted(set(_CONTROL.findall(source)) - set(metadata["tokenizer.ggml.tokens"]))
    metadata["tokenizer.ggml.tokens"] += new
    metadata["tokenizer.ggml.token_type"] += [3] * len(new)
    metadata |= {"tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 4}
    return load_tokenizer(metadata)


def supervised(result: Rendered, tokenizer: Tokenizer) -> list[list[str]]:
    """For each example, the runs of supervised tokens as text."""
    found = []
    for example in result.examples:
        on = np.concatenate([[0], example.target_weights > 0, [0]])
        edges = np.flatnonzero(np.diff(on)).reshape(-1, 2)
        found.append([tokenizer.decode(example.token_ids[start:end]) for start, end in edges])
    return found


class _GenerationBlocks(jinja2.ext.Extension):
    """``{% generation %}`` as transformers reads it, its text between marks."""

    tags = frozenset(("generation",))

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return OPEN + caller() + CLOSE


def jinja2_template(source: str, now: Any) -> jinja2.Template:
    """A chat template as transformers compiles it (utils/chat_template_utils.py)."""

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    return environment.from_string(source)
