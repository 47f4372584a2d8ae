"""Strict parsing: a typo in a recipe stops the run instead of being passed over."""

import re
from dataclasses import dataclass, field

import pytest

from trl_dpo_ext.parsing import ParseError, StrictParser


@dataclass
class Settings:
    beta: float = 0.1
    steps: int = 10
    fast: bool = False
    tidy: bool = True
    mode: str = field(default="slow", metadata={"choices": ["slow", "quick"]})
    losses: list[str] = field(default_factory=lambda: ["dpo"])
    extra: dict | None = None


def parse(tmp_path, yaml: str = "", *options: str) -> Settings:
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml or "beta: 0.1\n")
    return StrictParser([Settings]).parse_args_and_config(["--config", str(config), *options])[0]


def test_values_of_every_type_arrive(tmp_path):
    text = "beta: 5e-5\nsteps: 3\nfast: true\ntidy: false\nmode: quick\nlosses: [dpo, sft]\nextra: {dpo: {beta: 1}}\n"
    settings = parse(tmp_path, text)
    assert settings == Settings(5e-5, 3, True, False, "quick", ["dpo", "sft"], {"dpo": {"beta": 1}})


def test_one_value_of_a_list_may_stand_alone(tmp_path):
    assert parse(tmp_path, "losses: sft\n").losses == ["sft"]


def test_the_command_line_wins(tmp_path):
    assert parse(tmp_path, "beta: 2\n", "--beta", "3").beta == 3.0


@pytest.mark.parametrize(
    ("yaml", "options", "said"),
    [
        ("btea: 2.0\n", (), ["'btea'", "'beta'"]),
        ("", ("--btea", "2"), ["--btea", "'beta'"]),
        ("", ("--btea=2",), ["--btea", "'beta'"]),
        ("", ("--bet", "2"), ["--bet", "'beta'"]),  # argparse would take it for --beta
        ("beta: fast\n", (), ["beta", "'fast'", "float"]),
        ("steps: 1.5\n", (), ["steps", "1.5", "int"]),  # TRL's parser would pass 1.5 on
        ("fast: maybe\n", (), ["fast", "'maybe'", "true or false"]),
        ("mode: quikc\n", (), ["mode", "'quikc'", "'quick'"]),
        ("- beta\n", (), ["mapping"]),
    ],
)
def test_errors_name_value_and_nearest(tmp_path, yaml, options, said):
    with pytest.raises(ValueError, match=re.escape(said[0])) as caught:
        parse(tmp_path, yaml, *options)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ParseError, match=r"nowhere\.yaml"):
        StrictParser([Settings]).parse_args_and_config(["--config", str(tmp_path / "nowhere.yaml")])


def test_given_is_what_differs_from_the_defaults(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("beta: 2\nsteps: 10\nlosses: [sft]\n")
    parser = StrictParser([Settings])
    parser.parse_args_and_config(["--config", str(config), "--fast", "true"])
    assert parser.given == {"beta": 2.0, "losses": ["sft"], "fast": True}
