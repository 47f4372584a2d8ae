"""A model or a run's adapter as vLLM is to load it."""

from __future__ import annotations

from typing import Any


def vllm_model(source: str) -> dict[str, Any]:
    """Return the arguments of `sample_with_vllm` that say what to load; an adapter's base is that of its training.

    Args:
        source: folder of an adapter or a model, or Hub id.

    Raises:
        ValueError: vLLM isn't installed, or can't take this adapter.
    """
    from ...evaluation.vllm_sampling import import_vllm, lora_rank
    from ...hub.run_folder import read_run
    from .sources import is_adapter

    import_vllm()
    if not is_adapter(source):
        return {"model": source}
    lora_rank(source)
    base = read_run(source).trained_base()
    if base.quantization is not None:
        # vLLM left bitsandbytes to a plugin in 0.28, and it rounds in a way of its own there, not as in training.
        raise ValueError(
            f"The base model of {source} was quantized in training, which vLLM can't repeat. Merge it with "
            f"`trl-dpo-ext merge {source} FOLDER` and sample from FOLDER, or leave out --vllm."
        )
    # vLLM has no LoRA kernels for float32.
    dtype = base.dtype if base.dtype in ("bfloat16", "float16") else "auto"
    return {"model": base.model, "revision": base.revision, "dtype": dtype, "adapter": source}
