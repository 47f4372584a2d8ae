r"""Train a policy on a reward with RLOO and a KL penalty: the RL baseline that preference losses are compared with.

    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/rloo.py --config recipes/controlled_sentiment/rloo.yaml

The trainer is TRL's (RLOO: Ahmadian et al., arXiv 2402.14740); TRL 1.16 has no PPO. This script adds the rewards of
this package, and records points of reward against KL as recipes/train.py does. Every field of RLOOArguments,
trl.RLOOConfig and trl.ModelConfig is a key of the YAML file and an option here; options win. It trains adapters only,
because the reference is the model without its adapter.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from trl import ModelConfig, RLOOConfig, RLOOTrainer, ScriptArguments, get_quantization_config

from trl_dpo_ext.cli import exit_code
from trl_dpo_ext.data import DataError, load_splits
from trl_dpo_ext.evaluation import (
    FrontierCallback,
    Reward,
    compare,
    evaluate_policy,
    get_reward,
    prompt_text,
    reward_forms,
)
from trl_dpo_ext.parsing import ParseError, StrictParser
from trl_dpo_ext.record import versions, write_json
from trl_dpo_ext.run import adapter_config, held_out_prompts
from trl_dpo_ext.run.recipe_settings import RESULT


@dataclass
class RLOOArguments(ScriptArguments):
    """Settings of a recipe besides the training configuration and the model.

    Args:
        dataset_name: as in recipes/train.py; only its prompts are used.
        reward: the reward that the policy is trained on; same names as in recipes/train.py.
        eval_reward: the true reward for the points; by default `reward`.
        eval_prompts: number of held-out prompts sampled for each point.
        eval_max_new_tokens: maximum length of those samples, in tokens.
        eval_seed: seed of those samples.
        frontier_steps: optimizer steps between points in frontier.json.
    """

    reward: str | None = field(default=None, metadata={"help": f"Reward to train on: {reward_forms()}."})
    eval_reward: str | None = field(default=None, metadata={"help": "True reward for the points; default: reward."})
    eval_prompts: int = field(default=64, metadata={"help": "Held-out prompts sampled for each point."})
    eval_max_new_tokens: int = field(default=24, metadata={"help": "Maximum length of those samples, in tokens."})
    eval_seed: int = field(default=0, metadata={"help": "Seed of those samples."})
    frontier_steps: int = field(default=100, metadata={"help": "Optimizer steps between points."})

    def __post_init__(self) -> None:
        for name in ("dataset_name", "reward"):
            if not getattr(self, name):
                raise ParseError(f"{name} is missing; set it in the recipe or as an option.")


def on_text(reward: Reward, tokenizer: Any) -> Any:
    """Wrap a reward for TRL. Conversations go through the chat template, as in `held_out_prompts`."""

    def called(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        answers = [answer if isinstance(answer, str) else answer[-1]["content"] for answer in completions]
        return reward([prompt_text(prompt, tokenizer) for prompt in prompts], answers)

    return called


def refuse_unread_columns(train_dataset: Any) -> None:
    """Refuse rows with tools or template arguments: TRL's RLOOTrainer would render their prompts without them.

    Raises:
        DataError: the training dataset has such a row.
    """
    for column in {"tools", "chat_template_kwargs"} & set(train_dataset.column_names):
        if (row := next((n for n, value in enumerate(train_dataset[column]) if value), None)) is not None:
            raise DataError(
                f"train dataset, row {row}: it has {column}, and TRL's RLOOTrainer reads only the prompt. Write what "
                "the model needs to know into the prompt, or train with a preference loss (recipes/train.py)."
            )


def main(args: list[str] | None = None) -> int:
    """Parse, train, record points, save the adapter and finally result.json; print the table."""
    started = time.time()
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    parser = StrictParser((RLOOArguments, RLOOConfig, ModelConfig))
    try:
        recipe, config, model_args = parser.parse_args_and_config(args)
    except ValueError as error:
        raise ParseError(str(error)) from error
    output = Path(config.output_dir)
    if (output / RESULT).exists():
        raise FileExistsError(f"{output} holds a finished run ({RESULT}). Choose another output_dir.")
    if (peft_config := adapter_config(model_args)) is None:
        raise ParseError("use_peft: true is needed; the reference is the model without its adapter.")
    reward, true_reward = (get_reward(name) for name in (recipe.reward, recipe.eval_reward or recipe.reward))
    splits = load_splits(recipe.dataset_name, needs=recipe.dataset_train_split)
    refuse_unread_columns(splits[recipe.dataset_train_split])
    config.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        **(config.model_init_kwargs or {}),
    }
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left", truncation_side="left"
    )
    trainer = RLOOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=on_text(reward, tokenizer),
        args=config,
        processing_class=tokenizer,
        train_dataset=splits[recipe.dataset_train_split].select_columns("prompt"),
        quantization_config=get_quantization_config(model_args),
        peft_config=peft_config,
    )
    true = recipe.eval_reward or recipe.reward
    policy = {
        "tokenizer": tokenizer,
        "prompts": held_out_prompts(splits[recipe.dataset_test_split], tokenizer, recipe.eval_prompts),
        "reward": true_reward,
        "reference": trainer.model.disable_adapter,
        "max_new_tokens": recipe.eval_max_new_tokens,
        "seed": recipe.eval_seed,
    }
    before = evaluate_policy(trainer.model, **policy)
    frontier = FrontierCallback(
        **policy,
        reward_name=true,
        method="rloo, true reward" if recipe.reward == true else "rloo, learned reward",
        every=recipe.frontier_steps,
        start=before,
    )
    trainer.add_callback(frontier)
    trainer.train()
    trainer.save_model(config.output_dir)
    after = frontier.after(trainer.state.global_step)
    if trainer.is_world_process_zero() and after is not None:
        comparison = compare(before, after)
        record = {
            "recipe": parser.given,
            "evaluation": comparison.as_dict(),
            "log": trainer.state.log_history,
            "versions": versions(),
            "seconds": round(time.time() - started, 1),
        }
        write_json(output / RESULT, record)
        comparison.print()
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(exit_code(main, expected=()))
