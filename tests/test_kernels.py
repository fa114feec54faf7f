"""The attention kernels: what each machine refuses, and flash attention's packing, on the CPU with a plain kernel."""

import inspect
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from conformance import cases
from distilbert.backends import load_backend
from distilbert.pt import attention
from tests.support import new_model, run, to_numpy

IDS, MASKS = cases.input_ids(), cases.masks()
KERNELS = ("pt-eager", "pt-sdpa", "tf", "flax-eager", "flax-xla")
PACKED = ("none", "right padding", "left padding", "holes", "one row all masked", "all rows masked", "3-D", "4-D")
CAUSAL = np.tril(np.ones((4, 12, 12), int))


def blocks(*lengths):
    """The mask of sequences of these lengths, packed into one row: (seq, seq)."""
    segment = np.repeat(range(len(lengths)), lengths)
    return (segment[:, None] == segment).astype(int)


UNEQUAL = np.stack([blocks(12), blocks(1, 11), blocks(3, 4, 5), blocks(*[1] * 12)])


class PlainFlash:
    """In place of a flash kernel: softmax attention sequence by sequence, which checks what it is given.

    q: (queries, n_heads, head_dim); k, v: (keys, n_heads, head_dim); starts: (sequences + 1,).
    """

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v, query_starts, key_starts, longest_query, longest_key, **options):
        self.calls.append(types.SimpleNamespace(keys=len(k), sequences=len(key_starts) - 1, options=options))
        for starts, rows, longest in ((query_starts, q, longest_query), (key_starts, k, longest_key)):
            lengths = starts.diff()
            assert starts.dtype == torch.int32
            assert starts.is_contiguous()
            assert starts[0] == 0
            assert starts[-1] == len(rows)
            assert (lengths > 0).all()
            assert isinstance(longest, int)
            assert longest >= lengths.max()
        assert len(query_starts) == len(key_starts)
        assert k.shape == v.shape
        results = []
        for i in range(len(query_starts) - 1):
            queries, keys = slice(*query_starts[i : i + 2]), slice(*key_starts[i : i + 2])
            scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys]) / math.sqrt(q.shape[-1])
            results.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys]))
        return torch.cat(results)


@pytest.fixture
def flash(monkeypatch):
    """Flash attention on the CPU: the plain kernel, which can drop, and no check of the device."""
    kernel = PlainFlash()
    monkeypatch.setattr(attention, "flash_kernel", lambda: (kernel, True))
    monkeypatch.setattr(attention, "check_flash", lambda q: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return kernel


def gradients(model, *inputs, **options):
    """Of the sum of squares of the last hidden state, by parameter."""
    model.zero_grad()
    (model(*inputs, **options).last_hidden_state ** 2).sum().backward()
    return {name: to_numpy(p.grad) for name, p in model.named_parameters()}


def assert_flash_equals_sdpa(mask, **inputs):
    """In the result and in the gradients, in float64."""
    weights = cases.weights(dtype="float64")
    one, other = new_model("pt-flash_attention_2", weights=weights), new_model("pt-sdpa", weights=weights)
    found, expected = (m(IDS, mask, **inputs).last_hidden_state for m in (one, other))
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=0, atol=1e-10)
    expected = gradients(other, IDS, mask, **inputs)
    for name, gradient in gradients(one, IDS, mask, **inputs).items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-9, err_msg=name)


