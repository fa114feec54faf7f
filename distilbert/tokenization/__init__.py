"""Text to token ids."""

from pathlib import Path

# The files of a tokenizer in a checkpoint folder, as transformers names them.
TOKENIZER_FILE, VOCABULARY_FILE, OPTIONS_FILE = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, VOCABULARY_FILE, OPTIONS_FILE, "special_tokens_map.json", "added_tokens.json")
PRESET_VOCABULARY_FILE = "assets/tokenizer/vocabulary.txt"  # in a KerasHub preset, whose tokenizer.json is its own


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a vocabulary, alone or in a tokenizer.json."""
    return any((folder / name).exists() for name in (TOKENIZER_FILE, VOCABULARY_FILE))
