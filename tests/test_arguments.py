"""What users pass and do beside the ordinary: lists, other dtypes, unknown sizes, copies, replicas, partial files."""

import importlib
import io
import pickle

import numpy as np
import pytest

from conformance import cases
from distilbert import reference
from distilbert.backends import load_backend
from distilbert.config import ACTIVATIONS
from distilbert.weight_map import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from tests.support import new_model, run, to_numpy

IDS, MASK = cases.input_ids(), cases.masks()["right padding"]


def head_model(backend, head, dtype="float32", **changes):
    config = cases.CONFIG.replace(**changes)
    return new_model(backend, config, cases.weights(config, head, dtype=dtype), head)


def test_lists_are_taken_as_arrays_are(backend):
    model, labels = head_model(backend, cases.SEQUENCE), cases.targets(cases.SEQUENCE)["labels"]
    expected = run(model, IDS, MASK, labels=labels)
    for found in (
        run(model, IDS.tolist(), MASK.tolist(), labels=labels.tolist()),
        run(model, input_ids=IDS.tolist(), attention_mask=MASK.tolist(), labels=labels.tolist()),
    ):
        assert np.array_equal(to_numpy(found.logits), to_numpy(expected.logits))
        assert to_numpy(found.loss) == to_numpy(expected.loss)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"input_ids": [[1, 2], [3]]}, "input_ids must be an array of numbers, got a list .* pad its rows"),
        ({"input_ids": "hello"}, "input_ids must be an array of numbers, got a str"),
        ({"input_ids": IDS, "attention_mask": "1"}, "attention_mask must be an array of numbers"),
        ({"input_ids": IDS, "labels": [None, 1, 0, 0]}, "labels must be an array of numbers, got a list"),
        ({"input_ids": IDS, "labels": [[1], [1, 2], [0], [0]]}, "labels must be an array of numbers, got a list"),
    ],
)
def test_what_is_no_array_is_refused_by_name(backend, inputs, text):
    with pytest.raises(ValueError, match=text):
        head_model(backend, cases.SEQUENCE)(**inputs)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32", "int32", "int64"])
def test_targets_of_every_integer_dtype_mean_the_same(backend, dtype):
    """-100, and a position outside the sequence, do not wrap around in a small dtype."""
    model = head_model(backend, cases.SEQUENCE)
    labels = np.array([2, 0, 1, 1], dtype)
    expected = reference.HEADS[cases.SEQUENCE](
        cases.CONFIG, cases.weights(head=cases.SEQUENCE), input_ids=IDS, labels=labels
    )
    assert float(run(model, IDS, labels=labels).loss) == pytest.approx(expected.loss, rel=1e-5)
    model, start = head_model(backend, cases.ANSWERS), np.array([1, 3, 5, 120], dtype)  # the last lies outside
    expected = reference.HEADS[cases.ANSWERS](
        cases.CONFIG,
        cases.weights(head=cases.ANSWERS),
        input_ids=IDS,
        start_positions=start,
        end_positions=start,
    )
    found = run(model, IDS, start_positions=start, end_positions=start)
    assert float(found.loss) == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize(("positions", "found"), [({}, "neither"), ({"start_positions": [1, 2, 3, 4]}, "one")])
def test_start_and_end_come_together(backend, positions, found):
    loss = importlib.import_module(f"distilbert.{backend}.losses").question_answering_loss
    logits = run(head_model(backend, cases.ANSWERS), IDS).start_logits
    given = {"start_positions": None, "end_positions": None} | positions
    with pytest.raises(ValueError, match=f"must be given together, got {found} of them"):
        loss(logits, logits, **given)


def test_float_targets_are_not_rounded_to_half_precision(backend):
    """70000 is infinite in float16."""
    model = head_model(backend, cases.SEQUENCE, "float16", num_labels=1)
    labels = np.array([70000.0, 1.0, 1234.567, -2049.0], np.float32)
    logits = to_numpy(run(model, IDS).logits)
    expected = ((logits[:, 0] - labels) ** 2).mean()
    assert float(run(model, IDS, labels=labels).loss) == pytest.approx(expected, rel=1e-6)


