"""A run: from a recipe to a saved adapter; every mistake in a recipe stops before a model is loaded."""

import errno
import json
import shlex
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import ROOT, free_port, run_python
from tests.training.forks import in_child
from trl_dpo_ext.cli import main, make_parser
from trl_dpo_ext.cli.train import train
from trl_dpo_ext.memory import DoesNotFitError
from trl_dpo_ext.parsing import ParseError
from trl_dpo_ext.record import launch_command
from trl_dpo_ext.run import USER_ERRORS, adapter_config, parse_recipe, train_recipe
from trl_dpo_ext.run.next_commands import next_commands
from trl_dpo_ext.training import DiskSpaceError, PreferenceTrainer, TrainingError

SCRIPT = ROOT / "recipes" / "train.py"
RECIPES = sorted((ROOT / "recipes").glob("quickstart/*.yaml"))


@pytest.fixture(scope="module")
def data_dir(ranked_data):
    return ranked_data(6)


@pytest.fixture
def recipe(write_recipe, data_dir):
    """Write a recipe; changes override, None removes."""
    return partial(write_recipe, dataset_name=str(data_dir))


def test_a_run_leaves_what_the_docs_promise(recipe, tmp_path, capsys):
    train_recipe(recipe(reward="vader", eval_prompts=4, eval_max_new_tokens=4, prefix_sharing=True))
    out = tmp_path / "out"
    for name in ("adapter_model.safetensors", "tokenizer.json", "recipe.yaml", "curves.png"):
        assert (out / name).stat().st_size > 0
    result = json.loads((out / "result.json").read_text())
    assert result["evaluation"]["before"]["prompts"] == 4
    assert result["evaluation"]["after"]["kl"]["standard_error"] >= 0
    assert result["versions"]["trl"] != "not installed"
    assert result["metrics"]["train_loss"] > 0
    assert "mean reward" in capsys.readouterr().out
    AutoPeftModelForCausalLM.from_pretrained(out)

    with pytest.raises(FileExistsError, match="holds a finished run"):
        train_recipe(recipe())
    # The saved recipe is the run: parsed again it gives the same settings.
    *_, again = parse_recipe(["--config", str(out / "recipe.yaml"), "--overwrite_output_dir", "true"])
    assert {**result["recipe"], "overwrite_output_dir": True} == again


def vowels(prompts, completions):
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def test_reward_win_rate_and_kl_are_wherever_one_looks_for_them(recipe, tmp_path, capsys, monkeypatch):
    from matplotlib.axes import Axes

    bars, draw = [], Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda self, *a, **k: bars.append((a, k["yerr"])) or draw(self, *a, **k))
    train_recipe(recipe(reward=f"{__name__}:vowels", eval_prompts=6, eval_max_new_tokens=8, learning_rate=0.05))

    evaluation = json.loads((tmp_path / "out" / "result.json").read_text())["evaluation"]
    before, after, wins = evaluation["before"]["reward"], evaluation["after"]["reward"], evaluation["win_rate"]["rate"]
    kl = evaluation["after"]["kl"]
    assert before["low"] < before["mean"] < before["high"]
    assert kl["standard_error"] > 0
    terminal = " ".join(capsys.readouterr().out.split())
    card = (tmp_path / "out" / "README.md").read_text()
    for interval in (before, after, wins):
        mean, low, high = (interval[key] for key in ("mean", "low", "high"))
        assert f"{mean:.2f} [{low:.2f}, {high:.2f}]" in terminal
        assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in card
    for text in (terminal, card):
        assert f"{kl['mean']:.2f} ± {kl['standard_error']:.2f}" in text

    expected = [
        *((x["mean"], x["mean"] - x["low"], x["high"] - x["mean"]) for x in (before, after, wins)),
        (kl["mean"], 2 * kl["standard_error"], 2 * kl["standard_error"]),
    ]
    drawn = [(y, *np.broadcast_to(np.ravel(arms), 2)) for (_, y), arms in bars]
    np.testing.assert_allclose(drawn, expected)


def test_a_frontier_ends_at_the_final_evaluation(recipe, tmp_path):
    train_recipe(recipe(reward="vader", eval_prompts=4, eval_max_new_tokens=4, frontier_steps=1, learning_rate=0.01))
    points = json.loads((tmp_path / "out" / "frontier.json").read_text())["points"]
    evaluation = json.loads((tmp_path / "out" / "result.json").read_text())["evaluation"]
    assert [point["step"] for point in points] == [0, 1, 2]
    for point, side in ((points[0], "before"), (points[-1], "after")):
        assert point["reward"] == evaluation[side]["reward"]
    assert points[-1]["kl"] == evaluation["after"]["kl"]
    assert points[0]["kl"]["summed"] == 0 < points[-1]["kl"]["summed"]


