"""Generation against `transformers`: greedy, beam search, and the filters of sampling."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.distributed.mesh import Mesh
from jaxbig.inference.decoding import Decoding
from jaxbig.inference.generate import search_all, write_all
from jaxbig.inference.sampling import Sampling
from jaxbig.models.language_model import Decoder, EncoderDecoder

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

VOCAB = 40
WIDTH = 16
HEADS = 4
HEAD = WIDTH // HEADS
END = 2
MAX_TOKENS = 12
DRAW = np.random.RandomState(3)
PROMPTS = [DRAW.randint(3, VOCAB, DRAW.randint(1, 30)) for _ in range(50)]


def heads_in(matrix: Any) -> Any:
    """A matrix [D, H K] as [D, H, K]."""
    return matrix.reshape(WIDTH, -1, HEAD)


def linear(weights: dict[str, Any], name: str) -> Any:
    """The matrix [in, out] of a linear layer, which torch has as [out, in]."""
    return weights[f"{name}.weight"].T


def gpt2() -> tuple[Any, Any, Any]:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        eos_token_id=END,
        pad_token_id=0,
        bos_token_id=1,
    )
    reference = drawn(transformers.GPT2LMHeadModel(config))
    w = state_of(reference)
    model = Decoder(
        vocab=VOCAB,
        depth=2,
        width=WIDTH,
        heads=HEADS,
        norm="layer",
        epsilon=1e-5,
        bias=True,
        positions="learned",
        max_length=64,
        tie_embeddings=True,
    )

    def block(name: str) -> Any:
        query, key, value = np.split(w[f"{name}.attn.c_attn.weight"], 3, axis=1)
        of_query, of_key, of_value = np.split(w[f"{name}.attn.c_attn.bias"], 3)
        return {
            "attention_norm": norm(w, f"{name}.ln_1"),
            "attention": {
                "query": {"kernel": heads_in(query), "bias": of_query.reshape(HEADS, HEAD)},
                "key_value": {
                    "kernel": np.stack([heads_in(key), heads_in(value)], axis=1),
                    "bias": np.stack([of_key.reshape(HEADS, HEAD), of_value.reshape(HEADS, HEAD)]),
                },
                "out": {
                    "kernel": w[f"{name}.attn.c_proj.weight"].reshape(HEADS, HEAD, WIDTH),
                    "bias": w[f"{name}.attn.c_proj.bias"],
                },
            },
            "mlp_norm": norm(w, f"{name}.ln_2"),
            "up": {"kernel": w[f"{name}.mlp.c_fc.weight"], "bias": w[f"{name}.mlp.c_fc.bias"]},
            "down": {
                "kernel": w[f"{name}.mlp.c_proj.weight"],
                "bias": w[f"{name}.mlp.c_proj.bias"],
            },
        }

    params = {
        "tokens": {"embedding": w["transformer.wte.weight"]},
        "positions": {"embedding": w["transformer.wpe.weight"]},
        "blocks": {f"block_{n}": block(f"transformer.h.{n}") for n in range(2)}
        | {"norm": norm(w, "transformer.ln_f")},
    }
    return reference, model, params


def llama() -> tuple[Any, Any, Any]:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        eos_token_id=END,
        pad_token_id=0,
        bos_token_id=1,
        rms_norm_eps=1e-5,
    )
    reference = drawn(transformers.LlamaForCausalLM(config))
    w = state_of(reference)
    model = Decoder(
        vocab=VOCAB,
        depth=2,
        width=WIDTH,
        heads=HEADS,
        kv_heads=2,
        mlp_width=24,
        activation="swiglu",
        epsilon=1e-5,
    )

    def block(name: str) -> Any:
        key, value = (heads_in(linear(w, f"{name}.self_attn.{each}_proj")) for each in "kv")
        return {
            "attention_norm": {"scale": w[f"{name}.input_layernorm.weight"]},
            "attention": {
                "query": {"kernel": heads_in(linear(w, f"{name}.self_attn.q_proj"))},
                "key_value": {"kernel": np.stack([key, value], axis=1)},
                "out": {
                    "kernel": linear(w, f"{name}.self_attn.o_proj").reshape(HEADS, HEAD, WIDTH)
                },
            },
            "mlp_norm": {"scale": w[f"{name}.post_attention_layernorm.weight"]},
            "up": {"kernel": linear(w, f"{name}.mlp.up_proj")},
            "gate": {"kernel": linear(w, f"{name}.mlp.gate_proj")},
            "down": {"kernel": linear(w, f"{name}.mlp.down_proj")},
        }

    params = {
        "tokens": {"embedding": w["model.embed_tokens.weight"]},
        "head": {"embedding": w["lm_head.weight"]},
        "blocks": {f"block_{n}": block(f"model.layers.{n}") for n in range(2)}
        | {"norm": {"scale": w["model.norm.weight"]}},
    }
    return reference, model, params


def t5() -> tuple[Any, Any, Any]:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=HEAD,
        d_ff=24,
        num_layers=2,
        num_heads=HEADS,
        feed_forward_proj="relu",
        tie_word_embeddings=False,
        eos_token_id=END,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    reference = drawn(transformers.T5ForConditionalGeneration(config))
    w = state_of(reference)
    model = EncoderDecoder(
        vocab=VOCAB,
        depth=2,
        width=WIDTH,
        heads=HEADS,
        mlp_width=24,
        norm="rms",
        pre_norm=True,
        bias=False,
        positions="relative",
        tie_embeddings=False,
        target_vocab=VOCAB,
        scale_embedding=False,
    )

    def attention(name: str) -> Any:
        key, value = (heads_in(linear(w, f"{name}.{each}")) for each in "kv")
        return {
            # T5 does not divide scores by the root of the head's width
            "query": {"kernel": heads_in(linear(w, f"{name}.q")) * HEAD**0.5},
            "key_value": {"kernel": np.stack([key, value], axis=1)},
            "out": {"kernel": linear(w, f"{name}.o").reshape(HEADS, HEAD, WIDTH)},
        }

    def stack(side: str) -> Any:
        blocks: dict[str, Any] = {
            "norm": {"scale": w[f"{side}.final_layer_norm.weight"]},
            "relative": {
                "table": {
                    "embedding": w[
                        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
                    ]
                }
            },
        }
        for number in range(2):
            name = f"{side}.block.{number}.layer"
            last = 1 if side == "encoder" else 2
            block = {
                "attention_norm": {"scale": w[f"{name}.0.layer_norm.weight"]},
                "attention": attention(f"{name}.0.SelfAttention"),
                "mlp_norm": {"scale": w[f"{name}.{last}.layer_norm.weight"]},
                "up": {"kernel": linear(w, f"{name}.{last}.DenseReluDense.wi")},
                "down": {"kernel": linear(w, f"{name}.{last}.DenseReluDense.wo")},
            }
            if side == "decoder":
                block |= {
                    "cross_norm": {"scale": w[f"{name}.1.layer_norm.weight"]},
                    "cross": attention(f"{name}.1.EncDecAttention"),
                }
            blocks[f"block_{number}"] = block
        return blocks

    params = {
        "tokens": {"embedding": w["shared.weight"]},
        "target_tokens": {"embedding": w["shared.weight"]},
        "head": {"embedding": w["lm_head.weight"]},
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
    }
    return reference, model, params


def norm(weights: dict[str, Any], name: str) -> Any:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def drawn(reference: Any) -> Any:
    """The model with weights so large that its texts differ, in evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            scale = 0.8 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, parameter in reference.named_parameters():
            if ("norm" in name or "ln_" in name) and name.endswith("weight"):
                parameter += 1
    return reference.eval()


