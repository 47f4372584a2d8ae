"""The check before a run that it fits, and the explanation after it ran out of memory."""

import logging
from types import SimpleNamespace

import pytest
import torch
from trl import ModelConfig

from tests import helpers
from trl_dpo_ext.memory import DoesNotFitError, check_fits, explain_out_of_memory, most_responses
from trl_dpo_ext.memory.largest_that_fits import Change
from trl_dpo_ext.training import PreferenceConfig, PreferenceTrainer


@pytest.fixture
def card(monkeypatch):
    """Pretend that the run is on a card of this many bytes."""

    def of(size):
        monkeypatch.setattr(PreferenceConfig, "device", torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=size))

    return of


def check(tiny_model_dir, tmp_path, **changes):
    args = PreferenceConfig(**helpers.training_args(tmp_path, max_length=256, **changes))
    return lambda: check_fits(args, ModelConfig(model_name_or_path=tiny_model_dir))


def test_nothing_is_checked_without_a_gpu(tiny_model_dir, tmp_path):
    assert check(tiny_model_dir, tmp_path)() is None


def test_a_run_that_fits_says_nothing(tiny_model_dir, tmp_path, card, caplog):
    run = check(tiny_model_dir, tmp_path)
    card(4 * 2**30)
    estimate = run()
    assert 0.4 * 2**30 < estimate.total < 2**30
    assert not caplog.records


def test_a_run_that_can_not_fit_is_refused_with_the_numbers(tiny_model_dir, tmp_path, card, monkeypatch):
    run = check(tiny_model_dir, tmp_path)
    card(2**28)
    monkeypatch.setattr(
        "trl_dpo_ext.memory.fit_check.advise", lambda setup, limit: ([Change("KEY: 1", "much", 2**30)], True)
    )
    said = r"about 0\.5 GiB, and the card has 0\.2 GiB.*CUDA context 0\.5 GiB.*It fits with: KEY: 1 \(1\.0 GiB\)"
    with pytest.raises(DoesNotFitError, match=said):
        run()


def test_a_run_that_may_not_fit_is_warned_of(tiny_model_dir, tmp_path, card, caplog, monkeypatch):
    monkeypatch.setattr(
        "trl_dpo_ext.memory.fit_check.advise", lambda setup, limit: ([Change("KEY: 1", "much", 2**30)], False)
    )
    run = check(tiny_model_dir, tmp_path, per_device_train_batch_size=64)
    card(int(0.7 * 2**30))
    with caplog.at_level(logging.WARNING):
        run()
    assert "may not fit" in caplog.text
    assert "Not even this makes it fit: KEY: 1 (1.0 GiB)" in caplog.text


def test_the_number_of_responses_is_that_of_the_data():
    assert most_responses(helpers.ranked_dataset(8, responses=(2, 5))) == 5
    assert most_responses(helpers.pair_dataset(3)) == 2
    assert most_responses(helpers.ranked_dataset(8, responses=(3, 4)).to_iterable_dataset()) == 4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("torch.Tensor.backward", "backward pass"),
        ("trl_dpo_ext.training.engine.token_outputs", "forward pass"),
        ("torch.optim.AdamW.step", "optimizer step"),
    ],
)
def test_out_of_memory_names_the_part_and_the_knobs(target, said, tiny_model_dir, tmp_path, monkeypatch):
    trainer = PreferenceTrainer(
        tiny_model_dir,
        args=PreferenceConfig(**helpers.training_args(tmp_path)),
        train_dataset=helpers.ranked_dataset(6),
    )
    monkeypatch.setattr(target, _failing(target.rpartition(".")[2]))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    message = str(explain_out_of_memory(caught.value))
    assert said in message
    assert "per_device_train_batch_size" in message
    assert "Tried to allocate 2.00 GiB" in message


def _failing(name):
    """A function of this name, as it stands in a traceback, in which memory runs out."""
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 12 GiB"
    scope = {"torch": torch}
    exec(f"def {name}(*args, **kwargs):\n    raise torch.OutOfMemoryError({said!r})", scope)
    return scope[name]
