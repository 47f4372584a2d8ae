import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.trainer.utils import add_fused_lm_head

from tests.helpers import tiny_model, tiny_tokenizer
from trl_dpo_ext.evaluation import Samples, sample, sequence_kl

PROMPTS = ["the film was", "a", "two sisters who lose their house by the sea", "great actors", "no plot at all"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


def draw(model, tokenizer, prompts=PROMPTS, **options):
    return sample(model, tokenizer, prompts, **{"max_new_tokens": 8, "progress": False, **options})


def test_same_seed_same_samples(model, tokenizer):
    assert draw(model, tokenizer, seed=3) == draw(model, tokenizer, seed=3)
    assert draw(model, tokenizer, seed=3) != draw(model, tokenizer, seed=4)


def test_batches_have_streams_of_their_own(model, tokenizer):
    both = draw(model, tokenizer, ["a", "a"], batch_size=1)
    assert both.completion_ids[0] != both.completion_ids[1]
    # The second batch draws the same whatever the first one was, and however soon it ended.
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 2))
    lengths = set()
    seconds = []
    for first in PROMPTS:
        samples = draw(model, tokenizer, [first, "a"], batch_size=1)
        lengths.add(len(samples.completion_ids[0]))
        seconds.append(samples.completion_ids[1])
    assert len(lengths) > 1
    assert seconds == [seconds[0]] * len(PROMPTS)


def test_the_callers_random_state_is_left_alone(model, tokenizer):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    draw(model, tokenizer, seed=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value, temperature, model, tokenizer):
    model.lm_head.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, torch.tensor(5), value))
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        draw(model, tokenizer, temperature=temperature)


def test_progress_counts_prompts_and_shows_the_token_of_the_batch(model, tokenizer, capsys):
    draw(model, tokenizer, batch_size=4, progress=True)
    said = capsys.readouterr().err
    assert "0/5" in said
    assert "5/5" in said
    assert "prompt" in said
    assert "token 8 of at most 8" in said


def test_tokens_that_a_model_rules_out_are_not_drawn(model, tokenizer):
    out = torch.arange(0, len(tokenizer), 2)
    model.lm_head.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, out, -float("inf")))
    drawn = draw(model, tokenizer)
    assert {token % 2 for ids in drawn.completion_ids for token in ids} == {1}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_greedy_is_the_plain_argmax_whatever_the_batch(model, tokenizer, batch_size):
    samples = draw(model, tokenizer, temperature=0.0, batch_size=batch_size)
    for prompt, ids in zip(PROMPTS, samples.completion_ids, strict=True):
        expected = tokenizer(prompt)["input_ids"]
        start = len(expected)
        while len(expected) < start + 8 and (len(expected) == start or expected[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                expected = [*expected, model(torch.tensor([expected])).logits[0, -1].argmax().item()]
        assert ids == expected[start:]


def test_tokens_come_from_the_whole_distribution(tokenizer):
    model = tiny_model(tokenizer, initializer_range=0.05)  # nearly uniform over 320 tokens
    ids = draw(model, tokenizer, ["the film was"] * 4000, max_new_tokens=1, batch_size=4000).completion_ids
    counts = torch.bincount(torch.tensor(ids).flatten(), minlength=len(tokenizer)).double()
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("the film was")["input_ids"]])).logits[0, -1].double()
    expected = 4000 * logits.softmax(0)
    # Chi-square with 319 degrees of freedom: mean 319, standard deviation 25.
    assert ((counts - expected) ** 2 / expected).sum() < 319 + 4 * 25


@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 2},
        {"top_p": 0.2},
        {"typical_p": 0.2},
        {"min_p": 0.5},
        {"temperature": 0.3},
        {"repetition_penalty": 0.01},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 2},
        {"do_sample": False},
        {"max_new_tokens": 2},
        {"max_length": 2},
    ],
    ids=str,
)
def test_the_models_own_generation_config_changes_nothing(model, tokenizer, setting):
    expected = draw(model, tokenizer, max_new_tokens=24)
    model.generation_config.update(**setting)
    assert draw(model, tokenizer, max_new_tokens=24) == expected


def test_temperature_scales_the_logits(tokenizer):
    model = tiny_model(tokenizer)
    ids = draw(model, tokenizer, ["a"] * 4000, max_new_tokens=1, batch_size=4000, temperature=2.0).completion_ids
    counts = torch.bincount(torch.tensor(ids).flatten(), minlength=len(tokenizer)).double()
    with torch.no_grad():
        probs = (model(torch.tensor([tokenizer("a")["input_ids"]])).logits[0, -1].double() / 2).softmax(0)
    top = probs.argmax()
    assert abs(counts[top] / 4000 - probs[top]) < 4 * (probs[top] * (1 - probs[top]) / 4000) ** 0.5


