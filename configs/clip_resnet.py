"""CLIP with the modified ResNet-50, as OpenAI trained it: a recipe for a pod.

    python -m vlm_jax.train configs/clip_resnet.py --data.train 'shards/train-{00000..41455}.tar' --data.val shards/val-00000.tar \\
        --data.tokenizer.path bpe_simple_vocab_16e6.txt.gz --workdir runs/rn50

The numbers of the paper (Radford et al. 2021): 400 million pairs for 32 epochs in batches of 32,768, random square crops as the only
augmentation, AdamW with decay 0.2 on all but gains and biases. 59.8 % of ImageNet without training for it, from data that are not public.
Every norm takes its statistics over the whole batch, all devices together, so there are no chunks of it (`--microbatches` stays 1).
"""

from vlm_jax.config import Config
from vlm_jax.data import images, pipeline
from vlm_jax.data import text as tokenizers
from vlm_jax.evaluation import retrieval
from vlm_jax.models import resnet, text
from vlm_jax.systems import clip
from vlm_jax.training import optimizer


def config() -> Config:
    tower = resnet.preset("RN50")
    return Config(
        steps="32 epochs",
        batch_size=32768,
        precision="bfloat16",
        system=clip.Clip(
            image=tower,
            text=text.Config(
                vocab_size=49408,
                length=77,
                width=512,
                depth=12,
                mlp_dim=2048,
                num_heads=8,
                attention="causal",
                pool="eos",
                eos_id=49407,
                activation="quick_gelu",
                norm_epsilon=1e-5,
                projection_dim=tower.output_dim,
                init="clip",
            ),
        ),
        data=pipeline.Pairs(
            train="",
            val="",
            tokenizer=tokenizers.Tokenizer("bpe_simple_vocab_16e6.txt.gz", length=77, pad="zero"),
            image=images.Transform(size=tower.image_size, crop="random"),
        ),
        optimizer=optimizer.AdamW(
            learning_rate=5e-4, warmup=2000, beta2=0.999, weight_decay=0.2, decay="(kernel|embedding|positions)$", clip_norm=0.0
        ),
        evaluators={"retrieval": retrieval.Retrieval()},
    )
