"""Text to token ids."""

# The files of a tokenizer in a checkpoint folder, as transformers names them.
TOKENIZER_FILE, VOCABULARY_FILE, OPTIONS_FILE = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, VOCABULARY_FILE, OPTIONS_FILE, "special_tokens_map.json", "added_tokens.json")
PRESET_VOCABULARY_FILE = "assets/tokenizer/vocabulary.txt"  # in a KerasHub preset, whose tokenizer.json is its own
