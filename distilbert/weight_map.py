"""THE table: the name, shape and orientation of every tensor in every layout.

The canonical form of a tensor is its released PyTorch name and orientation, for example
`distilbert.transformer.layer.0.ffn.lin1.weight` of (hidden_dim, dim). A layout says how a checkpoint, or a framework's
module tree, spells it: a few leaf names, a separator, and the axes in which it stores a matrix. Names are looked up
exactly; nothing here parses or guesses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distilbert.config import DistilBertConfig, PoolingConfig

Array = np.ndarray[Any, np.dtype[Any]]
Leaf = Literal["weight", "bias"]
Kind = Literal["embedding", "norm", "dense"]
Size = str | int  # a config field, or a number

BASE = "distilbert."


@dataclass(frozen=True)
class Module:
    """A row: a module's canonical name, its kind, the shape of its weight, and its foreign names where they differ."""

    name: str
    kind: Kind
    shape: tuple[Size, ...]
    bert: str = ""  # in BERT checkpoints; "" where BERT has no such module
    keras_hub: str = ""  # in KerasHub presets, `task.` in the head's file; "" where KerasHub has no such module
    other_bias: str = ""  # another name of the bias in BERT checkpoints, without a leaf
    sentence: str = ""  # in a module's own folder of sentence-transformers

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tensors of this module."""
        return ("weight",) if self.kind == "embedding" else ("weight", "bias")


EMBEDDINGS = (
    Module("distilbert.embeddings.word_embeddings", "embedding", ("vocab_size", "dim"), "embeddings.word_embeddings", "layers.token_and_position_embedding.token_embedding"),
    Module("distilbert.embeddings.position_embeddings", "embedding", ("max_position_embeddings", "dim"), "embeddings.position_embeddings", "layers.token_and_position_embedding.position_embedding"),
    Module("distilbert.embeddings.LayerNorm", "norm", ("dim",), "embeddings.LayerNorm", "layers.layer_normalization"),
)  # fmt: skip
BLOCK = (  # * is the number of the layer
    Module("distilbert.transformer.layer.*.attention.q_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.query", "layers.transformer_encoder*._self_attention_layer.query_dense"),
    Module("distilbert.transformer.layer.*.attention.k_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.key", "layers.transformer_encoder*._self_attention_layer.key_dense"),
    Module("distilbert.transformer.layer.*.attention.v_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.value", "layers.transformer_encoder*._self_attention_layer.value_dense"),
    Module("distilbert.transformer.layer.*.attention.out_lin", "dense", ("dim", "attention_dim"), "encoder.layer.*.attention.output.dense", "layers.transformer_encoder*._self_attention_layer.output_dense"),
    Module("distilbert.transformer.layer.*.sa_layer_norm", "norm", ("dim",), "encoder.layer.*.attention.output.LayerNorm", "layers.transformer_encoder*._self_attention_layer_norm"),
    Module("distilbert.transformer.layer.*.ffn.lin1", "dense", ("hidden_dim", "dim"), "encoder.layer.*.intermediate.dense", "layers.transformer_encoder*._feedforward_intermediate_dense"),
    Module("distilbert.transformer.layer.*.ffn.lin2", "dense", ("dim", "hidden_dim"), "encoder.layer.*.output.dense", "layers.transformer_encoder*._feedforward_output_dense"),
    Module("distilbert.transformer.layer.*.output_layer_norm", "norm", ("dim",), "encoder.layer.*.output.LayerNorm", "layers.transformer_encoder*._feedforward_layer_norm"),
)  # fmt: skip
ABOVE = (
    Module("vocab_transform", "dense", ("dim", "dim"), "cls.predictions.transform.dense", "task.layers.masked_lm_head._intermediate_dense"),
    Module("vocab_layer_norm", "norm", ("dim",), "cls.predictions.transform.LayerNorm", "task.layers.masked_lm_head._intermediate_layer_norm"),
    Module("vocab_projector", "dense", ("vocab_size", "dim"), "cls.predictions.decoder", "task.layers.masked_lm_head", "cls.predictions.bias"),
    Module("pre_classifier", "dense", ("dim", "dim"), keras_hub="task.layers.dense"),
    Module("classifier", "dense", ("num_labels", "dim"), "classifier", "task.layers.dense_1"),
    Module("qa_outputs", "dense", (2, "dim"), "qa_outputs"),
)  # fmt: skip
DENSE = Module("pooling.dense", "dense", ("out_features", "dim"), sentence="linear")  # its size is the pooling's
BERT_ONLY = {  # what BERT has and DistilBERT does not, and what becomes of it
    Module("distilbert.embeddings.token_type_embeddings", "embedding", (2, "dim"), "embeddings.token_type_embeddings"): "row 0 is folded into the position table",
    Module("distilbert.pooler.dense", "dense", ("dim", "dim"), "pooler.dense"): "DistilBERT has no pooler",
    Module("seq_relationship", "dense", (2, "dim"), "cls.seq_relationship"): "next-sentence head",
}  # fmt: skip

WORD_EMBEDDINGS = f"{EMBEDDINGS[0].name}.weight"
POSITION_EMBEDDINGS = f"{EMBEDDINGS[1].name}.weight"
PROJECTOR_BIAS = "vocab_projector.bias"
TIED_PROJECTOR = "vocab_projector.weight"  # the same numbers as WORD_EMBEDDINGS while tie_word_embeddings


@dataclass(frozen=True)
class Head:
    """The modules that a class has above the encoder, its model's name in TensorFlow files, and sizes that it fixes."""

    modules: tuple[str, ...] = ()
    tf_name: str = "tf_distil_bert_model"
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


