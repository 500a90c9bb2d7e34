"""Language models of Hugging Face transformers: GPT2LMHeadModel, OPTForCausalLM, LlamaForCausalLM, and their trunks where the head is tied.

`read` takes config.json, `write` makes it; both use the same tables. Our paths are those of `models.lm`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from vlm_jax.errors import InputError
from vlm_jax.models import lm
from vlm_jax.models.convert import hugging_face, layout, mapping
from vlm_jax.models.convert.mapping import EMBEDDING, LINEAR, LINEAR_WITHOUT_BIAS, NORM, TABLE, Kind, Leaf, Table, below

Family = Literal["gpt2", "opt", "llama"]
"""As model_type says."""
FAMILIES = get_args(Family)
_TRUNK: Mapping[Family, str] = {"gpt2": "transformer.", "opt": "model.", "llama": "model."}
"""With what the names of all but the head begin, where there is a head."""
_HEAD = "lm_head.weight"
_IGNORE = r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq|(.*\.)?decoder\.version"
"""Causal masks of GPT-2's first files, the frequencies of LLaMA's, and a number in OPT's."""
_ARCHITECTURES: Mapping[Family, str] = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}
_DEFAULTS: Mapping[Family, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    },
    "opt": {
        "vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "num_attention_heads": 12, "activation_function": "relu", "tie_word_embeddings": True,
    },
    "llama": {
        "vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008,
        "num_attention_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""What transformers takes for a field that config.json leaves out."""
_GPT2_ALIASES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
}  # fmt: skip
"""Fields that transformers also reads under the names that others have."""

