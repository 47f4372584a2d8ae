"""`PreferenceTrainer`: TRL's `DPOTrainer` with losses from the registry and rankings of any K."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer

from .._compat.trl import disable_gradient_checkpointing, plain_dpo_config, use_adapter
from ..data.collator import PreferenceCollator
from ..data.format import format_dataset
from ..data.tokenize import TOKEN_COLUMNS, tokenize_dataset
from ..modeling.dropout import disable_functional_dropout
from ..modeling.layout import gather_token_logps, padded_layout
from ..modeling.masks import model_inputs
from ..reference import ReferenceIdentity
from ..reference.run_reference import Reference
from ..types import MissingReferenceError, RankedResponses
from .config import PreferenceConfig
from .metrics import RANKING_ONLY, batch_metrics
from .objective import Objective
from .preflight import run_checks as checks
from .publish import PushesToHub, checkpoint_from_hub
from .row_layout import PlanRowsWhenWrapped, set_row_layout
from .safety.checkpoint import atomic_checkpoint, find_checkpoint
from .safety.guard import TrainingGuard
from .safety.run_state import RunState, StopOnSigterm
from .stored_reference import StoredReference, computes_online


class PreferenceTrainer(PushesToHub, DPOTrainer):
    """Train on pairs or rankings with any mix of registered losses.

    Everything `trl.DPOTrainer` takes works here: PEFT, quantized bases, accelerate, the Hub, callbacks. Datasets may
    have K >= 2 responses per prompt, ragged, with ties (see `trl_dpo_ext.data.format`). No reference model is loaded
    and no reference forward runs where no loss reads the reference.

    Args:
        model: Hub id, folder, `PreTrainedModel` or `PeftModel`. The reference of full fine-tuning is the model as it
            stands in memory.
        ref_model: a reference to use instead.
        args: the configuration; checked before anything is loaded.
        train_dataset, eval_dataset: rows in any accepted form; checked before the model is loaded.
        **kwargs: as for `trl.DPOTrainer` (`processing_class`, `peft_config`, `quantization_config`, `callbacks`, ...).

    Raises:
        TypeError: `args` isn't a `PreferenceConfig`.
        ConfigError, DataError: settings that can't work together, unusable rows.

    Example:
        ```python
        trainer = PreferenceTrainer(
            model="Qwen/Qwen2.5-0.5B",
            args=PreferenceConfig(output_dir="out", loss_type="plackett_luce"),
            train_dataset=dataset,  # prompt, completions, ranks
        )
        trainer.train()
        ```
    """

    _tag_names = ["trl", "dpo", "trl-dpo-ext"]  # noqa: RUF012, as in TRL
    objective: Objective
    args: PreferenceConfig
    model: Any

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        args: PreferenceConfig | None = None,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = PreferenceConfig("trl-dpo-ext-output")
        if not isinstance(args, PreferenceConfig):
            raise TypeError(
                f"args is a {type(args).__name__}; pass a PreferenceConfig, which takes every field of DPOConfig."
            )
        self.objective = args.objective()
        checks.check_arguments(model, ref_model, args, kwargs, self.objective)
        train_dataset = self._format(train_dataset, args, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {key: self._format(value, args, key) for key, value in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._format(eval_dataset, args, "eval")

        precompute = args.precompute_ref_log_probs and not computes_online(train_dataset, eval_dataset)
        self._reference = Reference(
            model,
            ref_model,
            read=self.objective.reads_reference,
            new_adapter=kwargs.get("peft_config") is not None,
            kept=not precompute,
            moves=args.sync_ref_model,
        )
        self._formatted = True
        self._rows_planned = False
        with plain_dpo_config(args, precompute_ref_log_probs=precompute, sync_ref_model=False):
            super().__init__(
                model=model,
                ref_model=self._reference.for_trl,
                args=args,
                data_collator=PreferenceCollator(padded_layout),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                **kwargs,
            )
        self._formatted = False
        self.guard, self.run_state, self.sigterm = TrainingGuard(self), RunState(self), StopOnSigterm(self)
        for callback in (self.guard, self.run_state, self.sigterm):
            self.add_callback(callback)
        if self.is_world_process_zero():
            self.data_findings = checks.log_data_findings(self, train_dataset, eval_dataset)
        if args.disable_dropout:
            disable_functional_dropout(self.model)
        if args.sync_ref_model:
            self.add_callback(self._reference.callback())
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            self.add_callback(PlanRowsWhenWrapped(self))  # sharded weights can't run before `train` wraps the model
        else:
            self._plan_rows(self.model)

    def _plan_rows(self, model: nn.Module, full_precision: bool = True) -> None:
        if not self._rows_planned:
            self._rows_planned = True
            set_row_layout(self, model, full_precision)

    # Reference

    @property
    def ref_model(self) -> Any:
        """The reference model, or None: adapters off, cached log-probs, or no loss reads a reference."""
        return self._reference.model

    @ref_model.setter
    def ref_model(self, value: Any) -> None:
        self._reference.take(value, self.model, self.accelerator)

    @property
    def reference_identity(self) -> ReferenceIdentity:
        """Which weights the reference is; with `sync_ref_model`, those it starts from."""
        assert self._reference.identity is not None
        return self._reference.identity

    @property
    def has_reference(self) -> bool:
        """Whether the reference can be run at any time: a second model is in memory, or adapters can be taken off."""
        return self.ref_model is not None or is_peft_model(self.model)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Any]:
        """Yield the model as the reference: second model, adapters off, or starting adapter; without gradients.

        Raises:
            MissingReferenceError: full fine-tuning has begun and no reference was kept.
        """
        if not self.has_reference and self.state.global_step > 0:
            raise MissingReferenceError(
                "No reference was kept in memory: no loss reads it, or its log-probs are cached."
            )
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, cast(Any, self.args.gradient_checkpointing_kwargs)),
            contextlib.ExitStack() as stack,
        ):
            if self.ref_model is None and is_peft_model(self.model):
                stack.enter_context(use_adapter(self.accelerator.unwrap_model(self.model), self._reference.adapter))
            yield self.ref_model if self.ref_model is not None else self.model

    # Data

    def _format(self, dataset: Any, args: PreferenceConfig, name: str) -> Any:
        if dataset is None:
            return None
        checks.check_dataset_type(dataset, name)
        if not _is_tokenized(dataset):
            dataset = format_dataset(
                dataset,
                name=name,
                invalid_rows=args.invalid_rows,
                reads_ties="ties" in self.objective.needs,
                num_proc=args.dataset_num_proc,
            )
        checks.check_needs(dataset, self.objective, name)
        return dataset

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if not self._formatted:  # a dataset given to evaluate() later
            dataset = self._format(dataset, args, dataset_name)
        if _is_tokenized(dataset):
            return dataset
        with args.main_process_first(desc=f"preparing the {dataset_name} dataset"):
            return tokenize_dataset(
                dataset,
                self._tokenizer,  # that of a processor, where the model is multimodal and the data is text
                name=dataset_name,
                max_length=args.max_length,
                reads_ties="ties" in self.objective.needs,
                invalid_rows=args.invalid_rows,
                num_proc=args.dataset_num_proc,
            )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [*TOKEN_COLUMNS]

    @functools.cached_property
    def _stored_reference(self) -> StoredReference:
        return StoredReference(self)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        if not computes_online(dataset):
            stored = self._stored_reference
            self._plan_rows(self.model)
            stored.fill(dataset, name, batch_size)
        return dataset

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate. A dataset given here, all of whose reference log-probs are stored, needs no reference in memory."""
        late = self.precompute_ref_logps and not self.has_reference and self.state.global_step > 0
        if late and eval_dataset is not None and not isinstance(eval_dataset, str):
            prepare = functools.partial(self._prepare_dataset, processing_class=self.processing_class, args=self.args)
            splits = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
            prepared = {name: prepare(dataset, dataset_name=name) for name, dataset in splits.items()}
            if self._stored_reference.holds(*prepared.values()):
                eval_dataset = prepared if isinstance(eval_dataset, dict) else prepared["eval"]
                self.precompute_ref_logps = False  # nothing is left to compute, which is all that TRL would refuse
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.precompute_ref_logps |= late

    # Loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the micro-batches of a step, and count their prompts over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.guard.begin_step(batches)
        prompts = torch.tensor(sum(len(batch["ranks"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(prompts, reduction="sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch, scaled so that the whole step averages over its prompts."""
        training = self.model.training
        arguments = self._model_inputs(inputs)
        router: dict[str, Any] = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = self._forward(model, arguments, **router)
        responses = self._responses(outputs, arguments, inputs)
        per_prompt, loss_metrics = self.objective(responses, training=training, global_mean=self._global_mean)
        loss = per_prompt.mean()
        if num_items_in_batch is not None:
            # Trainer divides by the number of micro-batches, DDP by the number of processes; here all prompts of the
            # step weigh the same, also where the last micro-batch is smaller.
            parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = per_prompt.sum() * parts / num_items_in_batch
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            broken, size = self._record("train" if training else "eval", loss, outputs, inputs, responses, loss_metrics)
        if training:
            self.guard.check_loss(per_prompt, inputs, broken, size)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Evaluate a batch: loss and metrics only, since rows of rankings have no logits to hand on."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    def _model_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        # Built once a batch, for policy and reference: the attention mask of shared rows is quadratic.
        return model_inputs(self.model.config, inputs, self.model.get_input_embeddings().weight.dtype)

    @staticmethod
    def _forward(model: Any, arguments: dict[str, Any], **options: Any) -> Any:
        return model(**arguments, **options, use_cache=False, fused_lm_head=True)

    @staticmethod
    def _by_response(values: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        lengths = inputs["lengths"]
        return gather_token_logps(values, inputs["index"], (*lengths.shape, int(lengths.max())))

    def _token_logps(self, outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        return self._by_response(outputs.log_probs, inputs)

    def _responses(self, outputs: Any, arguments: dict[str, Any], inputs: dict[str, Tensor]) -> RankedResponses:
        token_logps = self._token_logps(outputs, inputs)
        ref_token_logps = None
        if self.objective.reads_reference:
            ref_token_logps = inputs.get("ref_token_logps")
            if ref_token_logps is None:
                with self.reference() as reference:
                    ref_token_logps = self._token_logps(self._forward(reference, arguments), inputs)
        weights = None
        if self.use_weighting:
            with torch.no_grad():  # WPO, arXiv 2406.11827, Eq. 2
                aligned = token_logps - self._by_response(outputs.log_sum_sq_probs, inputs)
                weights = torch.exp(aligned.sum(dim=2) / inputs["lengths"].clamp(min=1))
        keep_tokens = "token_logps" in self.objective.needs
        return RankedResponses(
            logps=token_logps.sum(dim=2),
            ref_logps=None if ref_token_logps is None else ref_token_logps.sum(dim=2),
            lengths=inputs["lengths"],
            ranks=inputs["ranks"],
            mask=inputs["mask"],
            scores=inputs.get("scores"),
            weights=weights,
            token_logps=token_logps if keep_tokens else None,
            ref_token_logps=ref_token_logps if keep_tokens else None,
        )

    def _global_mean(self, values: Tensor) -> Tensor:
        totals = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
        total, count = self.accelerator.reduce(totals, reduction="sum")
        return total / count.clamp(min=1)

    def _record(
        self,
        mode: str,
        loss: Tensor,
        outputs: Any,
        inputs: dict[str, Tensor],
        responses: RankedResponses,
        loss_metrics: dict[str, Tensor],
    ) -> tuple[float, float]:
        """Keep a batch's metrics; return on how many processes its loss isn't finite, and the sum of its size."""
        tokenwise = [self._by_response(v, inputs) for v in (outputs.entropy, outputs.mean_logits, outputs.is_top1)]
        totals = batch_metrics(self.objective, responses, tokenwise, loss_metrics)
        if self.aux_loss_enabled:
            totals["aux_loss"] = (outputs.aux_loss, torch.tensor(1))
        tokens = inputs["attention_mask" if "attention_mask" in inputs else "token_mask"].sum()

        device = responses.logps.device
        numbers = [part for total in totals.values() for part in total]
        more_than_pairs = torch.tensor(responses.logps.shape[1] > 2)
        numbers += [more_than_pairs, tokens, ~torch.isfinite(loss), loss.abs(), torch.tensor(self.sigterm.asked)]
        flat = torch.stack([number.to(device).double() for number in numbers])
        # One sum over all processes for everything.
        *sums, wide, tokens_seen, broken, size, asked = self.accelerator.reduce(flat, reduction="sum").tolist()
        metrics = self._metrics[mode]
        for name, numerator, denominator in zip(totals, sums[::2], sums[1::2], strict=True):
            if wide or not name.endswith(RANKING_ONLY):
                metrics[name].append(numerator / denominator if denominator else 0.0)
        if mode == "train":
            self._total_train_tokens += int(tokens_seen) // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]
        self.sigterm.agreed |= asked > 0
        return broken, size

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self.guard.check_gradients(model, super()._get_grad_norm(model, grad_norm))

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint; see `find_checkpoint` for what can be given.

        Raises:
            DiskSpaceError, CheckpointError, ReferenceMismatchError: before anything is trained.
            TrainingError: no weight moves, or NaN or infinity appear.
            SystemExit: a checkpoint was written because of SIGTERM.
        """
        checks.check_disk(self.model, self.args)
        if resume_from_checkpoint is None and self.args.resume_from_hub is not None:
            resume_from_checkpoint = checkpoint_from_hub(self.args.resume_from_hub, self.args)
        self.run_state.checkpoint = checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        if checkpoint is not None:
            self._reference.check_checkpoint(checkpoint)
        with self.sigterm.listening():
            return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with atomic_checkpoint(self, trial) as folder:
            super()._save_checkpoint(model, trial)
            self.run_state.save(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._reference.left_out(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)


def _is_tokenized(dataset: Any) -> bool:
    columns: Any = dataset.column_names or next(iter(dataset), {})
    return {"prompt_ids", "completion_ids", "ranks"} <= set(columns)
