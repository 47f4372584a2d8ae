"""The small world: a language model of 0.3 million weights, its prompts, and responses to rank."""

from __future__ import annotations

import copy
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .sampling import EOS

__all__ = ["EOS", "PROMPT_TOKENS", "RESPONSES", "World", "load_world"]

PROMPT_TOKENS = 3  # every prompt has as many, so that nothing is padded on the left
RESPONSES = 8  # of the reference to each training prompt
FOLDER = Path(__file__).parent / "world_files"
FILES = ("config.json", "model.safetensors", "rows.json.gz")


@dataclass(frozen=True)
class World:
    """A language model, which is the reference and where every policy begins, and what there is to train on.

    Attributes:
        reference: the model, in evaluation mode.
        words: the word of each token.
        prompts: token ids by use: "train", "pick" (to choose hyperparameters) and "measure". No two are the same.
        responses: [prompts["train"]][8] token ids of responses that the reference gave.
    """

    reference: Any
    words: list[str]
    prompts: dict[str, list[list[int]]]
    responses: list[list[list[int]]]

    def policy(self) -> Any:
        """Return a copy of the reference to train."""
        return copy.deepcopy(self.reference)

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        words = " ".join(self.words[token] for token in ids if token != EOS)
        return re.sub(r" (?=[.,!?])", "", words)

    def prompt_ids(self, use: str) -> Tensor:
        """Return [N, PROMPT_TOKENS] the prompts of a use."""
        return torch.tensor(self.prompts[use])


def load_world(folder: Path = FOLDER) -> World:
    """Load the world that comes with the package, or another one that `build_world` made."""
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to the embedding
    assert not unexpected, unexpected
    model.tie_weights()
    with gzip.open(folder / "rows.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    return World(model.float().eval(), rows["words"], rows["prompts"], rows["responses"])
