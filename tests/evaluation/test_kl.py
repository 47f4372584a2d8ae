import copy
import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import tiny_model, tiny_tokenizer
from trl_dpo_ext.evaluation import sample, sequence_kl

LENGTH = 3
EOS = 3


@pytest.fixture(scope="module")
def four_tokens():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<eos>": EOS}, unk_token="c"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def exact_logps(model, prompt):
    """log p of every completion of up to LENGTH tokens, float64; one ends at its first EOS."""
    model = copy.deepcopy(model).double()
    logps = {}
    for tokens in itertools.product(range(4), repeat=LENGTH):
        completion = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        with torch.no_grad():
            table = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        logps[completion] = sum(
            table[len(prompt) - 1 + position, token].item() for position, token in enumerate(completion)
        )
    return logps


def test_against_enumeration(four_tokens):
    policy, reference = tiny_model(four_tokens, seed=1), tiny_model(four_tokens, seed=2)
    logps, ref_logps = exact_logps(policy, [0, 1]), exact_logps(reference, [0, 1])
    probs = {y: math.exp(logp) for y, logp in logps.items()}
    assert sum(probs.values()) == pytest.approx(1)
    log_ratios = {y: logps[y] - ref_logps[y] for y in logps}
    exact = sum(probs[y] * log_ratios[y] for y in logps)
    deviation = sum(probs[y] * (log_ratios[y] - exact) ** 2 for y in logps) ** 0.5
    assert exact > 0.5  # far from zero, so that a wrong sign or a lost token shows

    number = 4000
    samples = sample(policy, four_tokens, ["a b"] * number, max_new_tokens=LENGTH, batch_size=1000, progress=False)
    found = sequence_kl(policy, samples, reference, batch_size=1000)
    assert found.standard_error == pytest.approx(deviation / number**0.5, rel=0.1)
    assert abs(found.mean - exact) < 4 * deviation / number**0.5


@pytest.fixture
def trained():
    """A PEFT model whose adapter changes something, and the model under it."""
    tokenizer = tiny_tokenizer()
    base = tiny_model(tokenizer)
    policy = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    return policy, base, tokenizer


def draw(policy, tokenizer, **options):
    return sample(policy, tokenizer, ["the film was", "a"] * 8, max_new_tokens=6, progress=False, **options)


def test_every_form_of_reference_gives_the_same(trained):
    policy, base, tokenizer = trained
    samples = draw(policy, tokenizer)

    @contextmanager
    def yields_the_reference():
        yield base

    with_model = sequence_kl(policy, samples, base)
    assert with_model.mean > 0.1
    assert sequence_kl(policy, samples, policy.disable_adapter) == with_model
    assert sequence_kl(policy, samples, yields_the_reference) == with_model


def test_an_untrained_adapter_is_at_zero():
    tokenizer = tiny_tokenizer()
    policy = get_peft_model(tiny_model(tokenizer), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = sequence_kl(policy, draw(policy, tokenizer), policy.disable_adapter)
    assert (found.mean, found.standard_error) == (0, 0)


def test_adapters_are_restored(trained):
    policy, _, tokenizer = trained
    policy.train()
    samples = draw(policy, tokenizer)
    trainable = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    logits = policy.eval()(torch.tensor([[1, 2, 3]])).logits
    policy.train()
    sequence_kl(policy, samples, policy.disable_adapter)
    assert policy.training
    assert policy.get_model_status().enabled is True
    assert [name for name, parameter in policy.named_parameters() if parameter.requires_grad] == trainable
    assert torch.equal(policy.eval()(torch.tensor([[1, 2, 3]])).logits, logits)


def test_samples_that_give_no_kl(trained):
    policy, base, tokenizer = trained
    with pytest.raises(ValueError, match=r"temperature 0\.7"):
        sequence_kl(policy, draw(policy, tokenizer, temperature=0.7), base)
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        sequence_kl(policy, sample(policy, tokenizer, ["a"], max_new_tokens=2, progress=False), base)
