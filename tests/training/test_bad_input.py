"""Bad input raises a clear error before a model is loaded. Dropped rows are counted in the log."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from trl import DPOConfig
from trl.trainer import dpo_trainer

from tests import helpers
from tests.training import support
from trl_dpo_ext.data import DataError
from trl_dpo_ext.training import ConfigError, PreferenceTrainer

GOOD = {"prompt": "the film", "completions": [" was slow", " was great"], "ranks": [1, 0]}
CHAT = {
    "prompt": [{"role": "user", "content": "the film"}],
    "completions": [[{"role": "assistant", "content": text}] for text in ("was slow", "was great")],
    "ranks": [0, 1],
}


@pytest.fixture
def no_loading(monkeypatch):
    """Fail if anything is loaded from the model folder."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded before the error")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", fail)
    monkeypatch.setattr(dpo_trainer.AutoProcessor, "from_pretrained", fail)


def test_the_guard_would_notice(no_loading, tiny_model_dir, tmp_path):
    with pytest.raises(AssertionError, match="loaded before"):
        support.trainer(tiny_model_dir, tmp_path, Dataset.from_list([GOOD]))


# Row 1 of three is bad: the change to a good row, and the parts that the message must contain.
ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one response": ({"completions": [" was slow"], "ranks": [0]}, ["'completions'", "found 1", "2 or more"]),
    "no response": ({"completions": [], "ranks": []}, ["'completions'", "found 0", "2 or more"]),
    "empty response": ({"completions": [" was slow", " "]}, ["'completions'", "response 1 is ' '", "expected text"]),
    "missing response": ({"completions": [" was slow", None]}, ["'completions'", "response 1 is None"]),
    "empty prompt": ({"prompt": ""}, ["'prompt'", "''", "expected text"]),
    "too few ranks": ({"ranks": [0]}, ["'ranks'", "found 1 for 2 responses"]),
    "too many ranks": ({"ranks": [0, 1, 2]}, ["'ranks'", "found 3 for 2 responses"]),
    "negative rank": ({"ranks": [0, -1]}, ["'ranks'", "-1", "0 (best) or more"]),
    "all tied": ({"ranks": [3, 3]}, ["'ranks'", "all 2 responses are equally good", "reads ties"]),
    "identical responses": (
        {"completions": [" was slow", " was slow"]},
        ["'completions'", "responses 1 and 0 are the same", "' was slow'"],
    ),
}
SCORES: dict[str, tuple[list[float], list[str]]] = {
    "NaN": ([0.5, float("nan")], ["'scores'", "number 1 is nan", "finite"]),
    "infinite": ([float("inf"), 1.0], ["'scores'", "number 0 is inf", "finite"]),
    "all tied": ([2.0, 2.0], ["'scores'", "all 2 responses are equally good"]),
    "too few": ([2.0], ["'scores'", "found 1 for 2 responses"]),
}


def refused(model: str, folder: Any, data: Any, error: type[Exception] = DataError, **settings: Any) -> str:
    with pytest.raises(error) as raised:
        support.trainer(model, folder, data, **settings)
    return str(raised.value)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("fault", ROWS)
def test_rows(fault, split, no_loading, tiny_model_dir, tmp_path):
    change, parts = ROWS[fault]
    good, bad = Dataset.from_list([GOOD] * 3), Dataset.from_list([GOOD, {**GOOD, **change}, GOOD])
    datasets = {"data": bad} if split == "train" else {"data": good, "eval_dataset": bad}
    message = refused(tiny_model_dir, tmp_path, **datasets)
    for part in (f"{split} dataset", "row 1", *parts, "1 of 3 rows", "invalid_rows"):
        assert part in message


@pytest.mark.parametrize("fault", SCORES)
def test_scores(fault, no_loading, tiny_model_dir, tmp_path):
    scores, parts = SCORES[fault]
    rows = [{**GOOD, "scores": [1.0, 2.0]}, {**GOOD, "scores": scores}]
    message = refused(tiny_model_dir, tmp_path, Dataset.from_list(rows).remove_columns("ranks"))
    for part in ("train dataset", "row 1", *parts):
        assert part in message


