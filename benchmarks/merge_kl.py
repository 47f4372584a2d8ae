"""Measures how far each merge of a QLoRA adapter is from the model that was trained: KL of next-token distributions.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train.py \
        --config recipes/quickstart/plackett_luce.yaml --load_in_4bit true --max_steps 8 --output_dir outputs/qlora
    python benchmarks/merge_kl.py outputs/qlora --output benchmarks/results/merge_kl.json

The prompts are the first 64 of the quickstart's test split.
"""

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from side_by_side import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_dpo_ext.hub import read_run
from trl_dpo_ext.hub.distributions import compare_distributions, next_token_logits
from trl_dpo_ext.hub.merge import merge_adapter
from trl_dpo_ext.modeling.quantized import keep_4bit_weights
from trl_dpo_ext.record import hardware, versions, write_json

DATA = ROOT / "recipes" / "quickstart" / "data" / "test.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="output folder of a QLoRA run")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the numbers")
    arguments = parser.parse_args()
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line, _ in zip(file, range(64), strict=False)]
    base = read_run(arguments.run).trained_base()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for into, dtype in (
            ("trained", "float32"),
            ("trained", "float16"),
            ("trained", "bfloat16"),
            ("original", "float32"),
            ("original", "bfloat16"),
        ):
            name, started = f"into {into} weights, {dtype}", time.perf_counter()
            report = merge_adapter(arguments.run, Path(scratch) / name, into=into, dtype=dtype, prompts=prompts)
            found[name] = {**report["difference"], "seconds": round(time.perf_counter() - started, 1)}
            print(name, found[name], flush=True)

    # PEFT's merge_and_unload on a 4-bit model rounds the sum to 4 bits again.
    tokenizer = AutoTokenizer.from_pretrained(arguments.run)
    config = BitsAndBytesConfig.from_dict(dict(base.quantization))
    config.bnb_4bit_compute_dtype = torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        base.model, dtype=getattr(torch, base.dtype), quantization_config=config
    )
    keep_4bit_weights(model)
    model = PeftModel.from_pretrained(model, arguments.run)
    trained = next_token_logits(model, tokenizer, prompts)
    merged = model.merge_and_unload()
    keep_4bit_weights(merged)
    found["peft merge_and_unload, 4 bit"] = compare_distributions(
        trained, next_token_logits(merged, tokenizer, prompts)
    )
    print(found["peft merge_and_unload, 4 bit"])
    write_json(
        arguments.output,
        {
            "prompts": len(prompts),
            "differences": found,
            "versions": versions(),
            "hardware": hardware(),
        },
    )


if __name__ == "__main__":
    main()
