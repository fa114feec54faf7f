"""Write tests/data/slow_dialect.json.xz: what the reference's slow tokenizer makes of random texts, in every option.

    PYTHONPATH=. python tools/slow_goldens.py   # Python 3.11 with transformers 4.57.6

A list of configurations: options, never_split, the added tokens by id, and pairs of a text and its ids.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import lzma
import random
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import transformers

from tools import tokenizer_agreement

TARGET = Path(__file__).parent.parent / "tests" / "data" / "slow_dialect.json.xz"
NEVER_SPLIT = ["é", "Hello", "a-b", "x.y", "中国", "İ", "abc", "!"]
EXTRA = ["Hello", "a-b", "x.y", "中国 ", "[MASK]", "[SEP] ", "a[MASK]b", "[MA\0SK]", "!"]
TEXTS = 12  # of each configuration
NEIGHBOURS = ["E1\u202fabcabcd##e", "x\nabc\u2028d", "\tabc\td", "a\tabcd <x> <x>y\n[SEP]", "\u2028abc é B e1E1"]


def main() -> None:
    """Write the file anew."""
    tokenizer_agreement.WORDS += EXTRA
    source = random.Random(0)  # noqa: S311
    characters = "".join(sorted(set("".join(map(_closure, tokenizer_agreement.TROUBLE))) - set("\n\r\0")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(tokenizer_agreement.vocabulary(characters)) + "\n", encoding="utf-8")
        cases = [
            _case(str(path), options, never_split, added, source)
            for options in tokenizer_agreement.EVERY_OPTION
            for never_split, added in itertools.product(((), NEVER_SPLIT), ((), tokenizer_agreement.ADDED))
        ]
    content = json.dumps({"characters": characters, "cases": cases})
    TARGET.write_bytes(lzma.compress(content.encode(), preset=9))


def _closure(character: str) -> str:
    forms = character + character.lower() + unicodedata.normalize("NFC", character.lower())
    return forms + unicodedata.normalize("NFD", forms)


def _case(path: str, options: dict[str, Any], never_split: Any, added: Any, source: random.Random) -> dict[str, Any]:
    tokenizer = transformers.DistilBertTokenizer(path, never_split=never_split or None, **options)
    for token in added:
        entry = transformers.AddedToken(**dataclasses.asdict(token))
        tokenizer.add_tokens([entry], special_tokens=token.special)
    texts = NEIGHBOURS + [tokenizer_agreement.random_text(source) for _ in range(TEXTS)]
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        "options": options,
        "never_split": list(never_split),
        "added": {i: {n: getattr(t, n) for n in names} for i, t in tokenizer.added_tokens_decoder.items()},
        "texts": [(text, tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))) for text in texts],
    }


if __name__ == "__main__":
    main()
