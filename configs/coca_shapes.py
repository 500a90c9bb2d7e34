"""CoCa on the embedded shapes world: one model that captions pictures and names their classes.

    python -m vlm_jax.train configs/coca_shapes.py

The data, the convolutional tower and the steps are those of configs/demo.py; CLIP's text tower gives way to a decoder in two halves. A
parser of the world's grammar says how many captions of pictures with one object are right in its shape and its colour, of pairs that
training never showed.

Other than in the paper (Yu et al. 2022): the embedding's pooler looks at the tower's tokens and not at what the first pooler makes of
them, the caption's loss weighs as much as that of the pairs and not twice as much, and weights decay by 1, where the demo has 1e-4. With
the paper's weights, its cascade and hardly any decay, the decoder learns which shapes go with which colour before it learns to see shapes,
and never forgets it: a quarter of the captions of new pairs are right. With a decay of 0.5 it is half to four fifths of them.
"""

import dataclasses
from pathlib import Path

from vlm_jax.config import Config, load_recipe
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import captioning
from vlm_jax.models import attentional, captioner, convnet
from vlm_jax.systems import coca

LENGTH = 25


def config() -> Config:
    demo, _ = load_recipe(str(Path(__file__).with_name("demo.py")))
    captions = {
        "held_out_captions": captioning.Captioning(data="shapes:held_out", grammar="shapes"),
        "val_captions": captioning.Captioning(data="shapes:val", grammar="shapes"),
    }
    return dataclasses.replace(
        demo,
        workdir="",
        system=coca.Coca(
            initial_scale=10.0,
            caption_weight=1.0,
            image=attentional.Config(
                tower=convnet.Config(image_size=64, channels=(64, 128), depth=(2, 2)),
                width=128,
                num_heads=4,
                queries=16,
                pool="parallel",
                projection_dim=128,
            ),
            text=captioner.Config(
                vocab_size=256,
                length=LENGTH,
                width=128,
                depth=2,
                decoder_depth=1,
                mlp_dim=512,
                num_heads=4,
                loop="unroll",
                projection_dim=128,
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        data=dataclasses.replace(
            demo.data, tokenizer=tokenizers.Tokenizer("shapes:tokenizer.model", length=LENGTH, begin="</s>")
        ),
        optimizer=dataclasses.replace(demo.optimizer, weight_decay=1.0),
        evaluators={**demo.evaluators, **captions},
    )