def test_conversations(no_loading, tiny_model_dir, tmp_path):
    user = [[{"role": "user", "content": "was slow"}], CHAT["completions"][1]]
    message = refused(tiny_model_dir, tmp_path, Dataset.from_list([CHAT, {**CHAT, "completions": user}]))
    for part in ("train dataset", "row 1", "'completions'", "response 0", "'user'", "'assistant'"):
        assert part in message


def test_images(no_loading, tiny_model_dir, tmp_path):
    for column in ("image", "images"):
        message = refused(tiny_model_dir, tmp_path, Dataset.from_list([{**GOOD, column: "x.png"}]))
        for part in ("train dataset", f"'{column}'", "DPOTrainer"):
            assert part in message
    content = [{"type": "image", "text": "x"}]
    message = refused(
        tiny_model_dir, tmp_path, Dataset.from_list([{**CHAT, "prompt": [{"role": "user", "content": content}]}])
    )
    for part in ("train dataset", "row 0", "'prompt'", "DPOTrainer"):
        assert part in message


def test_columns(no_loading, tiny_model_dir, tmp_path):
    message = refused(tiny_model_dir, tmp_path, Dataset.from_list([{"prompt": "a", "chosn": " b", "rejected": " c"}]))
    for part in ("train dataset", "prompt, chosn, rejected", "missing: chosen", "Did you mean 'chosn'"):
        assert part in message
    no_scores = Dataset.from_list([GOOD])
    message = refused(tiny_model_dir, tmp_path, no_scores, loss_type=["dpo", "odpo"])
    for part in ("train dataset", "odpo reads scores", "completions and scores"):
        assert part in message
    message = refused(
        tiny_model_dir, tmp_path, helpers.ranked_dataset(2, scores=True), loss_type="odpo", eval_dataset=no_scores
    )
    assert "eval dataset: odpo reads scores" in message


def test_no_rows(no_loading, tiny_model_dir, tmp_path):
    message = refused(tiny_model_dir, tmp_path, Dataset.from_list([GOOD]).select([]))
    assert message == "train dataset: it has no rows."


def test_no_dataset(no_loading, tiny_model_dir, tmp_path):
    assert "train_dataset" in refused(tiny_model_dir, tmp_path, None, ValueError)
    message = refused(tiny_model_dir, tmp_path, [GOOD], TypeError)
    for part in ("train dataset", "list", "Dataset.from_list"):
        assert part in message
    splits = DatasetDict(train=Dataset.from_list([GOOD]))
    message = refused(tiny_model_dir, tmp_path, splits, TypeError)
    for part in ("train dataset", "DatasetDict", "a single split"):
        assert part in message


