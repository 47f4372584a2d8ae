"""Compute next-token distributions at selected positions, a few at a time.

A batch's logits, [tokens, vocabulary], are by far the largest tensor of a forward pass: 2048 tokens with a vocabulary
of 150,000 take 1.2 GB in float32. Here the model's body runs once, and its head runs on the requested positions only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NextTokenLogits:
    """Next-token log-probs of a causal language model at selected positions.

    The head runs inside the model's own `forward`, with the body replaced by its stored output, so that soft-capping
    and scaling of logits apply as usual.

    Args:
        model: a transformers causal language model, or a PEFT model over one, in evaluation mode.
        chosen: [R, L] bool, the positions whose next token is predicted.
        **inputs: the model's inputs: `input_ids` and `attention_mask`, [R, L].
    """

    def __init__(self, model: Any, chosen: Tensor, **inputs: Tensor) -> None:
        self._model = model
        self._body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model

        def keep(module: Any, positional: Any, output: Any) -> Any:
            self._hidden = output.last_hidden_state[chosen.to(output.last_hidden_state.device)]
            output.last_hidden_state = self._hidden[None, :1]  # the head's result is unused here
            self._output = output
            return output

        hook = self._body.register_forward_hook(keep)
        try:
            model(**inputs, use_cache=False)
        finally:
            hook.remove()

    def __len__(self) -> int:
        return len(self._hidden)

    def logps(self, rows: slice) -> Tensor:
        """Return the log-probs of all vocabulary tokens.

        Args:
            rows: a slice of the selected positions, in row-major order.

        Returns:
            [positions, V] float32, nats.
        """
        self._output.last_hidden_state = self._hidden[None, rows]
        own = vars(self._body).get("forward")
        self._body.forward = lambda *positional, **named: self._output
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=self._hidden.device)
            logits: Tensor = self._model(input_ids=token, use_cache=False).logits
        finally:
            if own is None:
                del self._body.forward
            else:
                self._body.forward = own
        return logits[0].float().log_softmax(dim=-1)