def test_a_completion_ends_with_its_first_eos(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.zero_()  # uniform: one token in 320 is EOS
    samples = draw(model, tokenizer, ["a"] * 64, max_new_tokens=64)
    eos = tokenizer.eos_token_id
    ended = [ids for ids in samples.completion_ids if eos in ids]
    assert ended
    assert all(ids.index(eos) == len(ids) - 1 for ids in ended)
    assert all(len(ids) == 64 for ids in samples.completion_ids if eos not in ids)
    assert not any(tokenizer.eos_token in text for text in samples.completions)


def test_several_end_tokens_of_the_generation_config_count(model, tokenizer):
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 2))
    for ids in draw(model, tokenizer).completion_ids:
        assert all(token % 2 for token in ids[:-1])


def test_text_keeps_its_leading_space():
    vocabulary = {"▁the": 0, "▁film": 1, "s": 2, "<eos>": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()  # as Llama 2's: drops the first space of what it decodes
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    assert tokenizer.decode([1]) == "film"
    samples = draw(tiny_model(tokenizer), tokenizer, ["the"] * 16, max_new_tokens=3)
    assert any(ids[0] == 1 for ids in samples.completion_ids)
    for prompt, text, ids in zip(samples.prompts, samples.completions, samples.completion_ids, strict=True):
        whole = "".join({0: " the", 1: " film", 2: "s", 3: ""}[token] for token in [0, *ids])
        assert prompt + text == whole[1:]


def test_one_bos(model):
    tokenizer = tiny_tokenizer(add_bos=True)
    plain = draw(model, tokenizer, ["a film"])
    templated = draw(model, tokenizer, [tokenizer.bos_token + "a film"])
    assert plain.prompt_ids == templated.prompt_ids
    assert plain.prompt_ids[0].count(tokenizer.bos_token_id) == 1


def test_modes_are_restored(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    draw(model, tokenizer)
    assert {name: module.training for name, module in model.named_modules()} == before
    outside = Samples(["a"] * 2, ["b"] * 2, [[1]] * 2, [[len(tokenizer)]] * 2, 1.0)  # a token that the model lacks
    with pytest.raises(IndexError):
        sequence_kl(model, outside, tiny_model(tokenizer))
    assert {name: module.training for name, module in model.named_modules()} == before


def test_dropout_is_off(tokenizer):
    model = tiny_model(tokenizer, attention_dropout=0.5)
    expected = draw(model, tokenizer)
    assert draw(model.train(), tokenizer) == expected


def test_a_model_in_the_middle_of_training_samples_the_same(model, tokenizer):
    trained = get_peft_model(
        copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    add_fused_lm_head(trained.get_base_model())
    trained.gradient_checkpointing_enable()
    trained.enable_input_require_grads()
    trained.config.use_cache = False
    trained.train()
    assert draw(trained, tokenizer) == draw(model, tokenizer)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one string"),
        ("one string", {}, ValueError, "'one string'"),
        (["a", [{"role": "user", "content": "a"}]], {}, TypeError, r"prompts\[1\] is a list.*chat template"),
        (["a", ""], {}, ValueError, r"prompts\[1\]: The prompt ''"),
        (["a"], {"max_new_tokens": 0}, ValueError, "max_new_tokens=0.*>= 1"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size=0.*>= 1"),
        (["a"], {"temperature": -1.0}, ValueError, "temperature=-1.0.*>= 0"),
        (["a"], {"temperature": float("nan")}, ValueError, "temperature=nan"),
    ],
)
def test_bad_arguments(model, tokenizer, prompts, options, error, message):
    with pytest.raises(error, match=message):
        draw(model, tokenizer, prompts, **options)


def test_a_prompt_and_its_completion_must_fit_the_learned_positions(tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config)
    prompts = ["a", "the film was"]
    tokens = len(tokenizer(prompts[1])["input_ids"])
    assert len(draw(model, tokenizer, prompts, max_new_tokens=16 - tokens)) == 2
    with pytest.raises(ValueError, match=rf"prompts\[1\] has {tokens} tokens, .* but the model has 16 positions"):
        draw(model, tokenizer, prompts, max_new_tokens=17 - tokens)
