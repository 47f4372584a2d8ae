# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-dpo-ext[demo]"]
# ///
"""Train a recipe in an environment that uv makes, on this machine or as a job on the Hub.

    uv run recipes/uv_train.py --config llama-3.1-8b/dpo --output_dir outputs/mine
    hf jobs uv run --flavor a10g-large --secrets HF_TOKEN recipes/uv_train.py \
        --config qwen3-8b/dpo --push_to_hub true --hub_model_id OWNER/NAME

The arguments are those of `trl-dpo-ext train`; a job's disk is lost when it ends, so push.
"""

import sys

from trl_dpo_ext.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
