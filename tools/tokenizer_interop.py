"""The reference reads the tokenizers that we write: the same ids, added tokens, special tokens, limit and sides.

Run by hand, in two steps, since the reference's versions exclude one another:
    python -m tools.tokenizer_interop write build/interop/tokenizers    with this package: writes folders
    python tools/tokenizer_interop.py read build/interop/tokenizers     with transformers 4.57.6, and with 5.23.0
The folders are those of tests/data/tokenizers, read and written again, and some that the reference would not write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # the environments of the reference do not have it, and only read
    from distilbert.tokenization.files import TokenizerContent, read_tokenizer
    from distilbert.tokenization.options import AddedToken
    from distilbert.tokenization.writing import write_tokenizer

GOLDENS = Path(__file__).parent.parent / "tests" / "data" / "tokenizers"
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def write(root: Path) -> None:
    """Write each folder, with what must be found in it."""
    shutil.rmtree(root, ignore_errors=True)
    for source in sorted(GOLDENS.iterdir()):
        content = read_tokenizer(source)
        write_tokenizer(content, root / source.name)
        shutil.copy(source / "expected.json", root / source.name)
    plain = read_tokenizer(GOLDENS / "plain-v5")
    write_gap(plain, root / "gap")
    write_words(plain, root / "words")


def write_gap(plain: TokenizerContent, folder: Path) -> None:
    """A vocabulary that leaves out an id."""
    gap = {token: i + (i > 20) for token, i in plain.vocabulary.items()}
    write_tokenizer(plain._replace(vocabulary=gap), folder)
    expected = json.loads((GOLDENS / "plain-v5" / "expected.json").read_text())
    ids = {text: [i + (i > 20) for i in found] for text, found in expected["ids"].items()}
    batch = [[i + (i > 20) for i in row] for row in expected["batch"]]
    changed = {**expected, "ids": ids, "batch": batch, "vocabulary": gap}
    (folder / "expected.json").write_text(json.dumps(changed))


def write_words(plain: TokenizerContent, folder: Path) -> None:
    """Words of the vocabulary as added tokens, one of them special."""
    words = {"cat": AddedToken("cat", special=True, normalized=False), "the": AddedToken("the", single_word=True)}
    added = plain.added_tokens | {plain.vocabulary[text]: token for text, token in words.items()}
    options = dataclasses.replace(plain.options, additional_special_tokens=("cat",))
    write_tokenizer(plain._replace(added_tokens=added, options=options), folder)
    fields = {str(i): dataclasses.asdict(token) for i, token in sorted(added.items())}
    texts = {"a cat the scat sthe": [2, 6, 7, 5, 1, 7, 1, 3]}
    changed = {"vocabulary": plain.vocabulary, "added": fields, "ids": texts}
    (folder / "expected.json").write_text(json.dumps(changed))


def read(root: Path) -> int:
    """Compare what the reference finds; the number of differences."""
    import transformers

    names = ["DistilBertTokenizerFast", "AutoTokenizer"]
    names += ["DistilBertTokenizer"] if transformers.__version__.startswith("4.") else []
    wrong = 0
    for folder in sorted(root.iterdir()):
        expected = json.loads((folder / "expected.json").read_text())
        for name in names:
            found = view(getattr(transformers, name).from_pretrained(folder), expected)
            different = [key for key in found.keys() & expected.keys() if found[key] != expected[key]]
            wrong += len(different)
            print(f"{folder.name:16} {name:24} {', '.join(different) or 'same'}")  # noqa: T201 - a tool's output
            for key in different:
                print(f"  {key}: {found[key]}, expected {expected[key]}")  # noqa: T201
    return wrong


def view(tokenizer: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """What the tokenizer says of all that is expected."""
    added = {str(i): {key: getattr(token, key) for key in FLAGS} for i, token in tokenizer.added_tokens_decoder.items()}
    return {
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "special": {name: str(getattr(tokenizer, name)) for name in expected.get("special", ())},
        "vocabulary": tokenizer.get_vocab(),
        "added": dict(sorted(added.items(), key=lambda item: int(item[0]))),
        "ids": {text: tokenizer(text)["input_ids"] for text in expected["ids"]},
        "batch": tokenizer(list(expected["ids"]), padding=True, truncation=True, max_length=9)["input_ids"],
    }


if __name__ == "__main__":
    step, place = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(place) if step == "write" else min(read(place), 1))
