"""Load an adapter from the Hub without this package; run by test_back.py in a process of its own.

python load_elsewhere.py ADAPTER EXPECTED.pt FOLDER
"""

import sys

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests import helpers


def logits(model):
    ids = torch.arange(10, 40).view(2, 15)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def main(adapter: str, expected_file: str, folder: str) -> None:
    expected = torch.load(expected_file)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), expected), "PEFT"
    # transformers finds adapter_config.json and loads the base model and the adapter on it.
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(adapter)), expected), "transformers"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.chat_template == helpers.tiny_tokenizer().chat_template
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, is_trainable=True)
    args = DPOConfig(**helpers.training_args(folder, max_steps=1))
    trainer = DPOTrainer(model=model, args=args, train_dataset=helpers.pair_dataset(4), processing_class=tokenizer)
    assert torch.equal(logits(trainer.model), expected), "TRL"
    trainer.train()
    assert not torch.equal(logits(trainer.model), expected), "TRL doesn't train it"
    assert not [name for name in sys.modules if name.startswith("trl_dpo_ext")]
    print("the same logits")


if __name__ == "__main__":
    main(*sys.argv[1:])
