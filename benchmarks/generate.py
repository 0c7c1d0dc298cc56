"""Speed of generation: time a token at early and late positions, and beside `transformers`.

    python benchmarks/generate.py                  # a token's time at positions 100 and 2,000
    python benchmarks/generate.py --transformers   # tokens a second at GPT-2's size, batch 8

Weights are random: speed does not depend on them. `transformers` runs on the same cores in the same
process, in turns with ours, so that both meet the same load. It needs the extra `parity`.

On two quiet cores (Python 3.11.7, jax 0.10.2, PyTorch 2.14, `transformers` 5.24, float32), GPT-2's
size, 8 prompts of 32 tokens, 64 tokens each: 217 tokens a second, and 135 of `transformers` (five
turns, ratios 1.59 to 1.69, one warm-up each that is not counted: ours compiles in it). With a cache
of 2,048 positions a token of one text takes 47.8 ms of processor time at position 100, 46.7 at 900
and 47.6 at 1,900.
"""

import argparse
import importlib
import json
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.distributed.mesh import Mesh
from jaxbig.inference.decoding import STEPS, Decoding, Writer
from jaxbig.inference.sampling import Sampling
from jaxbig.models.language_model import Decoder

VOCAB = 50_257
GPT2 = {
    "vocab": VOCAB,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "norm": "layer",
    "epsilon": 1e-5,
    "bias": True,
    "positions": "learned",
    "tie_embeddings": True,
}


def weights(model: Any) -> Any:
    """Random parameters in the shapes of the model's."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape, np.float32) * 0.02),
        {"params": nn.meta.unbox(shapes)["params"]},
    )


def decoding_of(model: Any, batch: int) -> Decoding:
    """Greedy, on one device."""
    mesh = Mesh().build(jax.devices()[:1])
    greedy = Sampling(temperature=0)
    return Decoding(model, mesh, (), batch=batch, sampling=greedy, end=-1, vocab=VOCAB)


def seconds_by_position(batch: int, depth: int, last: int) -> dict[str, Any]:
    """The CPU time of a token at each position, which other processes change little; the cache is
    as large as needed from the beginning."""
    model = Decoder(**{**GPT2, "depth": depth, "max_length": 4_096})
    decoding = decoding_of(model, batch)
    places = 1 << (last + STEPS - 1).bit_length()
    found: dict[int, list[float]] = {}
    with decoding.activate():
        variables = jax.device_put(weights(model), NamedSharding(decoding.mesh, PartitionSpec()))
        prompts = [np.arange(64) + row for row in range(batch)]
        writer = Writer(decoding, variables, prompts, limits=[places] * batch, cache=places)
        writer.next()
        while writer.place < last:
            place = writer.place
            start = time.process_time()
            count = writer.next().shape[1]
            found.setdefault(place // 100 * 100, []).append((time.process_time() - start) / count)
    medians = {place: statistics.median(each) for place, each in found.items()}
    late = max(medians)
    return {
        "batch": batch,
        "depth": depth,
        "cache": places,
        "cpu_seconds_a_token": {
            place: medians[place] for place in (100, late // 2 // 100 * 100, late)
        },
        "ratio": medians[late] / medians[100],
    }


def beside_transformers(given: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of both, greedy, in turns; the ratio is the median of the turns' ratios."""
    batch = given.batch or 8
    prompt = given.prompt
    tokens = given.tokens
    torch: Any = importlib.import_module("torch")  # of the extra `parity`
    transformers: Any = importlib.import_module("transformers")
    config = transformers.GPT2Config(n_layer=given.depth)
    reference = transformers.GPT2LMHeadModel(config).eval()
    model = Decoder(**{**GPT2, "depth": given.depth, "max_length": 1_024})
    decoding = decoding_of(model, batch)
    prompts = np.random.default_rng(0).integers(0, VOCAB, (batch, prompt))

    def theirs() -> None:
        with torch.inference_mode():
            texts = reference.generate(
                torch.tensor(prompts),
                attention_mask=torch.ones(prompts.shape, dtype=torch.long),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert texts.shape == (batch, prompt + tokens)

    with decoding.activate():
        variables = jax.device_put(weights(model), NamedSharding(decoding.mesh, PartitionSpec()))

        def ours() -> None:
            writer = Writer(decoding, variables, list(prompts), limits=[tokens] * batch)
            while not writer.ended.all():
                writer.next()

        speeds: dict[str, list[float]] = {"ours": [], "transformers": []}
        ours()
        theirs()
        for _ in range(given.repeats):
            for name, function in (("ours", ours), ("transformers", theirs)):
                start = time.perf_counter()
                function()
                speeds[name].append(batch * tokens / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["transformers"], strict=True)]
    return {
        "batch": batch,
        "depth": given.depth,
        "prompt": prompt,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "tokens_a_second": {name: statistics.median(each) for name, each in speeds.items()},
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transformers", action="store_true", help="compare tokens a second")
    parser.add_argument("--batch", type=int, default=0, help="texts at once; 1, or 8 beside them")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--last", type=int, default=2_000, help="the last position")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each text")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    given = parser.parse_args()
    if given.transformers:
        found = beside_transformers(given)
    else:
        found = seconds_by_position(given.batch or 1, given.depth, given.last)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
