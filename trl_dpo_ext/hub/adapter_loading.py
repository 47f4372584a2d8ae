"""Loads an adapter on its base model, quantized as in training, from a run's folder or from the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import BitsAndBytesConfig

from ..modeling.adapter_file import ADAPTER_WEIGHTS, changes_nothing, check_adapter_loaded, peft_errors
from ..modeling.complete_model import load_causal_lm
from ..modeling.forward import evaluation_mode
from ..modeling.quantized import keep_4bit_weights
from ..modeling.weight_files import check_values
from ..reference import ReferenceIdentity, ReferenceMismatchError, fingerprint
from .run_folder import Run, RunError, TrainedBase, read_run

logger = logging.getLogger(__name__)


def load_adapter(
    source: str | Path,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    device: str | None = None,
) -> Any:
    """Load a run's adapter to continue training, with the base model loaded as for the run, and check its weights.

    Plain `peft.AutoPeftModelForCausalLM` loads the adapter too, but it doesn't know how the base was quantized, nor
    whether its weights are still the same.

    Args:
        source: a run's folder, or its repository on the Hub.
        base_model: Hub id or folder of the base model; by default the recorded one.
        revision: revision of the repository.
        token: access token; by default that of `hf auth login` or HF_TOKEN.
        device: device of the base model; by default the GPU if there is one.

    Returns:
        A `PeftModel` with a trainable adapter, for `PreferenceTrainer` or any other trainer.

    Raises:
        RunError: the run can't be read, a newer version wrote it, its base model can't be loaded, or the adapter
            doesn't fit it.
        ReferenceMismatchError: the base model's weights are not the ones that the run recorded as its reference.
    """
    folder = Path(source)
    if not folder.is_dir():
        left_out = ["*checkpoint*/*", "*.png"]
        folder = Path(snapshot_download(str(source), revision=revision, token=token, ignore_patterns=left_out))
    run = read_run(folder)
    base = run.trained_base()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_base(base, base_model or base.model, base.quantization, device=device)
    _check_reference(run, base, model)
    return attach_adapter(model, run, trainable=True)


def attach_adapter(model: Any, run: Run, *, trainable: bool) -> PeftModel:
    """Return a base model with the adapter of a run's folder, all of it. Adapters are loaded nowhere else.

    Raises:
        RunError: the file is damaged, its values aren't finite, it doesn't fit the base model, or doesn't run on it.
    """
    check_values(run.folder / ADAPTER_WEIGHTS, RunError)
    with peft_errors(run.folder, RunError):
        peft_model = PeftModel.from_pretrained(model, str(run.folder), is_trainable=trainable)
        with torch.no_grad(), evaluation_mode(peft_model):  # some values of adapter_config.json are only read here
            peft_model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    check_adapter_loaded(peft_model, run.folder, RunError)
    if changes_nothing(run.folder / ADAPTER_WEIGHTS):
        logger.warning("The adapter of %s changes nothing: every lora_B is zero, as before training.", run.folder)
    return peft_model


def load_base(
    base: TrainedBase, source: str, quantization: Any, *, device: str, compute_dtype: torch.dtype | None = None
) -> Any:
    """Load a base model in the dtype of training.

    Args:
        base: how training loaded it.
        source: Hub id or folder.
        quantization: the quantization config of training, or None.
        device: the device to load it to.
        compute_dtype: compute dtype of 4-bit layers; by default that of training.

    Raises:
        RunError: the model can't be found, or lacks weights.
    """
    options: dict[str, Any] = {}
    if quantization is not None:
        try:
            options["quantization_config"] = BitsAndBytesConfig.from_dict(dict(quantization))
        except (TypeError, ValueError, AttributeError) as error:  # from_dict takes anything, and its checks differ
            raise RunError(
                f"The quantization that was recorded for the base model {source!r} is invalid: {error}. Copy or "
                "download the run's folder again."
            ) from None
        if compute_dtype is not None:
            options["quantization_config"].bnb_4bit_compute_dtype = compute_dtype
    if device != "cpu":
        options["device_map"] = {"": device}
    dtype = base.dtype if base.dtype == "auto" else getattr(torch, base.dtype)
    try:
        model = load_causal_lm(source, RunError, revision=base.revision, dtype=dtype, **options)
    except OSError as error:
        raise RunError(
            f"The base model {source!r} can't be loaded ({error}). Give its place: --base-model ID_OR_FOLDER, or "
            "base_model=... in Python."
        ) from error
    keep_4bit_weights(model)
    return model


def _check_reference(run: Run, base: TrainedBase, model: Any) -> None:
    if not run.reference:
        return
    try:
        recorded = ReferenceIdentity.from_dict(dict(run.reference))
    except ValueError as error:
        raise RunError(f"reference.json of {run.folder}: {error}") from error
    if recorded.kind != "adapters_off" or recorded.fingerprint is None:
        return  # the reference was not the plain base model
    if (found := fingerprint(model)) == recorded.fingerprint:
        return
    message = (
        f"The base model has other weights than the one that the adapter of {run.folder} was trained on.\n"
        f"  then: {recorded}\n"
        f"  now:  fingerprint {found[:12]}"
    )
    if base.quantization is not None:
        # A GPU and a CPU may round a few weights to different 4-bit values.
        logger.warning("%s\nIt is quantized, and other devices may round a few weights differently.", message)
        return
    raise ReferenceMismatchError(
        f"{message}\nGive the revision or folder of the base model that was trained on: base_model=..."
    )
