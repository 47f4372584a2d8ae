"""The inputs of `trl-dpo-ext eval`: prompts of a dataset, and completions from models or files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...evaluation import TokenizedPrompt

DATASET_ROW = "dataset_row"
"""Column of a file of samples: a conversation as the dataset has it, beside the text that judges read."""


@dataclass(frozen=True)
class Prompts:
    """Prompts, and the dataset's own completions.

    Attributes:
        rows: [N] `prompt` (text or messages); and `tools`, `chat_template_kwargs` and `completions` where known.
        own: [N] the dataset's best completions, or None if the prompts come from a file of samples.
    """

    rows: list[dict[str, Any]]
    own: list[str] | None

    @property
    def texts(self) -> list[str]:
        """[N] the prompts as judges and rewards read them."""
        return [as_text(row["prompt"]) for row in self.rows]


def as_text(prompt: Any) -> str:
    """Return a text prompt unchanged, a conversation as a dialogue.

    >>> as_text([{"role": "user", "content": "Why?"}])
    'User: Why?\\n\\nAssistant: '
    """
    if isinstance(prompt, str):
        return prompt
    from ...data.rendering.left_out_text import message_text

    turns = [f"{message['role'].capitalize()}: {message_text(message)}" for message in prompt]
    return "\n\n".join([*turns, "Assistant: "])


def read_prompts(
    dataset: str, *, config: str | None, split: str, converter: str | None, count: int, seed: int | None
) -> Prompts:
    """Return prompts of a split, each with its best completion.

    Args:
        dataset: as in `load_splits`.
        config: configuration of the dataset.
        split: split of the dataset.
        converter: name of a converter, or None.
        count: maximum number of prompts.
        seed: draws distinct prompts at random. None takes those of the first `count` rows, as recipes do: invalid and
            all-tied rows have none, and repeated prompts stay.

    Raises:
        DataError, FileNotFoundError: as `load_splits`.
    """
    from ...data import EVERY_ROW, convert_dataset, format_dataset, get_converter, load_splits
    from ...data.prompts import first_rows

    if converter is not None:
        get_converter(converter)
    rows = load_splits(dataset, config=config, needs=split)[split]
    if converter is not None:
        rows = convert_dataset(rows, converter, name=split, invalid_rows="drop")
    if seed is None:
        found = list(first_rows(rows, count, name=split))
        return Prompts(found, [_best(row) for row in found])
    rows = format_dataset(rows, name=split, invalid_rows="drop", reads=EVERY_ROW).shuffle(seed=seed)
    distinct: dict[str, dict[str, Any]] = {}
    for row in rows:
        distinct.setdefault(as_text(row["prompt"]), row)
        if len(distinct) == count:
            break
    return Prompts(list(distinct.values()), [_best(row) for row in distinct.values()])


def _best(row: Mapping[str, Any]) -> str:
    from ...data.rendering.left_out_text import message_text

    best = row["completions"][row["ranks"].index(0)]
    return best if isinstance(best, str) else "\n".join(map(message_text, best))


def is_file(source: str) -> bool:
    """Return whether a source is a file of samples, not a model."""
    return source.endswith(".jsonl")


def prompts_of_file(path: str, count: int) -> Prompts:
    """Return the first prompts of a file of samples, as the dataset had them if the file says so."""
    distinct: dict[str, dict[str, Any]] = {}
    for row in read_jsonl(path, ("prompt", "completion")):
        source = row.get(DATASET_ROW, {"prompt": row["prompt"]})
        if not isinstance(source, dict) or as_text(source.get("prompt", "")) != row["prompt"]:
            raise ValueError(f"{path}: {DATASET_ROW} of the prompt {row['prompt'][:60]!r} holds another prompt.")
        distinct.setdefault(row["prompt"], source)
    return Prompts(list(distinct.values())[:count], None)


def dataset_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of samples keeps of a dataset's row so that other models start from the same prompt."""
    kept = {key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key)}
    return {} if isinstance(row["prompt"], str) else {DATASET_ROW: {"prompt": row["prompt"], **kept}}


