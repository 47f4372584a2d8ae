"""Traps of evaluation: samples start from other tokens than training's prompts, and a response that ends twice.

What the model sees is caught in `generate`. It must equal the training rows' `prompt_ids`, and those must read as a
text that is written here by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOTrainer

from tests import helpers
from tests.evaluation import vllm_stand_in
from tests.training import support
from tests.traps.support import bugs, put_back
from trl_dpo_ext._compat import trl_trainer
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.evaluate.sources import read_prompts
from trl_dpo_ext.data import format_dataset, prompts, tokenize_dataset
from trl_dpo_ext.data.rendering import prompt_rendering
from trl_dpo_ext.evaluation import FrontierCallback, evaluate_policy, held_out_prompts, sample
from trl_dpo_ext.evaluation.sampling import samples
from trl_dpo_ext.evaluation.sampling.vllm_sampling import sample_with_vllm
from trl_dpo_ext.run import train_recipe

WORDS = ("film", "story")
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {}}}]
TURN = "<|im_start|>user\nthe {}<|im_end|>\n<|im_start|>assistant\n"
THINKING = "{% if add_generation_prompt %}{{ '<think>' if think is not defined or think else '</think>' }}{% endif %}"


def adding(before: str, after: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts special tokens around every text; its chat template writes no BOS."""
    tokenizer = helpers.tiny_tokenizer()
    added = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (before, after) if token]
    single = f"{before} $A {after}".strip()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=added)
    return tokenizer


def thinking() -> PreTrainedTokenizerFast:
    """Its generation prompt begins the reasoning, which `think` switches off, as Qwen3's `enable_thinking` does."""
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.chat_template += THINKING
    return tokenizer


def texts(prompt: str = "the {}", chosen: str = " was great", rejected: str = " was slow") -> list[dict[str, Any]]:
    return [{"prompt": prompt.format(word), "chosen": chosen, "rejected": rejected} for word in WORDS]


def chats(before: str = "", **extra: Any) -> list[dict[str, Any]]:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    answers = {c: turn("assistant", before + text) for c, text in (("chosen", "great"), ("rejected", "slow"))}
    return [{"prompt": turn("user", f"the {word}"), **answers, **extra} for word in WORDS]


def training_ids(rows: list[dict[str, Any]], tokenizer: Any) -> list[list[int]]:
    """The prompts that training has."""
    ranked = format_dataset(Dataset.from_list(rows), name="train")
    return tokenize_dataset(ranked, tokenizer, name="train", max_length=None)["prompt_ids"][:]


# Ways to sample: each takes the tokenizer, the rows as a file and a folder to work in


def file_of(rows: list[dict[str, Any]], folder: Any) -> str:
    (folder / "data").mkdir()
    for split in ("train", "test"):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "data")


def model_of(tokenizer: Any, folder: Any) -> str:
    tokenizer.save_pretrained(folder / "model")
    helpers.tiny_model(tokenizer).save_pretrained(folder / "model")
    return str(folder / "model")


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def by_sample(tokenizer: Any, rows: Any, folder: Any) -> None:
    starts = held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    sample(helpers.tiny_model(tokenizer), tokenizer, starts, max_new_tokens=1, progress=False)


def by_evaluate_policy(tokenizer: Any, rows: Any, folder: Any) -> None:
    model, starts = helpers.tiny_model(tokenizer), held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    found = evaluate_policy(model, tokenizer, starts, length, reference=model, max_new_tokens=1, progress=False)
    assert found.samples.prompt_ids == training_ids(rows, tokenizer)  # those of the KL


def by_frontier(tokenizer: Any, rows: Any, folder: Any) -> None:
    model, starts = helpers.tiny_model(tokenizer), held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    named = {"reward_name": "length", "method": "dpo", "reference": model, "max_new_tokens": 1}
    callback = FrontierCallback(tokenizer, starts, length, **named)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    callback.on_train_begin(SimpleNamespace(output_dir=str(folder)), state, None, model=model)


