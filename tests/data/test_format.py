"""Every accepted form gives the internal one; every bad row is named with its row and column."""

import logging
import math

import pytest
import trl
from datasets import Dataset, IterableDataset, Json, List, Value

from trl_dpo_ext.data import DataError, FaultReason, Reads, to_ranked
from trl_dpo_ext.data.format import format_dataset

USER = [{"role": "user", "content": "Capital of Peru?"}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def ranked(row, **options):
    return to_ranked(row, index=7, name="train", **options)


def stream(rows):
    """A streamed dataset that knows neither its columns nor its features, as one from a generator does."""
    return IterableDataset.from_generator(lambda: iter(rows))


# ---------------------------------------------------------------------------------------------------- accepted forms

LIMA, CUSCO, PUNO = assistant("Lima"), assistant("Cusco"), assistant("Puno")
BLOCKS_USER, BLOCKS_LIMA, BLOCKS_CUSCO = (
    [{"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}]
    for message in (*USER, *LIMA, *CUSCO)
)

FORMS = {
    "pair": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]},
    ),
    "pair, implicit prompt": (
        {"chosen": "The sky is blue", "rejected": "The sky is green"},
        {"prompt": "The sky is", "completions": [" blue", " green"], "ranks": [0, 1]},
    ),
    "pair, conversational": (
        {"prompt": USER, "chosen": LIMA, "rejected": CUSCO},
        {"prompt": USER, "completions": [LIMA, CUSCO], "ranks": [0, 1]},
    ),
    "pair, conversational, implicit prompt": (
        {"chosen": USER + LIMA, "rejected": USER + CUSCO},
        {"prompt": USER, "completions": [LIMA, CUSCO], "ranks": [0, 1]},
    ),
    "pair, whole conversations beside a plain prompt": (
        {"prompt": "Capital of Peru?", "chosen": USER + LIMA, "rejected": USER + CUSCO},
        {"prompt": USER, "completions": [LIMA, CUSCO], "ranks": [0, 1]},
    ),
    "best first": (
        {"prompt": "a", "completions": ["b", "c", "d"]},
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [0, 1, 2]},
    ),
    "ranks": (
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 0, 1]},
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 0, 1]},
    ),
    "ranks with gaps and a tie, starting anywhere": (
        {"prompt": "a", "completions": ["b", "c", "d", "e"], "ranks": [9, 4, 1000, 4]},
        {"prompt": "a", "completions": ["b", "c", "d", "e"], "ranks": [1, 0, 2, 0]},
    ),
    "ranks as whole floats": (
        {"prompt": "a", "completions": ["b", "c"], "ranks": [2.0, 1.0]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0]},
    ),
    "scores": (
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": [-0.5, 2.5, 0.0]},
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 0, 1], "scores": [-0.5, 2.5, 0.0]},
    ),
    "scores, integers, a tie": (
        {"prompt": USER, "completions": [LIMA, CUSCO, PUNO], "scores": [1, 5, 1]},
        {"prompt": USER, "completions": [LIMA, CUSCO, PUNO], "ranks": [1, 0, 1], "scores": [1.0, 5.0, 1.0]},
    ),
    "ranks and scores": (
        {"prompt": "a", "completions": ["b", "c"], "ranks": [3, 2], "scores": [0.1, 0.2]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0], "scores": [0.1, 0.2]},
    ),
    "ranks that decide between equal scores": (
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0], "scores": [0.5, 0.5]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0], "scores": [0.5, 0.5]},
    ),
    "content as text blocks": (
        {"prompt": BLOCKS_USER, "chosen": BLOCKS_LIMA, "rejected": BLOCKS_CUSCO},
        {"prompt": BLOCKS_USER, "completions": [BLOCKS_LIMA, BLOCKS_CUSCO], "ranks": [0, 1]},
    ),
    "identical responses that share a rank": (
        {"prompt": "a", "completions": ["b", "b", "c"], "ranks": [0, 0, 1]},
        {"prompt": "a", "completions": ["b", "b", "c"], "ranks": [0, 0, 1]},
    ),
}


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS.keys())
def test_each_form_gives_the_internal_one(row, expected):
    assert ranked(row) == expected
    numbered = [{**expected, "row": number} for number in range(2)]
    assert list(format_dataset(Dataset.from_list([row, row]), name="train")) == numbered
    assert list(format_dataset(stream([row, row]), name="train")) == numbered
    assert list(format_dataset(Dataset.from_list([row]).to_iterable_dataset(), name="train")) == numbered[:1]


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS.keys())
def test_the_internal_form_is_itself_accepted(row, expected):
    """So a formatted dataset can be saved and loaded again."""
    assert ranked(expected) == expected


