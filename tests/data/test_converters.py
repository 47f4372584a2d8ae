"""Every converter, on a small file with the schema of the public dataset (texts of our own) and on broken rows."""

from __future__ import annotations

import json
import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from datasets import Dataset, IterableDataset, load_dataset

from tests.helpers import ROOT
from trl_dpo_ext.data import DataError, convert_dataset, format_dataset, get_converter, list_converters
from trl_dpo_ext.data.conversation_rows import parse_transcript
from trl_dpo_ext.data.converter_registry import Converter, _registry, register_converter
from trl_dpo_ext.registry import NameCollisionError, UnknownNameError

FOLDER = ROOT / "tests" / "data" / "converters"
# Two converters read the same file in several cases.
FILES = {"hh_rlhf_text": "hh_rlhf", "ultrafeedback_mean": "ultrafeedback"}


def raw(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{FILES.get(name, name)}.jsonl").read_text().splitlines()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(params=[converter.name for converter in list_converters()])
def name(request):
    return request.param


@pytest.mark.parametrize("streaming", [False, True])
def test_what_comes_out_can_be_trained_on(name, streaming):
    path = str(FOLDER / f"{FILES.get(name, name)}.jsonl")
    dataset = load_dataset("json", data_files=path, split="train", streaming=streaming)
    rows = list(format_dataset(convert_dataset(dataset, name, name="train"), name="train"))
    assert len(rows) == len(raw(name))
    widths = {len(row["completions"]) for row in rows}
    assert widths == {"nectar": {7}, "ultrafeedback": {3, 4}, "ultrafeedback_mean": {3, 4}}.get(name, {2})


def converted(name: str, row: int) -> dict[str, Any]:
    return convert_dataset(Dataset.from_list(raw(name)), name, name="train")[row]


def test_hh_rlhf():
    row = raw("hh_rlhf")[1]
    assert row["chosen"].startswith("\n\nHuman: Can you name a short river?\n\nAssistant: The Roe")
    assert converted("hh_rlhf", 1) == {
        "prompt": [
            user("Can you name a short river?"),
            assistant("The Roe in Montana is about 60 metres long."),
            user("And a long one?"),
        ],
        "chosen": [assistant("The Nile is more than 6,000 km long.")],
        "rejected": [assistant("Longer than the Roe, for sure.")],
    }
    # As the DPO authors' loader splits: everything up to and with the last mark, then the answer with its space.
    text = converted("hh_rlhf_text", 1)
    assert text["prompt"] + text["chosen"] == row["chosen"]
    assert text["prompt"] + text["rejected"] == row["rejected"]
    assert text["prompt"].endswith("And a long one?\n\nAssistant:")
    assert text["chosen"] == " The Nile is more than 6,000 km long."


def test_nectar_ranks_start_at_0():
    row = converted("nectar", 2)
    assert row["prompt"] == [user("Hello"), assistant("Hello! What can I do?"), user("Recommend a soup.")]
    assert row["ranks"] == [1, 0, 2, 4, 3, 5, 6]
    assert row["completions"][1] == [assistant("Try it with Soup and see.")]


def test_tldr_puts_the_chosen_summary_first():
    assert converted("tldr", 1) == {
        "prompt": "SUBREDDIT: r/cycling\n\nTITLE: Lost a bolt\n\nPOST: On the way home a bolt fell off my rack and I "
        "had to carry the bag for an hour.\n\nTL;DR:",
        "chosen": " Rack lost a bolt, carried the bag home for an hour.",
        "rejected": " Bolt.",
    }
    assert (
        "I water it daily.\nIt stands" in converted("tldr", 0)["prompt"]
    )  # paragraphs closed up, as TRL's script does
    assert converted("tldr", 3)["prompt"].startswith("TITLE: Ferry service returns\n\nThe island's ferry")


def test_ultrafeedback_scores():
    assert converted("ultrafeedback", 0)["scores"] == [8.0, 5.0, 2.0, 8.5]
    assert converted("ultrafeedback_mean", 0)["scores"] == [4.5, 3.25, 2.0, 4.75]
    assert converted("ultrafeedback", 2)["prompt"] == [user("Write a line about autumn.")]
    assert converted("ultrafeedback", 2)["completions"][1] == [assistant("Autumn is a season.")]


def test_ultrafeedback_binarized_keeps_scores():
    row = converted("ultrafeedback_binarized", 0)
    assert row["prompt"] == [user("How long do I boil an egg?")]
    assert row["completions"] == [
        [assistant("Six minutes for a soft yolk, ten for a hard one.")],
        [assistant("Until done.")],
    ]
    assert row["scores"] == [8.5, 4.0]


def test_sets_in_trls_own_form_need_no_converter():
    rows = format_dataset(Dataset.from_list(raw("tldr_preference")), name="train")
    assert rows["ranks"][:] == [[0, 1]] * 4


def test_a_transcript_may_hold_blank_lines_and_quoted_names():
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: He said Human: no.\n\nHuman:\n\nAssistant:"
    assert parse_transcript(text) == [
        user("one\n\ntwo"),
        assistant("He said Human: no."),
        user(""),
        assistant(""),
    ]


# Broken rows


def without(row: dict[str, Any], *path: Any) -> dict[str, Any]:
    """The row with the value at the path set to None."""
    row = json.loads(json.dumps(row))
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = None
    return row


def changed(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**row, **changes}


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "no transcript": ("hh_rlhf", changed(raw("hh_rlhf")[0], chosen="Hello"), "chosen is no transcript"),
    "nothing": ("hh_rlhf_text", without(raw("hh_rlhf")[0], "rejected"), "rejected is no transcript"),
    "other prompt": (
        "hh_rlhf_text",
        changed(raw("hh_rlhf")[0], rejected=raw("hh_rlhf")[1]["rejected"]),
        "differ before their last answer",
    ),
    "goes on": (
        "hh_rlhf",
        changed(raw("hh_rlhf")[0], rejected=raw("hh_rlhf")[0]["rejected"] + "\n\nHuman: Why?\n\nAssistant: So."),
        "differ before their last answer",
    ),
    "ends with the human": (
        "hh_rlhf",
        changed(raw("hh_rlhf")[0], rejected=raw("hh_rlhf")[0]["rejected"] + "\n\nHuman: Why?"),
        "a human turn follows",
    ),
    "no opening": ("nectar", changed(raw("nectar")[0], prompt="Hello\n\nAssistant: "), "begins with"),
    "no ending": ("nectar", changed(raw("nectar")[0], prompt="\n\nHuman: Hello"), "ends with"),
    "rank 0": (
        "nectar",
        changed(raw("nectar")[0], answers=[{"answer": "a", "model": "m", "rank": r} for r in (0.0, 1.0)]),
        "a rank is 1 or more, found 0.0",
    ),
    "rank between": (
        "nectar",
        changed(raw("nectar")[0], answers=[{"answer": "a", "model": "m", "rank": r} for r in (1.5, 1.0)]),
        "found 1.5",
    ),
    "no answers": ("nectar", without(raw("nectar")[0], "answers"), "NoneType"),
    "third summary": ("tldr", changed(raw("tldr")[0], choice=2), "choice of 0 or 1"),
    "no post": ("tldr", without(raw("tldr")[0], "info", "post"), "neither a post nor an article"),
    "no score": (
        "ultrafeedback",
        without(raw("ultrafeedback")[0], "completions", 2, "overall_score"),
        "completion 2 has no overall_score",
    ),
    "two prompts": (
        "ultrafeedback_binarized",
        changed(raw("ultrafeedback_binarized")[0], rejected=raw("ultrafeedback_binarized")[1]["rejected"]),
        "differ before their last message",
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_or_left_out(case, streaming, caplog):
    name, broken, said = BROKEN[case]
    rows = [*raw(name)[:2], broken, raw(name)[3]]
    dataset: Any = Dataset.from_list(rows)
    if streaming:
        dataset = dataset.to_iterable_dataset()
    with pytest.raises(DataError) as caught:
        list(convert_dataset(dataset, name, name="train"))
    for part in ("train dataset, row 2", repr(name), said, "invalid_rows"):
        assert part in str(caught.value)

    with caplog.at_level(logging.WARNING):
        kept = convert_dataset(dataset, name, name="train", invalid_rows="drop")
        assert list(kept) == [get_converter(name).fn(row) for row in (rows[0], rows[1], rows[3])]
    assert "Left out 1 rows" in caplog.text
    assert isinstance(kept, IterableDataset) is streaming


def test_missing_columns_are_named_before_a_row_is_read():
    with pytest.raises(DataError) as caught:
        convert_dataset(Dataset.from_list(raw("ultrafeedback")), "nectar", name="eval")
    for part in ("eval dataset", "'nectar'", "prompt, answers", "missing: prompt, answers", "ultrafeedback"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="Did you mean 'answer'"):
        convert_dataset(Dataset.from_list([{"prompt": "a", "answer": "b"}]), "nectar", name="train")


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"Unknown dataset converter 'nektar'\. Did you mean 'nectar'"):
        get_converter("nektar")


def test_a_converter_of_ones_own(monkeypatch):
    monkeypatch.setattr(_registry, "_entries", dict(_registry._entries))  # other tests don't see it

    @register_converter("test_stars", columns=["question", "answers"])
    def stars(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["question"], "completions": row["answers"]}

    assert get_converter("test_stars") == Converter("test_stars", ("question", "answers"), "", stars)
    data = Dataset.from_list([{"question": "q", "answers": [" a", " b"], "votes": 3}])
    assert convert_dataset(data, "test_stars", name="train").column_names == ["prompt", "completions"]
    with pytest.raises(NameCollisionError, match="'nectar' is taken"):
        register_converter("nectar", columns=[])(stars)


def test_a_built_in_converter_is_a_file():
    folder = ROOT / "trl_dpo_ext" / "data" / "converters"
    assert {f"{converter.name}.py" for converter in list_converters()} == {
        path.name for path in folder.glob("*.py") if path.stem != "__init__"
    }


def test_aliases_and_converters_of_other_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(_registry, "_entries", dict(_registry._entries))
    monkeypatch.setattr(_registry, "_aliases", dict(_registry._aliases))
    (tmp_path / "their_converters.py").write_text(
        "from trl_dpo_ext.data import register_converter\n"
        "@register_converter('theirs', columns=['q'], aliases=['also_theirs'])\n"
        "def theirs(row):\n    return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert _registry.entry_point_group == "trl_dpo_ext.converters"
    point = EntryPoint("theirs", "their_converters", _registry.entry_point_group)
    monkeypatch.setitem(_registry.__dict__, "_plugins", {"theirs": point})
    found = get_converter("theirs")
    assert found.aliases == ("also_theirs",)
    assert get_converter("also_theirs") is found
    assert found in list_converters()
    assert found.origin.endswith("their_converters.py:2")


def test_every_converter_says_what_it_was_written_for():
    for converter in list_converters():
        assert converter.dataset.count("/") == 1
        assert len((converter.fn.__doc__ or "").splitlines()) > 1