def test_a_frontier_needs_a_reference(recipe, monkeypatch):
    monkeypatch.setattr(PreferenceTrainer, "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(USER_ERRORS, match=r"frontier_steps=1 .* keeps none in memory"):
        train_recipe(recipe(reward="vader", frontier_steps=1, loss_type="simpo", use_peft=False))


def test_without_matplotlib_a_run_lacks_its_picture_and_nothing_else(recipe, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train_recipe(recipe(reward="vader", eval_prompts=2, eval_max_new_tokens=2))
    out = tmp_path / "out"
    assert not (out / "curves.png").exists()
    for name in ("adapter_model.safetensors", "tokenizer.json", "recipe.yaml", "result.json", "README.md"):
        assert (out / name).stat().st_size > 0
    said = [record.getMessage() for record in caplog.records if "curves.png" in record.getMessage()]
    assert said == ["No curves.png: Plots need matplotlib: pip install 'trl-dpo-ext[demo]'."]
    assert "recipe.yaml, result.json." in capsys.readouterr().out


def test_the_record_is_written_before_the_picture(recipe, tmp_path, monkeypatch):
    """Whatever ends the process while it draws, the run is recorded."""
    monkeypatch.setattr("trl_dpo_ext.run.run_outputs.plot_curves", lambda *a, **k: sys.exit(7))
    with pytest.raises(SystemExit):
        train_recipe(recipe())
    assert json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]["train_loss"] > 0


def test_the_picture_is_on_the_card(recipe, tmp_path):
    train_recipe(recipe())
    assert "(curves.png)" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_trains_and_options_win(recipe, tmp_path, capsys):
    assert main(["train", *recipe(max_steps=3), "--max_steps", "1", "--lora_target_modules", "q_proj", "v_proj"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["recipe"]["max_steps"], result["recipe"]["lora_target_modules"]) == (1, ["q_proj", "v_proj"])
    assert "Saved to" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["/opt/venv/bin/trl-dpo-ext", "/opt/lib/trl_dpo_ext/__main__.py"])
def test_the_record_has_the_command_that_started_the_run(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "train", "--config", "a b.yaml"])
    assert launch_command() == "trl-dpo-ext train --config 'a b.yaml'"


def test_the_command_and_the_script_end_alike(recipe, monkeypatch, capsys):
    monkeypatch.setattr(PreferenceTrainer, "train", lambda *a, **k: pytest.fail("trained"))
    said = []
    arguments = recipe(btea=2.0)
    for run in (lambda args: main(["train", *args]), train):
        assert run(arguments) == 2
        said.append(capsys.readouterr().err)
    assert said == [f"error: {arguments[1]}, line 2: Unknown key 'btea'. Did you mean 'beta'?\n"] * 2