def test_implicit_prompts_are_those_trl_extracts():
    pair = {"chosen": "Peru's capital is Lima.", "rejected": "Peru's capital is Cusco."}
    trl_pair = trl.extract_prompt(pair)
    assert ranked(pair)["prompt"] == trl_pair["prompt"]
    assert ranked(pair)["completions"] == [trl_pair["chosen"], trl_pair["rejected"]]


@pytest.mark.parametrize("options", [{}, {"num_proc": 2}])
def test_ragged_rows_keep_their_own_length(options):
    rows = [{"prompt": "p", "completions": [f"r{k}" for k in range(n)], "ranks": list(range(n))} for n in (2, 5, 3, 4)]
    formatted = format_dataset(Dataset.from_list(rows), name="train", **options)
    assert list(formatted) == [{**row, "row": number} for number, row in enumerate(rows)]
    assert formatted.column_names == ["prompt", "completions", "ranks", "row"]


def test_other_columns_are_left_out():
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "source": "x", "score_chosen": 3.0}]
    assert format_dataset(Dataset.from_list(rows), name="train").column_names == [
        *("prompt", "completions", "ranks", "row")
    ]


def test_features_are_the_same_for_every_form():
    def features(row):
        return format_dataset(Dataset.from_list([row]), name="train").features

    numbers = {"ranks": List(Value("int64")), "row": Value("int64")}
    text = {"prompt": Value("string"), "completions": List(Value("string")), **numbers}
    messages = {"prompt": List(Json()), "completions": List(List(Json())), **numbers}
    for row, expected in FORMS.values():
        scores = {"scores": List(Value("float64"))} if "scores" in expected else {}
        assert features(row) == {**(messages if isinstance(expected["prompt"], list) else text), **scores}


def test_a_tensor_format_on_the_dataset_changes_nothing():
    rows = [{"prompt": "p", "completions": ["a", "b"], "scores": [1.0, 2.0]}]
    expected = [{**rows[0], "ranks": [1, 0], "row": 0}]
    assert list(format_dataset(Dataset.from_list(rows).with_format("numpy"), name="train")) == expected


def test_keys_that_arrow_pads_with_none_are_dropped():
    call = [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]
    rows = [
        {"prompt": [{"role": "user", "content": "x", "name": "Ada"}], "completions": [LIMA, call]},
        {"prompt": USER, "completions": [LIMA, CUSCO]},
    ]
    padded = Dataset.from_list(rows)
    assert padded[1]["prompt"][0] == {**USER[0], "name": None}  # what Arrow does
    formatted = format_dataset(padded, name="train")
    assert [row["prompt"] for row in formatted] == [row["prompt"] for row in rows]
    assert [row["completions"] for row in formatted] == [row["completions"] for row in rows]


