"""The notebook runs from its first cell to its last, but for the installation, which is this environment's."""

from __future__ import annotations

import json
import os
import sys

import nbformat
from nbclient import NotebookClient

from tests.helpers import ROOT

PATH = ROOT / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    notebook = nbformat.read(PATH, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("%pip install")
    notebook.cells.remove(first)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = json.dumps([cell.get("outputs", []) for cell in notebook.cells], ensure_ascii=False)
    assert "mean reward" in text
    assert "image/png" in text
    assert "train_loss" in text
    assert "4-bit weights" in text


def test_the_committed_notebook_has_no_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
