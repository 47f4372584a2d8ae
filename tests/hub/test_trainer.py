"""Pushes during and after training, and a run resumed from a pushed checkpoint."""

import inspect
import json

import pytest
from huggingface_hub import ModelCard
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer

from tests import helpers
from tests.hub import standin
from tests.training import support
from trl_dpo_ext.hub import PushError, RunError
from trl_dpo_ext.hub.adapter_loading import load_adapter
from trl_dpo_ext.reference import ReferenceMismatchError
from trl_dpo_ext.training import ConfigError, PreferenceTrainer

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


class StopAfter(TrainerCallback):
    """End training after a step, as if it had been killed."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def make(model, folder, **changes):
    settings = {"push_to_hub": True, "hub_model_id": "me/run", "hub_base_model": BASE, "max_steps": 2, **changes}
    data = helpers.ranked_dataset(4)
    return support.trainer(model, folder, data, peft_config=support.lora(), loss_type=["plackett_luce"], **settings)


def test_the_end_of_training(hub, tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path / "out", hub_private_repo=True, hub_token=standin.WRITER)
    trainer.train()
    assert set(hub.repos["me/run"].files("main")) == {".gitattributes"}  # hub_strategy: end
    address = trainer.push_to_hub()
    assert address.startswith(f"{hub.url}/me/run/commit/")
    files = hub.repos["me/run"].files("main")
    assert hub.repos["me/run"].private
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert not [name for name in files if name.startswith("ref/") or name.endswith((".bin", ".pt"))]
    result = json.loads(files["result.json"])
    assert result["losses"][0]["hyperparameters"]["beta"] == 0.1
    assert result["data"]["train_rows"] == 4
    assert result["parameters"]["trainable"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    card = ModelCard(files["README.md"].decode())
    assert "plackett_luce" in card.data.tags
    assert "exp" in card.text  # the equation
    for content in files.values():
        assert standin.WRITER.encode() not in content


def test_while_training(hub, tiny_model_dir, tmp_path, caplog):
    hub.faults.append(standin.Fault("POST .*/commit/", status=403))  # the first one fails; training goes on
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    trainer = make(tiny_model_dir, tmp_path / "out", **settings)
    trainer.train()
    assert "The checkpoint of step 1 was not pushed; training continues." in caplog.text
    files = hub.repos["me/run"].files("main")
    assert "adapter_model.safetensors" in files
    assert "last-checkpoint/optimizer.pt" in files
    assert "last-checkpoint/training_args.bin" not in files
    assert "plackett_luce" in files["README.md"].decode()
    for name, content in files.items():
        assert tiny_model_dir.encode() not in content, name


def test_a_run_goes_on_from_the_checkpoint_on_the_hub(hub, tiny_model_dir, tmp_path):
    whole = make(tiny_model_dir, tmp_path / "whole", push_to_hub=False, max_steps=3)
    expected = support.train(whole)
    settings = {"save_strategy": "steps", "save_steps": 2, "hub_strategy": "checkpoint", "max_steps": 3}
    make(tiny_model_dir, tmp_path / "first", **settings, callbacks=[StopAfter(2)]).train()
    assert "last-checkpoint/complete.json" in hub.repos["me/run"].files("main")
    again = make(tiny_model_dir, tmp_path / "again", push_to_hub=False, max_steps=3, resume_from_hub="me/run")
    support.assert_same_tensors(support.train(again).weights, expected.weights, rtol=0)
    assert again.state.global_step == 3


def test_going_on_from_the_hub_with_another_base_is_refused(hub, tiny_model_dir, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint", "max_steps": 1}
    make(tiny_model_dir, tmp_path / "first", **settings).train()
    other = helpers.save_tiny_model(tmp_path / "other", seed=7)
    with pytest.raises(ReferenceMismatchError, match="another reference"):
        make(other, tmp_path / "again", push_to_hub=False, resume_from_hub="me/run").train()


def test_a_pushed_adapter_is_trained_on_only_on_its_own_base(hub, tiny_model_dir, tmp_path):
    first = make(tiny_model_dir, tmp_path / "first")
    first.train()
    first.push_to_hub()
    model = load_adapter("me/run", base_model=tiny_model_dir)
    second = support.trainer(model, tmp_path / "second", helpers.ranked_dataset(4), loss_type=["plackett_luce"])
    # Its reference is the adapter it starts from: at first, all log-ratios are zero.
    assert second.reference_identity.kind == "starting_adapter"
    assert support.train(second).logs[0]["rewards/margins"] == 0
    assert (
        first.reference_identity.fingerprint
        == json.loads(hub.repos["me/run"].files("main")["reference.json"])["fingerprint"]
    )
    other = helpers.save_tiny_model(tmp_path / "other", seed=7)
    with pytest.raises(ReferenceMismatchError, match="has other weights than the one"):
        load_adapter("me/run", base_model=other)
    with pytest.raises(RunError, match="base_model="):
        load_adapter("me/run", base_model=str(tmp_path / "nowhere"))


def test_resume_from_a_repository_without_a_checkpoint(hub, tiny_model_dir, tmp_path):
    trainer = make(tiny_model_dir, tmp_path / "out")
    trainer.train()
    trainer.push_to_hub()
    again = make(tiny_model_dir, tmp_path / "again", push_to_hub=False, resume_from_hub="me/run")
    with pytest.raises(RunError, match="has no folder last-checkpoint"):
        again.train()


def test_a_failed_push_at_the_end_leaves_the_run_and_the_command(hub, tiny_model_dir, tmp_path, sleeps):
    trainer = make(tiny_model_dir, tmp_path / "out")
    trainer.train()
    hub.faults.append(standin.Fault("POST .*/commit/", status=500, times=1000))
    with pytest.raises(PushError, match=f"trl-dpo-ext push {tmp_path / 'out'} me/run --base-model {BASE}"):
        trainer.push_to_hub()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub_base_model": None}, ["a path on this machine", "hub_base_model"]),
        ({"hub_base_model": "./model"}, ["'./model'", "OWNER/NAME"]),
    ],
)
def test_trap_14_a_base_without_a_name_is_refused_before_training(hub, tiny_model_dir, tmp_path, settings, said):
    # To see it fail: take check_push out of check_arguments.
    with pytest.raises(ConfigError) as caught:
        make(tiny_model_dir, tmp_path / "out", **settings)
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert hub.requests == []


def test_what_is_overridden_is_what_transformers_and_trl_call():
    def parameters(method):
        return list(inspect.signature(method).parameters)

    # transformers 5.18 has no `private` yet.
    ours = parameters(PreferenceTrainer.push_to_hub)
    assert [name for name in parameters(Trainer.push_to_hub) if name not in ours] == []
    assert "self.push_to_hub(" in inspect.getsource(Trainer.save_model)
    assert "_internal_call" in parameters(Trainer.save_model)
    assert "self.create_model_card(" in inspect.getsource(DPOTrainer._save_checkpoint)
    assert "self.hub_model_id = " in inspect.getsource(Trainer.init_hf_repo)
