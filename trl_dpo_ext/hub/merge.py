"""Merges an adapter into its base model so that the merged model is the one that was trained.

An adapter trained on a 4-bit base has learned to work with that base's rounding errors. Merged into the base model's
original weights it becomes another model; merged and rounded to 4 bits again, yet another one. Here each 4-bit weight
is dequantized to the value that training saw, the adapter is added in float32, and the sum is stored in 16 bits.

The merge takes one layer at a time, so it holds at most one layer twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from accelerate.utils import tqdm
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from .._compat.peft import BaseTunerLayer, LoraLayer, LoraLinear, TrainableTokensLayer, dequantize_module_weight
from .._compat.transformers import Conv1D
from ..record import versions, write_json
from .adapter_loading import attach_adapter, load_base
from .distributions import compare_distributions, next_token_logits
from .run_folder import Run, TrainedBase, read_run

MERGE_RECORD = "merge.json"
Into = Literal["trained", "original"]
# float16 has three more mantissa bits than bfloat16, so the merged model is closer to the trained one.
_DTYPES = ("float16", "bfloat16", "float32")
_SHARD_SIZE = "2GB"  # safetensors holds a copy of a shard while it writes it
_PROMPTS = 64
# The largest mean KL, nats, at which a merge counts as the model that was trained. In 16 bits it is thirty times what
# rounding cost in docs/hub.md. An 8-bit base rounds activations too, which no merged model repeats.
_ALLOWED_KL = {"float32": 1e-6, "float16": 2e-4, "bfloat16": 6e-3}
_ALLOWED_KL_8BIT = 6e-3
_QUANTIZED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


class MergeError(ValueError):
    """An adapter that can't be merged as asked. The message says what to do."""


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    into: Into = "trained",
    dtype: str = "float16",
    base_model: str | None = None,
    prompts: Sequence[str] | None = None,
    allowed_kl: float | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Merge a run's adapter into its base model, and measure how far the result is from the model that was trained.

    The base model is loaded as in training; result.json or recipe.yaml of the run have its quantization. The merged
    model gets the tokenizer with its chat template, the generation config, and `merge.json` with the measurement, which
    reads the written files and computes in float32.

    Args:
        adapter: the run's folder, with a LoRA, DoRA or rsLoRA adapter; trained biases and `modules_to_save` are merged.
        output: folder of the merged model; it must not exist, or be empty. It appears only when complete.
        into: "trained" merges into the dequantized weights that training saw. "original" merges into the base model's
            unquantized weights, which gives another model than the one that was trained; `merge.json` says how far off.
        dtype: dtype of the merged weights: "float16" (closest to the trained model), "bfloat16" (for models whose
            activations overflow in float16) or "float32".
        base_model: Hub id or folder of the base model, if it isn't where adapter_config.json says.
        prompts: real prompts to compare the two models on, at least two, of which the first 64 are used; by default
            those of the run's samples.
        allowed_kl: largest mean KL(trained || merged), nats, for a merge into "trained"; by default 1e-6 for float32,
            2e-4 for float16, and 6e-3 for bfloat16 and for an 8-bit base.
        device: "cpu", "cuda", ...; by default the GPU if there is one.
        progress: show progress bars.

    Returns:
        The content of `merge.json`: `into`, `dtype`, `base_model`, `quantization`, `prompts`, `difference` (see
        `compare_distributions`), `versions`.

    Raises:
        RunError: the folder holds no adapter, or doesn't say how its base model was loaded.
        MergeError: the adapter can't be merged as asked, or the merged model isn't the one that was trained. `output`
            is then unchanged.
    """
    run = read_run(adapter)
    base = run.trained_base()
    output = Path(output)
    texts = _check(run, base, output, into, dtype, prompts)
    source = base_model or base.model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = _tokenizer(run, source, base)

    say = _say if progress else lambda text: None
    say(f"Loading the base model {source} and its adapter.")
    model = _load(run, source, base, base.quantization, device, tokenizer)
    labels = ("Trained model on the prompts", "Merged model on the prompts") if progress else (None, None)
    trained_logits = next_token_logits(model, tokenizer, texts, progress=labels[0])
    _release_memory()
    if into == "original" and base.quantization is not None:
        del model
        _release_memory()
        say("Loading the base model again, unquantized.")
        model = _load(run, source, base, None, device, tokenizer)
    merged = merge_in_place(model, getattr(torch, dtype), progress=progress)
    del model

    with _atomic_folder(output) as partial:
        say(f"Writing the merged model beside {output}, and reading it again.")
        merged.save_pretrained(partial, max_shard_size=_SHARD_SIZE)
        tokenizer.save_pretrained(partial)
        del merged
        _release_memory()
        written: Any = AutoModelForCausalLM.from_pretrained(partial, dtype=getattr(torch, dtype))
        written.to(device)
        merged_logits = next_token_logits(written, tokenizer, texts, progress=labels[1])
        difference = compare_distributions(trained_logits, merged_logits)
        if into == "trained" or base.quantization is None:
            _check_difference(difference["kl_mean"], base, dtype, allowed_kl)
        report = {
            "into": into,
            "dtype": dtype,
            "base_model": base.model,
            "quantization": None if base.quantization is None else dict(base.quantization),
            "prompts": len(texts),
            "difference": difference,
            "versions": versions(),
        }
        write_json(partial / MERGE_RECORD, report)
    return report


def _say(text: str) -> None:
    # Each of these may take minutes without a sign of life.
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def _atomic_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output`, which is missing or empty; after an error it is deleted."""
    partial = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_difference(kl: float, base: TrainedBase, dtype: str, allowed: float | None) -> None:
    if allowed is None:
        allowed = _ALLOWED_KL_8BIT if (base.quantization or {}).get("load_in_8bit") else _ALLOWED_KL[dtype]
    if not kl <= allowed:  # NaN fails too
        raise MergeError(
            f"The merged model is not the one that was trained: mean KL {kl:.2e} nats, and {allowed:g} is allowed. "
            "Nothing was saved. If it is only rounding, merge with --dtype float32, or allow more with --allowed-kl "
            "NATS. If not, load the adapter without merging it, and please report this."
        )


