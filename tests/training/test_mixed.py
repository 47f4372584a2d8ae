"""One run over rows of several forms: each loss averages over the rows of the step that it can read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

from tests import helpers
from tests.losses import transcriptions
from tests.losses.transcriptions import Response
from tests.training import support
from trl_dpo_ext.data import DataError, mix_datasets
from trl_dpo_ext.parsing import ParseError
from trl_dpo_ext.run import train_recipe
from trl_dpo_ext.run.mixture_settings import parse_mixture

PAIRS = [{"prompt": f"the film {i}", "chosen": " was a joy", "rejected": f" fell apart {i}"} for i in range(3)]
RANKED = [
    {"prompt": f"a plot {i}", "completions": [" held me", f" was fine {i}", " bored me"], "scores": [2.0, 1.0, 0.5 * i]}
    for i in range(2)
]
THUMBS = [{"prompt": f"an end {i}", "completion": f" of sorts {i}", "label": i % 2 == 0} for i in range(3)]
WEIGHTS = {"dpo": 1.0, "plackett_luce": 0.5, "kto": 2.0, "info_nca": 0.25}


def mixture() -> Dataset:
    return mix_datasets(
        {"pairs": Dataset.from_list(PAIRS), "rankings": Dataset.from_list(RANKED), "thumbs": Dataset.from_list(THUMBS)}
    )


def trainer(model: str, folder: Any, data: Dataset, **changes: Any) -> Any:
    losses = {"loss_type": list(WEIGHTS), "loss_weights": list(WEIGHTS.values()), "beta": 0.4}
    made = support.trainer(
        model, folder, data, **{**losses, "per_device_train_batch_size": 8, "max_steps": 1, **changes}
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return made


def expected(seen: Any) -> float:
    """The weighted sum of the means of the transcriptions over the rows that each can read."""
    groups = [
        [
            Response(
                *(
                    getattr(seen, n)[b, k].item()
                    for n in ("logps", "ref_logps", "lengths", "ranks", "scores", "labels")
                ),
                mismatched=seen.mismatched_log_ratios[b].item(),
            )
            for k in range(seen.mask.shape[1])
            if seen.mask[b, k]
        ]
        for b in range(len(seen))
    ]
    ranked = [group for group in groups if len(group) > 1]
    scored = [group for group in ranked if not torch.tensor([y.score for y in group]).isnan().any()]
    labelled = [group for group in groups if any(y.label for y in group)]
    assert (len(ranked), len(scored), len(labelled)) == (5, 2, 3)

    def dpo(group: list[Response]) -> float:
        pairs = [(w, z) for w in group for z in group if w.rank < z.rank]
        return sum(transcriptions.dpo(w, z, beta=0.4) for w, z in pairs) / len(pairs)

    terms = {
        "dpo": [dpo(group) for group in ranked],
        "plackett_luce": [transcriptions.plackett_luce(group, beta=0.4) for group in ranked],
        "kto": transcriptions.kto(labelled, beta=0.4),
        "info_nca": [transcriptions.info_nca(group, beta=0.4) for group in scored],
    }
    return sum(weight * sum(terms[name]) / len(terms[name]) for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("layout", ["padded", "shared_packed"])
def test_a_mix_is_the_weighted_sum_over_what_each_loss_reads(layout, tiny_model_dir, tmp_path):
    one = trainer(tiny_model_dir, tmp_path, mixture(), **support.LAYOUTS[layout])
    batch = support.batch(one)
    value = expected(support.responses(one, batch))
    with torch.no_grad():
        assert one.compute_loss(one.model, batch).item() == pytest.approx(value, rel=1e-5)


def gradients(model: str, folder: Any, data: Dataset, **changes: Any) -> tuple[float, dict[str, torch.Tensor]]:
    run = support.train(trainer(model, folder, data, train_sampling_strategy="sequential", **changes))
    return run.losses[0], run.gradients[0]


@pytest.mark.parametrize("losses", [list(WEIGHTS), ["dpo", "apo_zero_unpaired"]], ids=["coupled", "not coupled"])
def test_the_cut_of_the_step_changes_nothing(losses, tiny_model_dir, tmp_path):
    own = {"loss_type": losses, "loss_weights": [WEIGHTS.get(name, 2.0) for name in losses]}
    whole_loss, whole = gradients(tiny_model_dir, tmp_path / "whole", mixture(), **own)
    for size, steps in ((2, 4), (1, 8), (3, 3)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        loss, found = gradients(tiny_model_dir, tmp_path / str(size), mixture(), **own, **cut)
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        support.assert_same_tensors(found, whole)


def test_the_log_says_which_share_of_the_rows_each_loss_read(tiny_model_dir, tmp_path):
    run = support.train(trainer(tiny_model_dir, tmp_path, mixture()))
    shares = {name: run.logs[0][f"{name}/rows"] for name in WEIGHTS}
    assert shares == pytest.approx({"dpo": 5 / 8, "plackett_luce": 5 / 8, "kto": 3 / 8, "info_nca": 2 / 8})


def test_a_dataset_whose_rows_have_different_forms_is_separated(tiny_model_dir, tmp_path):
    rows = [PAIRS[0], THUMBS[0], RANKED[0], THUMBS[1], PAIRS[1]]
    columns = sorted({column for row in rows for column in row})
    data = Dataset.from_list([{column: row.get(column) for column in columns} for row in rows])
    one = trainer(tiny_model_dir, tmp_path, data)
    decode = one.processing_class.decode
    prompts = [decode(one.train_dataset[i]["prompt_ids"]).strip() for i in range(5)]
    assert prompts == [row["prompt"] for row in rows]
    assert [len(one.train_dataset[i]["ranks"]) - 1 for i in range(5)] == [2, 1, 3, 1, 2]


def test_a_loss_that_no_row_feeds_is_an_error(tiny_model_dir, tmp_path):
    data = mix_datasets({"pairs": Dataset.from_list(PAIRS), "rankings": Dataset.from_list(RANKED)})
    with pytest.raises(DataError, match="kto"):
        trainer(tiny_model_dir, tmp_path, data)
    data = mix_datasets({"thumbs": Dataset.from_list(THUMBS)})
    with pytest.raises(DataError, match="dpo can read none of its 3 rows; it needs two responses"):
        trainer(tiny_model_dir, tmp_path, data, loss_type=["dpo", "kto"], loss_weights=None)


def test_fractions_are_shares_of_the_largest_mixture_without_repetition():
    data = {"a": Dataset.from_list(PAIRS * 4), "b": Dataset.from_list(THUMBS * 2)}  # 12 and 6 rows
    mixed = mix_datasets(data, [1, 1])
    assert [len(row["completions"]) for row in mixed] == [2] * 6 + [1] * 6
    mixed = mix_datasets(data, [0.8, 0.2])
    assert [len(row["completions"]) for row in mixed] == [2] * 12 + [1] * 3
    with pytest.raises(ValueError, match="one positive number for each of 2"):
        mix_datasets(data, [1.0])


def test_texts_and_messages_do_not_mix():
    talk = [
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "ho"}],
            "label": True,
        }
    ]
    with pytest.raises(DataError, match=r"texts \(a\) and messages \(b\)"):
        mix_datasets({"a": Dataset.from_list(PAIRS), "b": Dataset.from_list(talk)})


def test_a_recipe_mixes_files(tiny_model_dir, tmp_path):
    for name, rows in (("pairs", PAIRS), ("thumbs", [{**row, "thumb": row["label"]} for row in THUMBS])):
        rows = [{k: v for k, v in row.items() if k != "label"} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        **helpers.training_args(tmp_path / "out", max_steps=1),
        "model_name_or_path": tiny_model_dir,
        "loss_type": ["dpo", "kto"],
        "dataset_mixture": {
            "datasets": [
                {"path": str(tmp_path / "pairs.jsonl")},
                {"path": str(tmp_path / "thumbs.jsonl"), "columns": {"thumb": "label"}},
            ]
        },
    }
    recipe.pop("disable_tqdm")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train_recipe(["--config", str(tmp_path / "recipe.yaml")])
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["recipe"]["dataset_mixture"] == recipe["dataset_mixture"]
    assert 0 < record["metrics"]["kto/rows"] < 1


WRONG: dict[str, tuple[Any, str]] = {
    "no datasets": ({"datasets": []}, "datasets"),
    "another key": ({"datasets": [{"path": "a"}], "streaming": True}, "streaming"),
    "a key of an entry": ({"datasets": [{"path": "a", "weight": 1.0}]}, "datasets.0.weight"),
    "no path": ({"datasets": [{"split": "train"}]}, "datasets.0.path"),
    "a fraction of 0": ({"datasets": [{"path": "a", "fraction": 0.0}]}, "fraction"),
    "fractions of some": ({"datasets": [{"path": "a", "fraction": 1.0}, {"path": "b"}]}, "for each"),
    "a list": ([{"path": "a"}], "can't be read"),
    "no YAML": ("{", "no mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_mixture_is_a_sentence(case):
    given, part = WRONG[case]
    with pytest.raises(ParseError, match=part):
        parse_mixture(given)
