"""What each task makes of records, and of examples: the table of tasks by their names on the command line."""

from __future__ import annotations

from distilbert.training.tasks.base import Task
from distilbert.training.tasks.masked_lm import MaskedLM
from distilbert.training.tasks.multiple_choice import MultipleChoice
from distilbert.training.tasks.question_answering import QuestionAnswering
from distilbert.training.tasks.sentence_embedding import SentenceEmbedding
from distilbert.training.tasks.text_classification import TextClassification
from distilbert.training.tasks.token_classification import TokenClassification

__all__ = [
    "TASKS",
    "MaskedLM",
    "MultipleChoice",
    "QuestionAnswering",
    "SentenceEmbedding",
    "Task",
    "TextClassification",
    "TokenClassification",
]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        MaskedLM,
        SentenceEmbedding,
    )
}
