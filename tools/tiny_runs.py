"""Models and data so small that a run takes seconds, for tests and for tools that run many: one of each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights
from distilbert.tokenization.fast import DistilBertTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOPICS = {
    "animals": ("cat", "dog", "horse", "mouse", "bird", "cow"),
    "colours": ("red", "green", "blue", "white", "black", "brown"),
    "numbers": ("one", "two", "three", "four", "five", "six"),
}
FILLING = ("the", "a", "of", "and", "or", "with", "is", "was", "very", "not", "who", "what", "here", "there")
WORDS = (*SPECIAL, *(word for words in TOPICS.values() for word in words), *FILLING, "?", ".")

HEADS = {
    "text-classification": "DistilBertForSequenceClassification",
    "token-classification": "DistilBertForTokenClassification",
    "question-answering": "DistilBertForQuestionAnswering",
    "multiple-choice": "DistilBertForMultipleChoice",
    "masked-lm": "DistilBertForMaskedLM",
    "sentence-embedding": "DistilBertForSentenceEmbedding",
}


def make_model(folder: Path, head: str, *, n_layers: int = 2, seed: int = 0, **settings: Any) -> Path:
    """A checkpoint with random weights and a tokenizer of `WORDS`; `settings` are config fields."""
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "n_heads": 4, "dim": 32, "hidden_dim": 64}
    config = DistilBertConfig(n_layers=n_layers, **{"initializer_range": 0.2, **sizes, **settings})
    pooling = PoolingConfig() if head == HEADS["sentence-embedding"] else None
    weights = initial_weights(config, head, seed=seed, pooling=pooling)
    save_checkpoint(folder, "safetensors", head, config, weights, pooling)
    DistilBertTokenizerFast({word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def write_examples(path: Path, task: str, count: int, *, seed: int = 0) -> Path:
    """A file of examples of a task, which a tiny model can learn in part."""
    random = Random(seed)  # noqa: S311 - texts, not secrets
    with path.open("w", encoding="utf-8") as file:
        for example in EXAMPLES[task](random, count):
            file.write(json.dumps(example) + "\n")
    return path


def sentence(random: Random, topic: str, *, longest: int = 12) -> list[str]:
    """Words, about half of them of the topic."""
    length = random.randint(3, longest)
    return [random.choice(TOPICS[topic] if random.random() < 0.5 else FILLING) for _ in range(length)] + ["."]


def _classified(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        topic = random.choice([*TOPICS])
        yield {"text": " ".join(sentence(random, topic)), "label": topic}


def _tagged(random: Random, count: int) -> Iterator[dict[str, Any]]:
    names = {word: f"B-{topic[:3]}" for topic, words in TOPICS.items() for word in words}
    for _ in range(count):
        tokens = sentence(random, random.choice([*TOPICS]))
        yield {"tokens": tokens, "labels": [names.get(token, "O") for token in tokens]}


def _asked(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        topic = random.choice([*TOPICS])
        words = [random.choice(FILLING) for _ in range(random.randint(4, 12))]
        place, answer = random.randrange(len(words)), random.choice(TOPICS[topic])
        words[place] = answer
        start = len(" ".join(words[:place])) + (1 if place else 0)
        answers = {"text": [answer], "answer_start": [start]}
        question = f"what is {random.choice(TOPICS[topic])} ?"
        yield {"id": str(number), "question": question, "context": " ".join(words), "answers": answers}


def _chosen(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        right, wrong = random.sample([*TOPICS], 2)
        label = random.randrange(2)
        topics = (right, wrong) if label == 0 else (wrong, right)
        choices = [" ".join(sentence(random, topic, longest=5)) for topic in topics]
        yield {"question": " ".join(sentence(random, right)), "choices": choices, "label": label}


def _plain(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        yield {"text": " ".join(word for _ in range(2) for word in sentence(random, random.choice([*TOPICS])))}


def _paired(random: Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        words = sentence(random, random.choice([*TOPICS]))
        yield {"text": " ".join(words), "positive": " ".join(random.sample(words, len(words)))}


EXAMPLES: dict[str, Callable[[Random, int], Iterator[dict[str, Any]]]] = {
    "text-classification": _classified,
    "token-classification": _tagged,
    "question-answering": _asked,
    "multiple-choice": _chosen,
    "masked-lm": _plain,
    "sentence-embedding": _paired,
}
