"""Make docs/example_run and docs/example_card.md from the output folder of a quickstart run.

    python -m tests.hub.make_example outputs/quickstart-plackett_luce

docs/example_run gets what the card is made from, as it would be pushed, with the first samples only. Without a folder,
the card is made again from docs/example_run.
"""

import json
import sys
from pathlib import Path

from tests.helpers import ROOT
from trl_dpo_ext.hub import make_card, read_run
from trl_dpo_ext.hub.pushed_files import files_to_push

BASE, REPO = "HuggingFaceTB/SmolLM2-135M-Instruct", "OWNER/quickstart-plackett_luce"
RECORD = ROOT / "docs" / "example_run"
CARD = ROOT / "docs" / "example_card.md"
_KEPT = ("adapter_config.json", "recipe.yaml", "reference.json", "curves.png")


def example_card() -> str:
    """Return the card of docs/example_run, with its picture where docs/example_card.md finds it."""
    return make_card(RECORD, repo=REPO).replace("(curves.png)", f"({RECORD.name}/curves.png)")


def main(folder: str | None = None) -> None:
    if folder is not None:
        files = files_to_push(read_run(folder).on(BASE, None), card="")
        RECORD.mkdir(exist_ok=True)
        for name in _KEPT:
            content = files[name]
            (RECORD / name).write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        result = json.loads(bytes(files["result.json"]))
        for side in ("before", "after"):
            del result["evaluation"][side]["samples"][3:]
        (RECORD / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    CARD.write_text(example_card())


if __name__ == "__main__":
    main(*sys.argv[1:])