_CONV1D: Kind = (Leaf(".weight", ("/kernel",)), Leaf(".bias", ("/bias",)))
"""GPT-2's linear layer: a matrix [in, out], as ours."""
_CONV1D_QKV: Kind = tuple(
    Leaf(
        key,
        tuple(f"/{part}{path}" for part in ("query", "key", "value")),
        lambda x: np.split(x, 3, axis=-1),
        lambda *parts: np.concatenate(parts, axis=-1),
    )
    for key, path in ((".weight", "/kernel"), (".bias", "/bias"))
)
RMS_NORM: Kind = (Leaf(".weight", ("/scale",)),)
_TABLES: Mapping[Family, Table] = {
    "gpt2": (
        ("wte", "token_embed", EMBEDDING),
        ("wpe", "positions", TABLE),
        *below(
            (
                ("ln_1", "attention_norm", NORM),
                ("attn.c_attn", "attention", _CONV1D_QKV),
                ("attn.c_proj", "attention/out", _CONV1D),
                ("ln_2", "mlp_norm", NORM),
                ("mlp.c_fc", "mlp/up", _CONV1D),
                ("mlp.c_proj", "mlp/down", _CONV1D),
            ),
            "h.{}.",
            "blocks/",
        ),
        ("ln_f", "norm", NORM),
    ),
    "opt": below(
        (
            ("embed_tokens", "token_embed", EMBEDDING),
            ("embed_positions", "positions", TABLE),
            *below(
                (
                    ("self_attn_layer_norm", "attention_norm", NORM),
                    ("self_attn.q_proj", "attention/query", LINEAR),
                    ("self_attn.k_proj", "attention/key", LINEAR),
                    ("self_attn.v_proj", "attention/value", LINEAR),
                    ("self_attn.out_proj", "attention/out", LINEAR),
                    ("final_layer_norm", "mlp_norm", NORM),
                    ("fc1", "mlp/up", LINEAR),
                    ("fc2", "mlp/down", LINEAR),
                ),
                "layers.{}.",
                "blocks/",
            ),
            ("final_layer_norm", "norm", NORM),
        ),
        "decoder.",
        "",
    ),
    "llama": (
        ("embed_tokens", "token_embed", EMBEDDING),
        *below(
            (
                ("input_layernorm", "attention_norm", RMS_NORM),
                ("self_attn.q_proj", "attention/query", LINEAR_WITHOUT_BIAS),
                ("self_attn.k_proj", "attention/key", LINEAR_WITHOUT_BIAS),
                ("self_attn.v_proj", "attention/value", LINEAR_WITHOUT_BIAS),
                ("self_attn.o_proj", "attention/out", LINEAR_WITHOUT_BIAS),
                ("post_attention_layernorm", "mlp_norm", RMS_NORM),
                ("mlp.gate_proj", "mlp/gate", LINEAR_WITHOUT_BIAS),
                ("mlp.up_proj", "mlp/up", LINEAR_WITHOUT_BIAS),
                ("mlp.down_proj", "mlp/down", LINEAR_WITHOUT_BIAS),
            ),
            "layers.{}.",
            "blocks/",
        ),
        ("norm", "norm", RMS_NORM),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A language model in the layout of transformers."""

    family: ClassVar = "language"
    preprocessing: ClassVar = None
    config: lm.Config
    table: Table

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run needs that starts from it."""
        given = [field for field in dataclasses.fields(lm.Config) if getattr(self.config, field.name) != field.default]
        flags = " ".join(f"--system.lm.{field.name.replace('_', '-')} {getattr(self.config, field.name)}" for field in given)
        return (f"a run starts from it, such as that of configs/lm_text.py, with --init-from 'lm/ <- hf:DIR' and {flags}",)

    def like(self) -> dict[str, Any]:
        """Shapes and dtypes of our parameters by path."""
        return layout.parameters(self.config)

    def to_ours(self, theirs: Mapping[str, np.ndarray], *, allow: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Our parameters by path; raises as `mapping.to_ours`, or InputError where a tied head is not the token table."""
        if self.config.head == "tied" and _HEAD in theirs:
            name = next(name + ".weight" for name, own, _ in self.table if own == "token_embed")
            if name in theirs and not np.array_equal(theirs[name], theirs[_HEAD]):
                raise InputError(f"weights: {_HEAD} is not {name}, though tie_word_embeddings says so: set it to false in config.json")
            theirs = {name: theirs[_HEAD]} | {key: x for key, x in theirs.items() if key != _HEAD}
        return mapping.to_ours(self.table, theirs, self.like(), allow=allow, ignore=_IGNORE)

    def to_theirs(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Their arrays by name; raises as `mapping.to_theirs`."""
        return mapping.to_theirs(self.table, ours)


def parse(config: Any, names: Mapping[str, Any]) -> Layout:
    """The layout that the content of config.json describes.

    Args:
      names: the arrays of the weights; decides whether the trunk's names have a prefix.

    Raises:
      InputError: another kind of model, or a form of it that ours does not have.
    """
    kind: Any = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FAMILIES:
        raise InputError(f"config.json: model_type {kind!r} is not supported; {', '.join(FAMILIES)} are")
    fields = layout.Fields(config, "config.json", _DEFAULTS[kind])
    fields.require(quantization_config=None, is_encoder_decoder=False, pruned_heads={})
    made = {"gpt2": _gpt2, "opt": _opt, "llama": _llama}[kind](fields)
    bare = names and not any(name.startswith(_TRUNK[kind]) for name in names)
    return _layout(made, kind, "" if bare else _TRUNK[kind])


def write(config: lm.Config) -> tuple[Layout, dict[str, Any]]:
    """The layout of the family that holds such a model, and the content of config.json.

    Raises:
      InputError: none does; the field is named.
    """
    kind: Family = "llama" if config.position == "rotary" else "opt" if config.position_offset else "gpt2"
    content = {"gpt2": _gpt2_json, "opt": _opt_json, "llama": _llama_json}[kind](config)
    content = {"architectures": [_ARCHITECTURES[kind]], "model_type": kind, "tie_word_embeddings": config.head == "tied", **content}
    made = parse(content, {})
    layout.refuse_changes(plain(config), plain(made.config), _ARCHITECTURES[kind], "lm.")
    return made, content


def plain(config: lm.Config) -> lm.Config:
    """The configuration with its number of heads of keys and values written out."""
    return dataclasses.replace(config, num_kv_heads=config.num_kv_heads or config.num_heads)


def _layout(config: lm.Config, kind: Family, prefix: str) -> Layout:
    table = below(_TABLES[kind], prefix, "")
    if config.head == "untied":
        table.append(("lm_head", "head", LINEAR_WITHOUT_BIAS))
    return Layout(config=config, table=table)


def _head(fields: layout.Fields) -> Any:
    return "tied" if fields["tie_word_embeddings"] else "untied"


def _gpt2(fields: layout.Fields) -> lm.Config:
    fields = fields.renamed(**_GPT2_ALIASES)
    fields.require(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = fields.integer("n_embd")
    return lm.Config(
        vocab_size=fields.integer("vocab_size"),
        length=fields.integer("n_positions"),
        width=width,
        depth=fields.integer("n_layer"),
        mlp_dim=fields.integer("n_inner") if fields.get("n_inner") else 4 * width,
        num_heads=fields.integer("n_head"),
        norm_epsilon=fields.number("layer_norm_epsilon"),
        activation=fields.choice("activation_function", hugging_face.ACTIVATIONS),  # pyright: ignore[reportArgumentType]
        head=_head(fields),
    )


def _gpt2_json(config: lm.Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.length,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_inner": config.mlp_dim,
        "n_head": config.num_heads,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": _activation(config),
        **_IDS,
    }


def _opt(fields: layout.Fields) -> lm.Config:
    width = fields.integer("hidden_size")
    fields.require(
        do_layer_norm_before=True,  # OPT-350M alone has its norms after the branches
        word_embed_proj_dim=width,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    return lm.Config(
        vocab_size=fields.integer("vocab_size"),
        length=fields.integer("max_position_embeddings"),
        width=width,
        depth=fields.integer("num_hidden_layers"),
        mlp_dim=fields.integer("ffn_dim"),
        num_heads=fields.integer("num_attention_heads"),
        position_offset=2,
        activation=fields.choice("activation_function", hugging_face.ACTIVATIONS),  # pyright: ignore[reportArgumentType]
        head=_head(fields),
    )


def _opt_json(config: lm.Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.length,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "num_hidden_layers": config.depth,
        "ffn_dim": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "activation_function": _activation(config),
        "pad_token_id": None,
        **_IDS,
    }


def _llama(fields: layout.Fields) -> lm.Config:
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    fields.require(attention_bias=False, mlp_bias=False, head_dim=width // heads, sliding_window=None, attention_chunk_size=None)
    if set(fields.get("layer_types") or ()) - {"full_attention"}:
        raise InputError(f"config.json.layer_types {sorted(set(fields['layer_types']))}: only 'full_attention' is supported")
    return lm.Config(
        vocab_size=fields.integer("vocab_size"),
        length=fields.integer("max_position_embeddings"),
        width=width,
        depth=fields.integer("num_hidden_layers"),
        mlp_dim=fields.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads") if fields.get("num_key_value_heads") else heads,
        norm="rms_norm",
        norm_epsilon=fields.number("rms_norm_eps"),
        position="rotary",
        rope_theta=theta(fields),
        mlp="gated",
        activation=fields.choice("hidden_act", hugging_face.ACTIVATIONS),  # pyright: ignore[reportArgumentType]
        bias="none",
        head=_head(fields),
    )


def theta(fields: layout.Fields) -> float:
    """The base of the rotary frequencies: rope_theta, or since transformers 5 that of rope_parameters.

    Raises:
      InputError: the frequencies are scaled, or turn a part of the channels only.
    """
    fields = fields.filled(rope_theta=10_000.0, rope_scaling={}, rope_parameters={})
    fields.require(partial_rotary_factor=1.0)
    base = fields
    for name in ("rope_scaling", "rope_parameters"):
        rope = layout.Fields(fields[name], f"{fields.name}.{name}", {})
        rope.require(rope_type="default", type="default", partial_rotary_factor=1.0)
        base = rope if rope.get("rope_theta") else base
    return base.number("rope_theta")


def _llama_json(config: lm.Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.length,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "hidden_act": _activation(config),
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **_IDS,
    }


_IDS = {"bos_token_id": None, "eos_token_id": None}
"""The model uses none, and the defaults exceed small vocabularies."""


def _activation(config: lm.Config) -> str:
    """As GPT-2's files call it, where there are two names."""
    return "gelu_new" if config.activation == "gelu_tanh" else hugging_face.activation_name(config.activation, "lm.activation")
