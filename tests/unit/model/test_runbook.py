"""The format of runbooks: what is read, and that every mistake is told with its line."""

from __future__ import annotations

import hashlib
import random
from datetime import date

import pytest

from drservice.model.runbook import (
    MAX_LETTERS,
    InvalidRunbookError,
    OnFailure,
    RunIn,
    StepKind,
    blanks_in,
    parse_runbook,
)

HEAD = """\
---
id: example
title: An example
purpose: Show the format.
use_when: [always]
owner: on-call engineer
minutes: 30
needs:
  - a machine
changes_production: no
reviewed: 2026-11-26
blanks:
  SERVICE: the service
  INSTANT: the instant
  ENVIRONMENT: told by the first step
---
# An example
"""
RECOVER = """\
## 1. Recover

Prose.

```drservice-step
id: recover
kind: auto
run: |
  echo "${SERVICE}"
  echo two
expect: [one, two]
exit: [0, 3]
learn:
  ENVIRONMENT: 'destroy (\\S+)'
timeout: 90s
undo: echo undone
fallback: call somebody
```
"""
ASK = """\
## 2. Ask

```drservice-step
id: ask
kind: prompt
owner: service owner
asks: [INSTANT]
do: When was it?
critical: false
on_failure: ask
run_in: drill
depends_on: []
```
"""
LOOK = """\
## 3. Look

```drservice-step
id: look
kind: check
at: recovery machine
run: look "${ENVIRONMENT}" "${INSTANT}"
expect: fine
retry: 3
fallback: call somebody
depends_on: [ask, recover]
```
"""
WHOLE = HEAD + RECOVER + ASK + LOOK


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidRunbookError) as caught:
        parse_runbook(text)
    assert str(caught.value) == "\n".join(map(str, caught.value.mistakes))
    return [str(mistake) for mistake in caught.value.mistakes]


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def changed(old: str, new: str, text: str = WHOLE) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_a_runbook_is_read_with_everything_it_says() -> None:
    runbook = parse_runbook(WHOLE)
    assert (runbook.id, runbook.title, runbook.minutes, runbook.changes_production) == (
        "example",
        "An example",
        30,
        False,
    )
    assert (runbook.use_when, runbook.needs, runbook.reviewed) == (("always",), ("a machine",), date(2026, 11, 26))
    assert runbook.blanks_at_start() == ("SERVICE",)
    recover, ask, look = runbook.steps
    assert recover.title == "1. Recover"
    assert recover.run == 'echo "${SERVICE}"\necho two\n'
    assert (recover.expect, recover.exit_statuses, recover.timeout_seconds) == (("one", "two"), (0, 3), 90)
    assert (recover.learn, recover.undo, recover.depends_on) == (
        {"ENVIRONMENT": r"destroy (\S+)"},
        "echo undone",
        (),
    )
    assert recover.line == line_of(WHOLE, "id: recover")
    assert (ask.kind, ask.critical, ask.on_failure, ask.run_in) == (
        StepKind.PROMPT,
        False,
        OnFailure.ASK,
        RunIn.DRILL,
    )
    assert (ask.asks, ask.depends_on, ask.exit_statuses) == (("INSTANT",), (), (0,))
    assert (look.kind, look.retry, look.at, look.depends_on) == (
        StepKind.CHECK,
        3,
        "recovery machine",
        ("ask", "recover"),
    )
    assert (look.critical, look.on_failure, look.run_in, look.timeout_seconds) == (
        True,
        OnFailure.STOP,
        RunIn.BOTH,
        3600,
    )


def test_a_step_depends_on_the_one_above_unless_it_says_otherwise() -> None:
    runbook = parse_runbook(changed("depends_on: [ask, recover]\n", ""))
    assert [step.depends_on for step in runbook.steps] == [(), (), ("ask",)]


def test_the_hash_is_of_every_letter() -> None:
    runbook = parse_runbook(WHOLE)
    assert runbook.sha256 == hashlib.sha256(WHOLE.encode()).hexdigest()
    assert parse_runbook(WHOLE + "\n").sha256 != runbook.sha256


