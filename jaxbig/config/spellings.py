"""The names that other programs give to options, and ours, for the answer to an unknown option."""

from collections.abc import Sequence

SPELLINGS = {
    "optimizer.learning-rate.peak": "lr learning-rate learningrate base-lr max-lr rate",
    "optimizer.weight-decay": "wd weight-decay decay",
    "optimizer.clip-norm": "clip grad-clip max-grad-norm clip-grad-norm gradient-clip-val",
    "optimizer.momentum": "momentum",
    "optimizer.b1": "beta1 adam-beta1 beta-1",
    "optimizer.b2": "beta2 adam-beta2 beta-2",
    "optimizer.epsilon": "eps adam-epsilon",
    "optimizer.learning-rate.warmup": "warmup warmup-steps num-warmup-steps warmup-iters",
    "optimizer": "optim optimizer-type optimizer-name",
    "data.batch": (
        "batch-size bs batchsize batch train-batch-size global-batch-size "
        "per-device-train-batch-size"
    ),
    "data.length": "seq-len seq-length max-seq-len max-length block-size context-length",
    "data.records.folder": "data-dir data-path data-root dataset-dir train-dir",
    "model.width": "hidden-size hidden-dim d-model n-embd embed-dim dim units",
    "model.depth": "num-layers n-layer n-layers layers num-hidden-layers",
    "model.heads": "num-heads n-head n-heads num-attention-heads",
    "model.head-width": "head-dim d-kv",
    "model.kv-heads": "num-key-value-heads n-kv-heads num-kv-heads",
    "model.mlp-width": "intermediate-size d-ff ffn-dim ffn-hidden-size",
    "model.rotary-base": "rope-theta rope-base",
    "model.rotary-scaling": "rope-scaling rope-type",
    "model.window": "sliding-window",
    "model.attention-soft-cap": "attn-logit-softcapping",
    "model.logit-soft-cap": "final-logit-softcapping",
    "model.tie-embeddings": "tie-word-embeddings",
    "model.dropout": "drop drop-rate dropout-rate",
    "model.dtype": "fp16 bf16 amp dtype mixed-precision",
    "model.vocab": "vocab-size",
    "objective.smoothing": "label-smoothing",
    "epochs": "num-epochs n-epochs max-epochs num-train-epochs",
    "steps": (
        "epochs num-epochs n-epochs max-epochs num-train-epochs max-steps num-steps n-steps "
        "train-steps total-steps max-iters num-iters iterations iters"
    ),
    "patience": "early-stopping early-stopping-patience early-stop",
    "step": "ckpt checkpoint ckpt-step global-step",
    "seed": "random-seed random-state manual-seed",
    "accumulate": (
        "gradient-accumulation-steps grad-accum-steps grad-accum accumulate-grad-batches"
    ),
    "workdir": (
        "output-dir out-dir output out logdir log-dir save-dir run-dir work-dir folder "
        "default-root-dir checkpoint-dir ckpt-dir resume resume-from-checkpoint"
    ),
    "log-every": "log-interval log-freq logging-steps log-every-n-steps log-steps",
    "evaluate-every": "eval-every eval-steps eval-interval eval-freq val-check-interval",
    "evaluate-batches": "eval-iters eval-batches limit-val-batches",
    "checkpoint-every": "save-every save-steps save-interval ckpt-every checkpoint-interval",
    "keep-last": "save-total-limit max-to-keep keep",
    "keep-every": "keep-period",
    "keep-hours": "keep-time-interval keep-checkpoint-every-n-hours",
    "workers": "num-workers dataloader-num-workers",
    "smoke": "fast-dev-run smoke-test",
    "model.remat": "gradient-checkpointing",
}
"""For each of our options, what it is called elsewhere."""
DEVICES = (
    "JAX uses all devices that it finds; JAX_PLATFORMS=cpu before the command keeps it on the CPU, "
    "and --mesh.data, --mesh.fsdp and --mesh.tensor share them"
)
NOTES = {
    **dict.fromkeys(
        ("device", "devices", "accelerator", "gpu", "gpus", "tpu", "cpu", "cuda", "no-cuda"),
        DEVICES,
    ),
    **dict.fromkeys(
        ("nodes", "num-nodes", "nnodes", "nproc-per-node"),
        "python -m jaxbig.launch.local NAME --processes 2 starts several processes, and "
        "jaxbig.launch.slurm and others several machines",
    ),
}
"""Well-known options that are no option here, with what to do instead."""


def ours(option: str, known: Sequence[str]) -> str:
    """Our name of an option of another program, as `--data.batch` for `--batch-size`; else "".

    known: the options that the command has.
    """
    spelled = _normal(option)
    found = (f"--{name}" for name, others in SPELLINGS.items() if spelled in others.split())
    return next((name for name in found if name in known), "")


def note(option: str) -> str:
    """What to do instead of an option that is known elsewhere and has no equal here, or ""."""
    return NOTES.get(_normal(option), "")


def _normal(option: str) -> str:
    return option.lstrip("-").replace("_", "-").lower().rpartition(".")[2]