def _check(
    run: Run, base: TrainedBase, output: Path, into: str, dtype: str, prompts: Sequence[str] | None
) -> list[str]:
    """Refuse what can't be merged; return the prompts for the comparison."""
    kind = run.adapter.get("peft_type")
    if kind != "LORA":
        raise MergeError(f"{run.folder} holds a {kind} adapter. Only LoRA, DoRA and rsLoRA can be merged.")
    if into not in ("trained", "original"):
        raise MergeError(f"into={into!r} is unknown. Use 'trained' or 'original'.")
    if dtype not in _DTYPES:
        raise MergeError(f"dtype={dtype!r} is unknown. Use one of: {', '.join(_DTYPES)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MergeError(f"{output} exists and is not an empty folder. Give another output folder.")
    texts = list(prompts if prompts is not None else run.sample_prompts())[:_PROMPTS]
    if len(texts) < 2:
        raise MergeError(
            f"The comparison needs at least two prompts; {'you gave' if prompts is not None else 'the run recorded'} "
            f"{len(texts)}. Give prompts like those that the model will see: --prompts FILE, one a line."
        )
    if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise MergeError(f"Prompt {empty[0]} is empty. Remove it.")
    return texts


def _tokenizer(run: Run, source: str, base: TrainedBase) -> Any:
    own = (run.folder / "tokenizer_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(run.folder if own else source, revision=None if own else base.revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(run: Run, source: str, base: TrainedBase, quantization: Any, device: str, tokenizer: Any) -> PeftModel:
    """Load the base model, quantized as in training or otherwise, with its adapter."""
    # Same weights as in training; only the products are more exact.
    model = load_base(base, source, quantization, device=device, compute_dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))  # as peft.AutoPeftModel does for new tokens
    return attach_adapter(model, run, trainable=False)


def merge_in_place(model: PeftModel, dtype: torch.dtype, *, progress: bool = False) -> Any:
    """Merge the active adapter of a model, quantized or not, and return the plain model on the CPU. It uses `model` up.

    Raises:
        MergeError: a layer's merged weights aren't finite, or it is of a type that can't be merged.
    """
    layers: list[Any] = [(n, module) for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    replicated = any(getattr(config, "layer_replication", None) for config in model.peft_config.values())
    for name, layer in tqdm(layers, desc="Merging", disable=not progress):
        if not isinstance(layer, LoraLayer | TrainableTokensLayer):
            raise MergeError(f"{name} is a {type(layer).__name__}, which can't be merged.")
        base = layer.get_base_layer()
        if any(getattr(layer, "lora_bias", {}).values()) and getattr(base, "bias", None) is None:
            raise MergeError(
                f"{name}: the adapter has a bias (lora_bias=True), and this layer of the base model has none to merge "
                "it into. Load the adapter without merging it, or train one with lora_bias=False."
            )
        try:
            if isinstance(base, _QUANTIZED):
                layer.base_layer = _dequantized(base)
                # PEFT's merge for quantized layers rounds the sum to 4 bits again; the one for plain layers doesn't.
                LoraLinear.merge(layer, safe_merge=True)  # type: ignore[arg-type]
            else:
                _own_float32_weights(base)
                layer.merge(safe_merge=True)
        except (ValueError, RuntimeError, NotImplementedError) as error:  # PEFT's, for what has no merged form
            raise MergeError(f"{name} can't be merged: {error}") from error
        _cast(layer.get_base_layer(), dtype)
        _trim()
    plain: Any = model.unload()
    for name, module in list(plain.named_modules()):
        if isinstance(module, _QUANTIZED):  # a layer without an adapter
            plain.set_submodule(name, _cast(_dequantized(module), dtype))
    if getattr(plain, "hf_quantizer", None) is not None:
        plain.hf_quantizer.remove_quantization_config(plain)
    if replicated:
        _unshare(plain)
    plain.__dict__.pop("hf_device_map", None)  # all weights are on the CPU now
    _cast(plain, dtype)
    _untie_if_different(plain)
    return plain


def _release_memory() -> None:
    gc.collect()
    _trim()


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # glibc only, which keeps the memory of freed weights
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _dequantized(layer: Any) -> nn.Linear:
    if issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D):
        raise MergeError("quantized Conv1D layers (as in GPT-2) can't be merged. Train on an unquantized base.")
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(dequantize_module_weight(layer).detach().float(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    return plain


def _own_float32_weights(layer: nn.Module) -> None:
    # New parameters, so that an output embedding tied to this layer's weight keeps the unmerged one, as in training.
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.detach().float().clone(), requires_grad=False))


def _unshare(model: Any) -> None:
    """Give each layer its own weights: PEFT's replicated layers share those that have no adapter."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen and module is not model.get_output_embeddings():
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))


def _cast(module: Any, dtype: torch.dtype) -> Any:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to("cpu", dtype if parameter.is_floating_point() else None)
        if dtype is torch.float16 and not torch.isfinite(parameter.data).all():
            raise MergeError("the merged weights are too large for float16. Use --dtype bfloat16.")
    for buffer in module.buffers():
        buffer.data = buffer.data.to("cpu")
    return module


def _untie_if_different(model: Any) -> None:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    text = model.config.get_text_config()
    if outputs is None or not getattr(text, "tie_word_embeddings", False):
        return
    a: Tensor = inputs.weight
    if outputs.weight is not a and not (outputs.weight.shape == a.shape and torch.equal(outputs.weight, a)):
        warnings.warn(
            "The adapter changed one of the two tied embeddings, so the merged model stores both.", stacklevel=2
        )
        model.config.tie_word_embeddings = text.tie_word_embeddings = False
