"""What the files of a run's folder must hold. Only what this package reads is checked; other keys pass."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, Field, model_validator

from ..record import FiniteNumber, Record, ReferenceRecord

__all__ = ["AdapterConfig", "MergeRecord", "ModelConfig", "RecipeRecord", "ReferenceRecord", "ResultRecord"]

Count = Annotated[int, Field(ge=0, le=10**18)]
Logged = Annotated[float, AllowInfNan(True)]
Dtype = Literal["auto", "float16", "bfloat16", "float32", "float64"]


class AdapterConfig(Record):
    """adapter_config.json. PEFT reads the rest of it."""

    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_type: str | None = None
    r: Annotated[int, Field(ge=0, le=10**6)] | None = None
    bias: str | None = None
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


class ModelConfig(Record):
    """config.json. transformers reads the rest of it."""

    model_type: str | None = None


class RecipeRecord(Record):
    """recipe.yaml."""

    model_name_or_path: str | None = None
    model_revision: str | None = None
    hub_base_model: str | None = None
    hub_base_revision: str | None = None
    loss_type: str | list[str] | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_test_split: str | None = None
    reward: str | None = None
    dtype: Dtype | None = None
    load_in_4bit: bool | None = None
    load_in_8bit: bool | None = None
    bnb_4bit_quant_type: str | None = None
    use_bnb_nested_quant: bool | None = None
    bnb_4bit_quant_storage: str | None = None


class _Interval(Record):
    mean: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber
    level: FiniteNumber


class _Rate(Record):
    rate: _Interval


class _KL(Record):
    mean: FiniteNumber
    standard_error: FiniteNumber


class _Sample(Record):
    prompt: str
    completion: str
    reward: FiniteNumber


class _Side(Record):
    reward: _Interval
    kl: _KL | None = None
    prompts: Count
    max_new_tokens: Count
    temperature: FiniteNumber
    seed: int
    samples: list[_Sample]


class _Evaluation(Record):
    before: _Side
    after: _Side
    difference: _Interval
    win_rate: _Rate | None = None

    @model_validator(mode="after")
    def _paired(self) -> _Evaluation:
        if len(self.before.samples) != len(self.after.samples):
            raise ValueError("before and after have different numbers of samples.")
        return self


class _Loss(Record):
    name: str
    weight: FiniteNumber | None = None
    hyperparameters: dict[str, Any] | None = None
    equation: str | None = None
    paper: str | None = None
    reference: str | None = None


class _Data(Record):
    train_rows: Count | dict[str, Any] | None = None
    eval_rows: Count | dict[str, Any] | None = None
    lint: dict[str, Count] | None = None


class _Metrics(Record):
    step: FiniteNumber | None = None
    num_tokens: Logged | None = None
    train_loss: Logged = 0.0


class _Parameters(Record):
    trainable: Count | None = None
    all: Count | None = None


class _Memory(Record):
    process: FiniteNumber | None = None
    gpu: FiniteNumber | None = None


class _Hardware(Record):
    processor: str | None = None
    gpus: list[str] | None = None


class _Base(Record):
    dtype: Dtype
    quantization: dict[str, Any] | None


class ResultRecord(Record):
    """result.json."""

    format: int = 1
    launch: str | None = None
    seconds: FiniteNumber | None = None
    versions: dict[str, str] | None = None
    recipe: dict[str, Any] | None = None
    losses: list[_Loss] | None = None
    evaluation: _Evaluation | None = None
    data: _Data | None = None
    metrics: _Metrics | None = None
    parameters: _Parameters | None = None
    peak_memory_gib: _Memory | None = None
    hardware: _Hardware | None = None
    base: _Base | None = None


class _Difference(Record):
    positions: Count
    kl_mean: FiniteNumber
    kl_max: FiniteNumber
    logit_difference_max: FiniteNumber
    same_top1: FiniteNumber


class MergeRecord(Record):
    """merge.json."""

    into: str
    base_model: str
    quantization: dict[str, Any] | None
    prompts: Count
    difference: _Difference
