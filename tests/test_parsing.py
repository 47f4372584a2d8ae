"""Strict parsing: a typo in a recipe stops the run instead of being passed over."""

import re
from dataclasses import dataclass, field, fields

import pytest
from trl import ModelConfig

from trl_dpo_ext import PreferenceConfig
from trl_dpo_ext.parsing import ParseError, StrictParser
from trl_dpo_ext.renamed_settings import _RENAMED, _REPLACED
from trl_dpo_ext.run import RecipeArguments


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


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    with pytest.raises(ParseError) as caught:
        parse(tmp_path, "btea: 2.0\nsteps: few\nmode: quikc\nlosses: [dpo]\n")
    assert str(caught.value).splitlines() == [
        f"3 mistakes in {tmp_path / 'recipe.yaml'}:",
        "  line 1: Unknown key 'btea'. Did you mean 'beta'?",
        "  line 2: steps: 'few' is not valid; expected int.",
        "  line 3: mode: 'quikc' is unknown. Did you mean 'quick'? It is one of: slow, quick.",
    ]


def test_all_unknown_options_are_named_at_once(tmp_path):
    with pytest.raises(ParseError, match=r"2 mistakes on the command line") as caught:
        parse(tmp_path, "", "--btea", "2", "--stesp=3")
    assert "Unknown option --btea. Did you mean 'beta'?" in str(caught.value)
    assert "Unknown option --stesp. Did you mean 'steps'" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("torch_dtype", "It is called dtype here."),
        ("evaluation_strategy", "It is called eval_strategy here."),
        ("max_prompt_length", "max_length limits prompt and completion together."),
        ("use_flash_attention_2", "Use attn_implementation: flash_attention_2."),
        ("dataset_mixer", "name it in dataset_name."),
        ("rpo_alpha", "Use loss_type: [dpo, sft] with loss_weights: [1.0, ALPHA]."),
    ],
)
def test_a_setting_of_another_version_or_trainer_says_what_replaces_it(tmp_path, key, said):
    for given in ((f"{key}: 1\n",), ("", f"--{key}", "1")):
        with pytest.raises(ParseError, match=re.escape(said)):
            parse(tmp_path, *given)


def test_hints_name_settings_that_exist_and_none_that_is_known():
    known = {f.name for kind in (RecipeArguments, PreferenceConfig, ModelConfig) for f in fields(kind)}
    for old, new in _RENAMED.items():
        assert old not in known
        assert re.match(r"\w+", new)[0] in known, new
    for old, sentence in _REPLACED.items():
        assert old not in known
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", sentence):
            assert name in known or name == "gamma_beta_ratio", sentence


def test_config_takes_its_file_in_either_form_and_needs_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("beta: 2\n")
    for given in ([f"--config={path}"], ["--config", str(path)]):
        assert StrictParser([Settings]).parse_args_and_config(given)[0].beta == 2
    with pytest.raises(ParseError, match="--config needs a YAML file"):
        StrictParser([Settings]).parse_args_and_config(["--config"])


def test_help_is_an_option_and_no_setting(tmp_path):
    with pytest.raises(ParseError, match="Unknown key 'help'"):
        parse(tmp_path, "help: true\n")


@dataclass
class Optional:
    limit: int | None = None
    name: str = "a"
    count: int = 1
    places: None | str | list[str] = None  # noqa: RUF036, as transformers has it
    kinds: list[str] | None = None
    options: dict[str, int] | str | None = None


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("limit: 3\n", "limit", 3),
        ("limit: null\n", "limit", None),
        ("places: [here, there]\n", "places", ["here", "there"]),
        ("places: here\n", "places", "here"),
        ("kinds: null\n", "kinds", None),
        ("options: {a: 1}\n", "options", {"a": 1}),
    ],
)
def test_a_value_of_any_type_that_the_field_has_arrives(tmp_path, text, name, value):
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    (settings,) = StrictParser([Optional]).parse_args_and_config(["--config", str(config)])
    assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limit: many\n", "limit: 'many' is not valid; expected int, null."),
        ("limit: [1]\n", "limit: [1] is not valid; expected int, null."),
        ("count: null\n", "count: None is not valid; expected int."),
        ("name: [a, b]\n", "name: ['a', 'b'] is not valid; expected text."),
        ("name: {a: b}\n", "name: {'a': 'b'} is not valid; expected text."),
        ("kinds: [a, [b]]\n", "kinds: ['b'] is not valid; expected text."),
        ("options: [a]\n", "options: ['a'] is not valid; expected a mapping, text, null."),
    ],
)
def test_a_value_of_another_type_is_named_with_the_right_ones(tmp_path, text, said):
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    with pytest.raises(ParseError) as caught:
        StrictParser([Optional]).parse_args_and_config(["--config", str(config)])
    assert str(caught.value) == f"{config}, line 1: {said}"


def test_named_settings_are_those_that_are_written_whatever_their_value(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("beta: 0.1\n")
    parser = StrictParser([Settings])
    parser.parse_args_and_config(["--config", str(config), "--no_tidy", "--steps=10"])
    assert parser.named == {"beta", "tidy", "steps"}
    assert parser.given == {"tidy": False}
