"""Rows of exports that can't be read as they stand: each gives a sentence that names the column and what to do."""

from __future__ import annotations

import pytest
from datasets import Dataset

from trl_dpo_ext.data import DataError, FaultReason, Reads, format_dataset, map_columns
from trl_dpo_ext.data.column_names import parse_column_names

USER = [{"role": "user", "content": "Capital of Peru?"}]
SAID = [{"role": "assistant", "content": "Lima."}]
TWO = {"prompt": "q", "answer_a": "x", "answer_b": "y"}
LIST = {"prompt": "q", "completions": ["x", "y"]}
PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}
ARGILLA = {"prompt": "q", "response_1": "x", "response_2": "y"}
LABEL_STUDIO = {"data": {"prompt": "q", "answer1": "x", "answer2": "y"}}
SINGLES = Reads(ties=True, single_responses=True)


def annotated(*results: dict, **changes) -> dict:
    people = [{"result": [result] if result else [], "was_cancelled": False} for result in results]
    return {**LABEL_STUDIO, "annotations": people, **changes}


def selects(side: str) -> dict:
    return {"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": side}}


# Name: (rows, part of the message)
WRONG: dict[str, tuple[list[dict], str]] = {
    # a choice between two
    "no choice": ([TWO], "found 'answer_a' and 'answer_b', but no column says which is better"),
    "unknown word": ([{**TWO, "winner": "C"}], "column 'winner': found 'C', expected 'answer_a', 'answer_b', A or B"),
    "empty choice": ([{**TWO, "winner": " "}], "column 'winner': found ' ', so nobody has said"),
    "null choice": ([{**TWO, "winner": None}], "found None, so nobody has said which is better"),
    "only the number 1": ([{**TWO, "winner": 1}] * 3, "'winner' holds only 1, which doesn't say which response"),
    "1 as text": ([{**TWO, "winner": "1"}] * 3, "holds only 1, which doesn't say which response"),
    "numbers 0, 1, 2": ([{**TWO, "winner": n} for n in (0, 1, 2)], "holds 0, 1, 2, which doesn't say"),
    "a scale of five": ([{**TWO, "preference": n} for n in (1, 3, 5)], "holds 1, 3, 5, which doesn't say"),
    "a signed scale": ([{**TWO, "preference": n} for n in (-3, 2)], "holds -3, 2, which doesn't say"),
    "a fraction": ([{**TWO, "preference": 0.7}], "found 0.7, expected 'answer_a'"),
    "a truth value": ([{**TWO, "winner": True}], "found True, expected 'answer_a'"),
    "a model that isn't there": (
        [{**TWO, "model_a": "m", "model_b": "n", "winner": "o"}],
        "found 'o', expected 'answer_a'",
    ),
    "both models have one name": (
        [{**TWO, "model_a": "m", "model_b": "m", "winner": "m"}],
        "found 'm', expected 'answer_a'",
    ),
    "two choices": ([{**TWO, "winner": "A", "preference": "B"}], "found the choices 'winner' and 'preference'"),
    "two pairs of responses": (
        [{**TWO, "winner": "A", "response_1": "x", "response_2": "y"}],
        "found two pairs of responses",
    ),
    "no prompt": ([{"answer_a": "x", "answer_b": "y", "winner": "A"}], "but no column 'prompt'. Say which column"),
    "a pair beside the choice": ([{**TWO, **PAIR, "winner": "A"}], "found both the columns of two responses and"),
    "winner against scores": (
        [{**TWO, "winner": "A", "score_a": 1, "score_b": 5}],
        "response 0 is ranked above response 1, but its score is lower",
    ),
    "one response is empty": ([{**TWO, "winner": "A", "answer_b": ""}], "response 1 is '', expected text"),
    # scores
    "two columns of scores": (
        [{**LIST, "ratings": [1, 5], "rewards": [5, 1]}],
        "found scores in 'ratings' and 'rewards'",
    ),
    "a rating too many": ([{**LIST, "ratings": [1, 2, 3]}], "column 'ratings': found 3 for 2 responses"),
    "a rating without number": ([{**LIST, "ratings": ["good", "bad"]}], "column 'ratings': number 0 is 'good'"),
    "a date as rating": ([{**LIST, "ratings": ["2024-05-01", "2"]}], "number 0 is '2024-05-01', expected a number"),
    "a rating that is NaN": (
        [{**LIST, "rewards": ["nan", "1"]}],
        "column 'rewards': number 0 is nan, expected a finite",
    ),
    "scores against chosen": (
        [{**PAIR, "score_chosen": 1, "score_rejected": 5}],
        "which says that the rejected response is the better one",
    ),
    "a score of a pair is missing": (
        [{**PAIR, "score_chosen": 1, "score_rejected": None}],
        "is None, expected a number",
    ),
    # an order that isn't read
    "helpfulness beside ranks": ([{**LIST, "ranks": [0, 1], "helpfulness": [1, 5]}], "found the column 'helpfulness'"),
    "helpfulness beside scores": (
        [{**LIST, "scores": [2, 1], "helpfulness": [1, 5]}],
        "found the column 'helpfulness'",
    ),
    "winner beside a pair": ([{**PAIR, "winner": "rejected"}], "found the column 'winner'"),
    "one column per winner": ([{**PAIR, "winner_model_b": 1}], "found the column 'winner_model_b'"),
    "an order as text": ([{**LIST, "verdict": "B > A"}], "found the column 'verdict'"),
    "numbers as text": ([{**LIST, "quality": "[1, 5]"}], "found the column 'quality'"),
    # labels
    "a label that is a word": (
        [{"prompt": "q", "completion": "x", "label": "good"}],
        "the label is 'good', expected true",
    ),
    "a label of minus one": ([{"prompt": "q", "completion": "x", "label": -1}], "the label is -1, expected true"),
    "no label": ([{"prompt": "q", "completion": "x", "label": None}], "the label is None, expected true"),
    "labels too short": ([{**LIST, "labels": [True]}], "column 'labels': found 1 for 2 responses"),
    "a null label": ([{**LIST, "labels": [True, None]}], "label 1 is None, expected true"),
    "labels against ranks": ([{**LIST, "labels": [True, False], "ranks": [1, 0]}], "response 1 is undesirable, but"),
    # conversations
    "an unknown role": (
        [{"conversations": [{"from": "narrator", "value": "x"}], "chosen": "x", "rejected": "y"}],
        "a message is from 'narrator', expected one of: human",
    ),
    "nothing judges": ([{"messages": [*USER, *SAID]}], "nothing says how good their answers are"),
    "ends with the user": ([{"messages": [*SAID, *USER], "label": True}], "ends with the role 'user'"),
    "cut text of messages": (
        [{"prompt": '[{"role": "user", "content": "Hi', "chosen": "x", "rejected": "y"}],
        "begins like messages stored as text, but is neither JSON nor a Python list",
    ),
    "numpy's text of messages": (
        [
            {
                "prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",
                "chosen": "x",
                "rejected": "y",
            }
        ],
        "begins like messages stored as text",
    ),
    "two system messages": (
        [
            {
                "system": "Be kind.",
                "prompt": [{"role": "system", "content": "Be brief."}, *USER],
                "chosen": SAID,
                "rejected": SAID,
            }
        ],
        "found 'Be kind.', but the prompt begins with another system message",
    ),
    "a system message that is no text": ([{"system": 3, **PAIR}], "column 'system': found 3, expected text"),
    "OpenAI without messages": (
        [{"input": {"text": "q"}, "preferred_output": SAID, "non_preferred_output": SAID}],
        "column 'input': found .* expected an object with 'messages'",
    ),
    # Argilla
    "people disagree": (
        [{**ARGILLA, "best.responses": ["response_1", "response_2"]}],
        "column 'best': people gave different answers",
    ),
    "only drafts": (
        [{**ARGILLA, "best.responses": ["response_1"], "best.responses.status": ["draft"]}],
        "no submitted answer ranks, chooses or rates",
    ),
    "a ranking of other names": (
        [{**ARGILLA, "r.responses": [["x1", "x2"]]}],
        "the ranking holds x1, x2, but the fields",
    ),
    "a rating of nothing": ([{**ARGILLA, "quality.responses": [3]}], "'quality' doesn't say which response it rates"),
    "two rankings": (
        [{**ARGILLA, "r.responses": [["response_1", "response_2"]], "s.responses": [["response_2", "response_1"]]}],
        "the questions 'r' and 's' both order the responses",
    ),
    "no field prompt": ([{"question": "q", "a": "x", "best.responses": ["a"]}], "expected a field 'prompt'"),
    # Label Studio
    "skipped": ([annotated(selects("left")), {**annotated({}), "annotations": []}], "nobody has submitted an answer"),
    "annotators disagree": ([annotated(selects("left"), selects("right"))], "people gave different answers"),
    "no result that judges": (
        [annotated({"type": "textarea", "value": {"text": ["x"]}})],
        "no annotation has a result of",
    ),
    "buckets": (
        [
            annotated(
                {"type": "ranker", "value": {"ranker": {"best": ["1"], "ads": ["2"]}}},
                data={"prompt": "q", "items": [{"id": "1", "body": "x"}, {"id": "2", "body": "y"}]},
            )
        ],
        "Buckets don't say which is better",
    ),
    "a ranking that lacks an item": (
        [
            annotated(
                {"type": "ranker", "value": {"ranker": ["1"]}},
                data={"prompt": "q", "items": [{"id": "1", "body": "x"}, {"id": "2", "body": "y"}]},
            )
        ],
        "the ranking holds 1, expected each of 1, 2 once",
    ),
    "no prompt in data": (
        [annotated(selects("left"), data={"answer1": "x", "answer2": "y"})],
        "expected one of: prompt",
    ),
    "two exports": (
        [{**TWO, "winner": "A", "input": "i", "preferred_output": SAID, "non_preferred_output": SAID}],
        "the columns are those of",
    ),
}


