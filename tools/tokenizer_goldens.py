"""Tokenizers that the reference itself saved, and what it makes of them: tests/data/tokenizers, written anew.

Run by hand: tools/tokenizer_goldens.py, once in an environment with transformers 4.57.6, for the folders v4-slow and
v4-fast, and once in one with 5.23.0, for v5. Each folder has the files as they were saved, and expected.json: what the
reference found when it loaded them again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AddedToken, DistilBertTokenizer, DistilBertTokenizerFast

ROOT = Path(__file__).parent.parent / "tests" / "data" / "tokenizers"
SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
DEFAULTS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
EXTRA = "additional_special_tokens" if transformers.__version__.startswith("4.") else "extra_special_tokens"
WORDS = (  # noqa: SIM905 - a list of them would take a page
    "the a cat dog ran new word fast er est ##s ##er ##est ##ing run ##ning caf ##e ##é café é E The Cat DOG don t u "
    "##n ##able < > [ ] one e1 lost , . ! ? ' - 東 京 東京 ##京 ü ##ber uber über 1 2 ##2 ; : ( ) / x ##x y z ##z"
).split()
TEXTS = (
    "The cats ran.",
    "the fastest dog, running!",
    "café Über 東京 naïve",
    "a newword and <lost>  the end",
    "the <one> cat<one>dog x<one>",
    "<e1> a <e2> the<e1>cat   <e2>",
    "a [MASK] word [SEP] 2 [CLS]dog",
    "a <mask> word </s> x <s>dog <pad> <unk>",
    "",
    "unknown don't (1;2)",
)
CUSTOM = dict(zip(SPECIAL_NAMES, ("<pad>", "<unk>", "<s>", "</s>"), strict=False))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cased": {"do_lower_case": False, "model_max_length": 512},
    "added": {},
    "custom": {**CUSTOM, "mask_token": AddedToken("<mask>", lstrip=True, normalized=False, special=True)},
    "left": {
        "model_max_length": 12,
        "padding_side": "left",
        "truncation_side": "left",
        "strip_accents": False,
        "tokenize_chinese_chars": False,
    },
}
VIEW = ("do_lower_case", "model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


def main() -> None:
    """Write every case as every class of the reference at hand saves it."""
    major = transformers.__version__.split(".")[0]
    classes = (
        {"slow": DistilBertTokenizer, "fast": DistilBertTokenizerFast} if major == "4" else {"": DistilBertTokenizer}
    )
    for name in CASES:
        for kind, cls in classes.items():
            folder = ROOT / "-".join(filter(None, (name, f"v{major}", kind)))
            shutil.rmtree(folder, ignore_errors=True)
            make(name, cls).save_pretrained(folder)
            (folder / "expected.json").write_text(json.dumps(view(cls.from_pretrained(folder)), indent=1) + "\n")


def make(name: str, cls: Any) -> Any:
    """A tokenizer of the case, built from a vocab.txt."""
    options = CASES[name]
    special = [str(options.get(key, default)) for key, default in zip(SPECIAL_NAMES, DEFAULTS, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("".join(f"{token}\n" for token in (*special, *WORDS)), encoding="utf-8")
        tokenizer = cls(str(path), **options)
    if name == "added":
        tokenizer.add_tokens(["newword", AddedToken("<one>", single_word=True), AddedToken("<lost>", rstrip=True)])
        second = AddedToken("<e2>", lstrip=True, special=True, normalized=False)
        tokenizer.add_special_tokens({EXTRA: ["<e1>", second]})
    return tokenizer


def view(tokenizer: Any) -> dict[str, Any]:
    """What the reference found in a folder."""
    found = {key: getattr(tokenizer, key) for key in VIEW if hasattr(tokenizer, key)}
    return found | {
        "transformers": transformers.__version__,
        "special": {key: str(getattr(tokenizer, key)) for key in SPECIAL_NAMES},
        "vocabulary": tokenizer.get_vocab(),
        "added": {str(i): state(token) for i, token in sorted(tokenizer.added_tokens_decoder.items())},
        "ids": {text: tokenizer(text)["input_ids"] for text in TEXTS},
        "batch": tokenizer(list(TEXTS), padding=True, truncation=True, max_length=9)["input_ids"],
    }


def state(token: Any) -> dict[str, Any]:
    """An added token as data."""
    return {key: getattr(token, key) for key in ("content", "single_word", "lstrip", "rstrip", "normalized", "special")}


if __name__ == "__main__":
    main()
