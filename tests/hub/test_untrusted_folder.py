"""A run's folder from elsewhere: links, secrets, texts that would break the card or its commands."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

from trl_dpo_ext.hub import RunError, make_card
from trl_dpo_ext.hub.merge import _atomic_folder
from trl_dpo_ext.hub.pushed_files import files_to_push
from trl_dpo_ext.hub.run_folder import read_run
from trl_dpo_ext.strict_yaml import dump_yaml

SECRET = "ghp_" + 18 * "a1"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"base_model_name_or_path": "owner/base", "peft_type": "LORA", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {f"base_model.model.q_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_link_out_of_the_folder_is_not_pushed(run, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("mine")
    (run / "vocab.txt").symlink_to(secret)
    with pytest.raises(RunError, match=r"vocab\.txt is a link to .*id_rsa, outside"):
        files_to_push(read_run(run), "card")


def test_nor_through_a_linked_folder(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jinja").write_text("mine")
    (run / "additional_chat_templates").symlink_to(other)
    with pytest.raises(RunError, match="outside of the run's folder"):
        files_to_push(read_run(run), "card")


def test_a_link_inside_is_pushed_and_so_is_a_folder_named_by_a_link(run, tmp_path):
    (run / "vocab.json").symlink_to("tokenizer.json")
    (tmp_path / "linked").symlink_to(run)
    assert "vocab.json" in files_to_push(read_run(tmp_path / "linked"), "card")


@pytest.mark.parametrize("where", ["tokenizer_config.json", "recipe.yaml", "result.json", "README.md"])
def test_a_secret_is_not_pushed(run, where):
    card = SECRET if where == "README.md" else "card"
    if where != "README.md":
        (run / where).write_text(
            dump_yaml({"run_name": SECRET}) if where == "recipe.yaml" else json.dumps({"a": SECRET})
        )
    with pytest.raises(RunError, match=rf"{re.escape(where)} contains what looks like a secret \(GitHub"):
        files_to_push(read_run(run), card)


def blocks(card):
    """The fenced blocks of a card, as CommonMark reads them: a fence ends at one that is as long, or longer."""
    found, fence = [], None
    for line in card.splitlines():
        if fence is None and (match := re.match(r"(`{3,})[^`]*$", line)):
            fence, content = match[1], []
        elif fence is not None and re.fullmatch(rf"`{{{len(fence)},}}\s*", line):
            found.append("\n".join(content))
            fence = None
        elif fence is not None:
            content.append(line)
    assert fence is None, "a block doesn't end"
    return found


@pytest.mark.parametrize("ticks", ["```", "````", "```````"])
def test_no_text_ends_a_code_block(run, ticks):
    evil = f"x\n{ticks}\n# injected\n{ticks}bash\ny"
    loss = {"name": "dpo", "weight": 1, "hyperparameters": {}, "equation": evil, "paper": None, "reference": None}
    write(run, result={"losses": [loss], "launch": evil})
    (run / "recipe.yaml").write_text(dump_yaml({"run_name": evil}))
    found = blocks(make_card(run))
    assert found.count(evil) == 2
    assert not any("## Reference model" in block for block in found)


def test_names_are_quoted_in_commands(run):
    base = "a/b; touch x"
    config = json.loads((run / "adapter_config.json").read_text())
    write(run, adapter_config={**config, "base_model_name_or_path": base})
    card = make_card(run, base_model=base, base_revision="$(id)", repo='o/n"); import os; ("')
    commands = [block for block in blocks(card) if block.startswith(("vllm", "trl-dpo-ext"))]
    assert len(commands) == 2
    for command in commands:
        assert base in shlex.split(command)
    python = next(block for block in blocks(card) if "AutoPeftModelForCausalLM.from_pretrained" in block)
    calls = [line for line in python.splitlines() if "from_pretrained" in line]
    compile(calls[0], "card", "exec")
    assert json.dumps('o/n"); import os; ("') in calls[0]


def test_a_fact_is_one_line_of_its_table(run):
    (run / "recipe.yaml").write_text(dump_yaml({"dataset_name": "x |\n\n# injected"}))
    assert "\n# injected" not in re.sub(r"```.*?```", "", make_card(run), flags=re.DOTALL)


def test_a_merge_leaves_the_files_of_others(tmp_path):
    other = tmp_path / "merged.partial"
    other.mkdir()
    (other / "mine").write_text("mine")
    with _atomic_folder(tmp_path / "merged") as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
    assert (other / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "merged.partial"]
