"""One of two processes that evaluate together; prints its metrics. Run by test_two_processes."""

import json
import sys
from pathlib import Path

import jax

if __name__ == "__main__":
    process, address, data, classes, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))

    from flax import nnx

    from evaluation.conftest import Model, Tokenizer
    from vlm_jax.data import images
    from vlm_jax.evaluation import base, embeddings, linear_probe, nearest_neighbours, retrieval, zero_shot
    from vlm_jax.training import sharding

    graphdef, variables = nnx.split(Model(rngs=nnx.Rngs(0)))
    compiled = base.Compiled(graphdef, sharding.Mesh().make())
    pieces = embeddings.Pieces(Path(folder), {"weights": "w"})
    subject = base.Subject(compiled, nnx.to_pure_dict(variables), images.Transform(size=8), Tokenizer(), 8, pieces)
    evaluators = [
        zero_shot.ZeroShot(data=data, classes=classes),
        retrieval.Retrieval(data=data),
        linear_probe.LinearProbe(data=data, train=data, max_iterations=30),
        nearest_neighbours.NearestNeighbours(data=data, train=data),
    ]
    results = [evaluate(subject) for evaluate in evaluators]
    print(json.dumps({"rows": subject.rows(27), "metrics": [result.metrics for result in results], "found": pieces.found}))
