"""A run's language model for lm-eval, the Language Model Evaluation Harness (extra `lm_eval`)."""

import importlib.util
from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.inference.log_probabilities import LanguageModelScores
from jaxbig.train.run import Run, restore


def lm_eval_model(
    run: Run | str | Path, *, batch: int | None = None, length: int | None = None
) -> Any:
    """A run's language model as lm-eval takes it, as `lm_eval.simple_evaluate(model=...)`.

    Args:
      run: a run, or the folder of one, whose last checkpoint is taken.
      batch: rows that are computed at once; None: the batch of the run's data.
      length: the most tokens that the model sees at once; None: those of its training.

    Returns:
      An `lm_eval.api.model.LM`.

    Raises:
      Refused: lm-eval is not installed, or the run is of no language model on texts.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise Refused("lm-eval is not installed: pip install 'jaxbig[lm_eval]'.")
    from lm_eval.api.model import LM  # type: ignore[import-not-found]  # here: it is an extra

    scores = LanguageModelScores(
        run if isinstance(run, Run) else restore(run), batch=batch, length=length
    )

    class RunLM(LM):
        """The methods that lm-eval calls."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            spans = [scores.continuation(*each.args) for each in requests]
            return scores.log_probabilities(spans)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            windows = [scores.windows(each.args[0]) for each in requests]
            found = iter(scores.log_probabilities([span for each in windows for span in each]))
            return [sum(next(found)[0] for _ in each) for each in windows]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [
                text
                for each in requests
                for text in scores.write([each.args[0]], **generation_options(each.args[1]))
            ]

    return RunLM()


def generation_options(given: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's options of a generation as `LanguageModelScores.write` takes them."""
    until = given.get("until") or []
    sampled = given.get("do_sample", False) or given.get("temperature", 0) > 0
    options: dict[str, Any] = {
        "until": [until] if isinstance(until, str) else list(until),
        "max_tokens": int(given.get("max_gen_toks", 256)),
        "temperature": float(given.get("temperature", 1.0)) if sampled else 0.0,
    }
    options |= {name: given[name] for name in ("top_k", "top_p", "min_p") if name in given}
    return options
