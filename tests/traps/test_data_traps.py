"""Traps on the way from a dataset row to the tokens whose log-probs are summed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests import helpers
from tests.training import support
from tests.traps.support import bugs, fresh, put_back, row_logps
from trl_dpo_ext.data import collator, tokenize
from trl_dpo_ext.modeling.layout import PromptGroup

LONG = "the film was slow " * 40
ROWS = [
    {"prompt": "the film was", "completions": [" great", " a slow story", " no plot at all"], "ranks": [0, 1, 2]},
    {"prompt": "an ending", "completions": [" nobody will forget", " awful"], "ranks": [0, 1]},
]


def responses(trainer: Any, rows: Any = slice(None)) -> Any:
    """Return the losses' input for a batch."""
    return support.responses(trainer, support.batch(trainer, rows))


# 4. Empty completions


def keep_every_prompt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tokenize, "_usable", lambda *_: True)


def count_missing_responses(patch: pytest.MonkeyPatch) -> None:
    call = collator.PreferenceCollator.__call__

    def every_slot_is_a_response(self: Any, rows: Any) -> Any:
        batch = call(self, rows)
        return batch | {"mask": torch.ones_like(batch["mask"])}

    patch.setattr(collator.PreferenceCollator, "__call__", every_slot_is_a_response)


@bugs(keep_every_prompt, count_missing_responses)
def test_trap_04_empty_completions(bug, monkeypatch, tiny_model_dir, tmp_path, caplog):
    """A prompt without room for a response, or a row with fewer responses, doesn't change other rows."""
    with put_back(bug, monkeypatch):

        def losses(rows: list[dict[str, Any]]) -> list[float]:
            data = Dataset.from_list(rows)
            trainer = support.trainer(
                tiny_model_dir, tmp_path, data, max_length=24, max_steps=1, loss_type=["plackett_luce", "dpo", "simpo"]
            )
            return support.train(trainer).losses

        expected = losses(ROWS)
        got = losses([ROWS[0], {**ROWS[0], "prompt": LONG}, ROWS[1]])
        assert "dropped 1 of 3 prompts" in caplog.text
        assert all(math.isfinite(loss) for loss in got)
        assert got == pytest.approx(expected, rel=1e-6)
        # The loss of both rows is the mean of the two alone, so the empty third slot adds nothing.
        trainer = support.trainer(tiny_model_dir, tmp_path, Dataset.from_list(ROWS), loss_type="simpo")
        whole, first, second = (
            trainer.compute_loss(trainer.model, support.batch(trainer, part)).item()
            for part in (slice(2), slice(1), slice(1, 2))
        )
        assert whole == pytest.approx((first + second) / 2, rel=1e-6)


# 5. The prompt in the loss


def score_the_prompt(patch: pytest.MonkeyPatch) -> None:
    """The last two prompt tokens count as part of the response."""

    def shifted(group: Any) -> Any:
        cut = len(group.prompt_ids) - 2
        return PromptGroup(group.prompt_ids[:cut], [group.prompt_ids[cut:] + ids for ids in group.completion_ids])

    patch.setattr(collator, "PromptGroup", lambda prompt, completions: shifted(PromptGroup(prompt, completions)))


@bugs(score_the_prompt)
@pytest.mark.parametrize("layout", support.LAYOUTS)
def test_trap_05_the_prompt_is_not_scored(layout, bug, monkeypatch, tiny_model_dir, tmp_path):
    """Each of the K log-probs covers the response's tokens only; changed prompt labels make no difference."""
    with put_back(bug, monkeypatch):
        data = Dataset.from_list(ROWS)
        trainer = support.trainer(tiny_model_dir, tmp_path, data, **support.LAYOUTS[layout])
        model = fresh(tiny_model_dir)
        seen = responses(trainer)
        for number, row in enumerate(trainer.train_dataset):
            expected = row_logps(model, row)
            assert seen.logps[number, : len(expected)].tolist() == pytest.approx(expected, rel=1e-5)
            assert seen.lengths[number, : len(expected)].tolist() == [len(ids) for ids in row["completion_ids"]]


# 6. BOS, EOS, boundary


def tokenize_apart(patch: pytest.MonkeyPatch) -> None:
    """Prompt and completion are tokenized separately, so the completion gets a BOS too."""

    def apart(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
        wholes = [tokenizer(text=c + tokenizer.eos_token)["input_ids"] for c in row["completions"]]
        return {"prompt_ids": tokenizer(text=row["prompt"])["input_ids"], "completion_ids": wholes, "merged": 0}

    patch.setattr(tokenize, "tokenize_row", apart)


def mask_every_pad_token(patch: pytest.MonkeyPatch) -> None:
    """If the padding token is EOS, the EOS at the end of a response counts as padding."""
    call = collator.PreferenceCollator.__call__

    def without_eos(self: Any, rows: Any) -> Any:
        return call(self, [{**row, "completion_ids": [ids[:-1] for ids in row["completion_ids"]]} for row in rows])

    patch.setattr(collator.PreferenceCollator, "__call__", without_eos)


@bugs(tokenize_apart, mask_every_pad_token)
def test_trap_06_bos_eos_and_boundary(bug, monkeypatch, tiny_model_dir, tmp_path):
    """There is one BOS, EOS is scored even if it is the padding token, and ids equal those of the whole text."""
    with put_back(bug, monkeypatch):
        tokenizer = helpers.tiny_tokenizer(add_bos=True, pad_is_eos=True)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        data = Dataset.from_list(ROWS)
        trainer = support.trainer(tiny_model_dir, tmp_path, data, processing_class=tokenizer)
        model = fresh(tiny_model_dir)
        seen = responses(trainer)
        for number, (row, tokens) in enumerate(zip(ROWS, trainer.train_dataset, strict=True)):
            for k, completion in enumerate(row["completions"]):
                ids = tokens["prompt_ids"] + tokens["completion_ids"][k]
                assert ids == tokenizer(text=row["prompt"] + completion + tokenizer.eos_token)["input_ids"]
                assert ids.count(tokenizer.bos_token_id) == 1
                assert ids[-1] == tokenizer.eos_token_id
            expected = row_logps(model, tokens)
            assert seen.logps[number, : len(expected)].tolist() == pytest.approx(expected, rel=1e-5)


def test_trap_06_a_boundary_that_moves_is_reported(tiny_model_dir, tmp_path, caplog):
    """If a prompt ends inside a word, its last token depends on the response."""
    rows = [{"prompt": "the fi", "completions": ["lm", "nal act"], "ranks": [0, 1]}, *ROWS]
    trainer = support.trainer(tiny_model_dir, tmp_path, Dataset.from_list(rows))
    tokenizer = trainer.processing_class
    for k, completion in enumerate(rows[0]["completions"]):
        tokens = trainer.train_dataset[0]
        whole = tokenizer(text=rows[0]["prompt"] + completion + tokenizer.eos_token)["input_ids"]
        assert tokens["prompt_ids"] + tokens["completion_ids"][k] == whole
    assert "in 1 of 3 prompts the last tokens come out differently" in caplog.text