HEADS: dict[str, Head] = {
    "DistilBertModel": Head(),
    "DistilBertForMaskedLM": Head(
        ("vocab_transform", "vocab_layer_norm", "vocab_projector"), "tf_distil_bert_for_masked_lm"
    ),
    "DistilBertForSequenceClassification": Head(
        ("pre_classifier", "classifier"), "tf_distil_bert_for_sequence_classification"
    ),
    "DistilBertForQuestionAnswering": Head(("qa_outputs",), "tf_distil_bert_for_question_answering"),
    "DistilBertForTokenClassification": Head(("classifier",), "tf_distil_bert_for_token_classification"),
    "DistilBertForMultipleChoice": Head(
        ("pre_classifier", "classifier"), "tf_distil_bert_for_multiple_choice", {"num_labels": 1}
    ),
    "DistilBertForSentenceEmbedding": Head(),
}


@dataclass(frozen=True)
class Spelling:
    """How a layout spells one leaf: its name, and its axes in terms of the canonical ones."""

    name: str  # "" where the layout has no such tensor
    axes: tuple[int, ...] = ()  # () keeps the orientation


@dataclass(frozen=True)
class Layout:
    """How a checkpoint dialect or a module tree names and turns tensors."""

    name: str
    leaves: Mapping[tuple[Kind, Leaf], Spelling]
    separator: str = "."
    layer: str = "layer."  # what stands between `transformer` and the layer's number
    suffix: str = ""
    column: Literal["name", "bert", "keras_hub", "sentence"] = "name"  # the table's column that holds its names
    prefixes: tuple[str, ...] = (BASE, "")  # what may stand before the encoder's modules; the first is written
    headless_prefix: str = BASE  # what is written there in a checkpoint without a head
    exceptions: Mapping[str, Spelling] = field(default_factory=dict[str, Spelling])  # canonical names that break a rule
    roots: Mapping[str, str] = field(default_factory=dict[str, str])  # beginnings of module names that it spells anew
    splits_heads: bool = False  # stores an axis of attention_dim as two, (n_heads, head_dim)


