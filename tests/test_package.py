"""The package as a whole: public names, version, dependencies, and the files that the documentation names."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trl_dpo_ext
from tests.helpers import ROOT, free_port, run_python

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("name", trl_dpo_ext.__all__)
def test_public_names_resolve(name):
    assert getattr(trl_dpo_ext, name) is not None
    assert name in dir(trl_dpo_ext)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        trl_dpo_ext.Trainer  # noqa: B018


def test_the_import_is_light():
    """It loads neither torch nor trl: shell completion and commands that list things must not wait for them."""
    code = "import sys, trl_dpo_ext; print(sorted({'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules)))"
    assert run_python("-c", code).strip() == "[]"


def test_losses_import_nothing_of_hugging_face():
    code = "import sys, trl_dpo_ext.losses; print(sorted({'trl', 'transformers', 'peft'} & set(sys.modules)))"
    assert run_python("-c", code).strip() == "[]"


def test_the_version_comes_from_the_tag_and_from_nowhere_else():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["source"] == "vcs"
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.dev\d+)?", trl_dpo_ext.__version__)
    assert trl_dpo_ext.__version__ == metadata.version("trl-dpo-ext")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{trl_dpo_ext.__version__}]" in changelog


def test_constraints_pin_every_direct_dependency_within_its_bounds():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): pinned for name, pinned in (line.split("==") for line in lines)}
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    for text in [*PYPROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == PYPROJECT["project"]["name"]:  # one extra includes another
            continue
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{text}, but constraints.txt has {pinned}"
        assert any(spec.operator in (">=", "==") for spec in requirement.specifier), f"{text} has no lower bound"


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_configs_load_and_name_hardware_only(path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    given = yaml.safe_load(path.read_text())
    assert given["use_cpu"] is path.stem.startswith("cpu")
    assert given["mixed_precision"] == "no"  # precision is the method's choice: the recipe's bf16 or fp16
    for key, value in given.items():  # the loader dropped and renamed nothing
        loaded = getattr(config, key)
        assert getattr(loaded, "value", loaded) == value


def test_there_are_accelerate_configs():
    assert {"cpu", "cpu_2", "single_gpu", "ddp"} <= {path.stem for path in ACCELERATE}


@pytest.mark.slow
def test_two_cpu_processes_find_each_other(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(
        "import contextlib\n"
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        "accelerator.print('processes', int(accelerator.reduce(torch.ones(()))))\n"
        "with contextlib.suppress(RuntimeError):\n"  # the other process may have finished and left
        "    accelerator.wait_for_everyone()\n"  # gloo aborts a process if its peer leaves while it waits
        "accelerator.end_training()\n"
    )
    config = str(ROOT / "recipes" / "accelerate" / "cpu_2.yaml")
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        str(free_port()),
        "--config_file",
        config,
        str(script),
    ]
    assert "processes 2\n" in run_python(*launch, env={"ACCELERATE_USE_CPU": "true"})


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FOLDERS = ("trl_dpo_ext/", "recipes/", "tests/", "benchmarks/", "docs/", ".github/", ".ci/")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_the_documentation_exist(document):
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    for link in links:
        assert (document.parent / link).exists(), f"{document.name} links to {link}"
    for name in re.findall(r"(?<![\w./-])[\w.-]+(?:/[\w.*-]+)+", text):
        if name.startswith(FOLDERS):
            found = list(ROOT.glob(name.rstrip(".")))
            assert found, f"{document.name} names {name}"


def test_make_targets_named_in_the_documentation_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"`make ([a-z-]+)", document.read_text()):
            assert target in targets, f"{document.name} names `make {target}`"


def test_python_versions_agree():
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)
    workflow = yaml.safe_load(Path(ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["tested"]["strategy"]["matrix"]["python"]
    classified = [c.rpartition(" ")[2] for c in PYPROJECT["project"]["classifiers"] if "Python :: 3." in c]
    assert tested == classified


def test_the_tests_that_reliability_names_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    # The row of each trap names files that hold its test.
    for number, files in re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, flags=re.MULTILINE):
        for name in re.findall(r"`(tests/[\w/]+\.py)`", files):
            text = (ROOT / name).read_text()
            assert f"def test_trap_{int(number):02}_" in text or name == "tests/training/test_accumulation.py", name
