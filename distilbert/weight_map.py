"""THE table: the name, shape and orientation of every tensor in every layout.

The canonical form of a tensor is its released PyTorch name and orientation, for example
`distilbert.transformer.layer.0.ffn.lin1.weight` of (hidden_dim, dim). A layout says how a checkpoint, or a framework's
module tree, spells it: a few leaf names, a separator, and the axes in which it stores a matrix. Names are looked up
exactly; nothing here parses or guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distilbert.config import DistilBertConfig

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
    Module("vocab_transform", "dense", ("dim", "dim"), keras_hub="task.layers.masked_lm_head._intermediate_dense"),
    Module("vocab_layer_norm", "norm", ("dim",), keras_hub="task.layers.masked_lm_head._intermediate_layer_norm"),
    Module("vocab_projector", "dense", ("vocab_size", "dim"), keras_hub="task.layers.masked_lm_head"),
    Module("pre_classifier", "dense", ("dim", "dim"), keras_hub="task.layers.dense"),
    Module("classifier", "dense", ("num_labels", "dim"), keras_hub="task.layers.dense_1"),
    Module("qa_outputs", "dense", (2, "dim")),
)

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
    column: Literal["name", "bert", "keras_hub"] = "name"  # the column of the table that holds this layout's names
    prefixes: tuple[str, ...] = (BASE, "")  # what may stand before the encoder's modules; the first is written
    headless_prefix: str = BASE  # what is written there in a checkpoint without a head
    exceptions: Mapping[str, Spelling] = field(default_factory=dict[str, Spelling])  # canonical names that break a rule
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
BERT = Layout("bert", _SAME, column="bert", prefixes=("bert.", ""))
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


def _with_and_without(prefix: str, reasons: Mapping[str, str]) -> dict[str, str]:
    return {start + name: why for name, why in reasons.items() for start in ("", prefix)}


# Tensors that a checkpoint of a layout may hold beside the weights, by exact name or by group (a name that ends in its
# separator), and why they are not needed.
_BUFFER = {"embeddings.position_ids": "a buffer, not a weight"}
TOKEN_TYPE_EMBEDDINGS = "embeddings.token_type_embeddings.weight"  # noqa: S105 - a tensor's name
NOT_WEIGHTS: dict[str, dict[str, str]] = {
    PT.name: _with_and_without(BASE, _BUFFER),
    TF.name: {},
    FLAX.name: {},
    KERAS_HUB.name: dict.fromkeys(("optimizer/", "task/optimizer/"), "the optimizer's state"),
    BERT.name: _with_and_without(
        "bert.",
        {
            **_BUFFER,
            TOKEN_TYPE_EMBEDDINGS: "row 0 is folded into the position table",
            "pooler.dense.weight": "DistilBERT has no pooler",
            "pooler.dense.bias": "DistilBERT has no pooler",
        },
    )
    | dict.fromkeys(("cls.seq_relationship.weight", "cls.seq_relationship.bias"), "next-sentence head")
    | dict.fromkeys(("classifier.weight", "classifier.bias"), "a task head; only the encoder is converted")
    | dict.fromkeys(("qa_outputs.weight", "qa_outputs.bias"), "a task head; only the encoder is converted")
    | dict.fromkeys(
        (
            "cls.predictions.bias",
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
            "cls.predictions.transform.dense.weight",
            "cls.predictions.transform.dense.bias",
            "cls.predictions.transform.LayerNorm.weight",
            "cls.predictions.transform.LayerNorm.bias",
            "cls.predictions.transform.LayerNorm.gamma",
            "cls.predictions.transform.LayerNorm.beta",
        ),
        "masked-LM head; only the encoder is converted",
    ),
}


def why_no_weight(layout: Layout, name: str) -> str:
    """Why a tensor that a checkpoint of `layout` holds beside the weights is not needed; "" when nobody knows it."""
    known = NOT_WEIGHTS[layout.name]
    groups = (why for group, why in known.items() if group.endswith(layout.separator) and name.startswith(group))
    return known.get(name) or next(groups, "")


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
        return self._path(layout, prefix, self.spelling(layout).name)

    def accepted_names(self, layout: Layout) -> Iterator[str]:
        """Every name under which a checkpoint may hold it: with and without the prefix, old norm names too."""
        if not getattr(self.module, layout.column) or not self.spelling(layout).name:
            return  # a module or a tensor that this architecture does not have
        leaves = [self.spelling(layout).name]
        if self.module.kind == "norm" and layout.leaves is _SAME:
            leaves.append(_OLD_NORM_LEAVES[self.leaf])
        for leaf in leaves:
            for prefix in layout.prefixes if self.in_encoder else ("",):
                yield self._path(layout, prefix, leaf)

    @property
    def is_kernel(self) -> bool:
        """Whether it is the matrix of a dense layer: what weight decay acts on."""
        return self.module.kind == "dense" and self.leaf == "weight"

    @property
    def in_encoder(self) -> bool:
        """Whether the tensor is the encoder's, not a head's."""
        return self.module.name.startswith(BASE)

    def _path(self, layout: Layout, prefix: str, leaf: str) -> str:
        """The full name: prefix (before the encoder's modules only), module, leaf, as the layout joins them."""
        module: str = getattr(self.module, layout.column)
        path = f"{prefix if self.in_encoder else ''}{module.removeprefix(BASE)}.{leaf}".replace(".", layout.separator)
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


def tensor_specs(config: DistilBertConfig, head: str = "DistilBertModel") -> dict[str, TensorSpec]:
    """Every tensor of the class `head` under `config`, by canonical name, in canonical order."""
    modules, sizes = HEADS[head].modules, HEADS[head].sizes
    return _specs(config, [module for module in ABOVE if module.name in modules], sizes)


def tied(config: DistilBertConfig, head: str) -> tuple[str, ...]:
    """Names of the tensors of the class `head` that are the word embeddings under another name."""
    projects = TIED_PROJECTOR.removesuffix(".weight") in HEADS[head].modules
    return (TIED_PROJECTOR,) if projects and config.tie_word_embeddings else ()


def trained(config: DistilBertConfig, head: str) -> dict[str, TensorSpec]:
    """The tensors of the class `head` that training changes, each once: no sinusoidal table, no tied projector."""
    fixed = {*tied(config, head), *([POSITION_EMBEDDINGS] if config.sinusoidal_pos_embds else [])}
    return {name: spec for name, spec in tensor_specs(config, head).items() if name not in fixed}


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
