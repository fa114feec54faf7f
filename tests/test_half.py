"""bfloat16 and float16: as near to the specification as a plain PyTorch DistilBERT, and never NaN or infinite."""

import functools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from conformance import cases
from conformance.adapters import ADAPTERS
from distilbert import reference
from distilbert.pt.pretrained import from_numpy
from distilbert.weight_map import HEADS
from tests.support import new_model, run, to_numpy

HALVES = ("bfloat16", "float16")
KERNELS = ("pt-eager", "pt-sdpa", "tf", "flax-eager", "flax-xla")
RESULTS = ("last_hidden_state", "logits", "start_logits", "end_logits", "embeddings")
TRAINED = [head for head in HEADS if cases.targets(head)]
COPIES = 8  # of the batch, with other tokens: the errors of a head with few logits are no accident then
LOSS_TOLERANCES = {"bfloat16": 1.5e-2, "float16": 1e-3}  # measured: 8.2e-3 and 5.3e-4


@functools.cache
def calls(head):
    """The arguments of the calls that cover every mask, targets included: masks of one shape go together."""
    by_shape = {}
    for name, mask in cases.masks().items():
        if not (head == cases.SENTENCE and "-D" in name):  # pooling needs to know which tokens count
            by_shape.setdefault(np.shape(mask), []).append(mask)
    return [call(head, masks) for masks in by_shape.values()]


def call(head, masks, copies=COPIES):
    """The call with these masks, in pairs of choices for multiple choice."""
    batches = copies * len(masks)
    ids = np.random.default_rng(8).integers(0, cases.CONFIG.vocab_size, (batches * cases.BATCH, cases.SEQ))
    inputs = {"input_ids": ids}
    if masks[0] is not None:
        inputs["attention_mask"] = np.concatenate(masks * copies)
    if head == cases.CHOICES:
        inputs = {name: x.reshape(-1, 2, *x.shape[1:]) for name, x in inputs.items()}
    return inputs | {name: np.concatenate([target] * batches) for name, target in cases.targets(head).items()}


class Plain:
    """DistilBERT in its weights' dtype by PyTorch's functions alone, like the reference implementation's eager path."""

    def __init__(self, weights):
        self.weights = {name: from_numpy(array) for name, array in weights.items()}

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)

    def attend(self, x, name, keep):
        split = (self.linear(x, f"{name}.{part}").unflatten(-1, (4, 8)) for part in ("q_lin", "k_lin", "v_lin"))
        q, k, v = (part.transpose(1, 2) for part in split)  # (batch, n_heads, seq, head_dim)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{name}.out_lin")

    def encode(self, ids, keep):
        word, position = (self.weights[f"distilbert.embeddings.{n}_embeddings.weight"] for n in ("word", "position"))
        x = self.norm(word[ids] + position[: ids.shape[1]], "distilbert.embeddings.LayerNorm")
        for name in (f"distilbert.transformer.layer.{i}" for i in range(cases.CONFIG.n_layers)):
            x = self.norm(self.attend(x, f"{name}.attention", keep) + x, f"{name}.sa_layer_norm")
            inner = F.gelu(self.linear(x, f"{name}.ffn.lin1"))
            x = self.norm(self.linear(inner, f"{name}.ffn.lin2") + x, f"{name}.output_layer_norm")
        return x

    def vocab_logits(self, x):
        return self.linear(self.norm(F.gelu(self.linear(x, "vocab_transform")), "vocab_layer_norm"), "vocab_projector")

    def first_token_logits(self, x):
        return self.linear(F.relu(self.linear(x[:, 0], "pre_classifier")), "classifier")

    def __call__(self, head, input_ids, attention_mask=None):
        """All results of the head in one row."""
        ids = torch.as_tensor(input_ids).flatten(0, -2)
        mask = torch.ones(ids.shape) if attention_mask is None else torch.as_tensor(attention_mask)
        mask = mask.flatten(0, 1) if mask.ndim > 2 and head == cases.CHOICES else mask
        keep = {2: mask[:, None, None], 3: mask[:, None], 4: mask}[mask.ndim] != 0
        x = self.encode(ids, keep)
        if head == cases.SENTENCE:
            kept = mask[:, :, None].to(x)
            return (x * kept).sum(1) / kept.sum(1).clamp(min=1)
        heads = {
            cases.MODEL: lambda x: x,
            cases.MASKED_LM: self.vocab_logits,
            cases.ANSWERS: lambda x: self.linear(x, "qa_outputs").movedim(-1, 0),
            cases.TOKENS: lambda x: self.linear(x, "classifier"),
        }
        return heads.get(head, self.first_token_logits)(x)


def results(outputs):
    """All results of all calls but the losses, in one row of float64."""
    return np.concatenate([to_numpy(getattr(o, name)).ravel() for o in outputs for name in RESULTS if hasattr(o, name)])


