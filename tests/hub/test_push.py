"""Pushes over HTTP to the stand-in: what arrives, and each way the Hub can refuse, fail or be slow."""

import json
import logging

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from tests.hub import standin, support
from trl_dpo_ext.cli import main
from trl_dpo_ext.hub import PushError, RunError, push_run

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, tiny_model_dir):
    folder = tmp_path_factory.mktemp("pristine")
    support.save_adapter(folder, tiny_model_dir)
    support.add_record(folder)
    return folder


@pytest.fixture
def run(pristine, tmp_path):
    """A run's folder, with everything in it that must not be pushed."""
    folder = support.copy(pristine, tmp_path / "run")
    support.copy(pristine, folder / "ref")
    support.copy(pristine, folder / "checkpoint-2")
    for name in ("training_args.bin", "optimizer.pt", "train.jsonl", "cache/data.arrow", "runs/events.out", ".env"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for others")
    return folder


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(hub, repo="me/mine", branch="main"):
    return hub.repos[repo].files(branch)


def test_what_arrives(hub, run):
    before = snapshot(run)
    address = push_run(run, "me/mine", base_model=BASE, base_revision="abc123")
    files = pushed(hub)
    assert address == f"{hub.url}/me/mine/commit/{hub.repos['me/mine'].branches['main']}"
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "curves.png",
        "recipe.yaml",
        "reference.json",
        "result.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "curves.png"):
        assert files[name] == (run / name).read_bytes()
    assert snapshot(run) == before
    assert not hub.repos["me/mine"].private


def test_trap_14_a_local_base_model_becomes_a_hub_id_in_every_file(hub, run, tiny_model_dir):
    # To see it fail: in files_to_push, leave adapter_config.json as it is.
    assert tiny_model_dir in (run / "adapter_config.json").read_text()
    push_run(run, "me/mine", base_model=BASE, base_revision="abc123")
    files = pushed(hub)
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, "abc123")
    assert ModelCard(files["README.md"].decode()).data.base_model == BASE
    assert yaml.safe_load(files["recipe.yaml"])["model_name_or_path"] == BASE
    assert json.loads(files["result.json"])["recipe"]["model_name_or_path"] == BASE
    for name, content in files.items():
        assert tiny_model_dir.encode() not in content, name


def test_trap_14_a_local_base_model_is_refused_before_anything_is_sent(hub, run, tiny_model_dir):
    # To see it fail: in base_model_id, take any name for a Hub id.
    with pytest.raises(RunError, match="--base-model OWNER/NAME") as caught:
        push_run(run, "me/mine")
    assert tiny_model_dir in str(caught.value)
    with pytest.raises(RunError, match="--base-model OWNER/NAME"):
        push_run(run, "me/mine", base_model="./model")
    assert hub.requests == []


def test_a_recorded_hub_id_needs_no_option(hub, run):
    support.edit_json(run / "adapter_config.json", base_model_name_or_path=BASE, revision="v1")
    push_run(run, "me/mine")
    assert json.loads(pushed(hub)["adapter_config.json"])["revision"] == "v1"


def test_private_and_branches(hub, run):
    push_run(run, "me/mine", base_model=BASE, private=True, revision="sweep/1")
    assert hub.repos["me/mine"].private
    assert "adapter_config.json" in pushed(hub, branch="sweep/1")
    assert "adapter_config.json" not in pushed(hub)
    push_run(run, "me/mine", base_model=BASE, private=True, revision="sweep/1")


def test_an_existing_public_repository_does_not_get_what_was_to_be_private(hub, run):
    push_run(run, "me/mine", base_model=BASE)
    commits = len(hub.repos["me/mine"].commits)
    with pytest.raises(PushError, match="is public, and --private was given"):
        push_run(run, "me/mine", base_model=BASE, private=True)
    assert len(hub.repos["me/mine"].commits) == commits


def test_pushing_the_same_again_commits_nothing(hub, run):
    push_run(run, "me/mine", base_model=BASE)
    commits, uploads = len(hub.repos["me/mine"].commits), len(hub.uploads)
    push_run(run, "me/mine", base_model=BASE)
    assert (len(hub.repos["me/mine"].commits), len(hub.uploads)) == (commits, uploads)


