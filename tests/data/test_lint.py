"""Each finding: data that have it once and nothing else, with its row numbers; data without any finding."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import helpers
from tests.data.lint_rows import (
    BOS_TOKENIZER,
    TOKENIZER,
    argilla,
    chat,
    choice,
    found,
    labelled,
    lint,
    only,
    pair,
    ranked,
    says,
    scored,
)
from trl_dpo_ext.data import DataError, FaultReason
from trl_dpo_ext.data.lint import CHECKS, Finding, Report, lint_splits, scan
from trl_dpo_ext.data.lint.lengths import ordinary_range
from trl_dpo_ext.data.lint.row_store import content_hash


@pytest.mark.parametrize("make", [pair, ranked, scored, chat])
@pytest.mark.parametrize("options", [{}, {"tokenizer": TOKENIZER, "max_length": 64}, {"tokenizer": BOS_TOKENIZER}])
def test_clean_data(make, options):
    report = lint({"train": [make(i) for i in range(40)], "test": [make(i) for i in range(40, 50)]}, **options)
    assert report.findings == []
    assert report.rows == {"train": 40, "test": 10}
    assert report.lines() == []


# ----------------------------------------------------------------------------------------- single rows and whole splits

# Row 2 of four is changed: rows are made by a function, a change, and what the note must say.
ROWS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "images": (
        chat,
        {"prompt": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
        "column 'prompt': the prompt holds the content block",
    ),
    "wrong-type": (pair, {"rejected": None}, "column 'rejected': found None"),
    "mixed-types": (pair, {"prompt": says("x", "user")}, "column 'chosen': the response is a string"),
    "fewer-than-two-responses": (ranked, {"completions": [" a"], "ranks": [0]}, "column 'completions': found 1"),
    "labels-and-order-disagree": (
        labelled,
        {"scores": [1.0, 2.0]},
        "column 'labels': response 1 is undesirable, but its rank or score is better",
    ),
    "unclear-choice": (choice, {"winner": "C"}, "column 'winner': found 'C', expected 'answer_a'"),
    "no-answer": (choice, {"winner": ""}, "column 'winner': found '', so nobody has said"),
    "answers-disagree": (
        argilla,
        {"best.responses": ["response_a", "response_b"]},
        "column 'best': people gave different answers",
    ),
    "empty-prompt": (pair, {"prompt": " "}, "column 'prompt': the prompt is ' '"),
    "empty-response": (pair, {"chosen": "\n"}, "column 'chosen': the response is '\\n'"),
    "wrong-role": (chat, {"chosen": says("x", "user")}, "column 'chosen': the response begins with the role 'user'"),
    "identical-responses": (pair, {"chosen": " x", "rejected": " x"}, "column 'rejected': responses 0 and 1 are"),
    "length-mismatch": (ranked, {"ranks": [0, 1]}, "column 'ranks': found 2 for 3 responses"),
    "nan-or-infinity": (scored, {"scores": [1.0, math.inf, 0.0]}, "column 'scores': number 1 is inf"),
    "rank-not-an-integer": (ranked, {"ranks": [0, 1.5, 2]}, "column 'ranks': number 1 is 1.5"),
    "negative-rank": (ranked, {"ranks": [0, -1, 2]}, "column 'ranks': number 1 is -1"),
    "ranks-and-scores-disagree": (
        lambda number, **changes: {**scored(number), "ranks": [0, 1, 2], **changes},
        {"scores": [1.0, 2.0, 0.0]},
        "column 'ranks': response 0 is ranked above response 1",
    ),
    "order-not-read": (
        lambda number, **changes: {"prompt": f"p {number}", "completions": [" a", " b"], "upvotes": [1, 1], **changes},
        {"upvotes": [1, 5]},
        "column 'upvotes': found the column 'upvotes' ([1, 5]), which seems to order the responses",
    ),
    "all-tied": (ranked, {"ranks": [1, 1, 1]}, "all 3 responses are equally good"),
    "replacement-character": (pair, {"chosen": " caf\ufffd"}, "response 0 holds U+FFFD at character 4"),
    "lone-surrogate": (chat, {"prompt": says("a\ud83d", "user")}, "the prompt holds U+D83D at character 1"),
    "control-character": (pair, {"rejected": " a\x00b"}, "response 1 holds U+0000 at character 2"),
    "unknown-role": (chat, {"prompt": says("x", "human")}, "the prompt has the role 'human'"),
    "prompt-ends-with-assistant": (
        chat,
        {"prompt": [*says("x", "user"), *says("y")]},
        "the prompt's last message is the assistant's",
    ),
    "foreign-turn": (
        chat,
        {"rejected": [*says("x"), *says("y", "user"), *says("z")]},
        "response 1 has a message by 'user'",
    ),
    "repeated-response": (
        ranked,
        {"completions": [" a", " b", " b"], "ranks": [0, 1, 1]},
        "responses 1 and 2 are the same",
    ),
}


@pytest.mark.parametrize("id", ROWS)
def test_a_row(id):
    make, change, note = ROWS[id]
    rows = [make(i) for i in range(4)]
    rows[2].update(change)
    # Half a character can't be stored as text, so this one comes from a list, as a JSON column would give it.
    report = lint_splits({"train": _Rows(rows)}) if id == "lone-surrogate" else lint(rows)
    finding = only(report)
    assert (finding.id, finding.split, finding.count, finding.rows, finding.twins) == (id, "train", 1, [2], [])
    assert finding.note.startswith(f"row 2: {note}"), finding.note
    assert finding.severity == ("warning" if finding.id in _WARNINGS else "error")


class _Rows(list):
    """What the linter uses of a Dataset."""

    column_names = ("prompt", "chosen", "rejected")
    features = None

    def with_format(self, form: None) -> _Rows:
        return self

    def take(self, count: int) -> list[dict[str, Any]]:
        return self[:count]


_WARNINGS = (
    *("all-tied", "replacement-character", "control-character", "unknown-role"),
    *("prompt-ends-with-assistant", "foreign-turn", "repeated-response"),
)

COLUMNS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "missing-columns": ([{"prompt": "a", "chosn": "b", "rejected": "c"}], "missing: chosen. Did you mean 'chosn'"),
    "two-forms": ([{**pair(0), "completions": ["a", "b"]}], "found both 'completions' and 'chosen'"),
    "images": ([{**pair(0), "image": "x.png"}], "images aren't supported"),
    "no-rows": ([], "it has no rows"),
}


@pytest.mark.parametrize("id", COLUMNS)
def test_columns_of_a_split(id):
    rows, note = COLUMNS[id]
    report = lint({"train": [pair(0)], "test": rows})
    finding = only(report)
    assert (finding.id, finding.split, finding.count, finding.rows) == (id, "test", len(rows), [])
    assert finding.severity == "error"
    assert note in finding.note
    assert report.rows == {"train": 1, "test": len(rows)}


def test_text_and_messages_in_one_split():
    """Though each row alone is right."""
    rows = [pair(0, prompt=""), pair(1), chat(2), pair(3)]
    assert found(lint(rows)) == {"empty-prompt": ("train", [0]), "mixed-types": ("train", [2])}


def test_text_that_only_looks_strange():
    for text in ("\x1b[0m", "\x7f", "\x80", "\x9f"):
        assert only(lint([pair(0), pair(1, chosen=f" {text}")])).id == "control-character"
    rows = [
        pair(0, prompt="tab\tline\r\nbreak"),
        pair(1, chosen=" caf\u00e9 \U0001f600\u200d"),
        pair(2, rejected=" a\u2028b"),
    ]
    assert lint(rows).findings == []
    tool = [*says("call"), *says("result", "tool"), *says("done")]
    assert lint([chat(0, chosen=tool), chat(1, prompt=[*says("x", "system"), *says("y", "user")])]).findings == []


def test_a_converter():
    rows = [
        {
            "prompt": f"\n\nHuman: film {i}\n\nAssistant: ",
            "answers": [{"answer": f"{a} {i}", "rank": r} for r, a in enumerate("abc", 1)],
        }
        for i in range(4)
    ]
    assert lint(rows, converter="nectar").findings == []
    rows[2]["answers"][1]["rank"] = None
    rows[3] = {**rows[0]}
    report = lint(rows, converter="nectar")
    assert found(report) == {"unreadable-row": ("train", [2]), "duplicate-row": ("train", [3])}
    assert report.findings[0].note.startswith("row 2: the converter 'nectar' can't read this row: ")
    assert "reads the columns prompt, answers" in only(lint([pair(0)], converter="nectar")).note
    with pytest.raises(ValueError, match="Did you mean 'nectar'"):
        lint(rows, converter="nectr")


# ---------------------------------------------------------------------------------------------- across rows and splits


def test_duplicates():
    rows = [pair(0), pair(1), pair(0), pair(2), pair(0)]
    finding = only(lint(rows))
    assert (finding.id, finding.rows, finding.twins) == ("duplicate-row", [2, 4], [("train", 0), ("train", 0)])
    # The order of the responses doesn't matter, their order of merit does; another response makes another row.
    shuffled = ranked(0)
    shuffled["completions"], shuffled["ranks"] = shuffled["completions"][::-1], shuffled["ranks"][::-1]
    assert only(lint([ranked(0), shuffled])).rows == [1]
    assert lint([ranked(0), ranked(0, completions=[*ranked(0)["completions"][:2], " other"])]).findings == []
    # In two splits it isn't a copy, but a prompt in train and test.
    assert only(lint({"test": [pair(0)], "train": [pair(0)]})).id == "prompt-in-train-and-test"


def test_prompts_in_train_and_test():
    splits = {
        "train_a": [pair(0), pair(1)],
        "validation": [pair(7), pair(1, chosen=" other", rejected=" words")],
        "train_b": [pair(0, chosen=" x"), pair(3), pair(2)],
        "test": [pair(4), pair(5), pair(2, chosen=" y")],
    }
    report = lint(splits)
    assert [(f.id, f.split, f.rows, f.twins) for f in report.findings] == [
        ("prompt-in-train-and-test", "validation", [1], [("train_a", 1)]),
        ("prompt-in-train-and-test", "test", [2], [("train_b", 2)]),
    ]
    assert report.findings[0].severity == "error"
    # Two training splits, or two others, may share prompts.
    assert lint({"train_a": [pair(0)], "train_b": [pair(0, chosen=" z")]}).findings == []
    assert lint({"test": [pair(0)], "validation": [pair(0, chosen=" z")]}).findings == []
    # Messages are compared too.
    assert found(lint({"train": [chat(0)], "test": [chat(1), chat(0)]})) == {"prompt-in-train-and-test": ("test", [1])}


def test_contradictory_labels():
    turned = pair(1, chosen=pair(1)["rejected"], rejected=pair(1)["chosen"])
    finding = only(lint([pair(0), pair(1), pair(2), turned]))
    assert (finding.id, finding.severity, finding.rows) == ("contradictory-labels", "warning", [1, 3])
    assert finding.twins == [("train", 3), ("train", 1)]
    # The same responses to another prompt contradict nothing.
    assert lint([pair(1), {**turned, "prompt": "another film"}]).findings == []
    # A pair within longer rankings, of different lengths; ties say nothing.
    rows = [
        ranked(0, completions=[" a", " b", " c"], ranks=[0, 1, 2]),
        ranked(0, completions=[" d", " c", " x", " a"], ranks=[0, 1, 2, 3]),
        ranked(0, completions=[" b", " c"], ranks=[0, 0]) | {"completions": [" b", " c", " e"], "ranks": [0, 0, 1]},
    ]
    assert only(lint(rows)).rows == [0, 1]
    # Between splits, beside the shared prompt.
    report = lint({"train": [pair(0), pair(1)], "test": [turned]})
    assert [(f.id, f.split, f.rows, f.twins) for f in report.findings] == [
        ("prompt-in-train-and-test", "test", [0], [("train", 1)]),
        ("contradictory-labels", "train", [1], [("test", 0)]),
        ("contradictory-labels", "test", [0], [("train", 1)]),
    ]


def test_hashes_find_what_comparing_all_rows_finds():
    rng = random.Random(0)
    rows = []
    for _ in range(60):
        k = rng.randint(2, 4)
        ranks = rng.choices(range(3), k=k)
        ranks[0] = 3  # never all tied
        rows.append({"prompt": rng.choice("pqrs"), "completions": rng.sample("abcdef", k), "ranks": ranks})

    def orders(row):
        return {
            (row["prompt"], a, b)
            for (a, i), (b, j) in itertools.permutations(zip(row["completions"], row["ranks"], strict=True), 2)
            if i < j
        }

    def whole(row):
        places = sorted(set(row["ranks"]))
        return row["prompt"], frozenset(zip(row["completions"], map(places.index, row["ranks"]), strict=True))

    copies = [i for i, row in enumerate(rows) if any(whole(row) == whole(other) for other in rows[:i])]
    against = [
        i for i, row in enumerate(rows) if any((p, b, a) in orders(other) for p, a, b in orders(row) for other in rows)
    ]
    rows += [rows[3], rows[5]]
    assert 0 < len(against) < len(rows)
    report = found(lint(rows))
    assert report["duplicate-row"] == ("train", [*copies, 60, 61])
    assert report["contradictory-labels"] == ("train", against + [60 + i for i, r in enumerate((3, 5)) if r in against])
    for finding in lint(rows).findings:
        for row, (_, twin) in zip(finding.rows, finding.twins, strict=True):
            if finding.id == "duplicate-row":
                assert whole(rows[row]) == whole(rows[twin])
                assert twin < row
            elif finding.id == "contradictory-labels":
                assert orders(rows[row]) & {(p, b, a) for p, a, b in orders(rows[twin])}


def test_text_that_looks_like_messages_has_another_hash():
    assert content_hash("[]") != content_hash([])
    assert content_hash([{"role": "user", "content": "x"}]) == content_hash([{"content": "x", "role": "user"}])
    assert len({content_hash(f"{i}") for i in range(10_000)}) == 10_000


def test_length_bias():
    rng = random.Random(1)
    extra = [rng.choice([-3, 0, 2, 4, 9, 12]) for _ in range(60)]
    rows = [pair(i, chosen=" " + "x" * (20 + n), rejected=" " + "y" * 20) for i, n in enumerate(extra)]
    finding = only(lint(rows))
    assert (finding.id, finding.severity, finding.rows, finding.count) == ("length-bias", "warning", [], 60)
    mean, half = statistics.mean(extra), 1.96 * statistics.stdev(extra) / math.sqrt(60)
    longer, shorter = sum(n > 0 for n in extra) / 60, sum(n < 0 for n in extra) / 60
    assert longer + shorter < 1
    assert finding.note == (
        f"the best response is longer than the worst in {longer:.0%} and shorter in {shorter:.0%} of 60 prompts; "
        f"best - worst is {mean:+.1f} characters on average (95 % interval {mean - half:+.1f} to {mean + half:+.1f})"
    )
    numbers = lint(rows).as_dict()["splits"]["train"]["lengths"]["best_minus_worst"]
    assert numbers == pytest.approx(
        {
            "prompts": 60,
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
            "longer": longer,
            "shorter": shorter,
        }
    )
    # Shorter is a bias too; fewer prompts, or as many longer as shorter ones, are none.
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert only(lint(turned)).id == "length-bias"
    assert [lint(rows[:n]).findings != [] for n in (29, 30)] == [False, True]
    even = [pair(i, chosen=" " + "x" * (20 + (-4, 5)[i % 2]), rejected=" " + "y" * 20) for i in range(60)]
    assert lint(even).findings == []


def test_length_bias_of_rankings_with_ties():
    rows = [
        ranked(i, completions=[" " + "a" * 3, " " + "b" * 9, " " + "c" * 5, " " + "d" * 29], ranks=[4, 1, 1, 2])
        for i in range(40)
    ]
    for i, row in enumerate(rows):
        row["completions"] = [f"{c}{i:02}" for c in row["completions"]]
    note = only(lint(rows)).note
    assert "best - worst is +4.0 characters on average (95 % interval +4.0 to +4.0)" in note  # (9 + 5) / 2 - 3


def test_extreme_lengths():
    rows = [pair(i, chosen=" " + "x" * (39 + i % 3), rejected=" " + "y" * (40 - i % 3)) for i in range(20)]
    assert lint(rows).findings == []
    rows[4]["chosen"] = " " + "x" * 400
    rows[7]["rejected"] = "y"
    rows[9]["prompt"] = "p" * 1000
    finding = only(lint(rows))
    assert (finding.id, finding.severity, finding.rows) == ("extreme-length", "info", [4, 7, 9])
    assert "1 prompts of 1,000 to 1,000 characters" in finding.note
    assert "2 responses of 1 to 401 characters, where 5 to 328 is ordinary" in finding.note


def test_the_rule_for_extreme_lengths():
    values = np.array([100] * 30 + [200] * 40 + [400] * 30)
    assert ordinary_range(values) == (100 / 4**3, 400 * 4**3)
    assert ordinary_range(np.full(9, 100)) == (100 / 8, 800)
    assert ordinary_range(np.array([])) == (0, math.inf)


def test_row_numbers_count_the_rows_that_cannot_be_read():
    rows = [pair(0, chosen=""), pair(1), pair(2, chosen=""), pair(3), pair(1)]
    assert found(lint(rows)) == {"empty-response": ("train", [0, 2]), "duplicate-row": ("train", [4])}
    twins = next(f.twins for f in lint(rows).findings if f.id == "duplicate-row")
    assert twins == [("train", 1)]


# --------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.parametrize("reason", FaultReason, ids=lambda reason: reason.name)
def test_every_reason_has_advice_and_can_be_reported(reason):
    assert reason.label
    assert reason.advice.endswith((".", "...", ")."))
    report = Report({"train": 1}, [Finding(reason.check_id, "train", 1, [0], "note")])
    assert report.as_dict()["findings"][0]["advice"] == reason.advice
    assert report.findings[0].severity == ("warning" if reason is FaultReason.ALL_TIED else "error")


def test_reasons_have_ids_of_their_own():
    assert len({reason.check_id for reason in FaultReason}) == len(FaultReason)


def test_a_fault_without_a_reason_is_reported(monkeypatch):
    """As one raised by a form or a converter of someone else."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise DataError("train dataset, row 0: it smells")

    monkeypatch.setattr(scan, "to_ranked", refuse)
    finding = only(lint([pair(0)]))
    assert (finding.id, finding.note) == ("unusable-data", "row 0: it smells")


def test_the_docs_explain_every_finding_and_no_other():
    page = Path(helpers.ROOT / "docs" / "lint.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `") and "`--" not in line]
    assert sorted((id.strip().strip("`"), severity.strip()) for id, severity in rows) == sorted(
        (id, check.severity) for id, check in CHECKS.items()
    )


def test_every_finding_is_tested():
    """Its id stands somewhere in the tests of the linter or of its command."""
    files = [*Path(__file__).parent.glob("test_lint*.py"), helpers.ROOT / "tests" / "cli" / "test_lint.py"]
    text = "".join(file.read_text() for file in files)
    assert [id for id in CHECKS if f'"{id}"' not in text] == []


def test_findings_are_sorted_and_counted():
    report = Report({}, [Finding("extreme-length", "a", 1, [0], ""), Finding("no-rows", "b", 0, [], "")])
    assert [finding.severity for finding in report.findings] == ["error", "info"]
    assert [len(report.at_least(s)) for s in ("error", "warning", "info")] == [1, 1, 2]
    assert report.as_dict()["counts"] == {"error": 1, "warning": 0, "info": 1}
    assert report.lines() == ["error no-rows in b: 0 rows, ."]