@pytest.mark.parametrize(("rows", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_export_gets_a_sentence(rows, message):
    with pytest.raises(DataError, match=f"(?s)^train dataset.*{message}") as caught:
        format_dataset(Dataset.from_list(rows, on_mixed_types="use_json"), name="train", reads=SINGLES)
    assert "Traceback" not in str(caught.value)


def test_there_are_at_least_forty():
    assert len(WRONG) >= 40


def test_a_wrong_export_has_a_reason():
    for rows, _ in WRONG.values():
        with pytest.raises(DataError) as caught:
            list(format_dataset(Dataset.from_list(rows, on_mixed_types="use_json").to_iterable_dataset(), name="train"))
        assert caught.value.reason is not FaultReason.OTHER


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"qestion": "prompt"}, "columns maps 'qestion', but there is no such column. Did you mean 'question'?"),
        ({"question": "chosen"}, "gives 'question' and 'chosen' the one name 'chosen'"),
    ],
)
def test_wrong_column_names_get_a_sentence(names, message):
    rows = Dataset.from_list([{"question": "q", "chosen": "x", "rejected": "y"}])
    for dataset in (rows, rows.to_iterable_dataset()):
        with pytest.raises(DataError, match=message.replace("?", r"\?")):
            map_columns(dataset, names, name="train")


def test_a_column_name_of_the_command_line_has_two_parts():
    with pytest.raises(ValueError, match="--columns question: expected COLUMN=NAME"):
        parse_column_names(["question"])


def test_a_prompt_under_another_name_gets_a_hint():
    with pytest.raises(DataError, match=r"If 'question' holds the prompt, say so: columns: {question: prompt}"):
        format_dataset(Dataset.from_list([{"question": "q", "completions": ["a", "b"]}]), name="train")