def test_errors_of_training_keep_what_they_need(recipe, monkeypatch, capsys):
    """The package's own are sentences with code 1; those of other code keep their traceback."""

    def fail_with(error):
        def train_(*args, **kwargs):
            raise error

        monkeypatch.setattr(PreferenceTrainer, "train", train_)

    fail_with(TrainingError("The loss is NaN."))
    assert main(["train", *recipe()]) == 1
    assert "error: The loss is NaN.\n" in capsys.readouterr().err
    fail_with(ValueError("shapes of somebody's loss"))
    with pytest.raises(ValueError, match="somebody's loss"):
        main(["train", *recipe()])
    fail_with(KeyboardInterrupt())
    assert main(["train", *recipe()]) == 130
    assert "error: interrupted.\n" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_quickstart_recipe_parses_and_trains(path, tiny_model_dir, data_dir, tmp_path):
    overrides = {
        "model_name_or_path": tiny_model_dir,
        "dataset_name": data_dir,
        "output_dir": tmp_path / "out",
        "max_steps": 1,
        "warmup_steps": 0,  # or the learning rate of the only step is 0, which is an error
        "eval_prompts": 2,
        "eval_max_new_tokens": 2,
        "use_cpu": True,
    }
    train_recipe(["--config", str(path), *(part for k, v in overrides.items() for part in (f"--{k}", str(v)))])
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
def test_a_third_party_loss_trains_without_touching_the_package(recipe, tmp_path):
    (tmp_path / "my_losses.py").write_text(
        "import torch.nn.functional as F\n"
        "from trl_dpo_ext import PreferencePairs, register_loss\n"
        "@register_loss('my_hinge')\n"
        "def my_hinge(pairs: PreferencePairs, *, beta: float = 0.1):\n"
        "    return F.relu(1 - beta * pairs.margins)\n"
    )
    arguments = recipe(loss_type="my_hinge", import_module=["my_losses"], loss_kwargs={"my_hinge": {"beta": 0.5}})
    run_python(str(SCRIPT), *arguments, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["loss"] < 1.5  # a hinge starts at 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_type": "plackett_luse"}, ["'plackett_luse'", "'plackett_luce'"]),
        ({"prefix_sharing": "maybe"}, ["prefix_sharing='maybe'", "auto"]),
        ({"btea": 2.0}, ["'btea'", "'beta'"]),
        ({"loss_kwargs": {"plackett_luce": {"top": 1}}}, ["'top'", "'top_k'"]),
        ({"loss_kwargs": {"plackett_luce": {"beta": -1.0}}}, ["beta=-1.0", "> 0"]),
        ({"loss_type": "simpo", "precompute_ref_log_probs": True}, ["precompute_ref_log_probs", "reads the reference"]),
        ({"model_name_or_path": "./nowhere"}, ["'./nowhere'", "does not exist"]),
        ({"model_name_or_path": None}, ["model_name_or_path"]),
        ({"dataset_name": None}, ["dataset_name"]),
        ({"dataset_name": "./nowhere"}, ["'./nowhere'"]),
        ({"columns": {"promt": "prompt"}}, ["train dataset", "columns maps 'promt'", "'prompt'"]),
        ({"columns": ["prompt"]}, ["columns"]),
        ({"dataset_converter": "nektar"}, ["'nektar'", "'nectar'"]),
        ({"dataset_converter": "nectar"}, ["train dataset", "'nectar'", "missing: answers"]),
        ({"eval_strategy": "steps", "dataset_test_split": "held_out"}, ["eval_strategy", "'held_out'"]),
        ({"load_in_4bit": True, "use_peft": False}, ["quantized", "use_peft"]),
        ({"lora_target_modules": ["q_porj"]}, ["'q_porj'", "'q_proj'", "all-linear"]),
        ({"dataset_train_split": "trian"}, ["'trian'", "'train'"]),
        ({"reward": "vadr"}, ["'vadr'", "'vader'"]),
        ({"reward": "vader", "dataset_test_split": "held_out"}, ["'held_out'"]),
        ({"frontier_steps": 10}, ["frontier_steps=10", "needs a reward"]),
        ({"frontier_steps": -1, "reward": "vader"}, ["frontier_steps=-1", ">= 0"]),
        ({"import_module": ["no_such_module"]}, ["'no_such_module'", "PYTHONPATH"]),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, ["loss_weights"]),
    ],
)
def test_mistakes_stop_before_a_model_is_loaded(recipe, monkeypatch, changes, said):
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", lambda *a, **k: pytest.fail("model loaded"))
    with pytest.raises(USER_ERRORS) as caught:
        train_recipe(recipe(**changes))
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_cache_folder_that_cannot_be_written(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(USER_ERRORS, match=r"reference cache can't be written.*ref_cache_dir"):
        train_recipe(recipe(precompute_ref_log_probs=True, ref_cache_dir=str(tmp_path / "file")))


def test_what_can_not_fit_the_card_stops_before_a_model_is_loaded(recipe, monkeypatch):
    def refuse(config, model_args, *, responses):
        assert (config.per_device_train_batch_size, model_args.use_peft, responses) == (2, True, 5)
        raise DoesNotFitError("about 5.0 GiB")

    monkeypatch.setattr("trl_dpo_ext.run.training_run.check_fits", refuse)
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", lambda *a, **k: pytest.fail("model loaded"))
    with pytest.raises(USER_ERRORS, match=r"about 5\.0 GiB"):
        train_recipe(recipe())


def test_running_out_of_gpu_memory_is_explained(recipe, monkeypatch):
    def compute_loss(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 12 GiB")

    monkeypatch.setattr("trl_dpo_ext.training.PreferenceTrainer.compute_loss", compute_loss)
    with pytest.raises(USER_ERRORS, match=r"forward pass.*gradient_checkpointing.*allocate 2\.00 GiB") as caught:
        train_recipe(recipe())
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_one_lora_target_is_a_name(recipe):
    expected = {("q_proj",): {"q_proj"}, ("q_proj", "v_proj"): {"q_proj", "v_proj"}, ("all-linear",): "all-linear"}
    for given, wanted in expected.items():
        model_args = parse_recipe(recipe(lora_target_modules=list(given)))[2]
        assert adapter_config(model_args).target_modules == wanted
    assert adapter_config(parse_recipe(recipe(use_peft=False))[2]) is None


@pytest.mark.slow
def test_a_mistake_is_one_line_on_the_terminal(recipe):
    with pytest.raises(AssertionError) as caught:
        run_python(str(SCRIPT), *recipe(btea=2.0))
    assert "recipe.yaml, line 2: Unknown key 'btea'" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_two_cpu_processes_need_nothing_but_their_config(recipe, tmp_path, monkeypatch):
    """Accelerate's launcher doesn't tell its workers `use_cpu`; without a GPU, train.py knows."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    launcher = ["-m", "accelerate.commands.launch", "--main_process_port", str(free_port())]
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / "cpu_2.yaml")]
    arguments = recipe(use_cpu=None, prefix_sharing=True, save_strategy="steps", save_steps=1)
    printed = run_python(*launcher, *config, str(SCRIPT), *arguments)
    assert printed.count("Saved to") == 1  # by the main process
    # Two steps of 2 processes x 2 prompts are 8 of the 12 rows; each process for itself would have read 4.
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(8 / 12)
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_processes_that_do_not_see_each_other(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")

    def work():
        with pytest.raises(ParseError, match="2 processes were launched, but each one sees 1"):
            train_recipe(recipe(use_cpu=None))

    # Accelerate adds to the environment, and keeps half a state if it fails; neither may reach other tests.
    assert in_child(work) == 0


def test_a_converter_brings_a_public_schema_in(recipe, tmp_path):
    rows = ROOT / "tests" / "data" / "converters" / "nectar.jsonl"
    for streaming in (False, True):
        settings = {"dataset_name": str(rows), "dataset_converter": "nectar", "dataset_streaming": streaming}
        train_recipe(recipe(**settings, overwrite_output_dir=True))
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["metrics"]["rewards/kendall_tau"] is not None
        assert result["recipe"]["dataset_converter"] == "nectar"


def test_columns_get_the_names_of_a_form(recipe, tmp_path):
    names = {"question": "prompt", "good": "chosen", "bad": "rejected", "best": None}
    rows = ROOT / "tests" / "data" / "exports" / "questions.csv"
    for streaming in (False, True):
        settings = {"dataset_name": str(rows), "columns": names, "dataset_streaming": streaming, "loss_type": "dpo"}
        train_recipe(recipe(**settings, overwrite_output_dir=True))
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["recipe"]["columns"] == names


@pytest.mark.parametrize("streaming", [False, True])
def test_the_test_split_is_converted_too(streaming, recipe, tmp_path):
    rows = (ROOT / "tests" / "data" / "converters" / "hh_rlhf.jsonl").read_bytes()
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_bytes(rows)
    settings = {"dataset_name": str(tmp_path / "data"), "dataset_converter": "hh_rlhf_text", "eval_strategy": "steps"}
    settings["dataset_streaming"] = streaming
    train_recipe(recipe(**settings, eval_steps=1, reward="vader", eval_prompts=2, eval_max_new_tokens=2))
    evaluation = json.loads((tmp_path / "out" / "result.json").read_text())["evaluation"]
    assert evaluation["after"]["prompts"] == 2


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_total_limit": 1,  # transformers then leaves only the best checkpoint, the first one here
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize("changes", [{}, BEST], ids=["the last one", "the best one"])
def test_a_finished_run_started_again_changes_nothing(changes, recipe, tmp_path, caplog):
    """A scheduler may start the same command after the end: it trains, samples and writes nothing."""
    saved = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    arguments = recipe(**saved, reward="vader", eval_prompts=2, **changes)
    train_recipe(arguments)
    out = tmp_path / "out"
    assert (out / "checkpoint-2").exists() != bool(changes)

    def files():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}

    before = files()
    assert out / "result.json" in before
    train_recipe(arguments)
    assert files() == before
    assert "it is finished: nothing to train or to save" in caplog.text

    # Killed after the last step, before its record was written: the record is made up for.
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").unlink()
    train_recipe(arguments)
    again = json.loads((out / "result.json").read_text())
    assert again["evaluation"]["after"] == result["evaluation"]["after"]
    assert set(before) == set(files())


FULL = {
    "tokenizers": Exception("No space left on device (os error 28)"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
    "the system": OSError(errno.ENOSPC, "No space left on device", "x"),
}


@pytest.mark.parametrize("writer", FULL)
def test_a_disk_that_is_full_at_the_end_is_a_sentence(writer, recipe, monkeypatch):
    def save(self, folder=None):
        raise FULL[writer]

    monkeypatch.setattr(PreferenceTrainer, "save_without_push", save)
    with pytest.raises(DiskSpaceError, match=r"The disk is full.* Make room, then start again"):
        train_recipe(recipe())


def test_another_error_at_the_end_is_itself(recipe, monkeypatch):
    def save(self, folder=None):
        raise RuntimeError("a bug")

    monkeypatch.setattr(PreferenceTrainer, "save_without_push", save)
    with pytest.raises(RuntimeError, match="a bug"):
        train_recipe(recipe())


def test_tensorboard_gets_the_frontier_and_the_samples(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    sampling = {"reward": "vader", "eval_prompts": 4, "eval_max_new_tokens": 4, "frontier_steps": 1}
    train_recipe(recipe(**sampling, report_to="tensorboard"))
    board = EventAccumulator(str(tmp_path / "board"), size_guidance={"tensors": 0, "scalars": 0})
    board.Reload()
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())
    points = [(point["step"], point["reward"]["mean"]) for point in frontier["points"]]
    logged = [(event.step, event.value) for event in board.Scalars("train/frontier/reward")]
    assert [step for step, _ in logged] == [0, 1, 2]
    np.testing.assert_allclose([value for _, value in logged], [value for _, value in points], rtol=1e-6)
    assert len(board.Scalars("train/frontier/kl")) == 3
    assert [event.step for event in board.Scalars("train/rewards/margins")] == [1, 2]  # each step's own log too
    (tag,) = (tag for tag in board.Tags()["tensors"] if tag.startswith("samples"))
    text = board.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for sample in result["evaluation"]["after"]["samples"][:1]:
        assert " ".join(sample["prompt"].split()) in text
    assert text.startswith("| prompt | before | reward before | after | reward after |")


class Tracker(types.ModuleType):
    """Stands for wandb or mlflow, with their names; keeps what it is sent."""

    def __init__(self, name):
        super().__init__(name)
        self.sent = []

    def log(self, values):
        self.sent.append(values)

    def Table(self, columns, data):
        return columns, data

    def log_table(self, data, artifact_file, run_id):
        self.sent.append({artifact_file: (list(data), [list(row) for row in zip(*data.values(), strict=True)])})


def test_other_trackers_get_the_samples_as_their_tables(recipe, monkeypatch):
    trackers = {name: Tracker(name) for name in ("wandb", "mlflow")}
    train, kept = PreferenceTrainer.train, {}

    def train_with_trackers(self, *args, **kwargs):
        self.args.report_to = list(trackers)  # after the callbacks of the real ones would have been made
        kept["output"] = train(self, *args, **kwargs)
        for name, module in trackers.items():
            monkeypatch.setitem(sys.modules, name, module)
        return kept["output"]

    monkeypatch.setattr(PreferenceTrainer, "train", train_with_trackers)
    train_recipe(recipe(reward="vader", eval_prompts=4, eval_max_new_tokens=4))
    for name, key in (("wandb", "samples"), ("mlflow", "samples.json")):
        ((columns, rows),) = [sent[key] for sent in trackers[name].sent]
        assert columns == ["prompt", "before", "reward before", "after", "reward after"]
        assert len(rows) == 4


def test_the_last_screen_has_commands_that_parse(recipe, tmp_path, capsys):
    train_recipe(recipe(reward="vader", eval_prompts=4, eval_max_new_tokens=4))
    shown = capsys.readouterr().out.splitlines()
    lines = [line.strip().partition("   #")[0] for line in shown if "trl-dpo-ext " in line]
    kinds = [line.split()[1] for line in lines]
    assert kinds == ["eval", "merge", "push"]
    for line in lines:
        arguments = make_parser().parse_args(shlex.split(line)[1:])
        assert arguments.run
    assert lines[-1] == f"trl-dpo-ext push {tmp_path / 'out'} OWNER/NAME --base-model OWNER/BASE"
    assert main(shlex.split(lines[1])[1:]) == 0  # merge
    without = [command for _, command in next_commands(tmp_path / "out", {"use_peft": True, "dataset_name": "d"})]
    assert without[1].endswith("-merged --prompts FILE")  # no samples, whose prompts it would take