def test_keras_takes_an_unknown_number_of_choices():
    import keras
    import tensorflow as tf

    model = head_model("tf", cases.CHOICES)
    ids, labels = IDS.reshape(2, 2, -1), np.array([1, 0])
    expected = to_numpy(model(ids).logits)
    spec = tf.TensorSpec((None, None, None), tf.int64)
    traced = tf.function(lambda x: model(x).logits, input_signature=[spec])
    np.testing.assert_allclose(to_numpy(traced(tf.constant(ids))), expected, rtol=0, atol=5e-6)
    symbolic = keras.Input((None, None), dtype="int64")
    np.testing.assert_allclose(
        keras.Model(symbolic, model(symbolic).logits).predict(ids, verbose=0), expected, rtol=0, atol=5e-6
    )
    model.compile(optimizer="sgd")
    specs = {"input_ids": spec, "labels": tf.TensorSpec((None,), tf.int64)}
    rows = tf.data.Dataset.from_generator(lambda: iter([{"input_ids": ids, "labels": labels}]), output_signature=specs)
    assert np.isfinite(model.fit(rows, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_model_is_pickled_with_every_activation(activation):
    import torch

    model = head_model("pt", cases.MODEL, activation=activation)
    file = io.BytesIO()
    torch.save(model, file)
    again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert np.array_equal(to_numpy(again(IDS).last_hidden_state), to_numpy(model(IDS).last_hidden_state))


class TestPyTorch:
    def test_a_tied_projector_stays_tied_in_every_copy(self):
        import copy

        import torch

        model = head_model("pt", cases.MASKED_LM)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()]
        for assign in (False, True):
            loaded = head_model("pt", cases.MASKED_LM)
            loaded.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=assign)
            copies.append(loaded)
        for one in copies:
            assert one.vocab_projector.weight is one.distilbert.embeddings.word_embeddings.weight
            assert torch.allclose(one(IDS).logits.float(), model(IDS).logits, atol=1e-5)

    def test_a_replica_knows_its_device_and_dtype(self):
        """`DataParallel` makes copies whose parameters are plain attributes."""
        import torch

        model = head_model("pt", cases.SEQUENCE)
        replica = model._replicate_for_data_parallel()
        replica.distilbert = model.distilbert._replicate_for_data_parallel()
        replica.distilbert._parameters, replica._parameters = {}, {}
        assert (replica.device, replica.dtype) == (torch.device("cpu"), torch.float32)

    def test_evaluation_leaves_the_mode_of_each_part(self):
        model = head_model("pt", cases.SEQUENCE).train()
        model.distilbert.eval()  # frozen under a head that learns
        with model.evaluating():
            assert not model.training
        assert model.training
        assert model.dropout.training
        assert not any(module.training for module in model.distilbert.modules())

    def test_the_ranking_loss_is_computed_in_float32_under_autocast(self):
        import torch

        from distilbert.pt.losses import multiple_negatives_ranking_loss

        anchors, positives = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
        expected = multiple_negatives_ranking_loss(anchors, positives)
        with torch.autocast("cpu", torch.bfloat16):
            assert multiple_negatives_ranking_loss(anchors, positives) == expected


class TestCudnn:
    """Shapes alone are traced, since the kernel itself needs a GPU."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def attend(self, head_dim, mask):
        import jax
        import jax.numpy as jnp

        from distilbert.flax.attention import attend_fused, keep_mask

        called = []
        x, keep = jnp.zeros((4, 2, 12, head_dim), jnp.bfloat16), keep_mask(mask)
        kernel = lambda q, k, v, mask, implementation: called.append((mask.shape, implementation)) or q  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.nn, "dot_product_attention", kernel)
            attend_fused(x, x, x, keep, "cudnn")
        return called

    @pytest.mark.parametrize("mask", ["right padding", "3-D", "4-D"])
    def test_the_mask_has_an_entry_for_every_query_and_key(self, mask):
        assert self.attend(64, cases.masks()[mask]) == [((4, 1, 12, 12), "cudnn")]

    @pytest.mark.parametrize("head_dim", [4, 136])
    def test_a_width_that_it_cannot_do_is_refused(self, head_dim):
        with pytest.raises(ValueError, match="multiple of 8 up to 128"):
            self.attend(head_dim, MASK)


def test_new_rows_are_no_copies_of_another_tables_rows(backend):
    """With the seed of from_config, whose stream goes on with the next table."""
    model = load_backend(backend).DistilBertModel.from_config(cases.CONFIG, seed=0)
    model.resize_token_embeddings(130, seed=0).resize_position_embeddings(40, seed=0)
    weights = model.weights_by_name()
    words, positions = weights[WORD_EMBEDDINGS], weights[POSITION_EMBEDDINGS]
    rows = np.concatenate([words[1:], positions])
    assert len({row.tobytes() for row in rows}) == len(rows)
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        model.resize_token_embeddings(140, seed=-1)
    assert model.resize_token_embeddings(np.int64(140)).config.vocab_size == 140


def test_a_classifier_of_another_class_is_not_taken_for_ones_own(backend, tmp_path):
    """Sequence and token classification both call their last layer `classifier`."""
    module = load_backend(backend)
    head_model(backend, cases.SEQUENCE).save_pretrained(tmp_path)
    tokens = module.DistilBertForTokenClassification
    with pytest.raises(ValueError, match=r"lacks classifier\.weight, classifier\.bias"):
        tokens.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="new, with initial weights: classifier.weight, classifier.bias"):
        model = tokens.from_pretrained(tmp_path, new_head=True)
    assert not model.weights_by_name()["classifier.bias"].any()
