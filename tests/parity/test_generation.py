"""Generation against `transformers`: greedy, beam search, and the filters of sampling."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from support.pretrained import read, save, untie
from unit.inference.test_chat import NAMES, TALK, imported

from jaxbig.distributed.mesh import Mesh
from jaxbig.inference.chat import chat_tokens
from jaxbig.inference.decoding import Decoding
from jaxbig.inference.generate import search_all, write_all
from jaxbig.inference.sampling import Sampling

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

VOCAB = 40
WIDTH = 16
END = 2
MAX_TOKENS = 12
DRAW = np.random.RandomState(3)
PROMPTS = [DRAW.randint(3, VOCAB, DRAW.randint(1, 30)) for _ in range(50)]


GPT2 = {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
T5 = {
    "d_model": WIDTH,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
}


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


def made(family: str, folder: Path) -> tuple[Any, Any, Any]:
    """A model of transformers, and ours with its weights: the model and its variables."""
    config, kind, fields = FAMILIES[family]
    config = getattr(transformers, config)(vocab_size=VOCAB, eos_token_id=END, **fields)
    reference = getattr(transformers, kind)(config)
    if fields.get("tie_word_embeddings") is False:
        untie(reference)
    reference = drawn(reference)
    save(reference, folder, tied=fields.get("tie_word_embeddings"))
    _, model, loaded = read(folder)
    return reference, model, unflatten_dict(loaded.leaves, sep="/")


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
def test_fifty_texts_are_those_of_transformers(
    family: str, beams: int, power: float, tmp_path: Path
) -> None:
    reference, model, given = made(family, tmp_path)
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
        variables = jax.device_put(given, NamedSharding(mesh, PartitionSpec()))
        if beams > 1:
            search_all(decoding, variables, PROMPTS, after, **same, beams=beams, power=power)
        else:
            write_all(decoding, variables, PROMPTS, after, **same, seed=0)
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


TEMPLATES = {
    "turns": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content | trim }}{{ eos_token }}{% endgeneration %}{% else %}"
        "[{{ m['role'] | upper }}] {{ m.content }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    ),
    "lines": (
        "{%- if messages[0].role == 'system' %}\n    {%- set rest = messages[1:] %}\n"
        "    {{- messages[0] | tojson }}\n{%- endif %}\n{% for m in rest %}\n"
        "{% if loop.index0 > 1 %}{% break %}{% endif %}\n"
        "    <|s|>{{ m.role }}<|e|> {{ m.content }}\n{% endfor %}\n"
        "{{ strftime_now('%Y') }} {{ messages | length }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_has_the_tokens_of_transformers(tmp_path: Path, name: str) -> None:
    tokens = {"bos_token": "<|s|>", "eos_token": "<|e|>"}
    talk = [{**each, "content": each["content"] + " <é&" + NAMES[2]} for each in TALK[:4]]
    run = imported(
        tmp_path, {"chat_template.jinja": TEMPLATES[name], "tokenizer_config.json": tokens}
    )
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=TEMPLATES[name], **tokens
    )
    wanted = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert chat_tokens(run, talk).tolist() == wanted
