"""Baselines: simple methods on the held-out rows of the bundled data sets.

    python benchmarks/baselines.py [--only text masked chats digits diabetes packages ...]
    python benchmarks/baselines.py --only samples

Everything is fitted on the training rows only. The headers of the experiments quote the results.
Takes minutes of processor time, `canvas` six more than the others. `samples` needs the run that
`jaxbig train digits_convnet` makes.
"""

import argparse
import bz2
import collections
import functools
import gzip
import itertools
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.signal
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import f1_score, jaccard_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from jaxbig.config.discover import load
from jaxbig.data.builtin.diabetes import Diabetes
from jaxbig.data.builtin.digit_canvas import INK, DigitCanvas, resized
from jaxbig.data.builtin.digits import Digits
from jaxbig.data.builtin.morse import CODES, RATE, Morse
from jaxbig.data.builtin.pychat import PyChat
from jaxbig.data.builtin.pydoc_pairs import FunctionPairs
from jaxbig.data.builtin.pydoc_questions import SENTENCE, FunctionQuestions
from jaxbig.data.builtin.pydoc_summary import PySummary
from jaxbig.data.builtin.pyimports import LibraryImports
from jaxbig.data.builtin.pymodule import PyModule
from jaxbig.data.builtin.pytext import PyText
from jaxbig.data.core.dataset import Data
from jaxbig.evaluators.answers import exact, f1
from jaxbig.evaluators.matching import BEST, Matching, ranks
from jaxbig.evaluators.samples import Judge
from jaxbig.evaluators.text_scores import score_texts
from jaxbig.objectives.average_precision import AveragePrecision
from jaxbig.objectives.games import contest, opposed
from jaxbig.objectives.reinforcement import Environment
from jaxbig.program.program import make_program
from jaxbig.train.passes import Evaluation, evenly

Result = tuple[str, str, float]  # method, metric, value
LONGEST = 6  # bytes of the longest n-grams
FEW = 50  # the images that digits_distill sees
CLASSIFIER = "runs/digits_convnet"
DRAWS = 3  # of as many samples as there are held-out digits
WINDOW = 64  # samples of Morse code in a Fourier transform
HOP = 8  # samples between two
PAPERS = 300  # of digits, whose pixels a forest is fitted on
AROUND = 15  # side of the square around a pixel
SIDES = (10, 13, 16, 19)  # heights and widths of the templates of a digit
USUAL = 0.01  # share of the questions that have a word which says nothing of their subject
TRIED = 100  # papers that the settings of template matching are chosen on