@pytest.mark.parametrize(
    "where",
    ["POST /api/repos/create", "POST .*/preupload", "POST .*/batch", "PUT /objects", "POST .*/commit/", "validate"],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_failing_hub_is_asked_again(hub, run, sleeps, where, status):
    hub.faults.append(standin.Fault(where, status=status, headers={"Retry-After": "7"}))
    push_run(run, "me/mine", base_model=BASE)
    assert pushed(hub)["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    assert max(sleeps) in (7.0, 8.0)  # the client adds a second to what it waits itself


def test_a_conflicting_commit_is_tried_again(hub, run, sleeps):
    hub.faults.append(standin.Fault("POST .*/commit/", status=412))
    push_run(run, "me/mine", base_model=BASE)
    assert "README.md" in pushed(hub)


def test_a_slow_hub_is_waited_for(hub, run):
    hub.faults.append(standin.Fault("PUT /objects", delay=0.3, times=2))
    push_run(run, "me/mine", base_model=BASE)
    assert "README.md" in pushed(hub)


@pytest.mark.parametrize("where", ["PUT /objects", "POST .*/commit/", "POST /api/repos/create"])
def test_a_cut_connection_is_made_again(hub, run, sleeps, where):
    hub.faults.append(standin.Fault(where, cut_after=100))
    push_run(run, "me/mine", base_model=BASE)
    assert pushed(hub)["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()


def test_after_a_cut_a_second_push_sends_only_what_did_not_arrive(hub, run, sleeps):
    before = snapshot(run)
    adapter = support.sha256(run / "adapter_model.safetensors")
    curves = support.sha256(run / "curves.png")
    hub.faults.append(standin.Fault(f"PUT /objects/{adapter}", cut_after=1000, times=1000))
    with pytest.raises(PushError, match="did not finish") as caught:
        push_run(run, "me/mine", base_model=BASE, private=True)
    command = str(caught.value).splitlines()[-1].strip()
    assert command == f"trl-dpo-ext push {run} me/mine --private --base-model {BASE}"
    assert snapshot(run) == before
    assert "README.md" not in pushed(hub)  # nothing half
    assert hub.uploads.count((curves, (run / "curves.png").stat().st_size)) == 1

    hub.faults.clear()
    assert main(command.split()[1:]) == 0
    assert pushed(hub)["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    assert hub.uploads.count((curves, (run / "curves.png").stat().st_size)) == 1
    assert hub.uploads.count((adapter, (run / "adapter_model.safetensors").stat().st_size)) == 1


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, "me/mine", ["no access token", "(401)", "hf auth login"]),
        ("hf_" + "x" * 24, "me/mine", ["isn't valid", "(401)"]),
        (standin.READER, "me/mine", ["may not write to me/mine", "(403)"]),
        (standin.WRITER, "others/theirs", ["may not write to others/theirs", "(403)"]),
    ],
)
def test_refusals_name_the_reason_and_never_the_token(hub, run, monkeypatch, caplog, capsys, token, repo, said):
    caplog.set_level(logging.DEBUG)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(run), repo, "--base-model", BASE]) == 1
    printed = capsys.readouterr().err
    assert all(part in printed for part in said), printed
    assert token is None or token not in printed + caplog.text


def test_a_hub_that_never_answers_well_leaves_the_command(hub, run, sleeps, caplog):
    caplog.set_level(logging.DEBUG)
    hub.faults.append(standin.Fault("POST .*/commit/", status=503, times=1000))
    with pytest.raises(PushError, match="trl-dpo-ext push") as caught:
        push_run(run, "me/mine", base_model=BASE, revision="b", base_revision="r")
    assert "--revision b" in str(caught.value)
    assert "--base-revision r" in str(caught.value)
    assert standin.WRITER not in str(caught.value) + caplog.text
    assert "try 4 of 5" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), ["safetensors", ".bin"]),
        (lambda f: (f / "recipe.yaml").write_text(f"hub_model_id: {standin.WRITER}"), ["recipe.yaml", "access token"]),
        (lambda f: support.edit_json(f / "tokenizer_config.json", t=standin.READER), ["tokenizer_config", "token"]),
        (lambda f: support.edit_json(f / "result.json", format=9), ["format 9", "pip install -U"]),
        (lambda f: (f / "adapter_config.json").unlink(), ["no model in it"]),
    ],
)
def test_folders_that_can_not_be_pushed(hub, run, change, said):
    change(run)
    with pytest.raises(RunError) as caught:
        push_run(run, "me/mine", base_model=BASE)
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert hub.requests == []


def licensed(hub, **card):
    """Put the base model on the Hub, with this in its card."""
    hub.repos[BASE] = standin.Repo(private=False)
    hub.repos[BASE].commit("main", {"config.json": b"{}"})
    hub.card_data[BASE] = card


def metadata(hub):
    return ModelCard(pushed(hub)["README.md"].decode()).data


def test_the_licence_is_that_of_the_base_model(hub, run):
    licensed(hub, license="other", license_name="llama3", license_link="https://example.com", language="en")
    push_run(run, "me/mine", base_model=BASE)
    data = metadata(hub)
    assert (data.license, data.license_name, data.license_link) == ("other", "llama3", "https://example.com")
    assert data.language is None


def test_a_licence_that_cannot_be_read_stops_nothing(hub, run):
    push_run(run, "me/mine", base_model=BASE)  # the stand-in doesn't have the base model
    assert metadata(hub).license is None
    assert {"trl", "dpo"} <= set(metadata(hub).tags)


def test_results_on_a_dataset_of_the_hub_stand_in_the_hubs_two_formats(hub, run):
    push_run(run, "me/mine", base_model=BASE)
    assert ".eval_results/trl-dpo-ext.yaml" not in pushed(hub)  # the recipe's data are a folder
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "dataset_name": "me/prompts", "dataset_config": "easy"}))
    push_run(run, "me/mine", base_model=BASE)
    entries = parse_eval_result_entries(yaml.safe_load(pushed(hub)[".eval_results/trl-dpo-ext.yaml"]))
    assert {(entry.dataset_id, entry.task_id) for entry in entries} == {("me/prompts", "easy")}
    values = [result.metric_value for result in metadata(hub).eval_results]
    assert [entry.value for entry in entries] == values
    assert len(values) == 3
    assert "before training, on the prompts of the split test" in str(entries[1].notes)
    assert metadata(hub).datasets == ["me/prompts"]


def test_local_data_are_named_after_the_converters_dataset(hub, run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    changed = {**recipe, "dataset_name": "/home/somebody/copy", "dataset_converter": "nectar"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(changed))
    push_run(run, "me/mine", base_model=BASE)
    assert metadata(hub).datasets == ["berkeley-nest/Nectar"]