def state_of(reference: Any) -> dict[str, Any]:
    return {name: value.numpy() for name, value in reference.state_dict().items()}


FAMILIES = {"gpt2": gpt2, "llama": llama, "t5": t5}


@functools.cache
def made(family: str) -> tuple[Any, Any, Any]:
    reference, model, params = FAMILIES[family]()
    return reference, model, {"params": jax.tree.map(jnp.asarray, params)}


def expected(reference: Any, translates: bool, **options: Any) -> list[list[int]]:
    """The texts of `transformers` up to their ends, all prompts in one batch."""
    length = max(map(len, PROMPTS))
    tokens = np.zeros((len(PROMPTS), length), np.int64)
    mask = np.zeros((len(PROMPTS), length), np.int64)
    for row, prompt in enumerate(PROMPTS):
        part = slice(0, len(prompt)) if translates else slice(length - len(prompt), None)
        tokens[row, part] = prompt
        mask[row, part] = 1
    with torch.no_grad():
        texts = reference.generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            **options,
        )
    return [cut(text[1 if translates else length :].tolist()) for text in texts]


def cut(text: list[int]) -> list[int]:
    """The tokens up to the end token, included."""
    return text[: text.index(END) + 1] if END in text else text


@pytest.mark.slow
@pytest.mark.parametrize(("beams", "power"), [(1, 1.0), (3, 0.5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_texts_are_those_of_transformers(family: str, beams: int, power: float) -> None:
    reference, model, params = made(family)
    translates = family == "t5"
    mesh = Mesh().build(jax.devices()[:1])
    sampling = Sampling(temperature=0)
    decoding = Decoding(model, mesh, (), batch=8 * beams, sampling=sampling, end=END, vocab=VOCAB)
    found: list[list[int]] = [[] for _ in PROMPTS]

    def after(number: int, new: np.ndarray) -> bool:
        found[number] += new.tolist()
        return False

    same = {"limits": [MAX_TOKENS] * len(PROMPTS), "start": 0 if translates else None, "cache": 64}
    with decoding.activate():
        variables = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        given = decoding, variables, PROMPTS, after
        if beams > 1:
            search_all(*given, **same, beams=beams, power=power)
        else:
            write_all(*given, **same, seed=0)
    options = {} if beams == 1 else {"num_beams": beams, "length_penalty": power}
    wanted = expected(reference, translates, **options)
    assert [cut(text) for text in found] == wanted
    assert len({tuple(text) for text in wanted}) > 20


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("TemperatureLogitsWarper", {"temperature": 0.7}),
        ("TopKLogitsWarper", {"top_k": 5}),
        ("TopPLogitsWarper", {"top_p": 0.8}),
        ("MinPLogitsWarper", {"min_p": 0.2}),
        ("RepetitionPenaltyLogitsProcessor", {"repetition_penalty": 1.3}),
    ],
)
def test_filter_leaves_what_that_of_transformers_leaves(name: str, fields: dict[str, Any]) -> None:
    logits = np.random.RandomState(0).normal(0, 2, (64, VOCAB)).astype(np.float32)
    seen = np.zeros(logits.shape, bool)
    tokens = np.random.RandomState(1).randint(0, VOCAB, (64, 6))
    np.put_along_axis(seen, tokens, True, axis=1)
    argument = "penalty" if name.startswith("Repetition") else next(iter(fields))
    reference = getattr(transformers, name)(**{argument: next(iter(fields.values()))})
    wanted = reference(torch.tensor(tokens), torch.tensor(logits)).numpy()
    found = Sampling(**fields).scores(jnp.asarray(logits), jnp.asarray(seen))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (found != logits).any()


def test_filters_together_leave_what_those_of_transformers_leave() -> None:
    logits = np.random.RandomState(0).normal(0, 2, (64, VOCAB)).astype(np.float32)
    wanted = torch.tensor(logits)
    for each in (
        transformers.TemperatureLogitsWarper(0.6),
        transformers.TopKLogitsWarper(9),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.1),
    ):
        wanted = each(None, wanted)
    sampling = Sampling(temperature=0.6, top_k=9, top_p=0.9, min_p=0.1)
    found = sampling.scores(jnp.asarray(logits), jnp.zeros((64, 0), bool))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