def by_vllm(tokenizer: Any, rows: Any, folder: Any) -> None:
    model = model_of(tokenizer, folder)
    tokenizer.name_or_path = model
    starts = held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    sample_with_vllm(model, tokenizer, starts, max_new_tokens=1, progress=False)


def by_the_command(tokenizer: Any, rows: Any, folder: Any) -> None:
    command = ["eval", "sample", model_of(tokenizer, folder), str(folder / "samples.jsonl"), "--first"]
    assert main([*command, "--data", file_of(rows, folder), "--max-new-tokens", "1"]) == 0


def by_best_of_n(tokenizer: Any, rows: Any, folder: Any) -> None:
    command = ["eval", "best-of-n", model_of(tokenizer, folder), "--reward", f"{__name__}:length", "--samples", "1"]
    assert main([*command, "--first", "--data", file_of(rows, folder), "--max-new-tokens", "1"]) == 0


def by_a_recipe(tokenizer: Any, rows: Any, folder: Any) -> None:
    settings = helpers.training_args(folder / "out", max_steps=1, reward=f"{__name__}:length", eval_max_new_tokens=1)
    del settings["lr_scheduler_type"]
    settings |= {"model_name_or_path": model_of(tokenizer, folder), "dataset_name": file_of(rows, folder)}
    train_recipe([part for name, value in settings.items() for part in (f"--{name}", str(value))])


QUICK = (by_sample, by_evaluate_policy, by_frontier)
ALL = (*QUICK, by_vllm, by_the_command, by_best_of_n, by_a_recipe)


