"""Texts of runs with small models: what they depend on, where they end, and what is refused."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxbig as jb
from jaxbig.data.builtin.dates import Dates
from jaxbig.data.builtin.pytext import PyText
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.distributed.logical_axes import RULES
from jaxbig.inference import decoding as decoding_module
from jaxbig.inference.decoding import Decoding, Writer, padded_length
from jaxbig.inference.generate import Language, Text, decoding_of, generate, variables_of, write_all
from jaxbig.inference.sampling import Sampling
from jaxbig.models.deltanet import DeltaNet
from jaxbig.models.griffin import Griffin
from jaxbig.models.language_model import Decoder, EncoderDecoder
from jaxbig.models.rnn import RNNLanguageModel
from jaxbig.models.rnn_seq2seq import RNNEncoderDecoder
from jaxbig.train.run import Run

VOCAB = 23
DRAWN = Sampling()
SMALL = {"vocab": VOCAB, "width": 16}
DECODER = Decoder(**SMALL, depth=2, heads=2, kv_heads=1)
MODELS = {
    "decoder": DECODER,
    "griffin": Griffin(**SMALL, depth=2, heads=2, attention_every=2),
    "delta": DeltaNet(**SMALL, depth=2, heads=2, key_width=4, value_width=8, chunk=4),
    "lstm": RNNLanguageModel(**SMALL),
    "translator": EncoderDecoder(**SMALL, depth=1, heads=2),
    "recurrent translator": RNNEncoderDecoder(**SMALL, target_vocab=VOCAB),
}
ONE_AND_SLOW = [
    name if name == "decoder" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS
]
DRAW = np.random.RandomState(0)
PROMPTS = [DRAW.randint(0, VOCAB, size) for size in (3, 20, 1, 9, 16, 17)]


@functools.cache
def weights(model: Any) -> Any:
    """Random parameters."""
    zeros = jnp.zeros((1, 2), jnp.int32)
    inputs = (zeros,) if hasattr(model, "hidden") else (zeros, zeros)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    draw = np.random.RandomState(1)
    return {
        "params": jax.tree.map(
            lambda leaf: jnp.asarray(draw.normal(0, 0.4, leaf.shape), jnp.float32), shapes["params"]
        )
    }


def written(
    model: Any,
    prompts: list[Any],
    *,
    max_tokens: int = 12,
    sampling: Sampling = DRAWN,
    devices: int = 1,
    mesh: jb.Mesh | None = None,
    end: int = -1,
    cache: int = 256,
) -> list[list[int]]:
    """The tokens of texts; with a mesh the weights are split over it."""
    made = (mesh or jb.Mesh()).build(jax.devices()[:devices])
    decoding = Decoding(
        model, made, RULES if mesh else (), batch=4, sampling=sampling, end=end, vocab=VOCAB
    )
    texts: list[list[int]] = [[] for _ in prompts]
    variables = weights(model)

    def after(number: int, new: np.ndarray) -> bool:
        texts[number] += new.tolist()
        return False

    with decoding.activate():
        write_all(
            decoding,
            jax.device_put(variables, NamedSharding(made, PartitionSpec())),
            prompts,
            after,
            limits=[max_tokens] * len(prompts),
            start=None if hasattr(model, "hidden") else 1,
            seed=0,
            cache=cache,
        )
    return texts


@pytest.mark.parametrize("name", ONE_AND_SLOW)
def test_text_is_the_same_alone_and_among_longer_ones(name: str) -> None:
    together = written(MODELS[name], PROMPTS)
    assert [written(MODELS[name], [prompt])[0] for prompt in PROMPTS] == together
    assert len({tuple(text) for text in together}) > 4


@pytest.mark.slow
def test_text_is_the_same_over_eight_devices() -> None:
    assert written(DECODER, PROMPTS, devices=8) == written(DECODER, PROMPTS)


@pytest.mark.slow
def test_longer_text_begins_with_the_shorter_one_though_the_cache_grows() -> None:
    grown = written(DECODER, PROMPTS, max_tokens=40, cache=16)
    wide = written(DECODER, PROMPTS, max_tokens=12, cache=16)
    assert [text[:12] for text in grown] == wide
    assert all(len(text) == 40 for text in grown)


@pytest.mark.parametrize("name", ["decoder", pytest.param("translator", marks=pytest.mark.slow)])
def test_likeliest_tokens_are_those_without_a_cache(name: str) -> None:
    model = MODELS[name]
    found = written(model, PROMPTS[:2], max_tokens=6, sampling=Sampling(temperature=0))

    @jax.jit
    def logits(prompt: Any, text: Any) -> Any:
        if name == "translator":
            return model.apply(weights(model), prompt, text)
        return model.apply(weights(model), text)

    for prompt, text in zip(PROMPTS, found, strict=False):
        before = [1] if name == "translator" else prompt.tolist()
        for token in text:
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(before)] = before
            assert int(jnp.argmax(logits(prompt[None], padded)[0, len(before) - 1])) == token
            before.append(token)


def test_text_ends_at_the_end_token() -> None:
    [whole] = written(DECODER, PROMPTS[:1])
    [cut] = written(DECODER, PROMPTS[:1], end=whole[4])
    first = whole.index(whole[4])
    assert cut[: first + 1] == whole[: first + 1]
    assert not any(cut[first + 1 :])


def test_seed_and_prompt_decide_the_key() -> None:
    digests = np.stack([decoding_module.digest(np.array(each)) for each in ([1, 2], [1, 3], [1])])
    keys = jax.random.key_data(decoding_module.prompt_keys(0, digests))
    others = jax.random.key_data(decoding_module.prompt_keys(1, digests))
    assert len({tuple(key) for key in [*keys.tolist(), *others.tolist()]}) == 6


@pytest.mark.parametrize(
    ("count", "length"), [(1, 16), (16, 16), (17, 32), (256, 256), (257, 512), (513, 768)]
)
def test_prompt_is_padded_to_one_of_few_lengths(count: int, length: int) -> None:
    assert padded_length(count) == length


# -- strings


def text_of(parts: list[str], stop: list[str]) -> tuple[list[str], str, bool]:
    """What is shown after each piece, the text, and whether it has ended."""
    language = Language(PyText(batch=1), DECODER)
    text = Text(language, language.stops(stop))
    shown = [text.add(np.frombuffer(part.encode(), np.uint8), 0) for part in parts]
    return shown, text.value, text.ended


def test_beginning_of_a_stop_string_is_not_shown_before_it_is_certain() -> None:
    assert text_of(["ab", "-", "-x", "c"], ["--x"]) == (["ab", "", "", ""], "ab", True)
    assert text_of(["ab", "-", "y"], ["--x"]) == (["ab", "", "-y"], "ab-y", False)
    assert text_of(["abc", "z"], ["abcdef"]) == (["", "abcz"], "abcz", False)


def test_first_stop_string_ends_the_text() -> None:
    assert text_of(["one two"], ["two", "ne"])[1:] == ("o", True)


def test_half_a_character_is_not_shown() -> None:
    language = Language(PyText(batch=1), DECODER)
    text = Text(language, ([], []))
    halves = np.frombuffer("é".encode(), np.uint8)
    assert [text.add(halves[:1], 0), text.add(halves[1:], 0)] == ["", "é"]


def test_text_begins_with_the_space_between_its_prompt_and_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<end>": 0, "▁a": 1, "▁b": 2}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<end>"))
    made.decoder = tokenizers.decoders.Metaspace()  # as Llama 2 has it
    made.add_special_tokens(["<end>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = BytePairs(file=str(tmp_path / "tokenizer.json"), vocab=3)
    records = jb.data.Synthetic(texts=("text",))
    data = jb.data.Tokens(records=records, tokenizer=tokenizer, batch=1, length=8)
    text = Text(Language(data, DECODER), ([], []), [1])
    assert [text.add(np.array([2]), 0), text.add(np.array([1]), 0)] == [" b", " a"]


# -- runs


def run_of(model: Any, data: Any, objective: Any = None, **fields: Any) -> Run:
    """A run with random weights; nothing is compiled."""
    name = "dates_transformer" if isinstance(data, Dates) else "pytext_transformer"
    experiment = jb.load(name).replace(model=model, data=data, **fields)
    made: Any = dataclasses.make_dataclass("Program", ["mesh", "rules", "activate", "merged"])
    state: Any = dataclasses.make_dataclass("State", ["params", "variables"])
    mesh = experiment.mesh.build(jax.devices()[:1])
    return Run(
        directory=Path("runs/x"),
        experiment=experiment,
        step=1,
        state=state(weights(model)["params"], {}),
        metrics={},
        history=[],
        program=made(mesh, RULES, contextlib.nullcontext, lambda state: state),
    )


@functools.cache
def language_run(max_length: int = 40) -> Run:
    fields = {"positions": "learned", "max_length": max_length}
    return run_of(Decoder(vocab=256, width=8, depth=1, heads=1, **fields), PyText(batch=1))


def test_texts_of_a_run_are_strings_and_tokens_of_prompts_of_tokens() -> None:
    shown: list[str] = []
    prompts: list[Any] = ["def ", [100, 101, 102, 32]]
    [text, tokens] = generate(
        language_run(), prompts, max_tokens=8, show=lambda number, piece: shown.append(piece)
    )
    assert text == bytes(tokens.tolist()).decode(errors="replace") == "".join(shown)


def test_text_ends_where_the_model_has_no_more_positions() -> None:
    [text] = generate(language_run(), [list(range(1, 31))], max_tokens=100)
    assert 0 < len(text) <= 10


def test_translations_of_a_run_are_its_likeliest() -> None:
    model = EncoderDecoder(vocab=Dates(batch=1).vocab, width=8, depth=1, heads=1)
    run = run_of(model, Dates(batch=1))
    once = generate(run, ["9 may 98", "1/2/2003"], max_tokens=4)
    assert once == generate(run, ["9 may 98", "1/2/2003"], max_tokens=4, seed=1, temperature=0)


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([], {}, "there is no prompt"),
        (["a", ""], {}, "prompt 1 is empty"),
        (["a" * 40], {}, "prompt 0 has 40 tokens, and the model 40 positions: give 39 or fewer"),
        ([[300]], {}, "prompt 0 has token 300, and the model reads 0 to 255"),
        ([[1.5]], {}, "prompt 0 is neither a text nor a list of tokens"),
        (["a"], {"temperature": -1.0}, "temperature -1.0: it must be 0, or 0.001 to 1000"),
        (["a"], {"temperature": float("nan")}, "temperature nan: it must be 0, or 0.001"),
        (["a"], {"temperature": 1e-40}, "temperature 1e-40: it must be 0, or 0.001"),
        (["a"], {"repetition_penalty": float("inf")}, "repetition_penalty inf: it must be"),
        (["a"], {"beams": 2, "length_penalty": 99.0}, "length_penalty 99.0: it must be -8 to 8"),
        (["a"], {"top_p": 0.0}, "top_p 0.0: it must be above 0"),
        (["a"], {"stop": [""]}, "stop '': the tokenizer writes no such text"),
        (["a"], {"max_tokens": 0}, "max_tokens 0: it must be 1 to 16,777,216"),
        (["a"], {"max_tokens": 2**31}, "max_tokens 2147483648: it must be 1 to 16,777,216"),
        (["a"], {"seed": 2**40}, "seed 1099511627776: it must be 0 to 4294967295"),
        ([[97]], {"stop": "b"}, "stop 'b' with prompts of tokens"),
    ],
)
def test_wrong_prompt_or_setting_is_refused(
    prompts: list[Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(jb.Refused, match=message):
        generate(language_run(), prompts, **given)


def test_run_of_a_classifier_is_refused() -> None:
    run = dataclasses.replace(language_run(), experiment=jb.load("digits_convnet"))
    with pytest.raises(jb.Refused, match="ConvNet writes no texts: generate needs a run of a lang"):
        generate(run, "a")


@pytest.mark.slow
def test_sixty_four_texts_are_the_same_alone_in_batches_and_over_meshes() -> None:
    model = Decoder(vocab=256, width=32, depth=2, heads=4)
    draw = np.random.RandomState(5)
    prompts = [draw.randint(0, 256, draw.randint(1, 60)) for _ in range(64)]
    run = run_of(model, PyText(batch=8))

    def texts(run: Run, some: list[Any]) -> list[list[int]]:
        found = generate(run, some, max_tokens=12, temperature=1.5, reproducible=True)
        return [text.tolist() for text in found]

    wanted = texts(run, prompts)
    assert len({tuple(text) for text in wanted}) == 64
    assert [texts(run, [prompt])[0] for prompt in prompts] == wanted
    for start in range(0, 64, 8):
        assert texts(run, prompts[start : start + 8]) == wanted[start : start + 8]
    for mesh in (jb.Mesh(), jb.Mesh(data=1, fsdp=8), jb.Mesh(data=1, tensor=2)):
        devices = jax.devices()[: mesh.fsdp * mesh.tensor if mesh.data == 1 else 8]
        assert texts(over(run, mesh.build(devices)), prompts) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 2}], ids=lambda axes: next(iter(axes)))
def test_texts_of_split_weights_are_those_of_one_device_but_for_rounding(
    axes: dict[str, int],
) -> None:
    model = Decoder(vocab=256, width=32, depth=1, heads=4)
    prompts = [np.random.RandomState(7).randint(0, 256, 9) for _ in range(8)]
    run = run_of(model, PyText(batch=8))
    mesh = jb.Mesh(data=1, **axes).build(jax.devices()[: max(axes.values())])
    split = over(run, mesh)

    def logits(run: Run) -> np.ndarray:
        given = {"batch": 8, "end": -1, "reproducible": False}
        decoding = decoding_of(run, DRAWN, **given)
        with decoding.activate():
            writer = Writer(
                decoding, variables_of(run, decoding), prompts, limits=[9] * len(prompts)
            )
        return np.asarray(writer.state.logits)[: len(prompts)]

    np.testing.assert_allclose(logits(split), logits(run), rtol=0, atol=1e-4)
    for temperature in (0.0, 1.0):
        given = {"max_tokens": 12, "temperature": temperature, "reproducible": False}
        one, other = (generate(each, prompts, **given) for each in (run, split))
        assert [text.tolist() for text in other] == [text.tolist() for text in one]


def over(run: Run, mesh: jax.sharding.Mesh) -> Run:
    """The run with its weights split over a mesh."""
    boxed = jax.eval_shape(
        run.experiment.model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, list(RULES))
    params = jax.device_put(run.state.params, shardings["params"])
    state = dataclasses.replace(run.state, params=params)
    program = dataclasses.replace(run.program, mesh=mesh)
    return dataclasses.replace(run, state=state, program=program)
