"""A user's own rows: JSON lines with a prompt and a completion, or with a chat; what they teach and what they ask."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import LabError
from lab.tasks import prompts
from lab.tasks.task import Example

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Row:
    """where: its file and line. prompt: a text, or the turns of a chat before the answer. completion: what the row says is to be
    answered ("" where it says nothing). fields: the line as it stands."""

    where: str
    prompt: str | tuple[Mapping[str, str], ...]
    completion: str
    fields: Mapping[str, object] = field(default_factory=dict)


def rows_to_learn(path: Path) -> list[Row]:
    """A row per completion; of a chat one per turn of the assistant, with all that was said before it.

    Raises LabError, naming file, line and field, for the first line without one, or with a role that is none of ROLES.
    """
    found = []
    for where, fields in _lines(path):
        if "messages" in fields:
            turns = _turns(where, fields["messages"])
            answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
            if not answers:
                raise LabError(f"{where}: no turn of the field 'messages' is the assistant's, so there is nothing to learn.")
            found += [Row(where, turns[:i], turns[i]["content"], fields) for i in answers]
        else:
            found.append(Row(where, _text(where, fields, "prompt"), _text(where, fields, "completion"), fields))
    return found


def rows_to_ask(path: Path) -> list[Row]:
    """A row per question. Of a chat everything before the last turn, where that is the assistant's, is the question.

    Raises LabError as `rows_to_learn` does, except for completions, which may be missing.
    """
    found = []
    for where, fields in _lines(path):
        if "messages" in fields:
            turns = _turns(where, fields["messages"])
            answered = turns[-1]["role"] == "assistant"
            if answered and len(turns) == 1:
                raise LabError(f"{where}: the field 'messages' asks nothing before its answer.")
            found.append(Row(where, turns[:-1] if answered else turns, turns[-1]["content"] if answered else "", fields))
        else:
            prompt = _text(where, fields, "prompt")
            if not prompt:
                raise LabError(f"{where}: the field 'prompt' is empty; write what is asked.")
            found.append(Row(where, prompt, _text(where, fields, "completion") if "completion" in fields else "", fields))
    return found


def example(row: Row, tokenizer, chat: bool = False, **facts) -> Example:
    """The row as the model reads it. chat: a prompt that is a text is put as a user's turn too. facts: fields of the Example.

    Raises LabError where the base's tokenizer has no chat template, or its template does not take the turns.
    """
    from jinja2 import TemplateError

    facts = {"id": row.where, "completion": row.completion} | facts
    if isinstance(row.prompt, str):
        made = Example(prompt=row.prompt, **facts)
        return prompts.in_chat(tokenizer, made) if chat else made
    try:
        return Example(prompt=prompts.chat(tokenizer, row.prompt), **facts)
    except TemplateError as error:
        raise LabError(f"{row.where}: the base's chat template does not take these turns ({' '.join(str(error).split())}).") from error


def _lines(path: Path) -> list[tuple[str, dict]]:
    """("FILE, line N", the object) of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"The data file {path} cannot be read: {error.strerror}; name a JSONL file.") from error
    except UnicodeDecodeError as error:
        raise LabError(f"The data file {path} is not UTF-8 text; save it as UTF-8.") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also split inside texts
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise LabError(f"{where}: not valid JSON ({getattr(error, 'msg', 'nested too deep')}); one object per line.") from error
        if not isinstance(row, dict):
            raise LabError(f"{where}: the field 'prompt' is missing; each line is an object with fields.")
        found.append((where, row))
    if not found:
        raise LabError(f"The data file {path} has no rows.")
    return found


def _text(where: str, fields: Mapping, name: str) -> str:
    if not isinstance(fields.get(name), str):
        raise LabError(f"{where}: the field {name!r} is missing or no text.")
    return fields[name]


def _turns(where: str, messages: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise LabError(f"{where}: the field 'messages' is no list of turns.")
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise LabError(f"{where}: turn {number} of the field 'messages' has no role.")
        if turn["role"] not in ROLES:
            raise LabError(f"{where}: turn {number} has the role {turn['role']!r}; choose one of {', '.join(ROLES)}.")
        if not isinstance(turn.get("content"), str):
            raise LabError(f"{where}: the field 'content' of turn {number} is missing or no text.")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in messages)
