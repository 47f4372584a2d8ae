"""Next-token distributions at chosen positions, a few at a time.

A batch's logits, [tokens, vocabulary], are by far the largest tensor of a forward: 2048 tokens of a vocabulary of
150 000 take 1.2 GB in float32. Here the body of the model runs once, and its head on as many positions as are asked
for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NextTokenLogits:
    """What a causal language model predicts at chosen positions.

    The head is run by the model's own `forward`, which is handed hidden states in place of the body's, so soft-capped
    and scaled logits are what the model makes of them.

    Args:
        model: a transformers causal language model, or a PEFT model over one, in evaluation mode.
        chosen: [R, L] bool, the positions whose next token is asked for.
        **inputs: of the model: `input_ids` and `attention_mask`, [R, L].
    """

    def __init__(self, model: Any, chosen: Tensor, **inputs: Tensor) -> None:
        self._model = model
        self._body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model

        def keep(module: Any, positional: Any, output: Any) -> Any:
            self._hidden = output.last_hidden_state[chosen.to(output.last_hidden_state.device)]
            output.last_hidden_state = self._hidden[None, :1]  # little to do for the head
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
        """Return the log-probs of every next token.

        Args:
            rows: which of the chosen positions, counted row by row.

        Returns:
            [number of those, V] float32, nats.
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