def test_a_streamed_dataset_stops_at_the_bad_row(tiny_model_dir, tmp_path):
    rows = [GOOD, GOOD, GOOD, GOOD, {**GOOD, "ranks": [0, 0]}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(DataError, match="row 4, column 'ranks'"):
        support.trainer(tiny_model_dir, tmp_path, stream).train()


def test_bad_rows_can_be_left_out(tiny_model_dir, tmp_path, caplog):
    bad = [{**GOOD, "ranks": [0, 0]}, {**GOOD, "completions": ["", "a"]}]
    data = Dataset.from_list([GOOD, bad[0], GOOD, bad[1], bad[0]])
    trainer = support.trainer(tiny_model_dir, tmp_path, data, invalid_rows="drop")
    assert len(trainer.train_dataset) == 2
    assert "dropped 3 of 5 rows: all tied (2), empty response (1)" in caplog.text


def test_ties_are_fine_for_a_loss_that_reads_them(tiny_model_dir, tmp_path):
    data = Dataset.from_list([{**GOOD, "ranks": [0, 0]}, GOOD])
    trainer = support.trainer(tiny_model_dir, tmp_path, data, loss_type="dpo_rk")
    assert sorted(trainer.train_dataset["ranks"]) == [[0, 0], [1, 0]]


def test_long_prompts_are_dropped_and_counted(tiny_model_dir, tmp_path, caplog):
    long = {**GOOD, "prompt": "the film was slow " * 40}
    cut = {**GOOD, "completions": [" was slow", " was a slow and tender story" * 5]}
    data = Dataset.from_list([GOOD, long, cut, long])
    trainer = support.trainer(tiny_model_dir, tmp_path, data, eval_dataset=data, max_length=30)
    for split in ("train", "eval"):
        dataset = getattr(trainer, f"{split}_dataset")
        assert len(dataset) == 2
        assert max(len(row["prompt_ids"] + ids) for row in dataset for ids in row["completion_ids"]) == 30
        assert f"{split} dataset: dropped 2 of 4 prompts" in caplog.text
        assert f"{split} dataset: cut 1 of 4 responses to max_length=30 tokens" in caplog.text
    message = refused(tiny_model_dir, tmp_path, Dataset.from_list([long, long]), max_length=30)
    for part in ("train dataset", "none of its 2 prompts", "max_length=30", "Raise max_length"):
        assert part in message


# The model and the other arguments


def test_a_missing_model_folder(no_loading, tmp_path):
    data = Dataset.from_list([GOOD])
    for model in ("./no_such_model", str(tmp_path / "no" / "model"), "runs/2024/model"):
        message = refused(model, tmp_path, data, FileNotFoundError)
        for part in (repr(model), "does not exist", "Hub id"):
            assert part in message
    (tmp_path / "empty").mkdir()
    message = refused(str(tmp_path / "empty"), tmp_path, data, FileNotFoundError)
    for part in ("empty'", "config.json", "save_pretrained"):
        assert part in message


def test_a_plain_dpo_config(no_loading, tiny_model_dir, tmp_path):
    with pytest.raises(TypeError, match=r"args is a DPOConfig\. Pass a PreferenceConfig"):
        PreferenceTrainer(
            tiny_model_dir, args=DPOConfig(**helpers.training_args(tmp_path)), train_dataset=Dataset.from_list([GOOD])
        )


@pytest.mark.parametrize(
    ("name", "instead"), [("compute_metrics", "evaluation"), ("data_collator", "the trainer lays out the rows")]
)
def test_arguments_that_would_be_ignored(name, instead, no_loading, tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} is not supported here.*{instead}"):
        PreferenceTrainer(
            tiny_model_dir,
            args=support.config(tmp_path),
            train_dataset=Dataset.from_list([GOOD]),
            **{name: lambda *_: {}},
        )


def test_a_reference_that_nothing_reads(no_loading, tiny_model_dir, tmp_path):
    model = helpers.tiny_model(helpers.tiny_tokenizer())
    message = refused(
        tiny_model_dir, tmp_path, Dataset.from_list([GOOD]), ConfigError, loss_type=["simpo", "sft"], ref_model=model
    )
    for part in ("ref_model", "['simpo', 'sft']", "Remove it"):
        assert part in message


def test_no_disk_for_the_checkpoint(tiny_model_dir, tmp_path, monkeypatch):
    asked = []

    def disk_usage(path: Any) -> Any:
        asked.append(str(path))
        return namedtuple("Usage", "total used free")(10**9, 10**9 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    trainer = support.trainer(
        tiny_model_dir, tmp_path, Dataset.from_list([GOOD] * 4), save_strategy="steps", save_steps=3
    )
    weights = sum(p.numel() for p in trainer.model.parameters())
    free = 12 * weights - 1  # float32 weights and two float32 moments take 12 bytes each
    with pytest.raises(OSError, match=r"about 0.00 GB.*output_dir='.*'.*save_strategy='no'"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert asked == [str(tmp_path)]

    free = 12 * weights
    trainer.args.max_steps = 1
    trainer.train()
    free = 0
    trainer.args.save_strategy = "no"
    trainer.train()


@pytest.mark.parametrize("name", ["max_lenght", "revisionn"])
def test_an_unknown_option_of_the_model_is_named(name, tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=f"model_init_kwargs: LlamaForCausalLM has no option '{name}'"):
        support.trainer(tiny_model_dir, tmp_path, Dataset.from_list([GOOD]), model_init_kwargs={name: 1})


def test_a_known_option_of_the_models_config_is_taken(tiny_model_dir, tmp_path):
    trainer = support.trainer(
        tiny_model_dir, tmp_path, Dataset.from_list([GOOD]), model_init_kwargs={"rms_norm_eps": 1e-3}
    )
    assert trainer.model.config.rms_norm_eps == 1e-3


def test_another_type_error_is_left_as_it_is(tiny_model_dir, tmp_path, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("X.__init__() got an unexpected keyword argument 'y'")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", fail)
    with pytest.raises(TypeError, match="'y'"):
        support.trainer(tiny_model_dir, tmp_path, Dataset.from_list([GOOD]), model_init_kwargs={"x": 1})