_TRANSPOSED = (1, 0)
_SAME: dict[tuple[Kind, Leaf], Spelling] = {
    ("embedding", "weight"): Spelling("weight"),
    ("norm", "weight"): Spelling("weight"),
    ("norm", "bias"): Spelling("bias"),
    ("dense", "weight"): Spelling("weight"),
    ("dense", "bias"): Spelling("bias"),
}
_KERAS: dict[tuple[Kind, Leaf], Spelling] = {
    ("embedding", "weight"): Spelling("embeddings"),
    ("norm", "weight"): Spelling("gamma"),
    ("norm", "bias"): Spelling("beta"),
    ("dense", "weight"): Spelling("kernel", _TRANSPOSED),
    ("dense", "bias"): Spelling("bias"),
}
_FLAX: dict[tuple[Kind, Leaf], Spelling] = {
    ("embedding", "weight"): Spelling("embedding"),
    ("norm", "weight"): Spelling("scale"),
    ("norm", "bias"): Spelling("bias"),
    ("dense", "weight"): Spelling("kernel", _TRANSPOSED),
    ("dense", "bias"): Spelling("bias"),
}
_NUMBERED: dict[tuple[Kind, Leaf], Spelling] = {
    ("embedding", "weight"): Spelling("vars.0"),
    ("norm", "weight"): Spelling("vars.0"),
    ("norm", "bias"): Spelling("vars.1"),
    ("dense", "weight"): Spelling("vars.0", _TRANSPOSED),
    ("dense", "bias"): Spelling("vars.1"),
}

PT = Layout("pt", _SAME)
TF = Layout(
    "tf", _KERAS, separator="/", layer="layer_._", suffix=":0", exceptions={WORD_EMBEDDINGS: Spelling("weight")}
)
FLAX = Layout("flax", _FLAX, headless_prefix="")
SENTENCE = Layout("sentence", _SAME, column="sentence")
KERAS_HUB = Layout(
    "keras-hub",
    _NUMBERED,
    separator="/",
    column="keras_hub",
    prefixes=("",),
    headless_prefix="",
    exceptions={TIED_PROJECTOR: Spelling(""), PROJECTOR_BIAS: Spelling("vars.0")},  # the projector is always tied
    splits_heads=True,
)
KERAS = Layout("keras", _KERAS)  # attributes of distilbert.tf's modules, which are named as in PyTorch
DIALECTS = {layout.name: layout for layout in (PT, TF, FLAX)}  # by the `format` that a safetensors file names
_TF_ROOTS = {"cls.predictions": "mlm___cls.predictions", "cls.seq_relationship": "nsp___cls.seq_relationship"}
BERT = {  # BERT checkpoints, by the name of the dialect
    name: dataclasses.replace(
        layout, name=f"bert-{name}", column="bert", prefixes=("bert.", ""), roots=_TF_ROOTS if layout is TF else {}
    )
    for name, layout in DIALECTS.items()
}