def test_what_yaml_would_make_of_a_word_does_not_matter() -> None:
    runbook = parse_runbook(changed("title: An example", "title: 0x10"))
    assert runbook.title == "0x10"
    assert parse_runbook(changed("changes_production: no", "changes_production: yes")).changes_production


def test_blanks_are_names_in_capitals_within_braces() -> None:
    assert list(blanks_in(["${B} $C ${d} ${A_1}", "${B}"])) == ["B", "A_1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: example", "id: An Example", "id: is made of a-z, 0-9, - and _, not 'An Example'"),
        ("title: An example\n", "", "title: is missing"),
        ("purpose: Show the format.", "purpose: ' '", "purpose: is empty"),
        ("purpose: Show the format.", "purpose: [a, b]", "purpose: is a text"),
        ("use_when: [always]", "use_when: []", "use_when: is missing or has an empty entry"),
        ("use_when: [always]", "use_when: {a: b}", "use_when: is a list of texts"),
        ("minutes: 30", "minutes: half an hour", "minutes: is a whole number, not 'half an hour'"),
        ("minutes: 30", "minutes: -5", "minutes: is a whole number, not '-5'"),
        ("changes_production: no", "changes_production: maybe", "changes_production: is yes or no, not 'maybe'"),
        ("reviewed: 2026-11-26", "reviewed: last year", "reviewed: is a date such as 2026-11-30, not 'last year'"),
        ("minutes: 30", "minutes: 30\nminutes: 31", "minutes: is given twice"),
        ("minutes: 30", "minutes: 30\nhours: 1", "hours: is no key here"),
        ("minutes: 30", "minutes: {a: [b]}", "minutes: is a text, a list of texts or a mapping of texts"),
        ("  INSTANT: the instant", "  instant: x\n  INSTANT: the instant", "blanks: instant is used by no step"),
        (
            "  INSTANT: the instant",
            "  INSTANT: ''",
            "blanks: 'INSTANT' has to be a name in capitals, with what it means",
        ),
        ("  SERVICE: the service\n", "", "step recover: ${SERVICE} is not among the blanks of the front matter"),
        ("blanks:\n", "blanks:\n  OTHER: x\n", "blanks: OTHER is used by no step"),
        ("learn:\n  ENVIRONMENT: 'destroy (\\S+)'", "learn: destroy", "learn: maps names to texts"),
        ("id: look", "id: Look", "id: is made of a-z, 0-9, - and _, not 'Look'"),
        ("title: An example", "title: [", "is no YAML"),
        ("kind: auto", "kind: automatic", "kind: is one of auto, check, manual, approval, prompt, wait"),
        ("id: look", "id: ask", "id: ask is the id of another step"),
        ("[ask, recover]", "[ask, later]", "depends_on: later is no step above this one"),
        ("[ask, recover]", "[look]", "depends_on: look is no step above this one"),
        ("depends_on: []", "depends_on: [look]", "depends_on: look is no step above this one"),
        ('run: look "${ENVIRONMENT}" "${INSTANT}"\n', "", "run: is missing: check is done by a command"),
        ("expect: fine\n", "", "expect: is missing: it decides whether the check passed"),
        ("expect: fine", "expect: fine\nundo: no", "undo: has no use: a check changes nothing"),
        ("retry: 3\nfallback: call somebody\n", "", "fallback: is missing: what shall people do when this fails?"),
        ("owner: service owner\n", "", "owner: is missing: prompt is done by people, tell who"),
        ("do: When was it?\n", "", "do: is missing: prompt is done by people, tell them what"),
        ("do: When was it?", "do: When?\nexpect: x", "expect: is no key of a step that people do (prompt)"),
        ("asks: [INSTANT]\n", "", "asks: belongs to a prompt, and a prompt has it"),
        ("timeout: 90s", "timeout: soon", "timeout: is a duration such as 30s, 10m or 4h, not 'soon'"),
        ("exit: [0, 3]", "exit: [0, 256]", "exit: is an exit status from 0 to 255, or a list of them"),
        ("retry: 3", "retry: often", "retry: is a whole number, not 'often'"),
        (r"'destroy (\S+)'", "'destroy ('", "learn: ENVIRONMENT: missing ), unterminated subpattern"),
        (r"'destroy (\S+)'", "destroy", "learn: ENVIRONMENT: the expression has 0 groups, it needs one"),
        (r"  ENVIRONMENT: 'destroy (\S+)'", r"  OTHER: 'destroy (\S+)'", "${OTHER} is not among the blanks"),
        ("## 2. Ask\n", "", "step ask: has no heading of its own"),
        ("## 2. Ask\n", "## 2. Ask\n```sh\nrm x\n```\n", "fences are ```drservice-step and ```text at the margin"),
        ("## 2. Ask\n", "## 2. Ask\n  ```text\n```\n", "fences are ```drservice-step and ```text at the margin"),
        ("run_in: drill", "run_in: nowhere", "run_in: is one of drill, real, both, not 'nowhere'"),
        ("run_in: drill", "run_in: !!python/name:os.system x", "run_in: is one of drill, real, both, not 'x'"),
        ("run_in: drill", "run_in: 'drill", "is no YAML"),
    ],
)
def test_a_mistake_is_told(old: str, new: str, message: str) -> None:
    text = WHOLE.replace(old, new, 1)
    assert text != WHOLE
    found = mistakes(text)
    assert any(message in item for item in found), found


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    text = changed("minutes: 30", "minutes: x").replace("expect: fine\n", "").replace("timeout: 90s", "timeout: x")
    assert [item.split(":")[0] for item in mistakes(text)] == [
        f"line {line_of(text, 'minutes: x')}",
        f"line {line_of(text, 'timeout: x')}",
        f"line {line_of(text, 'id: look')}",
    ]


