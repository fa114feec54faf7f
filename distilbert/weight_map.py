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
    other_bias: str = ""  # another name of the bias there, without a leaf
    tf_weight: str = ""  # leaf name in TensorFlow files where it breaks their own rule
    sentence: str = ""  # in a module's own folder of sentence-transformers

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tensors of this module."""
        return ("weight",) if self.kind == "embedding" else ("weight", "bias")


EMBEDDINGS = (
    Module("distilbert.embeddings.word_embeddings", "embedding", ("vocab_size", "dim"), "embeddings.word_embeddings", tf_weight="weight"),
    Module("distilbert.embeddings.position_embeddings", "embedding", ("max_position_embeddings", "dim"), "embeddings.position_embeddings"),
    Module("distilbert.embeddings.LayerNorm", "norm", ("dim",), "embeddings.LayerNorm"),
)  # fmt: skip
BLOCK = (  # * is the number of the layer
    Module("distilbert.transformer.layer.*.attention.q_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.query"),
    Module("distilbert.transformer.layer.*.attention.k_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.key"),
    Module("distilbert.transformer.layer.*.attention.v_lin", "dense", ("attention_dim", "dim"), "encoder.layer.*.attention.self.value"),
    Module("distilbert.transformer.layer.*.attention.out_lin", "dense", ("dim", "attention_dim"), "encoder.layer.*.attention.output.dense"),
    Module("distilbert.transformer.layer.*.sa_layer_norm", "norm", ("dim",), "encoder.layer.*.attention.output.LayerNorm"),
    Module("distilbert.transformer.layer.*.ffn.lin1", "dense", ("hidden_dim", "dim"), "encoder.layer.*.intermediate.dense"),
    Module("distilbert.transformer.layer.*.ffn.lin2", "dense", ("dim", "hidden_dim"), "encoder.layer.*.output.dense"),
    Module("distilbert.transformer.layer.*.output_layer_norm", "norm", ("dim",), "encoder.layer.*.output.LayerNorm"),
)  # fmt: skip
ABOVE = (
    Module("vocab_transform", "dense", ("dim", "dim"), "cls.predictions.transform.dense"),
    Module("vocab_layer_norm", "norm", ("dim",), "cls.predictions.transform.LayerNorm"),
    Module("vocab_projector", "dense", ("vocab_size", "dim"), "cls.predictions.decoder", other_bias="cls.predictions.bias"),
    Module("pre_classifier", "dense", ("dim", "dim")),
    Module("classifier", "dense", ("num_labels", "dim"), "classifier"),
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

    name: str
    axes: tuple[int, ...] = ()  # () keeps the orientation


@dataclass(frozen=True)
class Layout:
    """How a checkpoint dialect or a module tree names and turns tensors."""

    name: str
    leaves: Mapping[tuple[Kind, Leaf], Spelling]
    separator: str = "."
    layer: str = "layer."  # what stands between `transformer` and the layer's number
    suffix: str = ""
    column: Literal["name", "bert", "sentence"] = "name"  # the column of the table that holds this layout's names
    prefixes: tuple[str, ...] = (BASE, "")  # what may stand before the encoder's modules; the first is written
    headless_prefix: str = BASE  # what is written there in a checkpoint without a head
    keras2: bool = False  # the reference's TensorFlow files, which break their own rule in one leaf
    roots: Mapping[str, str] = field(default_factory=dict[str, str])  # beginnings of module names that it spells anew


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

PT = Layout("pt", _SAME)
TF = Layout("tf", _KERAS, separator="/", layer="layer_._", suffix=":0", keras2=True)
FLAX = Layout("flax", _FLAX, headless_prefix="")
SENTENCE = Layout("sentence", _SAME, column="sentence")
KERAS = Layout("keras", _KERAS)  # attributes of distilbert.tf's modules, which are named as in PyTorch
DIALECTS = {layout.name: layout for layout in (PT, TF, FLAX)}  # by the `format` that a safetensors file names
_TF_ROOTS = {"cls.predictions": "mlm___cls.predictions", "cls.seq_relationship": "nsp___cls.seq_relationship"}
BERT = {  # BERT checkpoints, by the name of the dialect
    name: dataclasses.replace(
        layout, name=f"bert-{name}", column="bert", prefixes=("bert.", ""), roots=_TF_ROOTS if layout is TF else {}
    )
    for name, layout in DIALECTS.items()
}
_OLD_NORM_LEAVES: dict[Leaf, str] = {"weight": "gamma", "bias": "beta"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: canonical name and shape, and how to spell it elsewhere."""

    module: Module
    leaf: Leaf
    layer: int | None
    shape: tuple[int, ...]

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
        if layout.keras2 and self.leaf == "weight" and self.module.tf_weight:
            return Spelling(self.module.tf_weight)
        return layout.leaves[self.module.kind, self.leaf]

    def stored_name(self, layout: Layout, *, headless: bool = False) -> str:
        """The name under which a checkpoint of `layout` holds this tensor; `headless` when it has no head."""
        prefix = layout.headless_prefix if headless else layout.prefixes[0]
        return self._path(layout, prefix, f"{getattr(self.module, layout.column)}.{self.spelling(layout).name}")

    def accepted_names(self, layout: Layout) -> Iterator[str]:
        """Every name under which a checkpoint may hold it: with and without the prefix, old norm names too."""
        if not getattr(self.module, layout.column):
            return  # a module that this architecture does not have
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
        return path.replace(f"layer{layout.separator}*", f"{layout.layer}{self.layer}") + layout.suffix

    def stored_shape(self, layout: Layout) -> tuple[int, ...]:
        """The shape in the orientation of `layout`."""
        axes = self.spelling(layout).axes
        return tuple(self.shape[axis] for axis in axes) if axes else self.shape

    def to_layout(self, canonical: Array, layout: Layout) -> Array:
        """The canonical array in the orientation of `layout`."""
        axes = self.spelling(layout).axes
        return canonical.transpose(axes) if axes else canonical

    def from_layout(self, stored: Array, layout: Layout) -> Array:
        """An array of `layout` in canonical orientation: the inverse of `to_layout`."""
        axes = self.spelling(layout).axes
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
    specs = (TensorSpec(DENSE, leaf, None, _shape(DENSE, leaf, None, config, sizes)) for leaf in leaves)
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
        TensorSpec(m, leaf, layer, _shape(m, leaf, layer, config, sizes)) for m, layer in rows for leaf in m.leaves
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
    return TensorSpec(module, "weight", None, _shape(module, "weight", None, config, {}))


def not_weights(layout: Layout) -> dict[str, str]:
    """Tensors that a checkpoint of the layout may hold beside the weights, by exact name, and why they are not needed."""
    found: dict[str, str] = {}
    if layout.leaves is _SAME:
        found |= {f"{prefix}embeddings.position_ids": "a buffer, not a weight" for prefix in layout.prefixes}
    for module, why in BERT_ONLY.items() if layout.column == "bert" else ():
        for leaf in module.leaves:
            found |= dict.fromkeys(TensorSpec(module, leaf, None, ()).accepted_names(layout), why)
    return found


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
    return path.split("/", 2)[-1]


def find_owner(model: Any, spec: TensorSpec) -> Any:
    """The submodule of `model` that owns the tensor, reached by the attributes that its canonical name spells.

    The three backends name their attributes alike, so this serves all of them. A bare encoder has no `distilbert`.
    """
    path = spec.module_name if hasattr(model, "distilbert") else spec.module_name.removeprefix(BASE)
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model