OPTIMIZERS = ("optimizer/", "task/optimizer/", "optimizer_weights/")  # where Keras 3, KerasHub and Keras 2 keep theirs
_OLD_NORM_LEAVES: dict[Leaf, str] = {"weight": "gamma", "bias": "beta"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: canonical name and shape, and how to spell it elsewhere."""

    module: Module
    leaf: Leaf
    layer: int | None
    shape: tuple[int, ...]
    head_dim: int

    @property
    def module_name(self) -> str:
        """Canonical name of the module that owns the tensor."""
        return self.module.name if self.layer is None else self.module.name.replace("*", str(self.layer))

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"{self.module_name}.{self.leaf}"

    def spelling(self, layout: Layout) -> Spelling:
        """Leaf name and axes in `layout`."""
        return layout.exceptions.get(self.name) or layout.leaves[self.module.kind, self.leaf]

    def stored_name(self, layout: Layout, *, headless: bool = False) -> str:
        """The name under which a checkpoint of `layout` holds this tensor; `headless` when it has no head."""
        prefix = layout.headless_prefix if headless else layout.prefixes[0]
        return self._path(layout, prefix, f"{getattr(self.module, layout.column)}.{self.spelling(layout).name}")

    def accepted_names(self, layout: Layout) -> Iterator[str]:
        """Every name under which a checkpoint may hold it: with and without the prefix, old norm names too."""
        if not getattr(self.module, layout.column) or not self.spelling(layout).name:
            return  # a module or a tensor that this architecture does not have
        leaves = [self.spelling(layout).name]
        if self.module.kind == "norm" and layout.leaves is _SAME:
            leaves.append(_OLD_NORM_LEAVES[self.leaf])
        for leaf in leaves:
            for prefix in layout.prefixes if self.in_encoder else ("",):
                yield self._path(layout, prefix, f"{getattr(self.module, layout.column)}.{leaf}")
        if layout.column == "bert" and self.leaf == "bias" and self.module.other_bias:
            yield self._path(layout, "", self.module.other_bias)

    @property
    def is_kernel(self) -> bool:
        """Whether it is the matrix of a dense layer: what weight decay acts on."""
        return self.module.kind == "dense" and self.leaf == "weight"

    @property
    def in_encoder(self) -> bool:
        """Whether the tensor is the encoder's, not a head's."""
        return self.module.name.startswith(BASE)

    def _path(self, layout: Layout, prefix: str, name: str) -> str:
        """The full name: prefix (before the encoder's modules only), module and leaf, as the layout joins them."""
        name = name.removeprefix(BASE)
        for root, own in layout.roots.items():
            name = own + name.removeprefix(root) if name.startswith(root) else name
        path = f"{prefix if self.in_encoder else ''}{name}".replace(".", layout.separator)
        path = path.replace(f"layer{layout.separator}*", f"{layout.layer}{self.layer}")
        return path.replace("*", f"_{self.layer}" if self.layer else "") + layout.suffix  # Keras counts x, x_1, x_2

    def stored_shape(self, layout: Layout) -> tuple[int, ...]:
        """The shape in the orientation of `layout`."""
        axes = self.spelling(layout).axes or range(len(self.shape))
        return tuple(size for axis in axes for size in self._sizes(layout, axis))

    def _sizes(self, layout: Layout, axis: int) -> tuple[int, ...]:
        """The size of a canonical axis in `layout`: two, where it is split by heads."""
        if layout.splits_heads and self.module.shape[axis] == "attention_dim":
            return (self.shape[axis] // self.head_dim, self.head_dim)
        return (self.shape[axis],)

    def to_layout(self, canonical: Array, layout: Layout) -> Array:
        """The canonical array in the orientation of `layout`."""
        axes = self.spelling(layout).axes
        turned = canonical.transpose(axes) if axes else canonical
        return turned.reshape(self.stored_shape(layout)) if layout.splits_heads else turned

    def from_layout(self, stored: Array, layout: Layout) -> Array:
        """An array of `layout` in canonical orientation: the inverse of `to_layout`."""
        axes = self.spelling(layout).axes
        if layout.splits_heads:
            stored = stored.reshape([self.shape[axis] for axis in axes or range(len(self.shape))])
        return stored.transpose(np.argsort(axes)) if axes else stored


def tensor_specs(
    config: DistilBertConfig, head: str = "DistilBertModel", pooling: PoolingConfig | None = None
) -> dict[str, TensorSpec]:
    """Every tensor of the class `head` under `config`, by canonical name, in canonical order.

    With the `pooling` of a sentence embedding, its dense layer too.
    """
    modules, sizes = HEADS[head].modules, HEADS[head].sizes
    return _specs(config, [module for module in ABOVE if module.name in modules], sizes) | dense_specs(config, pooling)


def dense_specs(config: DistilBertConfig, pooling: PoolingConfig | None) -> dict[str, TensorSpec]:
    """The tensors of a pooling's dense layer, which lie in a file of their own; none where it has no such layer."""
    if pooling is None or pooling.dense is None:
        return {}
    leaves = DENSE.leaves if pooling.dense.bias else DENSE.leaves[:1]
    sizes = {"out_features": pooling.dense.out_features}
    specs = (
        TensorSpec(DENSE, leaf, None, _shape(DENSE, leaf, None, config, sizes), config.head_dim) for leaf in leaves
    )
    return {spec.name: spec for spec in specs}


def tied(config: DistilBertConfig, head: str) -> tuple[str, ...]:
    """Names of the tensors of the class `head` that are the word embeddings under another name."""
    projects = TIED_PROJECTOR.removesuffix(".weight") in HEADS[head].modules
    return (TIED_PROJECTOR,) if projects and config.tie_word_embeddings else ()


def trained(config: DistilBertConfig, head: str, pooling: PoolingConfig | None = None) -> dict[str, TensorSpec]:
    """The tensors of the class `head` that training changes, each once: no sinusoidal table, no tied projector."""
    fixed = {*tied(config, head), *([POSITION_EMBEDDINGS] if config.sinusoidal_pos_embds else [])}
    return {name: spec for name, spec in tensor_specs(config, head, pooling).items() if name not in fixed}


def all_specs(config: DistilBertConfig) -> dict[str, TensorSpec]:
    """Every tensor that any class may have: what a checkpoint may reasonably hold."""
    return _specs(config, ABOVE, {})


def _specs(config: DistilBertConfig, above: Sequence[Module], sizes: Mapping[str, int]) -> dict[str, TensorSpec]:
    blocks = [(module, layer) for layer in range(config.n_layers) for module in BLOCK]
    rows = [*((module, None) for module in EMBEDDINGS), *blocks, *((module, None) for module in above)]
    specs = (
        TensorSpec(m, leaf, layer, _shape(m, leaf, layer, config, sizes), config.head_dim)
        for m, layer in rows
        for leaf in m.leaves
    )
    return {spec.name: spec for spec in specs}


def _shape(
    module: Module, leaf: Leaf, layer: int | None, config: DistilBertConfig, sizes: Mapping[str, int]
) -> tuple[int, ...]:
    heads = config.n_heads if layer is None else config.heads_of(layer)
    known = {"attention_dim": heads * config.head_dim, **sizes}
    shape = tuple(s if isinstance(s, int) else known.get(s) or int(getattr(config, s)) for s in module.shape)
    return shape if leaf == "weight" else shape[:1]


def token_types(config: DistilBertConfig) -> TensorSpec:
    """BERT's token-type table."""
    module = next(iter(BERT_ONLY))
    return TensorSpec(module, "weight", None, _shape(module, "weight", None, config, {}), config.head_dim)


def why_no_weight(layout: Layout, name: str) -> str:
    """Why a tensor that a checkpoint of `layout` holds beside the weights is not needed; "" when nobody knows it."""
    if name.startswith(OPTIMIZERS):
        return "the optimizer's state"
    if layout.leaves is _SAME and name in {f"{prefix}embeddings.position_ids" for prefix in layout.prefixes}:
        return "a buffer, not a weight"
    for module, why in BERT_ONLY.items() if layout.column == "bert" else ():
        if any(name in TensorSpec(module, leaf, None, (), 0).accepted_names(layout) for leaf in module.leaves):
            return why
    return ""


def h5_paths(spec: TensorSpec, head: str) -> list[str]:
    """Where a tf_model.h5 of the class `head` holds the tensor: LAYER_GROUP/model/name.

    The reference's masked LM nests the tied embeddings in its projector, so its files hold them twice.
    """
    name = spec.stored_name(TF)
    groups = [name.split("/", 1)[0]]
    if "vocab_projector" in HEADS[head].modules and spec.module in EMBEDDINGS:
        groups.append("vocab_projector")
    return [f"{group}/{HEADS[head].tf_name}/{name}" for group in groups]


def from_h5_path(path: str) -> str:
    """The TensorFlow name in a path of a tf_model.h5: what stands after the layer's group and the model's name."""
    return path if path.startswith(OPTIMIZERS) else path.split("/", 2)[-1]


def find_owner(model: Any, spec: TensorSpec) -> Any:
    """The submodule of `model` that owns the tensor, reached by the attributes that its canonical name spells.

    The three backends name their attributes alike, so this serves all of them. A bare encoder has no `distilbert`.
    """
    path = spec.module_name if hasattr(model, "distilbert") else spec.module_name.removeprefix(BASE)
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model
