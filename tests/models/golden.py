"""The golden models as the files that their codebases write: weights by the rule of `tests.models.reference`, and a configuration."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.models import reference
from vlm_jax.models.convert import files, pretrained
from vlm_jax.training import tree


class Golden:
    """Inputs, expected outputs and weights of one golden model."""

    def __init__(self, folder, name):
        self.oracle = np.load(folder / f"{name}.npz")
        self.weights = {key: np.asarray(x, np.float32) for key, x in reference.weights(self.oracle).items()}
        self.config = json.loads(str(self.oracle["config"])) if "config" in self.oracle else {}
        self.outputs = {key[4:]: self.oracle[key] for key in self.oracle if key.startswith("out_")}
        if "in_pixel_values" in self.oracle:
            self.images = jnp.asarray(self.oracle["in_pixel_values"]).transpose(0, 2, 3, 1)
        else:
            self.images = jnp.asarray(self.oracle["in_image_nhwc"], jnp.float32)
        if "in_input_ids" in self.oracle:
            self.tokens = jnp.asarray(self.oracle["in_input_ids"], jnp.int32)

    def hugging_face(self, folder, kind, **more):
        """Writes the directory; a ViT's weights get the names that transformers writes to disk."""
        folder.mkdir(exist_ok=True)
        files.write_safetensors(folder / "model.safetensors", self.weights, format="pt")
        (folder / "config.json").write_text(json.dumps({"model_type": kind} | self.config | more))
        return folder

    def open_clip(self, folder, **more):
        folder.mkdir(exist_ok=True)
        files.write_safetensors(folder / "open_clip_model.safetensors", self.weights, format="pt")
        config = {"model_cfg": self.config | more, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder

    def differences(self, outputs):
        """Largest difference of each output of the oracle."""
        assert outputs.keys() == self.outputs.keys()
        return {name: float(np.abs(np.asarray(x) - self.outputs[name]).max()) for name, x in outputs.items()}


def towers(found: pretrained.Pretrained):
    """The image tower, the text tower (or None) and what else an imported model has."""
    nested = tree.unflatten({path: jnp.asarray(x) for path, x in found.params.items()})
    image = reference.build(found.layout.image, nested.pop("image"))
    words = reference.build(found.layout.text, nested.pop("text")) if found.layout.text else None
    return image, words, jax.device_get(nested)


def check(found: pretrained.Pretrained, weights):
    """Back in the other codebase's names, every weight has the bits that it had."""
    back = found.layout.to_theirs(found.params)
    assert back.keys() == weights.keys()
    for key, x in weights.items():
        np.testing.assert_array_equal(back[key], x, err_msg=key)
