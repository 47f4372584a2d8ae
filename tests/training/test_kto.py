"""`kto` and `apo_zero_unpaired` through the trainer: against TRL's KTOTrainer, by hand, and cut in several ways."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from tests import helpers
from tests.losses import transcriptions
from tests.losses.transcriptions import Response
from tests.training import support
from trl_dpo_ext.data import DataError
from trl_dpo_ext.data.mismatched import with_mismatched


def thumbs(rows: int = 8, labels: Any = None, seed: int = 0) -> Dataset:
    generator = random.Random(seed)
    pool = helpers.TEXT.split()

    def words(low: int, high: int) -> str:
        return " ".join(generator.choices(pool, k=generator.randint(low, high)))

    return Dataset.from_list(
        [
            {
                "prompt": f"{words(2, 6)} {i}",
                "completion": f" {words(1, 7)}",
                "label": (i % 3 != 1) if labels is None else labels,
            }
            for i in range(rows)
        ]
    )


def with_theirs(ours: Any, theirs: Any) -> None:
    """Give our rows the mismatched completions that TRL chose."""
    rows = [ours.train_dataset[i] for i in range(len(ours.train_dataset))]
    for mine, other in zip(rows, theirs.train_dataset, strict=True):
        assert mine["prompt_ids"] == other["prompt_ids"]
        assert mine["completion_ids"][0] == other["completion_ids"]
        mine["completion_ids"][-1] = other["KL_completion_ids"]
    ours.train_dataset = Dataset.from_list(rows, features=ours.train_dataset.features)


def both(model: str, folder: Any, data: Dataset, loss: str, **changes: Any) -> tuple[support.Run, support.Run]:
    layout = changes.pop("layout", support.PADDED)
    given = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, **changes}
    # KTOTrainer takes the rows in their order.
    settings["train_sampling_strategy"] = "sequential"
    ours = support.trainer(model, folder / "ours", data, loss_type=[loss], beta=0.3, **{**layout, **settings}, **given)
    own = {name: settings.pop(name) for name in ("precompute_ref_log_probs",) if name in settings}
    theirs = KTOTrainer(
        model=model,
        args=KTOConfig(
            **helpers.training_args(folder / "theirs", loss_type=loss, beta=0.3, max_grad_norm=1e9, **settings)
        ),
        train_dataset=data,
        **given,
    )
    if loss == "kto":
        with_theirs(ours, theirs)
    assert not own or ours.args.precompute_ref_log_probs
    return support.train(ours), support.train(theirs)


def assert_equal(ours: support.Run, theirs: support.Run, tolerance: float = 1e-5) -> None:
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance)
    assert len(ours.losses) == 3
    for mine, other in zip(ours.gradients, theirs.gradients, strict=True):
        largest = max(g.abs().max().item() for g in other.values())
        assert largest > 0
        for name, gradient in other.items():
            torch.testing.assert_close(mine[name], gradient, rtol=tolerance, atol=tolerance * largest)
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "labels", "changes"),
    [
        ("kto", None, {}),
        ("kto", True, {}),
        ("kto", False, {}),
        ("kto", None, {"layout": support.LAYOUTS["shared_packed"]}),
        ("kto", None, {"peft_config": support.lora()}),
        ("apo_zero_unpaired", None, {}),
    ],
    ids=["mixed", "all desirable", "all undesirable", "shared and packed", "lora", "apo_zero_unpaired"],
)
def test_three_steps_are_those_of_trl(loss, labels, changes, tiny_model_dir, tmp_path):
    ours, theirs = both(tiny_model_dir, tmp_path, thumbs(labels=labels), loss, **changes)
    assert_equal(ours, theirs)
    for mine, other in zip(ours.logs, theirs.logs, strict=True):
        for own, name in (("desirable", "chosen"), ("undesirable", "rejected")):
            if f"rewards/{name}" in other:
                assert mine[f"rewards/{own}"] == pytest.approx(other[f"rewards/{name}"], abs=1e-5)
                assert mine[f"logps/{own}"] == pytest.approx(other[f"logps/{name}"], rel=1e-5)
    if loss == "kto":
        kl = [
            [log["kl"] for log in theirs.logs if "kl" in log],
            [log["kto/kl"] for log in ours.logs if "kto/kl" in log],
        ]
        assert kl[0] == pytest.approx(kl[1], abs=1e-5)


def test_the_mismatched_completion_is_that_of_the_nearest_other_prompt_before():
    rows = [([1], [[5]]), ([1], [[6], [7]]), ([2], [[8, 9]]), ([3], [[4]])]
    data = Dataset.from_list([{"prompt_ids": p, "completion_ids": c, "ranks": [0] * len(c)} for p, c in rows])
    changed = with_mismatched(data, name="train", max_length=2)
    assert changed["completion_ids"] == [[[5], [4]], [[6], [7], [4]], [[8, 9], [6]], [[4], [8]]]
    assert [len(ranks) for ranks in changed["ranks"]] == [2, 3, 2, 2]
    assert changed["mismatched"] == [True] * 4
    streamed = with_mismatched(data.to_iterable_dataset(), name="train", max_length=2)
    assert [row["completion_ids"] for row in streamed] == changed["completion_ids"]


def test_one_prompt_alone_has_nothing_that_mismatches():
    data = Dataset.from_list([{"prompt_ids": [1], "completion_ids": [[5]], "ranks": [0]}] * 3)
    with pytest.raises(DataError, match="all 3 rows have the same prompt"):
        with_mismatched(data, name="train", max_length=None)


@pytest.fixture(scope="module")
def ready(tiny_model_dir, tmp_path_factory):
    """A trainer whose policy isn't its reference any more, so that z0 isn't 0."""
    one = support.trainer(
        tiny_model_dir, tmp_path_factory.mktemp("kto"), thumbs(8), loss_type=["kto"], beta=0.7,
        per_device_train_batch_size=8, loss_kwargs={"kto": {"lambda_d": 1.5, "lambda_u": 0.5}},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in one.model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return one


def test_the_value_is_the_transcription_s(ready):
    batch = support.batch(ready)
    seen = support.responses(ready, batch)
    assert seen.mask.tolist() == [[True, False]] * 8
    ratios = seen.mismatched_log_ratios.tolist()
    groups = [
        [
            Response(
                seen.logps[b, 0].item(),
                seen.ref_logps[b, 0].item(),
                1,
                label=seen.labels[b, 0].item(),
                mismatched=ratios[b],
            )
        ]
        for b in range(8)
    ]
    expected = transcriptions.kto(groups, beta=0.7, lambda_d=1.5, lambda_u=0.5)
    assert len(set(expected)) > 1
    with torch.no_grad():
        value = ready.compute_loss(ready.model, batch)
    assert value.item() == pytest.approx(sum(expected) / 8, rel=1e-5)


def test_the_mismatched_log_probs_are_a_plain_forward_s(ready):
    seen = support.responses(ready, support.batch(ready))
    for b in range(8):
        row = ready.train_dataset[b]
        prompt, completion = row["prompt_ids"], row["completion_ids"][-1]
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            logps = ready.model(input_ids=ids).logits.log_softmax(-1)
        expected = sum(logps[0, len(prompt) - 1 + t, token].item() for t, token in enumerate(completion))
        assert seen.mismatched_logps[b].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("cut", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
                                 {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}])  # fmt: skip
def test_z0_is_that_of_the_whole_step(cut, tiny_model_dir, tmp_path):
    """The second step, where policy and reference differ, is the same however it is cut."""
    settings: dict[str, Any] = {"loss_type": ["kto"], "beta": 0.7, "max_steps": 2, "learning_rate": 3e-2}
    data = thumbs(16, labels=True)
    runs = [
        support.train(support.trainer(tiny_model_dir, tmp_path / str(i), data, **settings, **shape))
        for i, shape in enumerate(({"per_device_train_batch_size": 8}, cut))
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)
    points = [[log["kto/kl"] for log in run.logs if "kto/kl" in log] for run in runs]
    assert points[0] == pytest.approx(points[1], abs=1e-5)
    assert max(points[0]) > 0, "z0 is 0 in all steps, so the cut can't matter"


def test_stored_and_online_references_agree(tiny_model_dir, tmp_path):
    runs = [
        support.train(
            support.trainer(tiny_model_dir, tmp_path / str(stored), thumbs(8), loss_type=["kto"], max_steps=2,
                            logging_steps=1, learning_rate=1e-2, precompute_ref_log_probs=stored)
        )
        for stored in (False, True)
    ]  # fmt: skip
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
