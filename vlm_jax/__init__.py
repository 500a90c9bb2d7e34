"""vlm_jax: pretraining of vision-language models in JAX, from shards to a zero-shot number."""

__version__ = "0.1.0"
