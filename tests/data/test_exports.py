"""Files as other tools export them: each is recognised, read as it means, and trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import IterableDataset

from tests import helpers
from tests.training import support
from trl_dpo_ext.data import EVERY_ROW, format_dataset, load_splits, map_columns
from trl_dpo_ext.data.format import reading_of
from trl_dpo_ext.training import PreferenceTrainer

FOLDER = Path(__file__).parent / "exports"
QUESTIONS = ["Name a primary color.", "Capital of Peru?", "What is 2 + 2?"]
GOOD, BAD = ["Red.", "Lima.", "4"], ["Purple.", "Cusco.", "NA"]
UNSURE = "I don't know."


def user(text: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rows(prompts: list[Any], completions: list[list[Any]], ranks: list[list[int]], **more: Any) -> list[dict[str, Any]]:
    listed = zip(prompts, completions, ranks, strict=True)
    found = [{"prompt": p, "completions": c, "ranks": r} for p, c, r in listed]
    return [{**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(found)]


CHATS = [user(question) for question in QUESTIONS]
BRIEF = [user(question, "Be brief.") for question in QUESTIONS]
PAIRS = [[good, bad] for good, bad in zip(GOOD, BAD, strict=True)]
SAID = [[says(good), says(bad)] for good, bad in PAIRS]
MIXED = [[GOOD[0], BAD[0]], [BAD[1], GOOD[1]], [GOOD[2], BAD[2]]]
BEST_FIRST, BEST_LAST = [[0, 1]] * 3, [[1, 0]] * 3
ONE = [[0]] * 3

# File -> (words of the form's name, the rows it means, written by hand)
EXPORTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "kto.jsonl": (
        "single responses with labels (prompt, completion, label)",
        rows(CHATS, [[says(GOOD[0])], [says(BAD[1])], [says(GOOD[2])]], ONE, labels=[[True], [False], [True]]),
    ),
    "thumbs.csv": (
        "single responses with labels",
        rows(QUESTIONS, [[" Red."], [" Cusco."], [" NA"]], ONE, labels=[[True], [False], [False]]),
    ),
    "labels.jsonl": (
        "responses with labels (prompt, completions, labels)",
        rows(
            QUESTIONS,
            [[" Red.", " Purple.", " Blue."], [" Lima."], [" 5", " 4"]],
            [[0, 1, 0], [0], [1, 0]],
            labels=[[True, False, True], [True], [False, True]],
        ),
    ),
    "choices.csv": (
        "two responses and a choice (prompt, answer_a, answer_b, winner)",
        rows(QUESTIONS, [*MIXED[:2], ["4", "four"]], [[0, 1], [1, 0], [0, 0]]),
    ),
    "arena.jsonl": (
        "two responses and a choice (prompt, response_a, response_b, winner, model_a, model_b)",
        rows(QUESTIONS, [*MIXED[:2], ["4", "four"]], [[0, 1], [1, 0], [0, 0]]),
    ),
    "winner_numbers.jsonl": ("two responses and a choice", rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]])),
    "preference_numbers.csv": (
        "two responses and a choice (prompt, response_1, response_2, preference)",
        rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]]),
    ),
    "pair_scores.jsonl": (
        "preference pairs (prompt, chosen, rejected)",
        rows(CHATS, SAID, BEST_FIRST, scores=[[8.5, 3.0], [8.5, 2.0], [8.5, 1.0]]),
    ),
    "ratings.jsonl": (
        "rankings with scores (prompt, completions, ratings)",
        rows(QUESTIONS, [pair[::-1] for pair in PAIRS], BEST_LAST, scores=[[1.0, 5.0], [1.0, 4.0], [1.0, 3.0]]),
    ),
    "rewards.json": (
        "rankings with scores (prompt, completions, rewards)",
        rows(CHATS, [pair[::-1] for pair in SAID], BEST_LAST, scores=[[-0.25, 0.75], [-0.25, 1.75], [-0.25, 2.75]]),
    ),
    "likert.csv": (
        "single responses with scores (prompt, completion, rating)",
        rows(QUESTIONS, [[GOOD[0]], [BAD[1]], [GOOD[2]]], ONE, scores=[[5.0], [1.0], [4.0]]),
    ),
    "argilla_ranking.jsonl": (
        "Argilla export, ranking",
        rows(QUESTIONS, [[b, g, UNSURE] for g, b in PAIRS], [[1, 0, 2], [1, 0, 2], [2, 0, 1]]),
    ),
    "argilla_rating.json": (
        "Argilla export, rating",
        rows(QUESTIONS, [pair[::-1] for pair in PAIRS], BEST_LAST, scores=[[1.5, 5.0]] * 3),
    ),
    "argilla_1.jsonl": ("Argilla export, ranking", rows(QUESTIONS, [pair[::-1] for pair in PAIRS], BEST_LAST)),
    "label_studio_pairwise.json": (
        "Label Studio export, pairwise",
        rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]]),
    ),
    "label_studio_ranker.json": (
        "Label Studio export, ranker",
        rows(QUESTIONS, [[b, g, UNSURE] for g, b in PAIRS], [[2, 0, 1]] * 3),
    ),
    "label_studio_rating.json": (
        "Label Studio export, rating",
        rows(QUESTIONS, [pair[::-1] for pair in PAIRS], BEST_LAST, scores=[[1.5, 5.0]] * 3),
    ),
    "label_studio_choices.json": ("Label Studio export, choices", rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]])),
    "label_studio_min.json": ("Label Studio export, pairwise", rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]])),
    "label_studio.csv": ("Label Studio export, pairwise", rows(QUESTIONS, MIXED, [[0, 1], [1, 0], [0, 1]])),
    "sharegpt.json": ("ShareGPT conversations as prompts", rows(CHATS, SAID, BEST_FIRST)),
    "sharegpt_kto.json": (
        "ShareGPT conversations with a label for the last answer (conversations, kto_tag)",
        rows(BRIEF, [[says(GOOD[0])], [says(BAD[1])], [says(GOOD[2])]], ONE, labels=[[True], [False], [True]]),
    ),
    "openai.jsonl": ("OpenAI preference file", rows(BRIEF, SAID, BEST_FIRST)),
    "messages_kto.jsonl": (
        "conversations with a label for the last answer (messages, label)",
        rows(CHATS, [[says(GOOD[0])], [says(BAD[1])], [says(GOOD[2])]], ONE, labels=[[True], [False], [True]]),
    ),
    "ms_swift.jsonl": ("conversations, each with a worse answer", rows(BRIEF, SAID, BEST_FIRST)),
    "messages_as_text.csv": ("preference pairs", rows(CHATS, SAID, BEST_FIRST)),
    "system.jsonl": (
        "preference pairs",
        rows([user(QUESTIONS[0], "You are brief."), *CHATS[1:]], SAID, BEST_FIRST),
    ),
}


def load(name: str, *, streaming: bool = False) -> Any:
    return load_splits(str(FOLDER / name), streaming=streaming)["train"]


def test_every_file_is_tested():
    assert {path.name for path in FOLDER.iterdir()} == {*EXPORTS, "questions.csv"}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_recognised_and_read(name):
    title, expected = EXPORTS[name]
    numbered = [{**row, "row": number} for number, row in enumerate(expected)]
    dataset = load(name)
    assert reading_of(dataset, "train").title.startswith(title)
    assert list(format_dataset(dataset, name="train", reads=EVERY_ROW)) == numbered
    streamed = load(name, streaming=True)
    assert isinstance(streamed, IterableDataset)
    assert list(format_dataset(streamed, name="train", reads=EVERY_ROW)) == numbered


@pytest.mark.parametrize("name", EXPORTS)
def test_the_internal_form_of_an_export_is_accepted(name):
    formatted = format_dataset(load(name), name="train", reads=EVERY_ROW).remove_columns("row")
    again = format_dataset(formatted, name="train", reads=EVERY_ROW).remove_columns("row")
    assert list(again) == list(formatted) == EXPORTS[name][1]


def test_columns_under_other_names_are_mapped():
    names = {"question": "prompt", "good": "chosen", "bad": "rejected", "best": None}
    dataset = map_columns(load("questions.csv"), names, name="train")
    assert list(format_dataset(dataset, name="train").remove_columns("row")) == rows(QUESTIONS, PAIRS, BEST_FIRST)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return helpers.save_tiny_model(tmp_path_factory.mktemp("model"))


COMPARING = {name for name, (_, expected) in EXPORTS.items() if any(len(set(row["ranks"])) > 1 for row in expected)}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_trains(name, model, tmp_path):
    """One step changes the weights, on the rows that have something to compare; single responses by their labels."""
    rows = load(name)
    scored = "scores" in EXPORTS[name][1][0]
    single = {"loss_type": ["kto"], **({"desirable_above": 3.0} if scored else {})}
    args = support.config(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=2,
        invalid_rows="drop",
        learning_rate=1e-2,
        **({} if name in COMPARING else single),
    )
    trainer = PreferenceTrainer(model=model, args=args, train_dataset=rows)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert not before.equal(trainer.model.lm_head.weight)