def table(data: Data, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """All rows of a split: inputs [N, ...], targets [N], and lengths [N] or None."""
    source = data.source(split)
    rows = source.rows(np.arange(len(source)))
    return rows["inputs"], rows["targets"], rows.get("lengths")


def texts() -> tuple[np.ndarray, np.ndarray]:
    data = PyText(batch=1)
    data.prepare()
    return data.joined("train"), data.joined("eval")


# -- text


def grams(text: np.ndarray, length: int) -> np.ndarray:
    """All n-grams of `length` bytes as numbers, uint64 [N - length + 1]."""
    count = len(text) - length + 1
    parts = (
        text[i : i + count].astype(np.uint64) << np.uint64(8 * (length - 1 - i))
        for i in range(length)
    )
    return sum(parts, np.zeros(count, np.uint64))


def look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The count of each wanted key, 0 if it is missing; `keys` are sorted."""
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[positions] == wanted, counts[positions], 0)


def witten_bell(
    train: np.ndarray, held_out: np.ndarray, longest: int, *, counted: Any = slice(None)
) -> Iterator[tuple[int, float]]:
    """Bits per byte of the held-out text for n-grams of 1 to `longest` bytes.

    Interpolated as in Witten and Bell (1991): p(w | h) = (c(hw) + t(h) p(w | shorter h)) /
    (c(h) + t(h)), where t(h) is the number of different bytes after h.

    Args:
      train: the text that they are fitted on.
      held_out: the text that is scored.
      longest: the largest n.
      counted: which bytes of it are scored; all are context.

    Yields:
      n, and the bits per byte.
    """
    probability = np.full(len(held_out), 1 / 256)
    for length in range(1, longest + 1):
        keys, counts = np.unique(grams(train, length), return_counts=True)
        contexts, first = np.unique(keys >> np.uint64(8), return_index=True)
        kinds = np.diff(np.append(first, len(keys)))
        totals = np.add.reduceat(counts, first)
        wanted = grams(held_out, length)
        context = wanted >> np.uint64(8)
        seen = look_up(keys, counts, wanted)
        after = look_up(contexts, kinds, context)
        total = look_up(contexts, totals, context)
        shorter = probability[length - 1 :]
        mixed = (seen + after * shorter) / np.maximum(total + after, 1)
        probability[length - 1 :] = np.where(total > 0, mixed, shorter)
        yield length, float(-np.log2(probability[counted]).mean())


def text() -> Iterator[Result]:
    train, held_out = texts()
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda data: gzip.compress(data, 9),
        "bzip2 -9": lambda data: bz2.compress(data, 9),
        "xz -9": lambda data: lzma.compress(data, preset=9),
    }
    for name, compress in compressors.items():
        yield (
            f"{name}, of the held-out text only",
            "bits per byte",
            len(compress(held_out.tobytes())) * 8 / len(held_out),
        )
    for length, bits in witten_bell(train, held_out, LONGEST):
        yield f"{length}-grams, Witten-Bell", "bits per byte", bits


def chats() -> Iterator[Result]:
    """Predicts each byte of the held-out answers from those before it."""
    data = PyChat(batch=1)
    data.prepare()

    def joined(split: str) -> tuple[np.ndarray, np.ndarray]:
        chats = [data.encoded(record) for record in data.records.open(split)]
        tokens, learned = zip(*chats, strict=True)
        return np.concatenate(tokens).astype(np.uint8), np.concatenate(learned)

    train, _ = joined("train")
    held_out, answers = joined("eval")
    for length, bits in witten_bell(train, held_out, LONGEST, counted=answers):
        yield f"{length}-grams, Witten-Bell", "bits per byte", bits


def masked() -> Iterator[Result]:
    """Predicts each byte of the held-out text as the most frequent one in its context."""
    train, held_out = texts()
    guesses = np.full(len(held_out), np.bincount(train, minlength=256).argmax())
    yield "most frequent byte", "accuracy", float((guesses == held_out).mean())
    for name, sides in {
        "one on the left": (1, 0),
        "left and right": (1, 1),
        "two on each side": (2, 2),
    }.items():
        keys, counts = np.unique(around(train, *sides), return_counts=True)
        # the most frequent byte of each context comes last
        by_count = np.lexsort((counts, keys >> np.uint64(8)))
        contexts = (keys >> np.uint64(8))[by_count]
        guess = (keys & np.uint64(255))[by_count].astype(np.int64)
        ends = np.append(contexts[1:] != contexts[:-1], True)
        wanted = around(held_out, *sides) >> np.uint64(8)
        # 0: an unseen context, so the guess of the shorter one stays
        found = look_up(contexts[ends], guess[ends] + 1, wanted)
        inside = slice(sides[0], len(held_out) - sides[1])
        guesses[inside] = np.where(found > 0, found - 1, guesses[inside])
        yield name, "accuracy", float((guesses == held_out).mean())


def around(text: np.ndarray, left: int, right: int) -> np.ndarray:
    """The context of each byte and, in the lowest eight bits, the byte, as one number."""
    count = len(text) - left - right
    packed = np.zeros(count, np.uint64)
    for shift in [*range(left), *range(left + 1, left + 1 + right), left]:
        packed = packed << np.uint64(8) | text[shift : shift + count]
    return packed


# -- tables


def digits() -> Iterator[Result]:
    data = Digits(batch=1)
    data.prepare()
    inputs, targets, _ = table(data, "train")
    held_out, truth, _ = table(data, "eval")
    models = {
        "logistic regression": LogisticRegression(max_iter=5000),
        "support vectors, radial": SVC(C=10),
        "nearest neighbor": KNeighborsClassifier(1),
    }
    for count in (len(inputs), FEW):
        of_few = f", of {FEW} images" if count == FEW else ""
        for name, model in models.items():
            model.fit(inputs[:count].reshape(count, -1), targets[:count])
            accuracy = float(model.score(held_out.reshape(len(held_out), -1), truth))
            yield f"{name}{of_few}", "accuracy", accuracy


def labels() -> Iterator[Result]:
    """Classifies digits from the labels that digits_simclr sees: as it does, but by raw pixels, or
    by the features of its network before training."""
    experiment = load("digits_simclr")
    experiment.data.prepare()
    probes: list[Any] = [each.evaluator for each in experiment.evaluators]
    held_out, truth, _ = table(experiment.data, "eval")
    for probe in probes:
        source = evenly(experiment.data.source("train"), probe.most)
        rows = source.rows(np.arange(len(source)))
        pixels = [each.reshape(len(each), -1) / 255 for each in (rows["inputs"], held_out)]
        found = probe.classify(pixels[0], rows["targets"], pixels[1])
        yield f"{probe.split} on pixels", "accuracy", float(np.mean(found == truth))
    for seed in range(3):
        program = make_program(experiment.replace(seed=seed))
        evaluation = Evaluation(program)
        with program.activate():
            state = program.merged(program.init())
            for probe in probes:
                accuracy = probe.run(evaluation, state)["accuracy"]
                yield f"{probe.split} on features at first, seed {seed}", "accuracy", accuracy


def diabetes() -> Iterator[Result]:
    data = Diabetes(batch=1)
    data.prepare()
    inputs, targets, _ = table(data, "train")
    held_out, truth, _ = table(data, "eval")
    guesses = {"mean of training": np.full(len(truth), targets.mean())}
    guesses["ridge, its strength by cross-validation"] = (
        RidgeCV(np.logspace(-3, 3, 25)).fit(inputs, targets).predict(held_out)
    )
    for name, guess in guesses.items():
        error = float(np.mean((guess - truth) ** 2))
        yield name, "mean squared error", error
        yield name, "R2", 1 - error / float(np.var(truth))


def packages() -> Iterator[Result]:
    data = PyModule(batch=1)
    data.prepare()

    def lines(split: str) -> tuple[list[str], np.ndarray]:
        inputs, targets, lengths = table(data, split)
        rows = zip(inputs.astype(np.uint8), lengths, strict=True)
        return [row[:length].tobytes().decode("latin-1") for row, length in rows], targets

    train, targets = lines("train")
    held_out, truth = lines("eval")
    logistic = LogisticRegression(max_iter=2000, C=10)
    models = {
        "most frequent package of training": DummyClassifier(),
        "words, tf-idf, logistic regression": make_pipeline(
            TfidfVectorizer(token_pattern=r"\w+"), logistic
        ),
        "1 to 4 characters, tf-idf, logistic regression": make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2),
            logistic,
        ),
    }
    yield (
        "most frequent package of held-out",
        "accuracy",
        float(np.bincount(truth).max() / len(truth)),
    )
    for name, model in models.items():
        yield name, "accuracy", float(model.fit(train, targets).score(held_out, truth))


def imports() -> Iterator[Result]:
    """Ranks the modules that a file may import by how many training files import them."""
    records = LibraryImports()
    records.prepare()
    train = list(records.open("train"))
    held_out = list(records.open("eval"))
    count = len(records.classes)
    some = len(train) * 4 // 5

    def fitted(scores_of: Callable[..., np.ndarray]) -> np.ndarray:
        best = max(
            10.0 ** np.arange(-2, 4),
            key=lambda each: ranked(scores_of(train[:some], count, each), train[some:])[1],
        )
        return scores_of(train, count, best)

    for name, scores in (
        ("most imported", np.broadcast_to(imported_by(train, count).sum(axis=0), (count, count))),
        ("imported together", fitted(together)),
        ("EASE", fitted(ease)),
    ):
        hit_rate, ndcg = ranked(scores, held_out)
        yield name, "hit rate at 10", hit_rate
        yield name, "NDCG at 10", ndcg


def imported_by(files: list[dict[str, Any]], count: int) -> np.ndarray:
    """Which modules each file imports, [N, count] of 0 and 1."""
    found = np.zeros((len(files), count))
    for row, file in zip(found, files, strict=True):
        row[[*file["items"], file["target"]]] = 1
    return found


def together(files: list[dict[str, Any]], count: int, smoothing: float) -> np.ndarray:
    """The share of the files with a module (row) that also import another (column), smoothed."""
    found = imported_by(files, count)
    return found.T @ found / (found.sum(axis=0)[:, None] + smoothing)


def ease(files: list[dict[str, Any]], count: int, penalty: float) -> np.ndarray:
    """The linear model of each module by all others (Steck, 2019), [K, K]."""
    found = imported_by(files, count)
    inverse = np.linalg.inv(found.T @ found + penalty * np.eye(count))
    return np.eye(count) - inverse / np.diag(inverse)


def ranked(scores: np.ndarray, files: list[dict[str, Any]]) -> tuple[float, float]:
    """Hit rate and NDCG at 10 of sums, over what is shown, of a score for each module [K, K]."""
    gains = []
    for file in files:
        row = scores[file["items"]].sum(axis=0)
        row[file["items"]] = -np.inf
        rank = 1 + np.flatnonzero(np.argsort(-row, kind="stable") == file["target"])[0]
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0)
    return float(np.mean(np.array(gains) > 0)), float(np.mean(gains))


def summaries() -> Iterator[Result]:
    """Writes the first sentence of a function's docstring."""
    data = PySummary(batch=1)
    data.prepare()
    train = list(data.records.open("train"))
    held_out = list(data.records.open("eval"))
    references = [record["summary"] for record in held_out]
    vectors = TfidfVectorizer(token_pattern=r"\w+").fit(record["source"] for record in train)
    known, asked = (
        vectors.transform(record["source"] for record in records) for records in (train, held_out)
    )
    nearest = (asked @ known.T).argmax(axis=1)
    guesses = {
        "the words of the name": [record["source"].split(":")[0] for record in held_out],
        "of the nearest function, tf-idf": [
            train[number]["summary"] for number in np.asarray(nearest).ravel()
        ],
    }
    for name, texts in guesses.items():
        for metric, value in score_texts(texts, references, ("rouge1", "rouge2", "rougeL")).items():
            yield name, metric, value


def pairs() -> Iterator[Result]:
    """Finds a function by its docstring's first sentence, and the sentence by the function."""
    records = FunctionPairs()
    records.prepare()
    train = records.open("train")
    held_out = records.open("eval")
    count = Matching().candidates
    chosen = [held_out[place * len(held_out) // count] for place in range(count)]
    ways: dict[str, dict[str, Any]] = {
        "tf-idf of words": {"token_pattern": r"\w+"},
        "tf-idf of 2 to 5 characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
    }
    fields = ("summary", "source")
    for name, options in ways.items():
        vectors = TfidfVectorizer(**options).fit(row[field] for field in fields for row in train)
        asked, found = (vectors.transform(row[field] for row in chosen) for field in fields)
        scores = (asked @ found.T).toarray()
        for direction, each in (("", scores), ("reverse_", scores.T)):
            for best in BEST:
                share = float(np.mean(ranks(each) <= best))
                yield name, f"{direction}recall_{best}", share


def answers() -> Iterator[Result]:
    """Takes a part of a context as the answer to a question."""
    records = FunctionQuestions()
    records.prepare()
    held_out = list(records.open("eval"))
    asked = [set(re.findall(r"\w+", each["question"])) for each in records.open("train")]
    counts = collections.Counter(itertools.chain.from_iterable(asked))
    usual = {word for word in counts if counts[word] > len(asked) * USUAL}
    methods: dict[str, Callable[[str, str], str]] = {
        "first sentence of the docstring": first_sentence,
        "line with most words of the question": likeliest_line,
        "after the first place of what it is about": functools.partial(after, usual, 0),
        "after the last place of what it is about": functools.partial(after, usual, -1),
    }
    for name, method in methods.items():
        found = [
            [score(method(each["question"], each["context"]), each["answers"]["text"][0])]
            for each in held_out
            for score in (exact, f1)
        ]
        yield name, "exact match", float(np.mean(found[::2]))
        yield name, "F1", float(np.mean(found[1::2]))


def first_sentence(question: str, context: str) -> str:
    """The first sentence after the signature, whatever is asked."""
    found = SENTENCE.search(context.partition("\n")[2])
    return found[0] if found else ""


def likeliest_line(question: str, context: str) -> str:
    """The line with most of a question's words, rare ones before others (Rajpurkar et al., 2016,
    section 5.1)."""
    asked = set(re.findall(r"\w+", question))
    counts = collections.Counter(re.findall(r"\w+", context))

    def weight(line: str) -> float:
        return sum(np.log1p(1 / counts[word]) for word in asked & {*re.findall(r"\w+", line)})

    return max(context.split("\n"), key=weight)


def after(usual: set[str], place: int, question: str, context: str) -> str:
    """What follows the first (0) or the last (-1) place of the words of a question that are not
    usual."""
    words = [word for word in re.findall(r"\w+", question) if word not in usual]
    ends = [match.end() for word in words for match in re.finditer(rf"\b{word}\b", context)]
    if not ends:
        return ""
    rest = context[ends[place] :].lstrip(" =:(\n")
    return re.split(r"[,)\n]", rest)[0]


def samples() -> Iterator[Result]:
    """Draws a digit for each held-out one, of its class."""
    data = Digits(batch=1)
    data.prepare()
    inputs, targets, _ = table(data, "train")
    rows = inputs.reshape(len(inputs), -1)
    truth = table(data, "eval")[1]
    judge = Judge(CLASSIFIER, Evaluation(make_program(load("digits_diffusion"))))
    of_class = [rows[targets == number] for number in range(data.classes)]
    kernels = [
        GridSearchCV(KernelDensity(), {"bandwidth": np.logspace(-2, 0, 13)}).fit(each)
        for each in of_class
    ]

    def normal(number: int, count: int, draw: np.random.Generator) -> np.ndarray:
        mean = of_class[number].mean(axis=0)
        covariance = np.cov(of_class[number], rowvar=False)
        return draw.multivariate_normal(mean, covariance, count)

    def kernel(number: int, count: int, draw: np.random.Generator) -> np.ndarray:
        return kernels[number].best_estimator_.sample(count, int(draw.integers(2**31)))

    def shown(number: int, count: int, draw: np.random.Generator) -> np.ndarray:
        return draw.choice(of_class[number], count)

    methods: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
        "a Gaussian for each class": normal,
        "kernel densities, their width by cross-validation": kernel,
        "training images themselves": shown,
    }
    for name, method in methods.items():
        found = []
        for seed in range(DRAWS):
            draw = np.random.default_rng(seed)
            images = np.empty((len(truth), rows.shape[1]), np.float32)
            for number in range(data.classes):
                there = truth == number
                images[there] = method(number, int(there.sum()), draw).clip(0, 1)
            images = images.reshape(-1, *inputs.shape[1:])
            found.append(judge.scores(images, truth, data.source("eval")))
        for metric in found[0]:
            yield name, metric, float(np.mean([each[metric] for each in found]))


def canvas() -> Iterator[Result]:
    """Takes the digit of each pixel from what is around it."""
    train = itertools.islice(DigitCanvas().open("train"), PAPERS)
    inputs, targets = pixels(train)
    forest = RandomForestClassifier(100, max_depth=20, max_samples=0.5, n_jobs=-1, random_state=0)
    forest.fit(inputs, targets)
    inputs, targets = pixels(DigitCanvas().open("eval"))
    for name, found in (
        ("paper everywhere", np.zeros_like(targets)),
        (f"random forest on {AROUND} x {AROUND} pixels", forest.predict(inputs)),
    ):
        scores = {"average": "macro", "labels": range(11), "zero_division": 0}
        yield name, "mean IoU", float(jaccard_score(targets, found, **scores))
        yield name, "mean Dice", float(f1_score(targets, found, **scores))
        yield name, "accuracy", float(np.mean(targets == found))


def pixels(records: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """What is around each pixel of some images, and its class: [pixels, AROUND**2], [pixels]."""
    found = [(windows_of(record["image"]), record["mask"].ravel()) for record in records]
    inputs, targets = zip(*found, strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def windows_of(image: np.ndarray) -> np.ndarray:
    """What is around each pixel of an image [Y, X, 3], without its mean: [Y * X, pixels]."""
    gray = np.pad(image[..., 0].astype(np.float32), AROUND // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(gray, (AROUND, AROUND))
    windows = windows.reshape(-1, AROUND**2)
    return windows - windows.mean(axis=1, keepdims=True)


def boxes() -> Iterator[Result]:
    """Finds digits by templates, each the mean of a digit's images at some height and width."""
    source = {split: load("digits_detection").data.source(split) for split in ("train", "eval")}
    rows = source["train"].rows(np.arange(TRIED))
    scored = [match(image) for image in rows["inputs"]]
    choices = itertools.product((0.2, 0.35, 0.5), (0.0, 0.25, 0.5))
    best = max(choices, key=lambda choice: found_by(scored, rows, *choice)["ap"])
    rows = source["eval"].rows(np.arange(len(source["eval"])))
    scored = [match(image) for image in rows["inputs"]]
    for name, value in found_by(scored, rows, *best).items():
        yield f"template matching, of {len(SIDES) ** 2} sizes", name, value


@functools.cache
def templates() -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Height, width, unit vectors [10, height * width] and boxes [10, 4] (edges, in pixels)."""
    images, labels, _ = table(Digits(batch=1), "train")
    means = [
        (15 * 16 * images[labels == k, ..., 0].mean(axis=0)).astype(np.uint8) for k in range(10)
    ]
    found = []
    for height, width in itertools.product(SIDES, SIDES):
        inks = np.stack([resized(mean, height, width) for mean in means])
        corners = []
        for ink in inks:
            ys, xs = np.nonzero(ink > INK / 2)
            corners.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        found.append((height, width, standardized(inks.reshape(10, -1)), np.array(corners)))
    return found


def standardized(x: np.ndarray) -> np.ndarray:
    """Vectors [..., N] without their means, of length 1."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def match(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All places of all templates in an image [Y, X, 3]: correlations, dark or light; classes,
    boxes [N, 4] (edges, as fractions) and pixels of the templates."""
    gray = image[..., 0].astype(np.float32)
    parts = []
    for height, width, units, corners in templates():
        windows = np.lib.stride_tricks.sliding_window_view(gray, (height, width))
        scores = abs(standardized(windows.reshape(*windows.shape[:2], -1)) @ units.T)  # [Y, X, 10]
        y, x, k = (each.ravel() for each in np.indices(scores.shape))
        edges = (corners[k] + np.stack([x, y, x, y], axis=1)) / len(gray)
        parts.append((scores.ravel(), k, edges, np.full(k.shape, height * width)))
    scores, k, edges, sizes = (np.concatenate(each) for each in zip(*parts, strict=True))
    first = np.argsort(-scores)[:2_000]
    return scores[first], k[first], edges[first], sizes[first]


def found_by(scored: Any, rows: Any, overlap: float, power: float) -> dict[str, float]:
    """The average precision of the best places that overlap each other no more than this, ranked by
    correlation times a power of the template's pixels, for larger ones correlate less by chance."""
    kept: dict[str, Any] = {name: rows[name] for name in ("targets", "boxes", "present", "crowd")}
    best = []
    for scores, k, edges, sizes in scored:
        ranks = scores * sizes**power
        order = np.argsort(-ranks)
        chosen: list[int] = []
        for place in order.tolist():
            if len(chosen) == 20:
                break
            if not chosen or overlaps(edges[place], edges[chosen]).max() <= overlap:
                chosen.append(place)
        rest = 20 - len(chosen)  # of the lowest score
        ranks = np.pad(ranks[chosen], (0, rest), constant_values=-np.inf)
        best.append(
            (ranks, np.pad(k[chosen], (0, rest)), np.pad(edges[chosen], ((0, rest), (0, 0))))
        )
    for number, name in enumerate(("scores", "classes", "found")):
        kept[name] = np.stack([each[number] for each in best])
    start = kept["found"][..., :2]
    end = kept["found"][..., 2:]
    kept["found"] = np.concatenate([(start + end) / 2, end - start], axis=-1)
    return AveragePrecision().result(kept)


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] (edges) with others [N, 4]."""
    inner = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    shared = np.prod(np.maximum(inner, 0), axis=1)
    sizes = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(one[2:] - one[:2])
    return shared / (sizes - shared)


# -- sounds


def morse() -> Iterator[Result]:
    """Reads Morse code by the strength of its tone and by how long it is on and off."""
    import jiwer  # here: the others do without it

    records = list(Morse().open("eval"))
    truth = [record["text"].decode() for record in records]
    found = [decoded(record["audio"]) for record in records]
    method = "threshold and run lengths"
    yield method, "character error rate", jiwer.cer(truth, found)
    yield method, "word error rate", jiwer.wer(truth, found)
    yield method, "exact match", float(np.mean([a == b for a, b in zip(truth, found, strict=True)]))


def decoded(audio: np.ndarray) -> str:
    """The text of a sound of Morse code [N]."""
    overlap = WINDOW - HOP
    _, _, power = scipy.signal.spectrogram(audio, RATE, "hann", WINDOW, overlap, 2 * WINDOW)
    strength = np.sqrt(power[power.sum(axis=1).argmax()])  # in the loudest band
    on = strength > otsu(strength)
    # at each speed without the runs that are too short for it
    smoothed = {
        unit: scipy.ndimage.median_filter(on, 1 + 2 * int(unit / 3))
        for unit in np.linspace(0.02, 0.065, 24) * RATE / HOP
    }
    unit = min(smoothed, key=lambda unit: misfit(smoothed[unit], unit))
    on = smoothed[unit]
    letters = {signs: letter for letter, signs in CODES.items()}
    written = ""
    for key, length in runs(on):
        units = float(length / unit)
        written += (".", "-")[units > 2] if key else ("", " ", "  ")[(units > 2) + (units > 5)]
    words = [word.split() for word in written.split("  ")]
    return " ".join("".join(letters.get(signs, "") for signs in word) for word in words).strip()


def runs(on: np.ndarray) -> list[tuple[bool, int]]:
    """Each run of equal values of [N] and its length."""
    return [(bool(key), len(list(group))) for key, group in itertools.groupby(on)]


def misfit(on: np.ndarray, unit: float) -> float:
    """How far the runs between the first and the last are from 1, 3 or 7 units: a mean in units."""
    lengths = np.array([length for _, length in runs(on)][1:-1]) / unit
    return float(np.abs(lengths[:, None] - [1, 3, 7]).min(axis=1).mean()) if len(lengths) else 0.0


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values [N] into two groups of least variance (Otsu, 1979)."""
    ordered = np.sort(values)
    count = np.arange(1, len(values))
    below = ordered.cumsum()[:-1] / count
    above = (ordered.sum() - ordered.cumsum()[:-1]) / count[::-1]
    return float(ordered[(count * count[::-1] * (above - below) ** 2).argmax()])


def cartpole() -> Iterator[Result]:
    """Plays the held-out episodes of a pole on a cart at random, and by pushing where it falls."""
    source = load("cartpole_dqn").data.source("eval")
    episodes = source.rows(np.arange(len(source)))["inputs"]
    policies: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "random": lambda key, _: jax.random.randint(key, (), 0, 2),
        "to where the pole falls": lambda _, seen: (seen[2] + seen[3] > 0).astype(jnp.int32),
    }
    for name, policy in policies.items():
        yield name, "return", float(np.mean(returns("CartPole-v1", policy, episodes)))


def returns(
    name: str, policy: Callable[[jax.Array, jax.Array], jax.Array], episodes: np.ndarray
) -> np.ndarray:
    """The sum of rewards of each episode [N], for a policy `(key, observation) -> action`."""
    environment = Environment(name)

    def play(number: jax.Array) -> jax.Array:
        key = jax.random.key(number)

        def step(now: Any, time: jax.Array) -> tuple[Any, jax.Array]:
            seen, state, over = now
            of_policy, of_step = jax.random.split(jax.random.fold_in(key, time))
            seen, state, reward, _, ended = environment.step(
                of_step, state, policy(of_policy, seen)
            )
            return (seen, state, over | ended), jnp.where(over, 0, reward)

        first = (*environment.reset(key), jnp.bool_(False))
        first = jax.tree.map(lambda each: jnp.asarray(each, jnp.asarray(each).dtype), first)
        return jnp.sum(jax.lax.scan(step, first, jnp.arange(environment.limit))[1])

    return np.asarray(jax.jit(jax.vmap(play))(jnp.asarray(episodes)))


def tictactoe() -> Iterator[Result]:
    """Plays the held-out games of tic-tac-toe at random, by minimax, and by a search as long as
    that of the experiment, with parameters that have learned nothing."""
    experiment = load("tictactoe_alphazero")
    objective: Any = experiment.objective
    source = experiment.data.source("eval")
    numbers = jnp.asarray(source.rows(np.arange(len(source)))["inputs"])
    for name in ("random", "minimax"):
        found = results(objective, name, numbers)
        for kind, each in zip(objective.opponents, found.T, strict=True):
            for metric, result in (("wins_against", 1), ("draws_with", 0), ("losses_to", -1)):
                yield name, f"{metric}_{kind}", float(np.mean(each == result))
    model: Any = experiment.model
    play = jax.jit(nn.apply(lambda forward: objective.episodes(forward, numbers), model))
    found = play(nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 3, 3, 2)))))
    for metric in objective.numbers()[1:]:
        yield "search", metric, float(np.mean(found[metric]))


def results(objective: Any, kind: Any, numbers: jax.Array) -> np.ndarray:
    """How games [B] of a simple player against each opponent end [B, O]: 1, 0 or -1."""
    game = objective.world()

    def player(state: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {"action": opposed(kind, game, state, objective.depth, jnp.int32(0), key)[0]}

    def play(number: jax.Array, which: jax.Array) -> jax.Array:
        found, _, _ = contest(game, player, objective.opponents, objective.depth, number, which)
        return found["result"]

    kinds = jnp.arange(len(objective.opponents))
    return np.asarray(jax.jit(jax.vmap(jax.vmap(play, (None, 0)), (0, None)))(numbers, kinds))


EVERY = (
    text, masked, chats, digits, labels, diabetes, packages, imports, summaries, pairs, answers,
    canvas, boxes, morse, cartpole, tictactoe, samples,
)  # fmt: skip
PARTS = {part.__name__: part for part in EVERY}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS)[:-1])
    for name in parser.parse_args().only:
        for method, metric, value in PARTS[name]():
            print(f"{name:<9} {method:<48} {metric:<20} {value:.4f}", flush=True)


if __name__ == "__main__":
    main()
