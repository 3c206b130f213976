"""``localsft demo``: the billing-support example, from nothing to before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import console, program, say, visible, write_json

if TYPE_CHECKING:
    from localsft.answer import Answer
    from localsft.data.conversation import Message
    from localsft.runs import Run

# Settings of the demo besides the defaults: a run of few minutes on two cores. The holdout is scored once, after the last step: where
# it picked the best of several epochs, the figures shown beside the base model's would flatter.
SETTINGS: dict[str, Any] = {"epochs": 2, "optim.learning_rate": 1e-3, "eval_every": 1_000_000}
QUESTIONS = 3  # holdout questions that are shown
LONGEST = 96  # tokens of an answer
SHOWN = 260  # characters of an answer in the table


@click.command(cls=ExampleCommand, example="localsft demo", name="demo")
@click.option("--out", metavar="DIR", help="Run folder. Default: a new one in runs/.")
@click.option("--epochs", metavar="N", help=f"Passes over the training data.  [default: {SETTINGS['epochs']}]")
@click.option("--threads", metavar="N", help="Threads of the cpu engine. Default: one for each physical core.")
@click.option("--json", "as_json", is_flag=True, help="Figures and answers as one JSON document on stdout.")
def command(as_json: bool, **values: str | None) -> None:
    """Train the default model on the billing-support example and show what changed.

    A small model learns the billing policy of a made-up company from conversations. Then it answers questions that it has not
    seen, beside what it answered before.
    """
    from localsft.answer import answer
    from localsft.checkpoint import load_adapter
    from localsft.cli.train import follow, frozen_cache, open_model, report_examples, summary
    from localsft.config import resolve
    from localsft.engine.base import Sampling
    from localsft.runs import create
    from localsft.session import load_examples, make_trainer, result
    from localsft.shared_files import shared_folder

    data = shared_folder("examples") / "billing-support"
    config = resolve(SETTINGS | {"data.path": str(data)}, {key: value for key, value in values.items() if value is not None})
    model = open_model(config.model)
    examples = load_examples(config, model)
    report_examples(examples)
    questions = pick_questions(data / "holdout.jsonl")
    prompts = [question.messages for question in questions]
    trainer = make_trainer(config, model, examples, lambda: create(config.out, config.data.path), cache=frozen_cache())
    run = trainer.run
    untrained = trainer.engine.adapter()
    say(f"run {run.path}: {trainer.plan.steps} steps on the {trainer.engine.info.name} engine ({trainer.engine.info.isa})")
    reason = follow(trainer)
    document = result(trainer)
    run.write_info(run.info() | {"result": document | {"reason": reason}})
    if reason == "interrupted":
        raise click.exceptions.Exit(130)
    say(f"asking both models {len(questions)} questions of the holdout")
    trainer.engine.load_adapter(untrained)  # B is zero: the base model
    before = answer(model, trainer.engine, prompts, Sampling(max_tokens=LONGEST))
    trainer.engine.load_adapter(load_adapter(run.adapter).tensors)
    after = answer(model, trainer.engine, prompts, Sampling(max_tokens=LONGEST))
    show(questions, before, after, document)
    say(summary(document))
    say(f"ask it yourself: {program()} generate --adapter {run.path} --messages {keep_question(questions[0], run)}")
    if as_json:
        answers = [
            {"question": question.text, "base": base.text, "tuned": tuned.text, "written": question.written}
            for question, base, tuned in zip(questions, before, after, strict=True)
        ]
        write_json(document | {"answers": answers})


@dataclass(frozen=True, slots=True)
class Question:
    """A holdout conversation up to its user turn, and the answer that a person wrote to it."""

    messages: list[Message]
    written: str

    @property
    def text(self) -> str:
        return self.messages[-1].content or ""


def pick_questions(holdout: Path) -> list[Question]:
    """Single-turn conversations spread evenly over the holdout."""
    from localsft.data.formats import read_conversations

    single = []
    for conversation in read_conversations(holdout):
        *before, last = conversation.messages
        if [message.role for message in before].count("user") == 1 and last.role == "assistant":
            single.append(Question(before, last.content or ""))
    return single[:: max(1, len(single) // QUESTIONS)][:QUESTIONS]


def keep_question(question: Question, run: Run) -> Path:
    """The question as a file for ``generate --messages``."""
    import orjson

    from localsft.atomic import write_atomic

    path = run.path / "question.json"
    rows = [{"role": message.role, "content": message.content} for message in question.messages]
    write_atomic(path, orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return path


def show(questions: list[Question], before: list[Answer], after: list[Answer], document: dict[str, Any]) -> None:
    """Base and tuned side by side, and the figures of both."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ROUNDED, show_lines=True, expand=True)
    for title in ("question, not in the training data", "base model", "tuned model", "the written answer"):
        table.add_column(title, ratio=1)
    for question, base, tuned in zip(questions, before, after, strict=True):
        table.add_row(*[Text(visible(cell)) for cell in (question.text, _shown(base), _shown(tuned), question.written)])
    figures = [
        f"loss {document[f'{which}_valid_loss']:.3f}\ntoken accuracy {100 * document[f'{which}_valid_token_accuracy']:.1f} %"
        for which in ("base", "best")
    ]
    table.add_row("the whole holdout", *figures, "")
    console().print(table)


def _shown(answer: Answer) -> str:
    """An answer as one paragraph, cut where it goes on for long."""
    text = " ".join(answer.text.split())
    return f"{text[:SHOWN]} ..." if len(text) > SHOWN or answer.finish == "length" else text
