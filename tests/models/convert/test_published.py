"""The configurations with which open_clip publishes models mean the towers that they are. Facts of its model_configs, no weights."""

import pytest

from vlm_jax.models import resnet
from vlm_jax.models.convert import open_clip

SIGLIP_TEXT = {"context_length": 64, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
SIGLIP2_TEXT = SIGLIP_TEXT | {
    "vocab_size": 256000, "hf_tokenizer_name": "", "tokenizer_kwargs": {"clean": "canonicalize"}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip
SO400M = {"width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362}
CLIP_TEXT = {"context_length": 77, "vocab_size": 49408}


def parsed(dim, vision, text, **more):
    return open_clip.parse({"model_cfg": {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text, **more}}, ())


def siglip(dim, trunk, size, text):
    vision = {"image_size": size, "timm_model_name": trunk, "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
    return parsed(dim, vision, text, init_logit_bias=-10, custom_text=True)


@pytest.mark.parametrize(
    ("dim", "trunk", "size", "text", "image", "activations", "text_mlp"),
    [
        (768, "vit_base_patch16_siglip_224", 224, SIGLIP_TEXT | {"vocab_size": 32000, "width": 768, "heads": 12, "layers": 12},
         (768, 12, 3072, 12, 16), ("gelu", "gelu"), 3072),
        (1152, "vit_so400m_patch14_siglip_384", 384, SIGLIP_TEXT | {"vocab_size": 32000} | SO400M,
         (1152, 27, 4304, 16, 14), ("gelu", "gelu"), 4304),
        (768, "vit_base_patch32_siglip_256", 256, SIGLIP2_TEXT | {"width": 768, "heads": 12, "layers": 12},
         (768, 12, 3072, 12, 32), ("gelu_tanh", "gelu_tanh"), 3072),
        (1536, "vit_giantopt_patch16_siglip_256", 256, SIGLIP2_TEXT | SO400M,
         (1536, 40, 6144, 16, 16), ("gelu_tanh", "gelu_tanh"), 4304),
    ],
    ids=["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-B-32-SigLIP2-256", "ViT-gopt-16-SigLIP2-256"],
)  # fmt: skip
def test_siglip(dim, trunk, size, text, image, activations, text_mlp):
    found = siglip(dim, trunk, size, text)
    tower = found.image
    assert (tower.width, tower.depth, tower.mlp_dim, tower.num_heads, tower.patch_size) == image
    assert (tower.activation, found.text.activation) == activations and tower.image_size == found.preprocessing.size == size
    words = found.text
    assert (words.mlp_dim, words.pool, words.attention, words.projection_dim) == (text_mlp, "last", "bidirectional", dim)
    assert tower.border == ("leave_out" if size == 384 else "refuse")  # patches of 14 pixels cover 378
    assert found.family == "siglip" and found.preprocessing.resize == "squash" and found.preprocessing.mean == (0.5, 0.5, 0.5)


def test_clip():
    found = parsed(
        1280,
        {"image_size": 224, "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14},
        CLIP_TEXT | {"width": 1280, "heads": 20, "layers": 32},
    )
    assert (found.image.mlp_dim, found.image.num_heads, found.image.activation, found.text.num_heads) == (8192, 16, "gelu", 20)
    quick = parsed(512, {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}, CLIP_TEXT | {"width": 512}, quick_gelu=True)
    assert quick.image.activation == quick.text.activation == "quick_gelu" and quick.family == "clip"


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_resnets(name):
    size = resnet.preset(name)
    vision = {"image_size": size.image_size, "layers": list(size.layers), "width": size.width, "patch_size": None}
    found = parsed(size.projection_dim, vision, CLIP_TEXT, quick_gelu=True)
    assert found.image == size and found.preprocessing.resize == "shortest"