@pytest.mark.parametrize("make", [Dataset.from_list, stream])
def test_tools_and_template_arguments_are_passed_on(make):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    rows = [
        {
            "prompt": USER,
            "chosen": LIMA,
            "rejected": CUSCO,
            "tools": '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]',
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {"prompt": USER, "chosen": LIMA, "rejected": PUNO, "tools": None, "chat_template_kwargs": None},
    ]
    formatted = list(format_dataset(make(rows), name="train"))
    assert [row["tools"] for row in formatted] == [tools, None]
    assert [row["chat_template_kwargs"] for row in formatted] == [{"enable_thinking": False}, {}]


def test_tied_responses_are_accepted_where_the_loss_reads_ties():
    row = {"prompt": "a", "completions": ["b", "c"], "ranks": [3, 3]}
    assert ranked(row, reads=Reads(ties=True))["ranks"] == [0, 0]
    assert next(iter(format_dataset(Dataset.from_list([row]), name="train", reads=Reads(ties=True))))["ranks"] == [0, 0]


# ------------------------------------------------------------------------------------------------------------ bad rows

GOOD = {"prompt": "a", "completions": ["b", "c"]}
GOOD_CHAT = {"prompt": USER, "completions": [LIMA, CUSCO]}

BAD_ROWS = {
    "no response": ({"completions": []}, "completions", "found 0, expected 2"),
    "one response": ({"completions": ["b"]}, "completions", "found 1, expected 2"),
    "no list of responses": ({"completions": "b"}, "completions", "'b', expected a list"),
    "responses None": ({"completions": None}, "completions", "None, expected a list"),
    "empty response": ({"completions": ["b", ""]}, "completions", "response 1 is ''"),
    "whitespace response": ({"completions": [" \n", "b"]}, "completions", r"response 0 is ' \\n'"),
    "response None": ({"completions": ["b", None]}, "completions", "response 1 is None"),
    "response a number": ({"completions": ["b", 3]}, "completions", "response 1 is 3"),
    "identical": ({"completions": ["b", "c", "b"]}, "completions", "responses 0 and 2 are the same"),
    "prompt None": ({"prompt": None}, "prompt", "None, expected a string"),
    "prompt empty": ({"prompt": ""}, "prompt", "the prompt is ''"),
    "prompt whitespace": ({"prompt": "  "}, "prompt", "the prompt is '  '"),
    "prompt without messages": ({**GOOD_CHAT, "prompt": []}, "prompt", r"the prompt is \[\]"),
    "prompt without content": (
        {**GOOD_CHAT, "prompt": [{"role": "user", "content": " "}]},
        "prompt",
        "expected text",
    ),
    "prompt message without role": ({**GOOD_CHAT, "prompt": [{"content": "x"}]}, "prompt", "expected a message with"),
    "prompt of strings": ({**GOOD_CHAT, "prompt": ["x"]}, "prompt", "holds 'x', expected a message"),
    "content of a wrong type": ({**GOOD_CHAT, "prompt": [{"role": "user", "content": 3}]}, "prompt", "content 3"),
    "an image in a message": (
        {**GOOD_CHAT, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "prompt",
        "TRL's DPOTrainer",
    ),
    "text prompt, messages": ({"prompt": "a", "completions": [LIMA, CUSCO]}, "completions", "is a message list, but"),
    "messages prompt, text": ({"prompt": USER, "completions": ["b", "c"]}, "completions", "is a string, but"),
    "text and messages": ({"completions": ["b", CUSCO]}, "completions", "response 1 is a message list, but"),
    "response without messages": ({**GOOD_CHAT, "completions": [LIMA, []]}, "completions", r"response 1 is \[\]"),
    "wrong role": (
        {**GOOD_CHAT, "completions": [LIMA, USER + CUSCO]},
        "completions",
        "role 'user', expected 'assistant'",
    ),
    "empty message": (
        {**GOOD_CHAT, "completions": [assistant(" "), CUSCO]},
        "completions",
        "response 0 has an assistant",
    ),
    "message without content": (
        {**GOOD_CHAT, "completions": [LIMA, [{"role": "assistant", "content": None}]]},
        "completions",
        "response 1 has an assistant message without content",
    ),
    "ranks too short": ({"ranks": [0]}, "ranks", "found 1 for 2 responses"),
    "ranks too long": ({"ranks": [0, 1, 2]}, "ranks", "found 3 for 2 responses"),
    "ranks None": ({"ranks": None}, "ranks", "None, expected a list of 2 numbers"),
    "rank None": ({"ranks": [0, None]}, "ranks", "number 1 is None"),
    "rank a string": ({"ranks": ["0", "1"]}, "ranks", "number 0 is '0'"),
    "rank a bool": ({"ranks": [False, True]}, "ranks", "number 0 is False"),
    "rank a fraction": ({"ranks": [0, 1.5]}, "ranks", "number 1 is 1.5, expected an integer"),
    "rank negative": ({"ranks": [0, -1]}, "ranks", "number 1 is -1"),
    "rank NaN": ({"ranks": [0, math.nan]}, "ranks", "number 1 is nan"),
    "all ranks tied": ({"ranks": [2, 2]}, "ranks", "all 2 responses are equally good"),
    "scores too short": ({"scores": [0.5]}, "scores", "found 1 for 2 responses"),
    "score NaN": ({"scores": [math.nan, 0.5]}, "scores", "number 0 is nan"),
    "score infinite": ({"scores": [0.5, -math.inf]}, "scores", "number 1 is -inf"),
    "all scores tied": ({"scores": [0.5, 0.5]}, "scores", "all 2 responses are equally good"),
    "ranks the wrong way round": ({"ranks": [1, 0], "scores": [2.0, 1.0]}, "ranks", "its score is lower"),
    "tools not JSON": ({"tools": "{"}, "tools", "isn't JSON"),
    "tools not a list": ({"tools": "3"}, "tools", "3, expected a list"),
    "template arguments not a dict": ({"chat_template_kwargs": ["x"]}, "chat_template_kwargs", "expected a dict"),
}

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
BAD_PAIRS = {
    "chosen empty": ({**PAIR, "chosen": ""}, "chosen", "expected text"),
    "rejected whitespace": ({**PAIR, "rejected": " "}, "rejected", "the response is ' '"),
    "rejected None": ({**PAIR, "rejected": None}, "rejected", "None, expected a string"),
    "identical": ({**PAIR, "rejected": "b"}, "rejected", "the same"),
    "identical, implicit prompt": ({"chosen": "a b", "rejected": "a b"}, "rejected", "the same"),
    "chosen empty, implicit prompt": ({"chosen": "", "rejected": "a c"}, "chosen", "the response is ''"),
    "rejected empty, implicit prompt": ({"chosen": USER + LIMA, "rejected": []}, "rejected", r"the response is \[\]"),
    "prompt None": ({**PAIR, "prompt": None}, "prompt", "None, expected a string"),
    "prompt repeated": ({"prompt": USER, "chosen": USER + LIMA, "rejected": USER + CUSCO}, "chosen", "role 'user'"),
    "types differ": ({"chosen": "b", "rejected": CUSCO}, "rejected", "both be strings"),
    "nothing in common": ({"chosen": LIMA, "rejected": CUSCO}, "chosen", "no beginning in common"),
    "wrong role": (
        {"chosen": USER + LIMA, "rejected": [*USER, {"role": "user", "content": "?"}]},
        "rejected",
        "role 'user', expected 'assistant'",
    ),
}


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [({**GOOD, **change}, *rest) for change, *rest in BAD_ROWS.values()] + list(BAD_PAIRS.values()),
    ids=[*BAD_ROWS, *(f"pair: {name}" for name in BAD_PAIRS)],
)
def test_bad_row(row, column, message):
    with pytest.raises(DataError, match=message) as caught:
        ranked(row)
    assert str(caught.value).startswith(f"train dataset, row 7, column '{column}': ")
    assert caught.value.reason is not FaultReason.OTHER  # a reason says what is wrong, not only that something is

    # a good row of the same columns before it: a stream raises at row 1
    good = {
        **GOOD_CHAT,
        **PAIR,
        **GOOD,
        "ranks": [0, 1],
        "scores": [2.0, 1.0],
        "tools": None,
        "chat_template_kwargs": {},
    }
    if isinstance(row.get("prompt", row.get("chosen")), list):
        good = {**good, **GOOD_CHAT, "chosen": LIMA, "rejected": CUSCO}
    if "prompt" not in row:
        good = {**good, "chosen": "the b", "rejected": "the c"} if isinstance(row["chosen"], str) else {
            **good, "chosen": USER + LIMA, "rejected": USER + CUSCO
        }  # fmt: skip
    rows = [{name: good[name] for name in row}, row]
    formatted = iter(format_dataset(stream(rows), name="train"))
    assert next(formatted)["ranks"] == [0, 1]
    with pytest.raises(DataError, match=f"train dataset, row 1, column '{column}'"):
        next(formatted)


MIXED = [
    GOOD,
    {"prompt": "", "completions": ["b", "c"]},
    {"prompt": "a", "completions": ["b"]},
    {"prompt": "e", "completions": ["f", "g", "h"]},
    *[{"prompt": "a", "completions": ["b", " "]}] * 5,
]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_rows_are_listed_together(num_proc):
    with pytest.raises(DataError) as caught:
        format_dataset(Dataset.from_list(MIXED), name="eval", num_proc=num_proc)
    message = str(caught.value)
    assert message.startswith("eval dataset: 7 of 9 rows can't be trained on: empty response (5), ")
    assert "empty prompt (1)" in message
    assert "fewer than two responses (1)" in message
    for row in (1, 2, 4, 5, 6):
        assert f"row {row}, column" in message
    assert "row 7" not in message
    assert "... and 2 more" in message
    with pytest.raises(DataError) as caught:
        format_dataset(Dataset.from_list(MIXED[:7]), name="eval", num_proc=num_proc)
    assert "row 6" in str(caught.value)
    assert "... and" not in str(caught.value)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_rows_are_dropped_and_counted(num_proc, caplog):
    with caplog.at_level(logging.WARNING, "trl_dpo_ext"):
        kept = format_dataset(Dataset.from_list(MIXED), name="eval", invalid_rows="drop", num_proc=num_proc)
    assert [row["prompt"] for row in kept] == ["a", "e"]
    assert kept["row"][:] == [0, 3]
    assert kept.column_names == ["prompt", "completions", "ranks", "row"]
    assert caplog.messages == [
        "eval dataset: dropped 7 of 9 rows: empty response (5), empty prompt (1), fewer than two responses (1)."
    ]


def test_a_bad_first_row_does_not_decide_the_types():
    rows = [{"prompt": None, "completions": None}, GOOD_CHAT]
    assert next(iter(format_dataset(Dataset.from_list(rows), name="train", invalid_rows="drop")))["prompt"] == USER
    assert next(iter(format_dataset(stream(rows), name="train", invalid_rows="drop")))["prompt"] == USER


def test_bad_rows_of_a_stream_are_dropped_and_counted(caplog):
    with caplog.at_level(logging.WARNING, "trl_dpo_ext"):
        kept = list(format_dataset(stream([*MIXED, *MIXED]), name="eval", invalid_rows="drop"))
    assert [row["prompt"] for row in kept] == ["a", "e", "a", "e"]
    assert [row["row"] for row in kept] == [0, 3, 9, 12]
    assert set(kept[0]) == {"prompt", "completions", "ranks", "row"}
    assert caplog.messages == [
        "eval dataset: dropped 1 rows so far: empty prompt (1).",
        "eval dataset: dropped 10 rows so far: empty response (6), empty prompt (2), fewer than two responses (2).",
    ]


def test_a_stream_that_begins_with_a_bad_row_raises_at_once():
    with pytest.raises(DataError, match="train dataset, row 0, column 'prompt'"):
        format_dataset(stream([MIXED[1]]), name="train")


def test_text_and_messages_in_one_stream():
    rows = iter(format_dataset(stream([GOOD, GOOD_CHAT]), name="train"))
    next(rows)
    with pytest.raises(DataError, match=r"row 1, column 'prompt': found .* the rows before are strings"):
        next(rows)


@pytest.mark.parametrize("make", [Dataset.from_list, stream])
@pytest.mark.parametrize("invalid_rows", ["error", "drop"])
def test_a_dataset_without_rows(make, invalid_rows):
    with pytest.raises(DataError, match="train dataset: it has no rows"):
        format_dataset(make([]), name="train", invalid_rows=invalid_rows)


def test_a_dataset_of_bad_rows_only_is_an_error_even_where_they_are_dropped():
    with pytest.raises(DataError, match="2 of 2 rows"):
        format_dataset(Dataset.from_list([MIXED[1], MIXED[2]]), name="train", invalid_rows="drop")


def test_an_unknown_way_to_treat_bad_rows():
    with pytest.raises(ValueError, match="invalid_rows='skip', expected 'error' or 'drop'"):
        format_dataset(Dataset.from_list([GOOD]), name="train", invalid_rows="skip")


# --------------------------------------------------------------------------------------------------------- bad columns


@pytest.mark.parametrize("make", [Dataset.from_list, stream])
@pytest.mark.parametrize("invalid_rows", ["error", "drop"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"prompt \+ chosen \+ rejected; missing: rejected\."),
        (
            {"prompt": "a", "completion": "b"},
            r"prompt \+ completion \+ label; missing: label\.",
        ),
        ({"question": "a", "completions": ["b"], "ranks": [0]}, r"prompt \+ completions \+ ranks; missing: prompt\."),
        ({"text": "a"}, "found the columns text"),
        ({"prompt": "a", "completions": ["b", "c"], "rank": [1, 0]}, "found 'rank', but .* Rename it to 'ranks'"),
        ({"prompt": "a", "completions": ["b", "c"], "scoers": [1, 0]}, "found 'scoers', but .* Rename it to 'scores'"),
        ({**PAIR, **GOOD}, "found both 'completions' and 'chosen' and 'rejected'"),
        ({**PAIR, "images": ["x.png"]}, "TRL's DPOTrainer"),
        ({**PAIR, "image": "x.png"}, "TRL's DPOTrainer"),
    ],
    ids=["rejected", "completions", "prompt", "all", "rank", "score", "two forms", "images", "image"],
)
def test_bad_columns(make, invalid_rows, row, message):
    with pytest.raises(DataError, match=f"^train dataset: .*{message}"):
        format_dataset(make([row]), name="train", invalid_rows=invalid_rows)
    with pytest.raises(DataError, match=message):
        ranked(row)
