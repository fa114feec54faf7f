"""What a training step minimises, as numbers: the task, and how much of which loss against a teacher is added.

Sources: Sanh et al. 2019, arXiv 1910.01108, section 3 (the triple loss); Hinton et al. 2015, arXiv 1503.02531.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The class that each task trains. The first three are the problem types of sequence classification.
HEAD_OF = {
    "single_label_classification": "DistilBertForSequenceClassification",
    "multi_label_classification": "DistilBertForSequenceClassification",
    "regression": "DistilBertForSequenceClassification",
    "token_classification": "DistilBertForTokenClassification",
    "question_answering": "DistilBertForQuestionAnswering",
    "multiple_choice": "DistilBertForMultipleChoice",
    "masked_lm": "DistilBertForMaskedLM",
    "sentence_embedding": "DistilBertForSentenceEmbedding",
}
WITHOUT_CLASSES = ("regression", "sentence_embedding")  # their outputs are no distributions, so have no divergence


@dataclass(frozen=True)
class Objective:
    """loss = alpha_task * task + alpha_kl * kl + alpha_cos * cos + alpha_mse * mse, each a weighted sum.

    task: the loss against the labels, or the ranking loss of sentence embeddings. kl: T^2 KL(teacher || student) of
    the logits at temperature T. cos: 1 - cosine of the last hidden states, or of the embeddings. mse: squared
    difference of the logits, summed over classes, or of the embeddings, summed over their entries. Each of several
    labels, or numbers, counts for itself in kl and mse. A loss whose alpha is 0 is not computed.
    """

    task: str
    alpha_task: float = 1.0
    alpha_kl: float = 0.0
    alpha_cos: float = 0.0
    alpha_mse: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.task not in HEAD_OF:
            raise ValueError(f"task must be one of {', '.join(HEAD_OF)}, got {self.task!r}.")
        for name, alpha in self.alphas.items():
            if not (math.isfinite(alpha) and alpha >= 0):
                raise ValueError(f"alpha_{name} must be a finite number of at least 0, got {alpha}.")
        if not any(self.alphas.values()):
            raise ValueError("at least one alpha must be above 0.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}.")
        if self.alpha_kl and self.task in WITHOUT_CLASSES:
            raise ValueError(f"{self.task} has no distribution over classes: alpha_kl must be 0, got {self.alpha_kl}.")

    @property
    def alphas(self) -> dict[str, float]:
        """The factor of each loss by its name."""
        return {"task": self.alpha_task, "kl": self.alpha_kl, "cos": self.alpha_cos, "mse": self.alpha_mse}

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's outputs are part of it."""
        return bool(self.alpha_kl or self.alpha_cos or self.alpha_mse)

    @property
    def head(self) -> str:
        """The class that it trains."""
        return HEAD_OF[self.task]
