"""What training needs from Keras 3. Twins: pt/training.py and flax/training.py."""

# Keras types a variable's value as optional, and as tensors of other backends: it is neither here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distilbert.tf.pretrained import PretrainedModel


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> keras.optimizers.Optimizer:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    optimizer = AdamW(learning_rate, weight_decay=weight_decay, beta_1=betas[0], beta_2=betas[1], epsilon=eps)
    specs, variables = model.tensor_specs(), model.trained_parameters()
    optimizer.exclude_from_weight_decay([v for name, v in variables.items() if not specs[name].is_kernel])
    return optimizer


@keras.saving.register_keras_serializable(package="distilbert")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW with epsilon where the paper has it: added to the corrected root, not to the raw one."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable against its gradient."""
        dtype, index = variable.dtype, self._get_variable_index(variable)
        gradient, rate = tf.cast(tf.convert_to_tensor(gradient), dtype), tf.cast(learning_rate, dtype)
        step = tf.cast(self.iterations + 1, dtype)
        moment, square = self._momentums[index], self._velocities[index]
        beta_1, beta_2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
        moment.assign_add((gradient - moment) * (1 - beta_1))
        square.assign_add((gradient * gradient - square) * (1 - beta_2))
        mean = moment / (1 - beta_1**step)
        root = tf.sqrt(square / (1 - beta_2**step))
        variable.assign_sub(rate * mean / (root + self.epsilon))
