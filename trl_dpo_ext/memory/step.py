"""One training step on fake tensors, with every allocation booked."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, Trainer

from .._compat.bitsandbytes import allocate_optimizer_state
from .._compat.torch import FakeTensorMode, own_buffers, own_parameters, tree_leaves, tree_map_only
from .._compat.transformers import GradientCheckpointingLayer, enable_checkpointing, set_attention
from .._compat.trl import add_fused_lm_head, use_adapter
from ..data.collator import PreferenceCollator
from ..modeling.compact_head import add_compact_head
from ..modeling.dropout import disable_functional_dropout
from ..modeling.forward import Outputs, StoredOutputs, TokenOutputs, evaluation_mode, prepare_inputs, token_outputs
from ..modeling.layout import PromptGroup
from ..modeling.masks import MODEL_INPUTS
from ..modeling.passes import passes_of
from ..modeling.row_plan import RowLayout, layout_without_check
from ..training import PreferenceConfig
from ..training.batch import ranked_responses, step_loss
from ..training.whole_step import PromptLosses, differentiate
from ..types import RankedResponses
from .allocation_ledger import Ledger, Parts
from .known_values import KnownValues
from .stand_ins import UNMASKED, Linear4bitStandIn, kernels_of, quantize

WEIGHTS = "weights"
WEIGHTS_4BIT = "4-bit weights"
CONSTANTS = "constants of the 4-bit weights"
ADAPTERS = "adapters"
REFERENCE_MODEL = "reference model"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
BATCH = "batch"
MASK = "attention mask"
REFERENCE_PASS = "reference pass"
ACTIVATIONS = "activations"
HEAD = "LM head and loss"
BACKWARD = "backward pass"
UPDATE = "optimizer step"

HEAD_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
"""The outputs that DPOTrainer asks the fused head for."""

_ALLOCATOR_BLOCK = {"cuda": 512, "cpu": 1}  # bytes


@dataclass(frozen=True)
class Shape:
    """The shape of one micro-batch, in which all prompts have one length and all responses another.

    Attributes:
        prompts: prompts per micro-batch, `per_device_train_batch_size`.
        responses: K, the responses per prompt.
        prompt_tokens: tokens of each prompt.
        response_tokens: tokens of each response; with the prompt they make `max_length`.
    """

    prompts: int = 1
    responses: int = 2
    prompt_tokens: int = 512
    response_tokens: int = 512

    def rows(self) -> list[dict[str, Any]]:
        """Return the tokenized rows that the trainer's collator takes.

        The last response is one token shorter than the others: without any padding, padded rows would need no mask,
        and real data always has padding.
        """
        ids = list(range(self.responses))
        lengths = [self.response_tokens] * (self.responses - 1) + [max(self.response_tokens - 1, 1)]
        row = {
            "prompt_ids": [1] * self.prompt_tokens,
            "completion_ids": [[1] * length for length in lengths],
            "ranks": ids,
            "scores": [float(-k) for k in ids],
            "labels": [k == 0 for k in ids],
            "reference_scores": [0.0],
            "weight": 1.0,
        }
        return [row] * self.prompts


@dataclass(frozen=True)
class Setup:
    """Everything that decides how much memory a step takes.

    Attributes:
        config: the model's config.
        args: the training configuration.
        shape: the micro-batch.
        dtype: dtype of the weights that aren't quantized.
        quantization: the quantization config, or None.
        peft: the adapter's config, or None for full fine-tuning.
        attention: `attn_implementation`; None is the model's default.
        device: "cuda", or "cpu" to compare with a measurement on a CPU.
    """

    config: PreTrainedConfig
    args: PreferenceConfig
    shape: Shape
    dtype: torch.dtype = torch.float32
    quantization: BitsAndBytesConfig | None = None
    peft: PeftConfig | None = None
    attention: str | None = None
    device: str = "cuda"


def run_step(setup: Setup, layers: int | None = None) -> dict[str, Parts]:
    """Build the model and run one optimizer step, both on fake tensors.

    Args:
        setup: the run.
        layers: decoder layers to build; None is all.

    Returns:
        For each phase of the step, the bytes by part at its largest moment. The backward pass has four phases: the
        head, the last layer, the layers between, and the first layer.
    """
    model, reference = _build_on_meta(setup, layers)
    stored = _zeros if setup.args.precompute_ref_log_probs else None
    collate = PreferenceCollator(_layout(setup, model), stored, setup.args.responses_per_pass)
    real = collate(setup.shape.rows())
    ledger = Ledger(_ALLOCATOR_BLOCK[setup.device])
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    values = KnownValues(fake)
    with kernels_of(setup.device), fake, values, ledger:
        _prepare(model, reference, setup, ledger)
        step = _StepOnly(model, reference, setup, ledger)
        optimizer = _Optimizer(setup.args, model, ledger)
        _watch_layers(model, ledger)
        with_gradients = False
        for _ in range(2 if setup.args.gradient_accumulation_steps > 1 else 1):
            with ledger.booking(BATCH):
                inputs = tree_map_only(Tensor, values.known, real)
                for tensor in tree_leaves(inputs):
                    ledger.book(tensor, BATCH)
            with ledger.booking(HEAD):
                kept = step.first_pass(inputs)
            # Two passes stand for all: from the second on there are gradients.
            for one in passes_of(inputs)[:2]:
                ledger.phase = "forward with gradients" if with_gradients else "forward"
                with ledger.booking(HEAD):
                    loss = step.loss(one, kept)
                ledger.phase = "backward: head"
                with ledger.booking(BACKWARD):
                    loss.backward()
                with_gradients = True
                del loss, one
            del inputs, kept
        ledger.phase = "update"
        with ledger.booking(UPDATE):
            if setup.args.max_grad_norm:
                nn.utils.clip_grad_norm_(optimizer.parameters, setup.args.max_grad_norm)
            optimizer.step()
        peaks = dict(ledger.peaks)
    del peaks["start"]
    return peaks


class _StepOnly:
    """The trainer's own step, from a batch to its loss, with every part booked."""

    def __init__(self, model: Any, reference: Any, setup: Setup, ledger: Ledger) -> None:
        self._model, self._reference = model, reference
        self._objective = setup.args.objective()
        self._use_weighting = setup.args.use_weighting
        self._adapted = setup.peft is not None
        text = model.config.get_text_config()
        coefficient = setup.args.router_aux_loss_coef
        self._router_coef = getattr(text, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
        self._router = hasattr(text, "output_router_logits") and self._router_coef != 0.0
        self._parts = setup.args.gradient_accumulation_steps
        self._ledger = ledger
        self._unmasked = _unmasked(setup)
        self._precision = torch.bfloat16 if setup.args.bf16 else torch.float16 if setup.args.fp16 else None

    def first_pass(self, batch: dict[str, Any]) -> tuple[StoredOutputs, PromptLosses] | None:
        """Run the pass that only collects log-probs, and return what is kept of it; None if the step has none."""
        passes = passes_of(batch)
        if len(passes) == 1 and not (self._objective.couples_batch and self._parts > 1):
            return None
        self._ledger.phase = "first pass"
        one = passes[0]  # stands for all, which have its shape
        with torch.no_grad():
            inputs = self._inputs(one)
            policy = self._forward(self._model, inputs | self._router_inputs, one)
            stored = StoredOutputs({name: policy.by_response(name) for name in policy.names})
            reference = self._reference_logps(inputs, one)
            responses = self._responses(stored, reference, batch)
        return stored, differentiate(self._objective, responses, training=True)

    def loss(self, batch: dict[str, Any], kept: tuple[StoredOutputs, PromptLosses] | None) -> Tensor:
        """Return the loss of one pass of a micro-batch."""
        inputs = self._inputs(batch)
        policy = self._forward(self._model, inputs | self._router_inputs, batch)
        if kept is None:
            responses = self._responses(policy, self._reference_logps(inputs, batch), batch)
            per_prompt, _ = self._objective(responses, training=True)
        else:
            per_prompt = kept[1].differentiable(ranked_responses(policy, None, batch, needs=self._objective.needs))
        loss = step_loss(per_prompt, torch.tensor(len(per_prompt)), self._parts)
        return loss + self._router_coef * policy.model_outputs.aux_loss if self._router else loss

    @property
    def _router_inputs(self) -> dict[str, Any]:
        return {"output_router_logits": True} if self._router else {}

    def _responses(self, policy: Outputs, reference: Tensor | None, batch: dict[str, Any]) -> RankedResponses:
        return ranked_responses(
            policy, reference, batch, needs=self._objective.needs, use_weighting=self._use_weighting
        )

    def _reference_logps(self, inputs: dict[str, Any], batch: dict[str, Any]) -> Tensor | None:
        stored: Tensor | None = batch.get("ref_token_logps")
        if stored is not None or not self._objective.reads_reference:
            return stored
        return self._reference_pass(inputs, batch)

    def _inputs(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        with self._ledger.booking(MASK):
            if self._unmasked is None:
                return prepare_inputs(self._model, self._model.config, batch)
            rows, length = batch["input_ids"].shape
            self._block_mask = None
            if self._unmasked == "flex_attention":
                # A BlockMask is built from the whole mask; it keeps counts and indices, of full blocks and of others,
                # by rows and by columns.
                whole, blocks = torch.empty(rows, 1, length, length, dtype=torch.bool), -(-length // 128)
                self._block_mask = torch.empty(rows, 4, blocks, blocks + 1, dtype=torch.int32)
                del whole
            return {name: batch[name] for name in MODEL_INPUTS if name in batch}

    def _forward(self, model: Any, inputs: dict[str, Any], batch: dict[str, Tensor]) -> TokenOutputs:
        # accelerate wraps the model's forward, and nothing else of the step, in autocast.
        with torch.autocast("cpu", dtype=self._precision, enabled=self._precision is not None):
            return token_outputs(model, inputs, batch)

    def _reference_pass(self, inputs: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
        before, self._ledger.phase = self._ledger.phase, "reference pass"
        reference = self._model if self._reference is None else self._reference
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluation_mode(reference))
            if self._reference is None and self._adapted:
                stack.enter_context(use_adapter(self._model, None))
            stack.enter_context(self._ledger.booking(REFERENCE_PASS))
            logps = self._forward(reference, inputs, batch).logps
        self._ledger.phase = before
        return logps


class _Optimizer:
    """The optimizer of a run with its state allocated, as from the second step on."""

    def __init__(self, args: PreferenceConfig, model: nn.Module, ledger: Ledger) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
        self._optimizer: Any = cls(self.parameters, **options)
        self._bitsandbytes = cls.__module__.startswith("bitsandbytes")
        with ledger.booking(OPTIMIZER):
            if self._bitsandbytes:
                allocate_optimizer_state(self._optimizer)
            else:
                for p in self.parameters:
                    p.grad = torch.zeros_like(p)
                self._optimizer.step()
                self._optimizer.zero_grad()
        for state in self._optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    ledger.book(value, OPTIMIZER)
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(lambda p: ledger.book(p.grad, GRADIENTS))

    def step(self) -> None:
        if not self._bitsandbytes:  # its kernels work in place
            self._optimizer.step()


def _prepare(model: Any, reference: Any, setup: Setup, ledger: Ledger) -> None:
    """Give both models fake weights, then prepare them as `DPOTrainer` and `Trainer` do."""
    args = setup.args
    _materialize(model, ledger, None)
    if reference is not None:
        _materialize(reference, ledger, REFERENCE_MODEL)

    base = model.get_base_model() if setup.peft is not None else model
    add_fused_lm_head(base, outputs=HEAD_OUTPUTS + (("log_sum_sq_probs",) if args.use_weighting else ()))
    add_compact_head(base)
    if reference is not None:
        add_fused_lm_head(reference)
        add_compact_head(reference)
    if args.disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        disable_functional_dropout(model)
    model.train()
    if args.gradient_checkpointing:
        if setup.peft is not None:
            model.enable_input_require_grads()
        # Random number states are a few bytes, and a fake device has none.
        given: Any = args.gradient_checkpointing_kwargs or {}
        enable_checkpointing(model, {"use_reentrant": False, **given, "preserve_rng_state": False})


def _build_on_meta(setup: Setup, layers: int | None) -> tuple[Any, Any]:
    """Return both models on the meta device, where PEFT can change dtypes; it can't change those of fake tensors."""
    with torch.device("meta"):
        model = load_on_meta(setup, layers)
        if setup.quantization is not None:
            quantize(model, setup.quantization)
        if setup.peft is not None:
            model = get_peft_model(model, copy.deepcopy(setup.peft))
            if setup.quantization is not None:
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.to(torch.bfloat16)
        reads_reference = setup.args.objective().reads_reference and not setup.args.precompute_ref_log_probs
        if setup.peft is not None or not reads_reference:
            return model, None
        return model, load_on_meta(setup, layers).requires_grad_(False).eval()


def _materialize(model: nn.Module, ledger: Ledger, part: str | None) -> None:
    """Replace meta tensors by fake tensors; shared weights stay shared."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor, kind: str) -> Tensor:
        if id(tensor) not in made:
            with ledger.booking(part or kind):
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    adapted = hasattr(model, "peft_config")
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        quantized = isinstance(module, Linear4bitStandIn)
        for name, parameter in own_parameters(module).items():
            if parameter is not None:
                kind = ADAPTERS if adapted and parameter.requires_grad else WEIGHTS
                new = fake(parameter, WEIGHTS_4BIT if quantized and name == "weight" else kind)
                # Shared parameters must stay one object: optimizers tell parameters apart by identity.
                own_parameters(module)[name] = parameters.setdefault(
                    id(parameter), nn.Parameter(new, parameter.requires_grad)
                )
        for name, buffer in own_buffers(module).items():
            if buffer is not None:
                own_buffers(module)[name] = fake(buffer, CONSTANTS if quantized else WEIGHTS)


def load_on_meta(setup: Setup, layers: int | None) -> Any:
    """Return the model without quantization and adapters, with `layers` decoder layers. Call it on the meta device."""
    config = copy.deepcopy(setup.config)
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = text.layer_types[:layers]
    attention = UNMASKED if _unmasked(setup) else setup.attention
    options = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, dtype=setup.dtype, **options)


def _unmasked(setup: Setup) -> str | None:
    """Return the attention implementation if it reads no mask tensor. SDPA without a mask stands in for it."""
    attention = setup.attention or ""
    return attention if "flash" in attention or attention == "flex_attention" else None


def _layout(setup: Setup, model: nn.Module) -> RowLayout:
    config: Any = copy.deepcopy(model.config)
    if setup.attention is not None:
        set_attention(config, setup.attention)
    return layout_without_check(config, prefix_sharing=setup.args.prefix_sharing, packing=setup.args.packing)


def _zeros(group: PromptGroup) -> list[np.ndarray]:
    return [np.zeros(len(ids), np.float32) for ids in group.completion_ids]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _watch_layers(model: nn.Module, ledger: Ledger) -> None:
    """Book what the layers allocate as activations, and switch the phase as the backward pass reaches them."""
    layers = decoder_layers(model)
    names = {0: "backward: first layer", len(layers) - 1: "backward: last layer"}

    for number, layer in enumerate(layers):
        name = names.get(number, "backward: layers between")

        def before(module: nn.Module, args: Any) -> None:
            if torch.is_grad_enabled() and ledger.part == HEAD:
                ledger.part = ACTIVATIONS

        def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if ledger.part == ACTIVATIONS:
                ledger.part = HEAD
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:

                def enter(gradient: Tensor) -> None:
                    ledger.phase = name

                hidden.register_hook(enter)

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