def check_source(source: str) -> None:
    """Check a source before anything expensive starts. Hub ids are not looked up.

    Raises:
        FileNotFoundError, ValueError: the file or folder can't be used.
    """
    if is_file(source):
        read_jsonl(source, ("prompt", "completion"))
    elif is_adapter(source):
        from ...hub.run_folder import read_run

        read_run(source).trained_base()
    else:
        from ...training.preflight.model_folder import check_model

        check_model(source, needs_tokenizer=True)


def completions(
    source: str, prompts: Prompts, temperatures: Sequence[float], *, samples: int = 1, **options: Any
) -> dict[float, list[list[str]]]:
    """Return completions of each prompt at each temperature, [N][samples].

    Args:
        source: folder of an adapter or model, Hub id, or JSONL file of samples, which is used for every temperature.
        prompts: prompts to complete.
        temperatures: sampling temperatures.
        samples: completions per prompt.
        options: further arguments of `sample`.

    Raises:
        ValueError: a file has too few samples of a prompt; or as `load_model`.
    """
    if is_file(source):
        found: dict[str, list[str]] = {}
        for row in read_jsonl(source, ("prompt", "completion")):
            found.setdefault(row["prompt"], []).append(row["completion"])
        for text in prompts.texts:
            if len(found.get(text, [])) < samples:
                raise ValueError(f"{source} has {len(found.get(text, []))} samples of {text!r}; needed: {samples}.")
        rows = [found[text][:samples] for text in prompts.texts]
        return dict.fromkeys(temperatures, rows)
    from ...evaluation import sample

    model, tokenizer = load_model(source)
    starts = tokenized(prompts, tokenizer, samples)
    sampled = {t: sample(model, tokenizer, starts, temperature=t, **options).completions for t in temperatures}
    return {t: by_prompt(found, samples) for t, found in sampled.items()}


def tokenized(prompts: Prompts, tokenizer: Any, samples: int) -> list[TokenizedPrompt]:
    """Return [N * samples] prompts for the model to continue: each `samples` times, with the ids of training.

    Raises:
        DataError: the tokenizer or its chat template refuses a row.
    """
    from ...evaluation import tokenized_prompt

    return [prompt for row in prompts.rows for prompt in [tokenized_prompt(row, tokenizer)] * samples]


def by_prompt(texts: Sequence[str], samples: int) -> list[list[str]]:
    """Return [N * samples] completions as [N][samples]."""
    return [list(texts[i : i + samples]) for i in range(0, len(texts), samples)]


def load_model(source: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer, on the GPU if there is one.

    Raises:
        FileNotFoundError, ValueError, OSError: the model doesn't exist, or can't be loaded.
    """
    import torch

    from ...hub.adapter_loading import load_adapter
    from ...modeling.complete_model import load_causal_lm

    print(f"Loading {source}.", file=sys.stderr, flush=True)
    model: Any = load_adapter(source) if is_adapter(source) else load_causal_lm(source, ValueError)
    if torch.cuda.is_available() and not getattr(model, "is_quantized", False):
        model = model.to("cuda")
    return model, load_tokenizer(source)


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a model. An adapter without one uses its base's.

    Raises:
        ValueError, OSError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    from ...hub.run_folder import read_run

    own = not is_adapter(source) or (Path(source) / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(source if own else read_run(source).trained_base().model)


def is_adapter(source: str) -> bool:
    """Return whether a source is the folder of an adapter."""
    return (Path(source) / "adapter_config.json").is_file()


def read_jsonl(path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file, each with text in these columns.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: a line is not such a row. The message names it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"The file {path!r} does not exist.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        for column in columns:
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise ValueError(f"{path}, line {number}: expected text in {', '.join(columns)}; {column} has none.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def write_jsonl(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL, atomically."""
    from ...record import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
