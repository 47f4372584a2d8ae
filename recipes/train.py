r"""Train a model on preferences, from a YAML recipe.

    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/train.py --config recipes/quickstart/plackett_luce.yaml

Every field of trl_dpo_ext.run.RecipeArguments, trl_dpo_ext.PreferenceConfig and trl.ModelConfig is a key of the YAML
file and an option here; options win. The output folder receives the adapter (or model), the tokenizer, recipe.yaml,
result.json, curves.png and a model card, README.md. `trl-dpo-ext train` does the same in one process.
"""

import sys

from trl_dpo_ext.cli.train import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