class TestPacking:
    @pytest.mark.parametrize("mask", PACKED)
    def test_flash_equals_sdpa_where_it_packs(self, flash, mask):
        assert_flash_equals_sdpa(MASKS[mask])
        assert len(flash.calls) == 4  # two layers, with and without gradients

    def test_packed_sequences_of_any_length(self, flash):
        for mask in (UNEQUAL, UNEQUAL[:, None], UNEQUAL.astype(bool)):
            assert_flash_equals_sdpa(mask)
        assert [call.sequences for call in flash.calls] == [1 + 2 + 3 + 12] * 12

    def test_keys_that_nobody_sees_are_left_out(self, flash):
        new_model("pt-flash_attention_2")(IDS, MASKS["right padding"])
        assert {call.keys for call in flash.calls} == {12 + 7 + 3 + 1}

    def test_a_row_without_a_key_keeps_all_of_them(self, flash):
        new_model("pt-flash_attention_2")(IDS, MASKS["one row all masked"])
        assert {call.keys for call in flash.calls} == {12 + 7 + 12 + 1}

    @pytest.mark.parametrize("shape", [(1, 12), (4, 1), (1, 1)])
    def test_one_row_and_one_token(self, flash, shape):
        ids = IDS[: shape[0], : shape[1]]
        one, other = new_model("pt-flash_attention_2"), new_model("pt-sdpa")
        for mask in (None, np.ones(shape, int), np.zeros(shape, int), np.ones((*shape, shape[1]), int)):
            found, expected = (to_numpy(m(ids, mask).last_hidden_state) for m in (one, other))
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
        assert len(flash.calls) == 8

    @pytest.mark.parametrize("mask", ["4-D per head", "causal", "3-D with an empty row", "3-D of all zeros"])
    def test_other_masks_take_the_fused_kernel(self, flash, mask):
        empty = UNEQUAL.copy()
        empty[2, 5] = 0
        others = {"causal": CAUSAL, "3-D with an empty row": empty, "3-D of all zeros": np.zeros_like(CAUSAL)}
        assert_flash_equals_sdpa((MASKS | others)[mask])
        assert not flash.calls

    @pytest.mark.parametrize(
        "options", [{"output_attentions": True}, {"head_mask": np.array([1, 0, 0.5, 1], np.float32)}]
    )
    @pytest.mark.parametrize("mask", ["none", "left padding", "one row all masked", "3-D"])
    def test_attentions_and_a_head_mask_take_the_plain_kernel(self, flash, options, mask):
        assert_flash_equals_sdpa(MASKS[mask], **options)
        assert not flash.calls

    def test_hidden_states_come_from_the_flash_kernel(self, flash):
        found = new_model("pt-flash_attention_2")(IDS, MASKS["holes"], output_hidden_states=True).hidden_states
        expected = new_model("pt-sdpa")(IDS, MASKS["holes"], output_hidden_states=True).hidden_states
        assert len(flash.calls) == 2
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=0, atol=5e-6)

    def test_gradient_checkpointing_goes_through_the_flash_kernel(self, flash):
        model = new_model("pt-flash_attention_2")
        expected = gradients(model, IDS, MASKS["holes"])
        model.gradient_checkpointing_enable()
        found = gradients(model, IDS, MASKS["holes"])
        assert len(flash.calls) == 2 + 4  # the second time each block runs twice
        for name, gradient in found.items():
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-5, err_msg=name)

    def test_pruned_layers_of_unequal_heads(self, flash):
        config = cases.CONFIG.replace(pruned_heads={0: [1], 1: [0, 2]})
        one, other = (
            new_model(f"pt-{kernel}", config, cases.weights(config)) for kernel in ("flash_attention_2", "sdpa")
        )
        found, expected = (to_numpy(m(IDS, MASKS["holes"]).last_hidden_state) for m in (one, other))
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
        assert len(flash.calls) == 2

    def test_dropout_is_the_kernels_own(self, flash):
        """In training its rate is handed to the kernel, outside of it 0; other places than attention do not matter."""
        model = new_model("pt-flash_attention_2", cases.CONFIG.replace(attention_dropout=0.25, dropout=0.5))
        model(IDS)
        model.train()(IDS)
        assert [call.options for call in flash.calls] == [{"dropout_p": 0.0}] * 2 + [{"dropout_p": 0.25}] * 2

    def test_a_kernel_that_cannot_drop_is_left_in_training(self, flash, monkeypatch):
        """PyTorch's own: with attention_dropout the fused kernel drops in its place; without, the flash one runs."""
        monkeypatch.setattr(attention, "flash_kernel", lambda: (flash, False))
        model = new_model("pt-flash_attention_2", cases.CONFIG.replace(attention_dropout=0.25, dropout=0.0)).train()
        one, other = (to_numpy(model(IDS, MASKS["holes"]).last_hidden_state) for _ in range(2))
        assert np.abs(one - other).max() > 0.1
        assert not flash.calls
        model.eval()(IDS, MASKS["holes"])
        new_model("pt-flash_attention_2", cases.CONFIG.replace(attention_dropout=0.0)).train()(IDS, MASKS["holes"])
        assert [call.options for call in flash.calls] == [{}] * 4

    def test_every_head(self, flash):
        for head in (cases.MASKED_LM, cases.SEQUENCE, cases.ANSWERS, cases.TOKENS, cases.SENTENCE):
            weights = cases.weights(cases.CONFIG, head)
            one, other = (new_model(f"pt-{k}", cases.CONFIG, weights, head) for k in ("flash_attention_2", "sdpa"))
            found, expected = (to_numpy(m(IDS, MASKS["holes"])[0]) for m in (one, other))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=head)
        assert len(flash.calls) == 10


