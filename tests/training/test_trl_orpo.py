"""Where `orpo` differs from TRL's ORPOTrainer: the likelihood term, as its Departures say."""

from __future__ import annotations

import pytest

from tests import helpers
from tests.traps.support import fresh, token_logps
from trl_dpo_ext import get_loss


@pytest.mark.filterwarnings("ignore")  # "You are importing from 'trl.experimental'"
def test_trl_takes_the_likelihood_over_prompt_and_response(tiny_model_dir, tmp_path):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = helpers.training_args(tmp_path, max_steps=1, per_device_train_batch_size=4)
    trainer = ORPOTrainer(
        model=fresh(tiny_model_dir),
        args=ORPOConfig(**args),
        train_dataset=helpers.pair_dataset(4),
        processing_class=helpers.tiny_tokenizer(),
    )
    model, everything, responses = fresh(tiny_model_dir), [], []
    for row in trainer.train_dataset:
        ids, start = row["chosen_input_ids"], row["chosen_labels"].count(-100)
        everything += token_logps(model, ids[:1], ids[1:])
        responses += token_logps(model, ids[:start], ids[start:])
    trainer.train()
    likelihood = trainer.state.log_history[0]["nll_loss"]
    assert likelihood == pytest.approx(-sum(everything) / len(everything), rel=1e-5)
    assert abs(likelihood + sum(responses) / len(responses)) > 1e-2

    departures = " ".join(get_loss("orpo").sections["Departures"].split())
    assert "TRL's ORPOTrainer takes it over all tokens of the batch's prompts and chosen responses" in departures
