"""The reference of a run: settled once, before training, and kept with its checkpoints."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SyncRefModelCallback

from .._compat.deepspeed import gathered, is_partitioned
from .._compat.transformers import loaded_from
from .._compat.trl import use_adapter
from ..modeling.forward import evaluation_mode
from ..modeling.weight_files import check_values
from ..record import atomic_file
from . import frozen_adapter as adapter
from .beside_adapter import WeightsBesideAdapter, trained_beside
from .reference_identity import FILE, ReferenceIdentity, ReferenceMismatchError
from .weights_fingerprint import FingerprintError, fingerprint

logger = logging.getLogger(__name__)

MOVED_FILE = "reference.safetensors"


NO_SECOND_MODEL: Any = object()
"""What `DPOTrainer` is given as `ref_model`: where it is given None, it loads a model or copies the adapter."""


def frozen_copy(model: nn.Module) -> Any:
    """Copy a model as it stands in memory. Its path may hold other weights by now."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        if is_partitioned(weight):  # by ZeRO-3, which shards the copy too once the engine gets it
            with gathered([weight]):
                memo[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
    reference = copy.deepcopy(model, memo)
    reference.__dict__.pop("forward", None)  # an earlier trainer's patch, bound to the policy
    return reference.requires_grad_(False).eval()


class Reference:
    """The model that a run's log-ratios are measured against.

    Args:
        policy: the model to train, or its path.
        second: a model that the user gave as the reference, its path, or None.
        needed: whether any loss reads it.
        new_adapter: whether the policy gets one.
        keep_model: False where its log-probs are stored before training, so that full fine-tuning needs no copy.
        synced: whether training moves it (TR-DPO).

    Attributes:
        model: a second model, or None: the reference is the policy with other adapters, its log-probs are stored, or
            no loss reads it.
        adapter: the policy's adapter that is the reference; None for adapters off.
        identity: None until `settle`.
    """

    def __init__(
        self, policy: Any, second: Any, *, needed: bool, new_adapter: bool, keep_model: bool, synced: bool
    ) -> None:
        self.needed, self.synced = needed, synced
        self.given = second is not None
        self.starting_adapter = isinstance(policy, nn.Module) and is_peft_model(policy)
        self._second: Any = second if needed else None
        self._loads = needed and second is None and keep_model and not (new_adapter or self.starting_adapter)
        if self._loads and isinstance(policy, nn.Module):
            # The path that the policy came from may hold other weights by now.
            self._second, self._loads = frozen_copy(policy), False
        self.model: Any = None  # until `settle`: DPOTrainer prepares whatever it finds as `ref_model`
        self.adapter: str | None = None
        self.identity: ReferenceIdentity | None = None
        self._accelerator: Any = None
        self._beside: WeightsBesideAdapter | None = None

    def settle(
        self,
        policy: Any,
        accelerator: Accelerator,
        load: Callable[[str | None], Any],
        prepare: Callable[[Any], Any],
    ) -> None:
        """Decide which weights the reference is, take their fingerprint, and log it.

        Call this once, when the policy is loaded: its weights have their final dtypes, and none is sharded or trained.

        Args:
            policy: as training starts from it. It gets the adapter `ref` where that is the reference.
            accelerator: of the run; every process must call this.
            load: loads a second model from a path; None is the policy's.
            prepare: makes a second model ready for the run's engine.

        Raises:
            ReferenceMismatchError: the processes hold different weights.
            NotImplementedError: weights beside the adapter are trained, and they are sharded.
        """
        self._accelerator = accelerator
        self.model = load(self._second) if self._loads or isinstance(self._second, str) else self._second
        self._second = None
        self.identity = self._decide(policy)
        if accelerator.is_main_process:
            logger.info(f"Reference: {self.identity}.")
        if self.model is not None:
            self.model = prepare(self.model)

    @contextlib.contextmanager
    def active(self, policy: Any) -> Iterator[Any]:
        """Yield the reference in evaluation mode: the second model, or the policy with the adapters of the reference.

        Args:
            policy: as it is run: FSDP or torch.compile may have wrapped it.
        """
        with contextlib.ExitStack() as stack:
            model = policy if self.model is None else self.model
            stack.enter_context(evaluation_mode(model))
            if self.model is None and is_peft_model(policy):
                stack.enter_context(use_adapter(self._accelerator.unwrap_model(policy), self.adapter))
                if self._beside is not None:
                    stack.enter_context(self._beside.as_they_were())
            yield model

    def check_trainable(self, policy: Any) -> None:
        """Refuse trainable weights beside the adapter that no copy is kept of; see `WeightsBesideAdapter`.

        Raises:
            ReferenceMismatchError: names them.
        """
        if not self.needed or self.model is not None or not is_peft_model(policy):
            return
        kept = set() if self._beside is None else self._beside.names
        if moved := sorted(set(trained_beside(policy)) - kept):
            raise ReferenceMismatchError(
                f"Weights beside the adapter are trainable: {', '.join(moved[:3])}{', ...' if len(moved) > 3 else ''}. "
                "They would move the reference, which is the same model without the adapter, and an adapter's "
                "checkpoint doesn't hold them. Freeze them, or name their modules in modules_to_save of the adapter."
            )

    def _decide(self, policy: Any) -> ReferenceIdentity:
        name = repr(loaded_from((self.model or policy).config) or "in memory")
        adapters = None
        if not self.needed:
            return ReferenceIdentity("none", "none, since no loss reads one", None)
        if self.model is not None or not is_peft_model(policy):
            kind, what = "second_model", f"the model {name} given as ref_model" if self.given else f"the model {name}"
        else:
            copied = self.starting_adapter or not adapter.changes_nothing(policy)
            self._keep_weights_beside(policy)
            if copied or self.synced:
                adapter.freeze_copy(policy)
                self.adapter = adapter.FROZEN
            # A moving copy of an adapter that changes nothing yet is the base model.
            adapters = [adapter.FROZEN] if copied else []
            kind = "starting_adapter" if copied else "adapters_off"
            what = f"the starting adapter on {name}" if copied else f"the base model {name} with adapters off"
        if not self.given:
            what += ", as it was when training started"
        if self.synced:
            what += ", then moved towards the policy"
        weights = self.model if self.model is not None else policy
        return ReferenceIdentity(kind, what, _agreed_fingerprint(weights, adapters, self._accelerator))

    def _keep_weights_beside(self, policy: Any) -> None:
        beside = WeightsBesideAdapter(policy)
        if beside.names:
            if self.synced or self._sharded:
                setting = "sync_ref_model=True" if self.synced else "weights sharded over processes"
                raise NotImplementedError(
                    f"The adapter's bias={policy.peft_config[adapter.TRAINED].bias!r} trains biases of the base model, "
                    f"which does not work with {setting}. Set bias='none'."
                )
            self._beside = beside
        self.check_trainable(policy)

    @property
    def _sharded(self) -> bool:
        return self._accelerator.distributed_type.value == "FSDP" or is_deepspeed_zero3_enabled()

    def callback(self) -> TrainerCallback:
        """Return what moves the reference while training (TR-DPO).

        Raises:
            NotImplementedError: adapters, with weights sharded by FSDP1.
        """
        if self._sharded and self._accelerator.is_main_process:
            logger.warning("sync_ref_model with sharded weights: this run can't be resumed from a checkpoint.")
        if self.adapter is None:
            return SyncRefModelCallback(ref_model=self.model, accelerator=self._accelerator)
        if self._accelerator.distributed_type.value == "FSDP" and not self._accelerator.is_fsdp2:
            raise NotImplementedError(
                "sync_ref_model=True moves an adapter, whose weights FSDP1 merges with others: use FSDP2 "
                "(fsdp_version: 2), DDP or DeepSpeed, or set sync_ref_model=False."
            )
        return adapter.MoveAdapter()

    # Checkpoints

    def save(self, folder: str | Path, policy: Any) -> None:
        """Write into a checkpoint which reference it belongs to, and how far that has moved."""
        assert self.identity is not None
        self.identity.save(folder)
        if self.synced and not self._sharded:
            path = Path(folder) / MOVED_FILE
            with atomic_file(path) as temporary:
                if self.adapter is None:
                    safetensors.torch.save_model(self._unwrapped(), str(temporary))
                else:
                    safetensors.torch.save_file(
                        {
                            name: tensor.contiguous()
                            for name, tensor in adapter.state(self._accelerator.unwrap_model(policy)).items()
                        },
                        temporary,
                    )

    def left_out(self, policy: Any) -> contextlib.AbstractContextManager[None]:
        """While open, saving the policy leaves out an adapter that was added as the reference."""
        if self.adapter is None:
            return contextlib.nullcontext()
        return adapter.saves_no_copy(self._accelerator.unwrap_model(policy))

    def check_checkpoint(self, folder: str | Path) -> None:
        """Refuse a checkpoint that this reference doesn't belong to; see `ReferenceIdentity.check_checkpoint`.

        Raises:
            ReferenceMismatchError: also where its reference had moved and this one doesn't, or the other way round.
        """
        assert self.identity is not None
        self.identity.check_checkpoint(folder)
        path = Path(folder) / MOVED_FILE
        if self.identity.kind == "none" or not (Path(folder) / FILE).exists():
            return
        if path.exists() != self.synced:
            how = "moved with the policy" if path.exists() else "stood still, or where it had moved to wasn't saved"
            raise ReferenceMismatchError(
                f"The reference of {folder} {how}; now sync_ref_model={self.synced}. Set it as it was, or start a new "
                "run from that model."
            )
        if self.synced:
            check_values(path, ReferenceMismatchError)

    def load(self, folder: str | Path, policy: Any) -> None:
        """Move the reference to where it was when the checkpoint was written."""
        path = Path(folder) / MOVED_FILE
        if not self.synced or not path.exists():
            return
        if self.adapter is None:
            try:
                safetensors.torch.load_model(self._unwrapped(), path)
            except RuntimeError as error:  # other names or shapes
                raise ReferenceMismatchError(
                    f"{path} holds another model ({' '.join(str(error).split())[:300]}). Take another checkpoint."
                ) from error
        else:
            _copy_into(adapter.state(self._accelerator.unwrap_model(policy)), safetensors.torch.load_file(path), path)

    def _unwrapped(self) -> nn.Module:
        return self._accelerator.unwrap_model(self.model, keep_torch_compile=False)


def _copy_into(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    # copy_ would repeat a smaller tensor.
    if {name: t.shape for name, t in saved.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ReferenceMismatchError(f"{path} holds another adapter. Take another checkpoint.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _agreed_fingerprint(model: nn.Module, adapters: list[str] | None, accelerator: Accelerator) -> str | None:
    try:
        mine = fingerprint(model, adapters)
    except FingerprintError as error:
        mine = None
        if accelerator.is_main_process:
            logger.warning(f"The reference has no fingerprint, so a resumed run can't check it. {error}")
    if accelerator.distributed_type.value == "FSDP":
        return broadcast_object_list([mine])[0]  # the other processes may get their weights later, from the first
    everyone = gather_object([mine])
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise ReferenceMismatchError(
                f"Process {rank} has other reference weights ({other}) than process 0 ({everyone[0]}). Every process "
                "must load the same model; weights that are drawn or changed in memory need the same seed."
            )
    return mine