@pytest.fixture
def seen(monkeypatch) -> list[list[list[int]]]:
    """The prompts of each call of `generate`, without padding."""
    calls: list[list[list[int]]] = []
    generate = LlamaForCausalLM.generate

    def spy(self: Any, *args: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        pairs = zip(input_ids, attention_mask.bool(), strict=True)
        calls.append([ids[mask].tolist() for ids, mask in pairs])
        return generate(self, *args, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", spy)
    engine = vllm_stand_in.install(monkeypatch)
    of_engine = engine.generate

    def spy_of_engine(self: Any, asked: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append([ask["prompt_token_ids"] for ask in asked])
        return of_engine(self, asked, *args, **kwargs)

    monkeypatch.setattr(engine, "generate", spy_of_engine)
    return calls


def check(way: Callable[..., None], tokenizer: Any, rows: Any, text: str, folder: Any, seen: Any) -> None:
    expected = training_ids(rows, tokenizer)
    assert [tokenizer.decode(ids) for ids in expected] == [text.format(word) for word in WORDS]
    way(tokenizer, rows, folder)
    assert seen
    for call in seen:
        assert call == expected


# Special tokens


def tokenize_the_rendered_text(patch: pytest.MonkeyPatch) -> None:
    """Evaluation renders a prompt, and the tokenizer then adds its own special tokens."""

    def rendered(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
        text = prompts.prompt_text(row["prompt"], tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
        return {"prompt_ids": tokenizer(text)["input_ids"]}

    patch.setattr(prompts, "tokenize_row", rendered)


SPECIAL = {
    "BOS by the tokenizer alone": (lambda: adding("<s>", ""), chats(), TURN),
    "BOS by tokenizer and template": (lambda: helpers.tiny_tokenizer(add_bos=True), chats(), "<s>" + TURN),
    "EOS, text": (lambda: adding("", "<|im_end|>"), texts(), "the {}"),
    "EOS, messages": (lambda: adding("", "<|im_end|>"), chats(), TURN),
    "BOS and EOS, text": (lambda: adding("<s>", "<|im_end|>"), texts(), "<s>the {}"),
    "BOS and EOS, messages": (lambda: adding("<s>", "<|im_end|>"), chats(), TURN),
    "CLS and SEP, text": (lambda: adding("<s>", "<pad>"), texts(), "<s>the {}"),
}


@bugs(tokenize_the_rendered_text)
@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("case", SPECIAL)
def test_trap_21_special_tokens_of_a_prompt_are_those_of_training(case, way, bug, monkeypatch, seen, tmp_path):
    make, rows, text = SPECIAL[case]
    with put_back(bug, monkeypatch):
        check(way, make(), rows, text, tmp_path, seen)


SAME_EITHER_WAY = {
    "BOS, text": (lambda: adding("<s>", ""), texts(), "<s>the {}"),
    "BOS by the template alone": (lambda: bos_by_the_template(), chats(), "<s>" + TURN),
    "a text that has BOS already": (lambda: adding("<s>", ""), texts("<s>the {}"), "<s><s>the {}"),  # a linter error
}


def bos_by_the_template() -> PreTrainedTokenizerFast:
    tokenizer = helpers.tiny_tokenizer(add_bos=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


@pytest.mark.parametrize("case", SAME_EITHER_WAY)
def test_trap_21_other_special_tokens_are_those_of_training_too(case, seen, tmp_path):
    make, rows, text = SAME_EITHER_WAY[case]
    check(by_sample, make(), rows, text, tmp_path, seen)


# What a row says about its prompt


def drop(column: str) -> Callable[[pytest.MonkeyPatch], None]:
    def bug(patch: pytest.MonkeyPatch) -> None:
        tokenize_row = prompts.tokenize_row
        patch.setattr(prompts, "tokenize_row", lambda row, tokenizer: tokenize_row({**row, column: None}, tokenizer))

    bug.__name__ = f"drop_{column}"
    return bug


def date(day: str, **extra: Any) -> dict[str, Any]:
    return {"chat_template_kwargs": {"date": day, **extra}}


LISTED = f"<|im_start|>system\nTools: {json.dumps(TOOLS)}<|im_end|>\n".replace("{", "{{").replace("}", "}}")
TODAY = "<|im_start|>system\nToday is May 1<|im_end|>\n"
WITH_TOOLS = {
    "tools": (helpers.tiny_tokenizer, chats(tools=TOOLS), LISTED + TURN),
    "tools as JSON text": (helpers.tiny_tokenizer, chats(tools=json.dumps(TOOLS)), LISTED + TURN),
    "tools and arguments": (helpers.tiny_tokenizer, chats(tools=TOOLS, **date("May 1")), TODAY + LISTED + TURN),
}
WITH_ARGUMENTS = {
    "a date": (helpers.tiny_tokenizer, chats(**date("May 1")), TODAY + TURN),
    "thinking switched off": (
        thinking,
        chats(before="</think>", chat_template_kwargs={"think": False}),
        TURN + "</think>",
    ),
    "arguments and tools": (helpers.tiny_tokenizer, chats(tools=TOOLS, **date("May 1")), TODAY + LISTED + TURN),
}


@bugs(drop("tools"))
@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("case", WITH_TOOLS)
def test_trap_21_tools_of_a_row_reach_evaluation(case, way, bug, monkeypatch, seen, tmp_path):
    make, rows, text = WITH_TOOLS[case]
    with put_back(bug, monkeypatch):
        check(way, make(), rows, text, tmp_path, seen)


@bugs(drop("chat_template_kwargs"))
@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("case", WITH_ARGUMENTS)
def test_trap_21_template_arguments_of_a_row_reach_evaluation(case, way, bug, monkeypatch, seen, tmp_path):
    make, rows, text = WITH_ARGUMENTS[case]
    with put_back(bug, monkeypatch):
        check(way, make(), rows, text, tmp_path, seen)


@bugs(tokenize_the_rendered_text, drop("tools"), drop("chat_template_kwargs"))
@pytest.mark.parametrize("way", ALL)
def test_trap_21_every_way_to_sample_starts_from_the_ids_of_training(way, bug, monkeypatch, seen, tmp_path):
    rows = chats(tools=TOOLS, **date("May 1"))
    with put_back(bug, monkeypatch):
        check(way, adding("<s>", "<|im_end|>"), rows, TODAY + LISTED + TURN, tmp_path, seen)


def test_trap_21_rewards_and_tables_read_the_prompt_with_its_tools(tmp_path):
    tokenizer, rows = helpers.tiny_tokenizer(), chats(tools=TOOLS, **date("May 1"))
    found = held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    assert [prompt.text for prompt in found] == [(TODAY + LISTED + TURN).format(word) for word in WORDS]


# A file of samples, whose prompts another model continues


def keep_the_text_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("trl_dpo_ext.cli.evaluate.sources.dataset_row", lambda row: {})


@bugs(keep_the_text_alone)
def test_trap_21_prompts_of_a_file_of_samples_are_those_of_its_dataset(bug, monkeypatch, seen, tmp_path):
    """Judges read a conversation as a dialogue, and models through their chat template."""
    tokenizer, rows = adding("<s>", ""), chats(tools=TOOLS, **date("May 1"))
    with put_back(bug, monkeypatch):
        by_the_command(tokenizer, rows, tmp_path)
        command = ["eval", "win-rate", str(tmp_path / "model"), "--against", str(tmp_path / "samples.jsonl")]
        assert main([*command, "--judge", f"{__name__}:longer", "--max-new-tokens", "1"]) == 0
        assert seen == [training_ids(rows, tokenizer)] * 2


def longer(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in zip(firsts, seconds, strict=True)]


# The end of a prompt that training leaves to the response


def tokenize_the_prompt_alone(patch: pytest.MonkeyPatch) -> None:
    tokenize_row = prompts.tokenize_row
    patch.setattr(prompts, "tokenize_row", lambda row, tokenizer: tokenize_row({**row, "completions": []}, tokenizer))


BOUNDARY = {
    "a trailing space": (helpers.tiny_tokenizer, texts("the {} ", "was great", "was slow"), "the {}"),
    "a trailing space, BOS and EOS": (
        lambda: adding("<s>", "<|im_end|>"),
        texts("the {} ", "was great", "was slow"),
        "<s>the {}",
    ),
    "the start of a word": (helpers.tiny_tokenizer, texts("a {} act", "ors great", "ual slow"), "a {} a"),
    "reasoning that no answer has": (thinking, chats(), TURN),
}


@bugs(tokenize_the_prompt_alone)
@pytest.mark.parametrize("way", [*QUICK, by_the_command])
@pytest.mark.parametrize("case", BOUNDARY)
def test_trap_21_a_prompt_ends_where_training_ends_it(case, way, bug, monkeypatch, seen, tmp_path):
    make, rows, text = BOUNDARY[case]
    with put_back(bug, monkeypatch):
        check(way, make(), rows, text, tmp_path, seen)


def count_from_the_tokens(patch: pytest.MonkeyPatch) -> None:
    def text(tokenizer: Any, prompt: Any, completion_ids: list[int]) -> str:
        return str(tokenizer.decode(completion_ids, skip_special_tokens=True))

    patch.setattr(samples, "_completion_text", text)


@bugs(count_from_the_tokens)
def test_trap_21_prompt_and_completion_are_the_whole_text(bug, monkeypatch):
    """A space that the model writes because training leaves it to the response is not there twice."""
    tokenizer = helpers.tiny_tokenizer()
    starts = held_out_prompts(Dataset.from_list(texts("the {} ", "was great", "was slow")), tokenizer, 2)
    was = tokenizer(" was great<|im_end|>")["input_ids"]
    with put_back(bug, monkeypatch):
        found = samples.completed(starts, [was, was], tokenizer, 1.0)
        assert found.completions == ["was great"] * 2
        assert found.prompts == ["the film ", "the story "]


# EOS


def keep_the_tokenizers_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prompt_rendering, "_tokens_put_after_text", lambda tokenizer: 0)


@bugs(keep_the_tokenizers_end)
@pytest.mark.parametrize("after", ["<|im_end|>", "<pad>"])
@pytest.mark.parametrize("before", ["<s>", ""])
def test_trap_21_a_response_ends_once(before, after, bug, monkeypatch, caplog):
    """A tokenizer puts EOS (or SEP) after every text, and the response has an EOS already."""
    tokenizer = adding(before, after)
    plain = adding(before, "") if before else helpers.tiny_tokenizer()
    with put_back(bug, monkeypatch):
        for rows in (texts(), texts(chosen=" was great<|im_end|>")):
            (first, _) = tokenize_dataset(
                format_dataset(Dataset.from_list(rows), name="train"), tokenizer, name="train", max_length=None
            )
            assert (
                first["prompt_ids"] + first["completion_ids"][0] == plain("the film was great<|im_end|>")["input_ids"]
            )
            assert "the last tokens come out differently" not in caplog.text


@bugs(keep_the_tokenizers_end)
@pytest.mark.parametrize("after", ["<|im_end|>", "<pad>"])
@pytest.mark.parametrize("before", ["<s>", ""])
def test_trap_21_plain_text_has_no_end_before_the_response(before, after, bug, monkeypatch, seen):
    """The same for prompts that a user gives as plain text."""
    tokenizer = adding(before, after)
    with put_back(bug, monkeypatch):
        plain = [row["prompt"] for row in texts()]
        sample(helpers.tiny_model(tokenizer), tokenizer, plain, max_new_tokens=1, progress=False)
        assert seen == [training_ids(texts(), tokenizer)]
        assert [tokenizer.decode(ids) for ids in seen[0]] == [f"{before}the {word}" for word in WORDS]


def test_a_text_without_eos_of_its_own_keeps_the_tokenizers_end():
    """ModernBERT's tokenizer has no EOS: its SEP is all that ends a response."""
    tokenizer = adding("<s>", "<|im_end|>")
    tokenizer.eos_token = None
    (first, _) = tokenize_dataset(
        format_dataset(Dataset.from_list(texts()), name="train"), tokenizer, name="train", max_length=None
    )
    assert tokenizer.decode(first["prompt_ids"] + first["completion_ids"][0]) == "<s>the film was great<|im_end|>"


# Rows that a chat template refuses


def test_rows_that_the_template_refuses_are_left_out_of_evaluation(caplog):
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no date') if date is defined }}" + tokenizer.chat_template
    rows = [{**row, "chat_template_kwargs": {"date": "May"} if i else {}} for i, row in enumerate(chats())]
    (kept,) = held_out_prompts(Dataset.from_list(rows), tokenizer, 2)
    assert kept.text == TURN.format("film")
    assert "left out 1 of 2 prompts. The first: row 1: the chat template refuses it" in caplog.text
    with pytest.raises(ValueError, match=r"none of its prompts can be sampled from.*row 0"):
        held_out_prompts(Dataset.from_list(rows[1:]), tokenizer, 2)


def test_a_prompt_whose_text_the_template_leaves_out_is_refused():
    tokenizer = helpers.tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% if tools %}", "{% if false %}")
    with pytest.raises(ValueError, match=r"row 0: the chat template leaves out a tool of the prompt \('look_up'\)"):
        held_out_prompts(Dataset.from_list(chats(tools=TOOLS)), tokenizer, 2)


# What judges read


def print_the_content(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "trl_dpo_ext.data.rendering.left_out_text.message_text", lambda message: str(message.get("content") or "")
    )


@bugs(print_the_content)
def test_judges_read_the_text_of_content_blocks_and_calls(bug, monkeypatch, tmp_path):
    """Not the Python representation of blocks, and not an empty text for an answer that is a tool call."""
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "film"}}}
    blocks, answer = [{"type": "text", "text": "the film"}], {"role": "assistant", "tool_calls": [call]}
    rows = [{**row, "prompt": [{"role": "user", "content": blocks}], "chosen": [answer]} for row in chats()]
    with put_back(bug, monkeypatch):
        source = {"config": None, "split": "test", "converter": None, "count": 1, "seed": None}
        found = read_prompts(file_of(rows, tmp_path), **source)
        assert found.texts == ["User: the film\n\nAssistant: "]
        assert found.own == ['{"name": "look_up", "arguments": {"word": "film"}}']


# Metrics of two evaluation sets


def name_them_as_trl_does(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(trl_trainer.HookedTrainer, "log")


@bugs(name_them_as_trl_does)
@pytest.mark.parametrize("given", ["to the trainer", "to evaluate"])
def test_trap_21_two_evaluation_sets_share_no_metric_name(given, bug, monkeypatch, tiny_model_dir, tmp_path):
    """In TRL both are logged as `eval_rewards/margins`, so a best model is chosen by whichever came last."""
    train, sets = helpers.pair_dataset(4), {"easy": helpers.pair_dataset(2), "hard": helpers.pair_dataset(2, seed=5)}
    options = {"eval_dataset": sets} if given == "to the trainer" else {}
    trainer = support.trainer(tiny_model_dir, tmp_path, train, loss_type="dpo", learning_rate=0.01, **options)
    support.train(trainer)
    with put_back(bug, monkeypatch):
        alone = {name: trainer.evaluate(dataset)["eval_rewards/margins"] for name, dataset in sets.items()}
        assert alone["easy"] != alone["hard"]
        trainer.state.log_history.clear()
        found = trainer.evaluate(*([] if options else [sets]))
        logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
        for name, value in alone.items():
            key = f"eval_{name}_rewards/margins"
            assert found.get(key) == logged.get(key) == value
        assert not {name for name in {*found, *logged} if name.startswith(("eval_rewards/", "eval_logps/"))}


@bugs(name_them_as_trl_does)
def test_trap_21_the_best_model_is_chosen_by_the_set_that_is_named(bug, monkeypatch, tiny_model_dir, tmp_path):
    sets = {"first": helpers.pair_dataset(2), "last": helpers.pair_dataset(2, seed=5)}
    schedule = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_first_rewards/margins"}
    with put_back(bug, monkeypatch):
        trainer = support.trainer(
            tiny_model_dir, tmp_path, helpers.pair_dataset(4), eval_dataset=sets, loss_type="dpo", **schedule, **best
        )
        key, error = best["metric_for_best_model"], ""
        try:
            support.train(trainer)
        except KeyError as missing:
            error = str(missing)
        assert not error
        assert trainer.state.best_metric == max(e[key] for e in trainer.state.log_history if key in e)


@bugs(name_them_as_trl_does)
def test_trap_21_a_prefix_given_to_evaluate_names_every_metric(bug, monkeypatch, tiny_model_dir, tmp_path):
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.pair_dataset(4), loss_type="dpo")
    with put_back(bug, monkeypatch):
        found = trainer.evaluate(helpers.pair_dataset(2), metric_key_prefix="held_out")
        assert "held_out_rewards/margins" in found
        assert not [name for name in found if name.startswith("eval_")]


def leave_the_queue(patch: pytest.MonkeyPatch) -> None:
    def evaluate(self: Any, dataset: Any, ignore_keys: Any, prefix: str) -> Any:
        self._evaluation_prefix = prefix
        return super(DPOTrainer, self).evaluate(dataset, ignore_keys, prefix)

    patch.setattr(trl_trainer.HookedTrainer, "evaluate_tokenized", evaluate)


@bugs(leave_the_queue)
def test_trap_21_an_evaluation_that_failed_is_not_averaged_into_the_next(bug, monkeypatch, tiny_model_dir, tmp_path):
    trainer = support.trainer(tiny_model_dir, tmp_path, helpers.pair_dataset(4), loss_type="dpo")
    sets = [helpers.pair_dataset(2, seed=seed) for seed in (0, 5)]
    expected = trainer.evaluate(sets[0])["eval_logps/chosen"]
    with put_back(bug, monkeypatch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(trainer), "log", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trainer.evaluate(sets[1])
        assert trainer.evaluate(sets[0])["eval_logps/chosen"] == expected


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt
