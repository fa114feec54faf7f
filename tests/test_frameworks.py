"""Each framework's own machinery around the models: export, compile, functional Keras, NNX transformations."""

import numpy as np
import pytest

from conformance import cases
from conformance.mutants import Mutant
from distilbert import weight_map
from distilbert.config import PoolingConfig
from tests.support import new_model, run_python, to_numpy

IDS, MASK = cases.input_ids(), cases.masks()["right padding"]
TRAINED = [head for head in weight_map.HEADS if cases.targets(head)]


def head_and_inputs(kernel, head):
    """A model of the class, and the call's arguments with targets, right-padded."""
    case = Mutant("none", head=head).case
    return new_model(kernel, case.config, case.weights(), head), case.inputs()


class TestPyTorch:
    @pytest.fixture(params=["sdpa", "eager"])
    def model(self, request):
        return new_model(f"pt-{request.param}")

    def test_export_with_dynamic_shapes(self, model):
        import torch
        from torch.export import Dim, export

        ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
        axes = {0: Dim("batch", min=1, max=64), 1: Dim("seq", min=2, max=24)}
        program = export(model, (ids, mask), dynamic_shapes={"input_ids": axes, "attention_mask": axes})
        for rows, tokens in [(4, 12), (2, 5), (3, 24)]:
            ids = torch.randint(0, 99, (rows, tokens))
            mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1))).long()
            found, expected = program.module()(ids, mask), model(ids, mask)
            torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-6)

    def test_compile_in_one_graph(self, model):
        import torch

        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        for tokens in (12, 7, 3):
            ids, mask = torch.from_numpy(IDS[:, :tokens]), torch.from_numpy(MASK[:, :tokens])
            found = compiled(ids, mask, output_hidden_states=True, output_attentions=True)
            expected = model(ids, mask, output_hidden_states=True, output_attentions=True)
            torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-6)
            assert len(found.attentions) == 2

    @pytest.mark.parametrize("head", TRAINED)
    def test_every_head_is_exported_and_compiled_with_its_loss(self, head):
        import torch

        model, inputs = head_and_inputs("pt-sdpa", head)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = model(**tensors)
        exported = torch.export.export(model, (), tensors).module()(**tensors)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**tensors)
        for found in (exported, compiled):
            assert type(found) is type(expected)
            for one, other in zip(found[:2], expected[:2], strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    def test_gradients_reach_every_parameter(self, model):
        output = model(IDS, MASK).last_hidden_state
        output.pow(2).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_state_dict_has_the_released_names(self, model):
        from distilbert.weight_map import tensor_specs

        names = {name.removeprefix("distilbert.") for name in tensor_specs(cases.CONFIG)}
        assert model.state_dict().keys() == names


class TestKeras:
    def test_inside_a_functional_model(self, tmp_path):
        """Build, compile, fit, predict, save; reload in a new process with the same outputs."""
        import keras

        keras.utils.set_random_seed(0)
        ids = keras.Input((None,), dtype="int32", name="input_ids")
        mask = keras.Input((None,), dtype="int32", name="attention_mask")
        encoder = new_model("tf", head="DistilBertForSentenceEmbedding", pooling=PoolingConfig("cls"))
        model = keras.Model([ids, mask], keras.layers.Dense(2)(encoder(ids, mask).embeddings))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.AdamW(3e-3), loss=loss, metrics=["accuracy"])
        x = {"input_ids": np.tile(IDS, (8, 1)), "attention_mask": np.tile(MASK, (8, 1))}
        y = np.tile([0, 1, 1, 0], 8)
        before = encoder.weights_by_name()["distilbert.transformer.layer.0.ffn.lin1.weight"].copy()
        history = model.fit(x, y, epochs=8, batch_size=16, verbose=0).history["loss"]
        assert history[-1] < 0.5 * history[0]
        assert not np.array_equal(encoder.weights_by_name()["distilbert.transformer.layer.0.ffn.lin1.weight"], before)
        model.save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", expected=model.predict(x, verbose=0), **x)
        code = f"""
import numpy as np, keras, distilbert.tf
data = np.load({str(tmp_path / "data.npz")!r})
model = keras.models.load_model({str(tmp_path / "model.keras")!r})
found = model.predict({{k: data[k] for k in ("input_ids", "attention_mask")}}, verbose=0)
assert np.abs(found - data["expected"]).max() < 1e-6, np.abs(found - data["expected"]).max()
print("same")
"""
        done = run_python("-c", code)
        assert done.stdout.strip().endswith("same"), done.stderr

    def test_predict_and_a_dict_of_inputs(self):
        model = new_model("tf")
        x = {"input_ids": IDS, "attention_mask": MASK}
        predicted = model.predict(x, verbose=0)
        assert type(predicted).__name__ == "BaseModelOutput"
        np.testing.assert_allclose(predicted.last_hidden_state, to_numpy(model(x).last_hidden_state), rtol=0, atol=5e-6)

    @pytest.mark.parametrize("head", TRAINED)
    def test_fit_takes_targets_among_the_inputs_and_uses_the_heads_loss(self, head):
        model, inputs = head_and_inputs("tf", head)
        before = float(model(inputs).loss)
        model.compile(optimizer="adam")
        assert model.evaluate(inputs, verbose=0) == pytest.approx(before, rel=1e-5)
        model.fit(inputs, epochs=3, verbose=0)
        assert float(model(inputs).loss) < before
        predicted = model.predict(inputs, verbose=0)
        np.testing.assert_allclose(predicted[1], to_numpy(model(inputs)[1]), rtol=0, atol=5e-6)

    def test_fit_takes_targets_apart_with_a_loss_of_keras(self):
        import keras

        model, inputs = head_and_inputs("tf", "DistilBertForSequenceClassification")
        labels, symbolic = inputs.pop("labels"), {n: keras.Input((None,), dtype="int32", name=n) for n in inputs}
        wrapped = keras.Model(symbolic, model(symbolic).logits)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        wrapped.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
        history = wrapped.fit(inputs, labels, epochs=12, verbose=0).history["loss"]
        assert history[-1] < history[0]

    @pytest.mark.parametrize("head", TRAINED)
    def test_every_head_runs_in_a_graph_and_comes_back_from_a_file(self, head, tmp_path):
        import keras
        import tensorflow as tf

        model, inputs = head_and_inputs("tf", head)
        expected = model(inputs)
        traced = tf.function(model)
        for one, other in zip(traced({n: tf.constant(a) for n, a in inputs.items()})[:2], expected[:2], strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=0, atol=5e-6)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert type(again) is type(model)
        np.testing.assert_allclose(to_numpy(again(inputs)[1]), to_numpy(expected[1]), rtol=0, atol=1e-6)

    def test_a_dict_and_arguments_beside_it_are_merged(self):
        for head in ("DistilBertModel", "DistilBertForSentenceEmbedding"):
            model = new_model("tf", head=head)
            expected = model(IDS, MASK)[0]
            assert np.array_equal(model({"input_ids": IDS}, attention_mask=MASK)[0], expected)
            assert len(model({"input_ids": IDS}, output_attentions=True).attentions) == 2
            with pytest.raises(TypeError, match="attention_mask is given twice"):
                model({"input_ids": IDS, "attention_mask": MASK}, attention_mask=MASK)
            with pytest.raises(TypeError, match="bogus is not an argument"):
                model({"input_ids": IDS}, bogus=1)

    def test_unfreezing_does_not_train_the_sinusoidal_table(self):
        model = new_model("tf", cases.CONFIG.replace(sinusoidal_pos_embds=True))
        model.trainable = False
        assert not model.trainable_variables
        model.trainable = True
        assert len(model.trainable_variables) == 35

    def test_in_a_graph_with_dynamic_shapes(self):
        import tensorflow as tf

        model = new_model("tf")
        traced = tf.function(
            lambda ids, mask: model(ids, mask).last_hidden_state,
            input_signature=[tf.TensorSpec((None, None), tf.int64)] * 2,
        )
        for rows, tokens in [(4, 12), (2, 5), (1, 1)]:
            found = traced(IDS[:rows, :tokens], MASK[:rows, :tokens])
            expected = model(IDS[:rows, :tokens], MASK[:rows, :tokens]).last_hidden_state
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
        assert traced.experimental_get_tracing_count() == 1

    def test_variables_have_readable_paths(self):
        paths = {v.path.split("/", 1)[1] for v in new_model("tf").trainable_variables}
        assert len(paths) == 36
        assert {"embeddings/LayerNorm/gamma", "transformer/layer_1/ffn/lin2/kernel"} <= paths


class TestFlax:
    def test_jit_grad_and_split(self):
        import jax
        from flax import nnx

        model = new_model("flax")
        expected = to_numpy(model(IDS, MASK).last_hidden_state)
        jitted = nnx.jit(lambda m, ids, mask: m(ids, mask))(model, IDS, MASK)
        np.testing.assert_allclose(to_numpy(jitted.last_hidden_state), expected, rtol=0, atol=2e-6)
        graph, state = nnx.split(model)
        merged = jax.jit(lambda s, ids: nnx.merge(graph, s)(ids, MASK).last_hidden_state)(state, IDS)
        np.testing.assert_allclose(to_numpy(merged), expected, rtol=0, atol=2e-6)
        gradients = nnx.grad(lambda m: (m(IDS, MASK).last_hidden_state ** 2).mean())(model)
        leaves = jax.tree.leaves(gradients)
        assert len(leaves) == 36
        assert all(np.isfinite(leaf).all() for leaf in leaves)

    @pytest.mark.parametrize("head", TRAINED)
    def test_every_head_is_compiled_with_its_loss_and_gradients(self, head):
        import jax
        from flax import nnx

        model, inputs = head_and_inputs("flax", head)
        expected, calm = model(**inputs), nnx.grad(lambda m: m(**inputs).loss)(model)
        found = nnx.jit(lambda m, given: m(**given))(model, inputs)
        compiled = nnx.jit(nnx.grad(lambda m, given: m(**given).loss))(model, inputs)
        assert type(found) is type(expected)
        for one, other in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=0, atol=5e-6)
        for one, other in zip(jax.tree.leaves(compiled), jax.tree.leaves(calm), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

    def test_an_optimizer_step_changes_every_parameter(self):
        import optax
        from flax import nnx

        model = new_model("flax")
        before = model.weights_by_name()
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        gradients = nnx.grad(lambda m: (m(IDS, MASK).last_hidden_state[..., :3] ** 2).mean())(model)
        optimizer.update(model, gradients)
        after = model.weights_by_name()
        assert all(not np.array_equal(before[n], after[n]) for n in before)

    def test_dropout_differs_between_layers_and_calls_under_jit(self):
        from flax import nnx

        from distilbert.flax import DistilBertModel

        model = DistilBertModel.from_config(cases.CONFIG)
        model.train()
        call = nnx.jit(lambda m: m(IDS).last_hidden_state)
        assert not np.array_equal(call(model), call(model))