@functools.cache
def specification(head, dtype):
    weights = cases.weights(head=head, dtype=dtype)
    return [reference.HEADS[head](cases.CONFIG, weights, **inputs) for inputs in calls(head)]


@functools.cache
def outputs(kernel, head, dtype):
    model = new_model(kernel, weights=cases.weights(head=head, dtype=dtype), head=head)
    return [run(model, **inputs) for inputs in calls(head)]


@functools.cache
def plain_errors(head, dtype):
    model = Plain(cases.weights(head=head, dtype=dtype))
    masks = [(inputs["input_ids"], inputs.get("attention_mask")) for inputs in calls(head)]
    found = np.concatenate([to_numpy(model(head, *arguments)).ravel() for arguments in masks])
    return np.abs(found - results(specification(head, dtype)))


def largest(errors):
    """The mean of the largest hundredth: the one maximum is an accident of one token's LayerNorm."""
    return np.sort(errors)[-math.ceil(len(errors) / 100) :].mean()


def root_mean_square(errors):
    return np.sqrt((errors**2).mean())


@functools.cache
def rounding_of_products(kernel, dtype):
    """The root mean square of a product's errors, in units of those of rounding it once; at least 1.

    TensorFlow has 2.0 in bfloat16 on processors without AVX-512: its kernel there cuts bits off instead of rounding.
    """
    if kernel != "tf":
        return 1.0
    import tensorflow as tf

    draw = np.random.default_rng(0).normal
    a, b = (draw(size=shape).astype(dtype) for shape in ((192, 32), (32, 48)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    found = to_numpy(tf.matmul(a, b)) - exact
    return max(1.0, root_mean_square(found) / root_mean_square(exact.astype(dtype).astype(np.float64) - exact))


def dtype_of(x):
    return str(getattr(x.dtype, "name", x.dtype)).removeprefix("torch.")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", HALVES)
def test_errors_are_those_of_a_plain_model(kernel, head, dtype):
    """At most twice the largest errors and 1.3 times the root mean square of the plain model, over all masks.

    Measured: the largest 0.9 to 1.5 times, the root mean square 0.95 to 1.25. What remains in TensorFlow and Flax are
    dense layers, which round before they add the bias: with that undone, all are at 1.0. Where a processor lets the
    framework round worse, errors may be as much larger: where products have 2.0, the largest were 2.3 times the plain
    model's, the root mean square 1.7.
    """
    found = results(outputs(kernel, head, dtype))
    assert np.isfinite(found).all()
    errors, plain = np.abs(found - results(specification(head, dtype))), plain_errors(head, dtype)
    rounding = rounding_of_products(kernel, dtype)
    assert largest(errors) <= 2 * rounding * largest(plain)
    assert root_mean_square(errors) <= 1.3 * rounding * root_mean_square(plain)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", HALVES)
def test_results_have_the_dtype_of_the_weights_and_losses_float32(kernel, dtype):
    for head in HEADS:
        for output in outputs(kernel, head, dtype):
            kinds = [dtype_of(getattr(output, name)) for name in (*RESULTS, "loss") if hasattr(output, name)]
            assert kinds == [dtype] * (1 + (head == cases.ANSWERS)) + ["float32"] * (head in TRAINED)


@pytest.mark.parametrize("head", TRAINED)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", HALVES)
def test_losses_are_near_the_specification(kernel, head, dtype):
    for found, expected in zip(outputs(kernel, head, dtype), specification(head, dtype), strict=True):
        assert abs(to_numpy(found.loss) - expected.loss) < LOSS_TOLERANCES[dtype]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("head", "dtype"), [(cases.MASKED_LM, "bfloat16"), (cases.MASKED_LM, "float16"), (cases.SENTENCE, "float16")]
)
def test_gradients_are_finite_for_every_mask(kernel, dtype, head):
    """All masks in one batch, those of tokens for pooling: one NaN would reach the tables of all rows."""
    masks = [mask for mask in cases.masks().values() if mask is not None]
    if head == cases.MASKED_LM:
        masks = [np.broadcast_to(m.reshape(4, 1, -1, 12) if m.ndim < 4 else m, (4, 4, 12, 12)) for m in masks]
    else:  # twice the first ones: JAX compiles for each size of a batch
        masks = [*masks[:5], *masks[:3]]
    model = new_model(kernel, weights=cases.weights(head=head, dtype=dtype), head=head)
    adapter = ADAPTERS[kernel.partition("-")[0]](model, dtype)
    gradients = adapter.by_name(adapter.differentiate(call(head, masks, copies=1)))
    assert gradients.keys() == model.trained_parameters().keys()
    for name, gradient in gradients.items():
        assert np.isfinite(to_numpy(gradient)).all(), name
