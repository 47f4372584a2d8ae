"""What vLLM must load for a model or a run's adapter."""

from __future__ import annotations

from typing import Any


def vllm_model(source: str) -> dict[str, Any]:
    """Return the arguments of `sample_with_vllm` that say what to load. An adapter's base is that of its training.

    Args:
        source: folder of an adapter or model, or Hub id.

    Raises:
        ValueError: vLLM is not installed, or can't load this adapter.
    """
    from ...evaluation.sampling.vllm_sampling import adapter_rank, import_vllm
    from ...hub.run_folder import read_run
    from .sources import is_adapter

    import_vllm()
    if not is_adapter(source):
        return {"model": source}
    adapter_rank(source)  # raises if vLLM can't load it
    base = read_run(source).trained_base()
    if base.quantization is not None:
        # Since 0.28 vLLM needs a plugin for bitsandbytes, which rounds differently from training.
        raise ValueError(
            f"The base model of {source} was quantized in training, which vLLM can't reproduce. Merge it with "
            f"`trl-dpo-ext merge {source} FOLDER` and sample from FOLDER, or leave out --vllm."
        )
    # vLLM has no LoRA kernels for float32.
    dtype = base.dtype if base.dtype in ("bfloat16", "float16") else "auto"
    return {"model": base.model, "revision": base.revision, "dtype": dtype, "adapter": source}