class TestFlashKernels:
    def test_the_arguments_of_pytorchs_kernel_stand_where_we_pass_them(self):
        """Seven by position, none after them that has to be given; no dropout, which `flash_kernel` says."""
        parameters = inspect.signature(varlen_attn).parameters.values()
        positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert positional[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
        assert all(p.default is not p.empty for p in list(parameters)[7:])
        assert not any("dropout" in p.name for p in parameters)

    def test_pytorchs_kernel_is_taken_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "flash_attn", None)
        attention.flash_kernel.cache_clear()
        assert attention.flash_kernel() == (varlen_attn, False)
        attention.flash_kernel.cache_clear()

    def test_the_packages_kernel_comes_first(self, monkeypatch):
        package = types.ModuleType("flash_attn")
        package.flash_attn_varlen_func = PlainFlash()
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        attention.flash_kernel.cache_clear()
        assert attention.flash_kernel() == (package.flash_attn_varlen_func, True)
        attention.flash_kernel.cache_clear()

    def test_a_model_on_the_cpu_or_in_float32_is_refused_at_the_call(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        model = new_model("pt-flash_attention_2")
        with pytest.raises(ValueError, match=r"needs a model on a CUDA device in float16 or bfloat16, .*'sdpa'"):
            model(IDS)
        assert to_numpy(model(IDS, output_attentions=True).last_hidden_state).shape == (4, 12, 32)

    def test_plain_masks_are_described_without_loss(self):
        """The rows of a mask from its description: which keys each query may see."""
        x = torch.zeros(4, 12, 32)
        for mask in (*(MASKS[name] for name in PACKED), UNEQUAL):
            keep = attention.keep_mask(None if mask is None else torch.as_tensor(mask))
            rows = attention.ragged(keep, x, 0.0)
            kept = torch.arange(48) if rows.kept is None else rows.kept
            seen = torch.zeros(48, 48, dtype=torch.bool)
            for i in range(len(rows.query_starts) - 1):
                seen[slice(*rows.query_starts[i : i + 2]), kept[slice(*rows.key_starts[i : i + 2])]] = True
            expected = (
                torch.ones(4, 1, 12, 12, dtype=torch.bool) if keep is None else keep | ~keep.any(-1, keepdim=True)
            )
            assert torch.equal(seen, torch.block_diag(*expected.expand(4, 1, 12, 12)[:, 0]).bool())


class TestChoosing:
    def test_an_unknown_kernel_is_refused_with_the_known_ones(self, backend, tmp_path):
        module = load_backend(backend)
        model = module.DistilBertModel.from_config(cases.CONFIG)
        known = ", ".join(module.attention.KERNELS)
        text = f"attn_implementation must be one of {known}, got 'flex_attention'"
        with pytest.raises(ValueError, match=text):
            model.set_attn_implementation("flex_attention")
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=text):
            module.DistilBertModel.from_pretrained(tmp_path, attn_implementation="flex_attention")

    def test_flash_without_cuda_is_refused_and_names_sdpa(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        model = new_model("pt")
        model.save_pretrained(tmp_path)
        for choose in (
            lambda: model.set_attn_implementation("flash_attention_2"),
            lambda: type(model).from_pretrained(tmp_path, attn_implementation="flash_attention_2"),
            lambda: type(model).from_pretrained(tmp_path, use_flash_attention_2=True),
        ):
            with pytest.raises(ValueError, match=r"'flash_attention_2' needs a CUDA device, .*: use 'sdpa'") as error:
                choose()
            assert "\n" not in str(error.value)
        assert model.attn_implementation == "sdpa"

    def test_cudnn_without_a_gpu_is_refused_and_names_xla(self, tmp_path, monkeypatch):
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        model = new_model("flax")
        model.save_pretrained(tmp_path)
        for choose in (
            lambda: model.set_attn_implementation("cudnn"),
            lambda: type(model).from_pretrained(tmp_path, attn_implementation="cudnn"),
        ):
            with pytest.raises(ValueError, match="'cudnn' needs a GPU, and JAX finds none: use 'xla'"):
                choose()
        assert model.attn_implementation == "eager"

    def test_cudnn_refuses_single_precision(self, monkeypatch):
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        with pytest.raises(ValueError, match="'cudnn' needs a model in float16 or bfloat16, got float32"):
            new_model("flax-cudnn")(IDS)

    @pytest.mark.parametrize(
        ("backend", "kernel"), [("pt", "eager"), ("pt", "sdpa"), ("flax", "eager"), ("flax", "xla")]
    )
    def test_from_pretrained_chooses_for_every_layer(self, tmp_path, backend, kernel):
        model = new_model(backend)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, attn_implementation=kernel)
        layers = [block.attention.attn_implementation for block in loaded.transformer.layer]
        assert [loaded.attn_implementation, *layers] == [kernel] * 3
        assert model.attn_implementation == load_backend(backend).attention.KERNELS[0]  # the class is as it was

    def test_use_flash_attention_2_false_changes_nothing(self, tmp_path):
        new_model("pt").save_pretrained(tmp_path)
        model = load_backend("pt").DistilBertModel.from_pretrained(tmp_path, use_flash_attention_2=False)
        assert model.attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask", ["none", "holes", "one row all masked", "4-D per head"])
def test_attentions_and_hidden_states_are_returned_under_every_kernel(kernel, mask):
    output = run(new_model(kernel), IDS, MASKS[mask], output_hidden_states=True, output_attentions=True)
    assert [to_numpy(h).shape for h in output.hidden_states] == [(4, 12, 32)] * 3
    assert [to_numpy(a).shape for a in output.attentions] == [(4, 4, 12, 12)] * 2
    for attention_map in map(to_numpy, output.attentions):
        np.testing.assert_allclose(attention_map.sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["pt-sdpa", "flax-xla"])
def test_the_fused_kernel_serves_a_plain_call(kernel, monkeypatch):
    """So that what these tests compare are two kernels: the plain one is not there."""
    backend = kernel.partition("-")[0]
    model = new_model(kernel)
    monkeypatch.delattr(load_backend(backend).model, "attend")
    assert to_numpy(run(model, IDS, MASKS["holes"]).last_hidden_state).shape == (4, 12, 32)
    with pytest.raises(NameError, match="attend"):
        run(model, IDS, MASKS["holes"], output_attentions=True)
