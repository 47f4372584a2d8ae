"""Compute token log-probs of a batch: one code path for policy, reference, cache, self-check and memory estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .layout import gather_token_logps
from .masks import model_inputs

_TOKEN_WISE = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


@dataclass(frozen=True)
class TokenOutputs:
    """Token-wise outputs of a model for a batch.

    Attributes:
        model_outputs: the model's return value, with one value per position of each row.
        index: [R, L] flat position of each value in [B, K, T], from the batch's layout.
        shape: (B, K, T): prompts, responses per prompt, tokens of the longest response.
    """

    model_outputs: Any
    index: Tensor
    shape: tuple[int, int, int]

    @property
    def logps(self) -> Tensor:
        """[B, K, T] float32 log-probs, nats; 0 past the end of a response."""
        return self.by_response("log_probs")

    def by_response(self, name: str) -> Tensor:
        """Return a token-wise output of the fused head as [B, K, T] float32.

        Args:
            name: "log_probs", "entropy", "mean_logits", "is_top1" or "log_sum_sq_probs".
        """
        values = getattr(self.model_outputs, name)
        return gather_token_logps(values, self.index.to(values.device), self.shape)

    @property
    def names(self) -> list[str]:
        """The token-wise outputs that the model returned."""
        return [name for name in _TOKEN_WISE if getattr(self.model_outputs, name, None) is not None]

    @property
    def aux_loss(self) -> Tensor | None:
        """The load-balancing loss of a mixture of experts, or None."""
        return getattr(self.model_outputs, "aux_loss", None)


@dataclass(frozen=True)
class StoredOutputs:
    """The token-wise outputs of a batch that was split into passes, without a graph.

    Attributes:
        values: [B, K, T] float32 by name; see `TokenOutputs.by_response`.
        aux_loss: the load-balancing loss of a mixture of experts, or None.
    """

    values: Mapping[str, Tensor]
    aux_loss: Tensor | None = None

    @property
    def logps(self) -> Tensor:
        """[B, K, T] float32 log-probs, nats; 0 past the end of a response."""
        return self.values["log_probs"]

    def by_response(self, name: str) -> Tensor:
        """Return a token-wise output as [B, K, T] float32."""
        return self.values[name]


Outputs = TokenOutputs | StoredOutputs


def prepare_inputs(model: nn.Module, config: PreTrainedConfig, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Build the model's keyword arguments for a batch of any layout.

    Build them once and use them for both policy and reference: the attention mask of shared rows grows quadratically
    with the row length.

    Args:
        model: policy or reference; only the dtype of its weights is read.
        config: the model's config.
        batch: the collator's output, on the model's device.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return model_inputs(config, batch, dtype)


def token_outputs(model: nn.Module, inputs: Mapping[str, Any], batch: Mapping[str, Tensor]) -> TokenOutputs:
    """Run a model on a batch.

    Args:
        model: a model with the fused head (`add_compact_head`), wrapped by DDP or FSDP or not.
        inputs: the result of `prepare_inputs`, plus any other arguments of the model's forward.
        batch: the batch that `inputs` was built from; its `index` and `lengths` [B, K] are read.
    """
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    prompts, responses = batch["lengths"].shape
    return TokenOutputs(outputs, batch["index"], (prompts, responses, int(batch["lengths"].max())))


def token_logps(model: nn.Module, config: PreTrainedConfig, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the log-prob of every response token of a batch.

    Args:
        model, batch: as for `token_outputs`.
        config: the model's config.

    Returns:
        [B, K, T] float32, nats, 0 past the end of a response. Differentiable if gradients are enabled.
    """
    return token_outputs(model, prepare_inputs(model, config, batch), batch).logps


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode, then restore each module's mode.

    Evaluation mode turns off dropout, NEFTune noise and router jitter.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
