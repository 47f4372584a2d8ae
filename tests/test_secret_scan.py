"""Tokens and keys are found by their form and by the names of options, and harmless texts are left alone."""

import shlex
import sys

import pytest

from trl_dpo_ext.record import launch_command
from trl_dpo_ext.secret_scan import is_secret_name, redact, redact_command, secrets_in, without_secrets

# In parts, so that no scanner takes this file for a leak.
SECRETS = {
    "Hugging Face": "hf_" + 17 * "aB",
    "an organization of Hugging Face": "api_org_" + 17 * "aB",
    "OpenAI, as it was": "sk-" + 24 * "a1",
    "OpenAI, of a project": "sk-proj-" + 20 * "a1-_",
    "Anthropic": "sk-ant-api03-" + 40 * "a1",
    "GitHub": "ghp_" + 18 * "a1",
    "GitHub, fine-grained": "github_pat_" + 40 * "a1",
    "AWS": "AKIA" + 4 * "QZ7X",
    "Google": "AIza" + 35 * "b",
    "Slack": "xoxb-" + "1234567890-abcdefghij",
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + 80 * "a",
    "a password in an address": "https://user:" + "s3cretpass" + "@host/x",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}
HARMLESS = [
    "sk-learn-is-a-package-and-more-of-it",
    "hf_hub_download",
    "asked_for_the_task-oriented-dialogue-2024",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "0123456789abcdef0123456789abcdef01234567",
    '{"tokens": 123, "pad_token": "<pad>", "max_new_tokens": 5}',
]


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_and_taken_out(kind):
    text = f"before {SECRETS[kind]} after"
    assert list(secrets_in(text))
    assert not list(secrets_in(redact(text)))
    assert redact(text).startswith("before ")
    assert redact(text).endswith(" after")


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays(text):
    assert not list(secrets_in(text))
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("hub_token", "--token", "api_key", "OPENAI_API_KEY", "use_auth_token", "password")),
        *((name, False) for name in ("pad_token", "eos_token", "max_new_tokens", "tokenizer", "hub_private_repo")),
        *((name, False) for name in ("include_num_input_tokens_seen", "average_tokens_across_devices", "key")),
    ],
)
def test_names_of_secrets(name, secret):
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    "given",
    [
        ["--hub_token", "mine"],
        ["--hub_token=mine"],
        ["--token=mine"],
        ["--model_init_kwargs", '{"token": "mine", "dtype": "float32"}'],
        ['--model_init_kwargs={"token": "mine", "config": {"api_key": "mine"}}'],
        ["--dataset_name", "https://user:minemine@host/x"],
    ],
)
def test_the_recorded_command_has_none(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/trl-dpo-ext", "train", *given, "--max_steps", "3"])
    shown = launch_command()
    assert "mine" not in shown
    assert shlex.split(shown)[-2:] == ["--max_steps", "3"]
    assert "mine" not in shlex.join(redact_command(["accelerate", "launch", "train.py", *given]))


def test_recorded_settings_have_none():
    settings = {"hub_token": "mine", "model_init_kwargs": {"token": "mine", "dtype": "x"}, "pad_token": "<pad>", "n": 1}
    assert without_secrets(settings) == {"model_init_kwargs": {"dtype": "x"}, "pad_token": "<pad>", "n": 1}
    assert without_secrets({"model_init_kwargs": '{"token": "mine"}'}) == {"model_init_kwargs": "{}"}
