"""The registry alone, and the plugins of another distribution in a fresh process."""

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from tests.helpers import ROOT
from trl_dpo_ext.registry import (
    NameCollisionError,
    PluginError,
    Registry,
    RegistryError,
    UnknownNameError,
    import_all,
)


def one(): ...


def two(): ...


@pytest.fixture
def registry() -> Registry:
    return Registry("animal")


def test_register_returns_the_object_and_finds_it_by_name_and_alias(registry):
    assert registry.register("cat", one, aliases=["feline", "pussy_cat"]) is one
    assert registry.get("cat") is registry.get("feline") is registry.get("pussy_cat") is one
    assert registry.names() == ["cat"]
    assert registry.names(aliases=True) == ["cat", "feline", "pussy_cat"]
    assert "feline" in registry
    assert "dog" not in registry


def test_entries_are_listed_once_by_name(registry):
    registry.register("dog", two)
    registry.register("cat", one, aliases=["zebra"])
    assert list(registry) == [one, two]


def test_the_same_object_again_is_a_no_op(registry):
    registry.register("cat", one, aliases=["feline"])
    registry.register("cat", one, aliases=["feline"])
    assert list(registry) == [one]


def test_what_is_the_same_can_be_said():
    registry: Registry[tuple] = Registry("animal", same=lambda a, b: a[0] is b[0])
    registry.register("cat", (one, 1))
    registry.register("cat", (one, 2))
    assert registry.get("cat") == (one, 2)
    with pytest.raises(NameCollisionError):
        registry.register("cat", (two, 1))


@pytest.mark.parametrize("taken", ["cat", "feline"])
@pytest.mark.parametrize("as_alias", [False, True])
def test_a_taken_name_raises_and_names_both(registry, taken, as_alias):
    registry.register("cat", one, aliases=["feline"])
    arguments = ("dog", two, [taken]) if as_alias else (taken, two, ["dog"])
    with pytest.raises(NameCollisionError) as raised:
        registry.register(*arguments)
    message = str(raised.value)
    assert f"The animal name {taken!r} is taken" in message
    for obj in (one, two):
        assert f"{Path(__file__).name}:{obj.__code__.co_firstlineno}" in message
    assert registry.names(aliases=True) == ["cat", "feline"], "all names or none"
    assert registry.get(taken) is one


@pytest.mark.parametrize("name", ["", "2cats", "big cat", "big-cat", "cat.big", 7, None])
def test_a_name_must_be_usable_in_yaml_and_on_the_command_line(registry, name):
    with pytest.raises(RegistryError, match=r"can't name a animal .*use letters, digits and underscores"):
        registry.register("cat", one, aliases=[name])
    assert registry.names(aliases=True) == []


def test_an_unknown_name_gets_suggestions_and_the_known_names(registry):
    registry.register("kitten", one)
    registry.register("dog", two, aliases=["hound"])
    with pytest.raises(
        UnknownNameError, match=r"Unknown animal 'kiten'\. Did you mean 'kitten'\? Known names: dog, hound, kitten\."
    ):
        registry.get("kiten")
    with pytest.raises(UnknownNameError, match=r"^Unknown animal 'zzz'\. Known names"):
        registry.get("zzz")


def test_temporary_entries_are_forgotten(registry):
    registry.register("cat", one, aliases=["feline"])

    @registry.temporary()
    def fail():
        registry.register("dog", two, aliases=["hound"])
        assert registry.get("hound") is two
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert registry.names(aliases=True) == ["cat", "feline"]
    registry.register("hound", one)


def test_a_registry_without_a_group_has_no_plugins(registry):
    assert registry.names() == []


# --- plugins -------------------------------------------------------------------------------------------------------

PLUGIN = """
    import torch.nn.functional as F
    from trl_dpo_ext import PreferencePairs, register_loss

    @register_loss("plugin_loss", aliases=["plugged"])
    def plugin_loss(pairs: PreferencePairs, *, beta: float = 0.2):
        return -F.logsigmoid(beta * pairs.margins)
"""


