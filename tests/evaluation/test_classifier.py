"""Rewards from transformers, against plain forwards of one text at a time."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from trl_dpo_ext.evaluation import RewardError, classifier, get_reward

PROMPTS = ["the film", "a story about two sisters", "no plot"]
COMPLETIONS = [" was great", "", " at all and an ending that nobody will ever forget"]


def save_classifier(folder, base, *, labels, pad=True, length=512):
    """A tiny random classifier with the tokenizer of `base`."""
    config = AutoConfig.from_pretrained(
        base, id2label=dict(enumerate(labels)), initializer_range=0.5, max_position_embeddings=length
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not pad:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_logits(folder, ids):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = 0
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().tolist()


def logits_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    return [plain_logits(folder, tokenizer(text)["input_ids"]) for text in texts]


def test_the_probability_of_positive_in_any_batches(tiny_model_dir, tmp_path):
    folder = save_classifier(tmp_path, tiny_model_dir, labels=["negative", "positive"])
    expected = [1 / (1 + math.exp(negative - positive)) for negative, positive in logits_of(folder)]
    assert max(expected) - min(expected) > 0.01
    assert get_reward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert classifier(folder, batch_size=2)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    negative = classifier(folder, label="Negative", batch_size=1)(PROMPTS, COMPLETIONS)
    assert negative == pytest.approx([1 - value for value in expected], abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_one_output_is_the_score(tiny_model_dir, tmp_path, pad):
    folder = save_classifier(tmp_path, tiny_model_dir, labels=["LABEL_0"], pad=pad)
    expected = [score for (score,) in logits_of(folder)]
    assert max(expected) - min(expected) > 0.01
    assert get_reward(folder)(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_written_out_bos_is_not_doubled(tiny_bos_model_dir, tmp_path):
    folder = save_classifier(tmp_path, tiny_bos_model_dir, labels=["LABEL_0"])
    reward = get_reward(folder)
    assert reward(["<s>the film"], [" was great"]) == pytest.approx(reward(["the film"], [" was great"]), abs=1e-6)


def test_a_long_text_keeps_its_end(tiny_model_dir, tmp_path):
    folder = save_classifier(tmp_path, tiny_model_dir, labels=["LABEL_0"], length=16)
    prompt, completion = "the film was a slow and tender story " * 4, " about two sisters"
    ids = AutoTokenizer.from_pretrained(folder)(prompt + completion)["input_ids"]
    assert len(ids) > 16
    assert get_reward(folder)([prompt], [completion]) == pytest.approx(plain_logits(folder, ids[-16:]), abs=1e-5)


def test_a_language_model_is_no_reward_model(tiny_model_dir):
    with pytest.raises(RewardError, match=r"no trained weights for score\.weight, so its rewards would be random"):
        get_reward(tiny_model_dir)


def test_labels_without_positive(tiny_model_dir, tmp_path):
    folder = save_classifier(tmp_path, tiny_model_dir, labels=["toxic", "fine", "odd"])
    with pytest.raises(RewardError, match="no label 'POSITIVE', only toxic, fine, odd"):
        get_reward(folder)
    assert len(classifier(folder, label="fine")(PROMPTS, COMPLETIONS)) == 3


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(RewardError, match="can't be loaded"):
        get_reward(str(tmp_path))
