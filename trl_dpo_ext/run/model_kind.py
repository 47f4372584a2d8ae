"""Whether a model is of a kind that can be trained on preferences, by its config alone."""

from __future__ import annotations

from transformers import AutoConfig
from trl import ModelConfig

from ..training import ConfigError

# Endings of architectures that don't generate text.
_OTHER_HEADS = ("Classification", "QuestionAnswering", "MaskedLM", "RewardModel")


def check_model_kind(model: ModelConfig, trust_remote_code: bool) -> None:
    """Refuse a model that can't continue a text. If its config can't be read, the trainer's checks say why.

    Raises:
        ConfigError: an encoder-decoder model, a classifier or a reward model.
    """
    name = str(model.model_name_or_path)
    try:
        found = AutoConfig.from_pretrained(name, revision=model.model_revision, trust_remote_code=trust_remote_code)
    except Exception:  # each cause has its own type, and the trainer's checks have a sentence for it
        return
    architectures = found.architectures or []
    if found.is_encoder_decoder:
        raise ConfigError(
            f"{name} is an encoder-decoder model ({', '.join(architectures) or found.model_type}). Only decoder "
            "models, which continue their prompt, can be trained here."
        )
    if unusable := [kind for kind in architectures if kind.endswith(_OTHER_HEADS)]:
        raise ConfigError(
            f"{name} is a {unusable[0]}, for example a classifier or reward model: it has no language-model head. Give "
            "the model that it was made from, or another one that generates text."
        )
