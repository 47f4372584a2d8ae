"""Finds access tokens and keys in text and settings, and takes them out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

# detect-secrets' detectors of tokens with a fixed form. Those that go by entropy, by words such as "key", or by a
# vague form fire at hashes, tokenizers and settings.
_DETECTORS = (
    *("AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "DiscordBotTokenDetector"),
    *("GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "MailchimpDetector", "NpmDetector"),
    *("OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector"),
    *("SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector"),
)
# Kinds that detect-secrets 1.5 doesn't know, or knows in an older form only.
_PATTERNS = {
    "Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    "OpenAI or Anthropic key": re.compile(r"\bsk-(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    "Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
}
_NAME = (
    r"(?:(?:hub|hf|auth|access|api|bearer|secret|private)[_-]?(?:token|key)|(?:use_auth_)?token|secret|passw(?:or)?d)"
)
_SECRET_NAME = re.compile(rf"(?:^|.*[_-]){_NAME}$|^{_NAME}$", re.IGNORECASE)
_HARMLESS = re.compile(r"(?:pad|eos|bos|unk|sep|cls|mask|num|new|max|per|image)_?.*token$", re.IGNORECASE)
HIDDEN = "***"


def secrets_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind and value of each access token or key in a text that has the form of one."""
    for kind, pattern in _PATTERNS.items():
        yield from ((kind, match[0]) for match in pattern.finditer(text))
    for detector in _detectors():
        # A `set` of values; empty ones would match everywhere.
        yield from ((detector.secret_type, value) for value in detector.analyze_string(text) if len(value) >= 8)


def redact(text: str, *known: str | None) -> str:
    """Return a text without the tokens that it holds.

    Args:
        text: any text.
        known: further texts to take out.

    >>> redact("HF_TOKEN=hf_" + 20 * "x" + " train")
    'HF_TOKEN=hf_*** train'
    """
    for secret in known:
        text = text.replace(secret, HIDDEN) if secret else text
    for _, value in sorted(secrets_in(text), key=lambda found: -len(found[1])):
        prefix = re.match(r"(?:hf|api_org|gh[a-z]|github_pat)_|sk-", value)
        text = text.replace(value, f"{prefix[0] if prefix else ''}{HIDDEN}")
    return text


def is_secret_name(name: str) -> bool:
    """Return whether a setting of this name holds a secret, whatever the form of its value.

    >>> is_secret_name("--hub_token"), is_secret_name("token"), is_secret_name("pad_token")
    (True, True, False)
    """
    name = name.lstrip("-")
    return _SECRET_NAME.match(name) is not None and _HARMLESS.match(name) is None


def without_secrets(content: Any) -> Any:
    """Return settings without those that hold secrets; JSON texts inside are read too."""
    if isinstance(content, Mapping):
        return {key: without_secrets(value) for key, value in content.items() if not is_secret_name(str(key))}
    if isinstance(content, list):
        return [without_secrets(value) for value in content]
    if isinstance(content, str):
        inner = _json_mapping(content)
        return redact(content) if inner is None else json.dumps(without_secrets(inner))
    return content


def redact_command(parts: Sequence[str]) -> list[str]:
    """Return the parts of a command line with `***` for each secret: by the option's name, in JSON, and by form.

    >>> redact_command(["train", "--hub_token=abc", "--token", "abc", "--model_init_kwargs", '{"token": "abc"}'])
    ['train', '--hub_token=***', '--token', '***', '--model_init_kwargs', '{}']
    """
    shown: list[str] = []
    hide_next = False
    for part in parts:
        name, equals, value = part.partition("=")
        option = equals and re.fullmatch(r"[\w-]+", name) is not None
        if hide_next and not part.startswith("--"):
            shown.append(HIDDEN)
        elif option and is_secret_name(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(f"{name}={without_secrets(value)}" if option else without_secrets(part))
        hide_next = part.startswith("-") and not equals and is_secret_name(part)
    return shown


def _json_mapping(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@cache
def _detectors() -> list[Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    classes: Any = get_mapping_from_secret_type_to_class().values()
    return [kind() for kind in classes if kind.__name__ in _DETECTORS]