def distribution(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """Lay out what an installed distribution leaves on the path: modules, and a .dist-info with entry points."""
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[trl_dpo_ext.losses]\n{textwrap.dedent(entry_points)}\n")


def fresh(code: str, *paths: Path) -> str:
    """Run code in a new interpreter and return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": ":".join(map(str, (ROOT, *paths)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_plugin_is_found_listed_and_works(tmp_path):
    distribution(tmp_path, "other-losses", "plugin_loss = other_losses", other_losses=PLUGIN)
    code = """
        import sys
        from trl_dpo_ext import get_loss, list_losses
        from trl_dpo_ext.losses import LOSSES
        assert "plugin_loss" in LOSSES.names()
        assert "other_losses" not in sys.modules, "listing names loads nothing"
        assert get_loss("dpo").name == "dpo"
        assert "other_losses" not in sys.modules, "another name loads nothing"
        spec = get_loss("plugin_loss")
        assert spec is get_loss("plugged") and spec in list_losses()
        assert spec.origin.endswith("other_losses.py:5"), spec.origin
        from trl_dpo_ext.testing import check_loss
        check_loss("plugin_loss")
        print(spec.check({})["beta"])
    """
    assert fresh(code, tmp_path) == "0.2"


def test_built_in_losses_stay_when_a_plugin_registers_first(tmp_path):
    distribution(tmp_path, "other-losses", "plugin_loss = other_losses", other_losses=PLUGIN)
    code = """
        import other_losses
        from trl_dpo_ext import list_losses
        print({"dpo", "plugin_loss"} <= {spec.name for spec in list_losses()})
    """
    assert fresh(code, tmp_path) == "True"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import a_module_nobody_has",
            "which can't be loaded: ModuleNotFoundError: No module named 'a_module_nobody_has'",
        ),
        ("1 / 0", "which can't be loaded: ZeroDivisionError: division by zero"),
        ("pass", "but loading it registered no such name"),
    ],
)
def test_a_broken_plugin_fails_only_when_asked_for_by_name(tmp_path, source, reason):
    distribution(tmp_path, "broken-losses", "broken_loss = broken_losses", broken_losses=source)
    code = f"""
        import warnings
        from trl_dpo_ext import get_loss, list_losses
        from trl_dpo_ext.registry import PluginError
        assert get_loss("dpo").name == "dpo"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = [spec.name for spec in list_losses()]
            list_losses()
        assert "dpo" in names and "broken_loss" not in names
        messages = [str(w.message) for w in caught]
        assert len(messages) == 1, messages
        expected = "The loss 'broken_loss' is announced by 'broken_losses' of broken-losses 1.2, " + {reason!r}
        assert messages[0].startswith(expected), messages[0]
        try:
            get_loss("broken_loss")
        except PluginError as error:
            assert str(error) == messages[0]
            print("raised")
    """
    assert fresh(code, tmp_path) == "raised"


def test_a_plugin_under_a_taken_name_names_both(tmp_path):
    distribution(tmp_path, "thief", "dpo = thief", thief=PLUGIN.replace('"plugin_loss", aliases=["plugged"]', '"dpo"'))
    code = """
        import warnings
        from trl_dpo_ext import get_loss, list_losses
        from trl_dpo_ext.registry import NameCollisionError
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [s.fn.__module__ for s in list_losses() if s.name == "dpo"] == ["trl_dpo_ext.losses.families.dpo"]
        assert "thief.py:5" in str(caught[0].message), caught
        try:
            get_loss("dpo")
        except NameCollisionError as error:
            assert "dpo.py:" in str(error) and "thief.py:5" in str(error)
            print("raised")
    """
    assert fresh(code, tmp_path) == "raised"


def test_a_plugin_error_is_a_registry_error():
    assert issubclass(PluginError, RegistryError)
    assert issubclass(RegistryError, ValueError)


# --- what is imported ----------------------------------------------------------------------------------------------


def test_importing_the_package_imports_neither_torch_nor_trl():
    heavy = {"torch", "trl", "transformers", "peft", "accelerate", "datasets", "rich", "numpy"}
    assert fresh(f"import sys, trl_dpo_ext; print(sorted(set(sys.modules) & {heavy!r}))") == "[]"


def test_the_registry_imports_only_the_standard_library():
    code = """
        import sys
        import trl_dpo_ext.registry
        ours = {"trl_dpo_ext"}
        extra = {m.partition(".")[0] for m in sys.modules} - set(sys.stdlib_module_names) - ours
        print(sorted(m for m in extra if not m.startswith("_") and "site" not in m))
    """
    assert fresh(code) == "[]"


@pytest.mark.parametrize("module", ["losses", "types", "testing"])
def test_the_losses_import_no_trainer(module):
    heavy = {"trl", "transformers", "peft", "accelerate", "datasets"}
    code = f"import sys, trl_dpo_ext.{module}; print('torch' in sys.modules, sorted(set(sys.modules) & {heavy!r}))"
    assert fresh(code) == "True []"


def test_every_public_name_is_there():
    import trl_dpo_ext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in trl_dpo_ext.__all__:
            assert getattr(trl_dpo_ext, name) is not None
    assert set(trl_dpo_ext.__all__) <= set(dir(trl_dpo_ext))
    with pytest.raises(AttributeError, match="module 'trl_dpo_ext' has no attribute 'nothing'"):
        _ = trl_dpo_ext.nothing


def test_import_all_lets_every_file_of_a_folder_register_itself(tmp_path, monkeypatch):
    folder = tmp_path / "zoo"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from trl_dpo_ext.registry import Registry, import_all\nanimals = Registry('animal')\nimport_all(__name__)\n"
    )
    for path in ("cat", "ant", "sub/__init__"):
        name = path.partition("/")[0]
        (folder / f"{path}.py").write_text(f"from zoo import animals\nanimals.register({name!r}, object())\n")
    for path in ("_private", "sub/deeper"):
        (folder / f"{path}.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    from zoo import animals

    assert animals.names() == ["ant", "cat", "sub"]
    assert [module.__name__ for module in import_all("zoo")] == ["zoo.ant", "zoo.cat", "zoo.sub"]
