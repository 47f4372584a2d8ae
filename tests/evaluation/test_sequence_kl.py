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
from tests.modeling.tiny import tiny
from trl_dpo_ext.evaluation import sample, sequence_kl
from trl_dpo_ext.evaluation.sampling.sequence_kl import sample_kls
from trl_dpo_ext.modeling.next_token_logits import NextTokenLogits

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


def exact_summed(policy, reference, prompt, completion):
    """Sum of the KLs of the next-token distributions along a completion, by plain forwards in float64."""
    tables = []
    for model in (policy, reference):
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(torch.tensor([[*prompt, *completion]])).logits[0]
        tables.append(logits.log_softmax(-1)[len(prompt) - 1 : -1])
    return sum(
        math.exp(p) * (p - q) for row, ref in zip(*map(torch.Tensor.tolist, tables), strict=True)
        for p, q in zip(row, ref, strict=True)
    )  # fmt: skip


def test_against_enumeration(four_tokens, monkeypatch):
    policy, reference = tiny_model(four_tokens, seed=1), tiny_model(four_tokens, seed=2)
    prompt = [0, 1]
    logps, ref_logps = exact_logps(policy, prompt), exact_logps(reference, prompt)
    probs = {y: math.exp(logp) for y, logp in logps.items()}
    assert sum(probs.values()) == pytest.approx(1)
    log_ratios = {y: logps[y] - ref_logps[y] for y in logps}
    summed = {y: exact_summed(policy, reference, prompt, y) for y in logps}
    exact = sum(probs[y] * log_ratios[y] for y in logps)
    assert exact > 0.5  # far from zero, so that a wrong sign or a lost token shows

    def deviation(values):
        return sum(probs[y] * (values[y] - exact) ** 2 for y in probs) ** 0.5

    # Each completion's two values, in chunks that end within completions; their expectations are both the KL.
    monkeypatch.setattr("trl_dpo_ext.evaluation.sampling.sequence_kl.CHUNK", 5)
    found = sample_kls(policy, [prompt] * len(probs), list(probs), reference)
    assert found[:, 0].tolist() == pytest.approx([log_ratios[y] for y in probs], abs=1e-4)
    assert found[:, 1].tolist() == pytest.approx([summed[y] for y in probs], abs=1e-4)
    assert (torch.tensor(list(probs.values())).double() @ found).tolist() == pytest.approx([exact, exact], abs=1e-4)
    assert deviation(summed) < deviation(log_ratios) / 1.5

    monkeypatch.undo()
    number = 4000
    samples = sample(policy, four_tokens, ["a b"] * number, max_new_tokens=LENGTH, batch_size=1000, progress=False)
    found = sequence_kl(policy, samples, reference, batch_size=1000)
    assert found.standard_error == pytest.approx(deviation(log_ratios) / number**0.5, rel=0.1)
    assert found.summed_standard_error == pytest.approx(deviation(summed) / number**0.5, rel=0.1)
    assert abs(found.mean - exact) < 4 * deviation(log_ratios) / number**0.5
    assert abs(found.summed - exact) < 4 * deviation(summed) / number**0.5


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "granite", "cohere", "mixtral"])
def test_the_head_is_the_model_s_own(family):
    """Soft-capped and scaled logits included, for a model whose forward TRL has replaced as well."""
    model = tiny(family).eval()
    input_ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(2, 9, dtype=torch.bool)
    chosen[0, 2:5] = chosen[1, 7] = True
    with torch.no_grad():
        plain = model(input_ids=input_ids).logits.log_softmax(-1)[chosen]
        positions = NextTokenLogits(model, chosen, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        found = torch.cat([positions.logps(slice(0, 3)), positions.logps(slice(3, None))])
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
        # Nothing of it stays in the model.
        torch.testing.assert_close(model(input_ids=input_ids).logits.log_softmax(-1)[chosen], plain)
    assert "forward" not in vars(model.base_model)
    assert not model.base_model._forward_hooks


def test_no_more_positions_at_once_than_a_chunk(trained, monkeypatch):
    """The head sees a chunk of positions of the batch at most, however many tokens were sampled."""
    policy, _, tokenizer = trained
    samples, seen = draw(policy, tokenizer), []
    monkeypatch.setattr("trl_dpo_ext.evaluation.sampling.sequence_kl.CHUNK", 7)
    head = policy.get_base_model().lm_head
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    sequence_kl(policy, samples, policy.disable_adapter)
    assert max(seen) == 7
    assert sum(map(len, samples.completion_ids)) > 70


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
    assert set(found.as_dict().values()) == {0}


def test_an_adapter_on_the_head():
    tokenizer = tiny_tokenizer()
    base = tiny_model(tokenizer)
    policy = get_peft_model(
        copy.deepcopy(base), LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    samples = draw(policy, tokenizer)
    assert sequence_kl(policy, samples, policy.disable_adapter) == sequence_kl(policy, samples, base)
    assert sequence_kl(policy, samples, base).summed > 0.1


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