def test_a_blank_is_not_used_before_it_is_told() -> None:
    text = changed('  echo "${SERVICE}"', '  echo "${SERVICE}" "${ENVIRONMENT}"')
    assert mistakes(text) == [
        f"line {line_of(WHOLE, 'id: recover')}: step recover: ${{ENVIRONMENT}} is used before a step tells it"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "front matter between two lines ---"),
        ("# No front matter\n", "front matter between two lines ---"),
        ("---\nid: x\n", "front matter between two lines ---"),
        (HEAD, "there is no step"),
        (WHOLE + "```drservice-step\nid: x\n", "this block is never closed"),
        (WHOLE + "## 4\n```drservice-step\n- a list\n```\n", "a mapping of keys and values is expected"),
        (WHOLE + "## 4\n```drservice-step\n```\n", "a mapping of keys and values is expected"),
        (WHOLE + "## 4\n```drservice-step\n" + "[" * 5000 + "\n```\n", "is no YAML"),
        (WHOLE + "x" * MAX_LETTERS, f"at most {MAX_LETTERS} letters"),
    ],
)
def test_what_is_no_runbook_is_refused(text: str, message: str) -> None:
    assert any(message in item for item in mistakes(text))


def test_a_form_is_no_command() -> None:
    text = changed("## 2. Ask\n", "## 2. Ask\n```text\n## no heading\n__________\n```\n")
    assert [step.title for step in parse_runbook(text).steps] == ["1. Recover", "2. Ask", "3. Look"]


SCRAPS = (
    "&a",
    "*a",
    "!!",
    "%YAML 1.1",
    "---",
    "\t",
    "'",
    '"',
    "|",
    ">",
    "{",
    "[",
    "]",
    ": ",
    "- ",
    "? ",
    "\0",
    "\ud800",
)


def test_a_mutilated_runbook_is_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(20261126)
    refused = 0
    for _ in range(400):
        letters = list(WHOLE)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(letters))
            letters[place : place + chance.choice((0, 1, 40))] = chance.choice(SCRAPS)
        try:
            parse_runbook("".join(letters))
        except InvalidRunbookError:
            refused += 1
    assert refused > 300
