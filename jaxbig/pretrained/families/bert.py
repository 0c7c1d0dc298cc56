"""BERT (Devlin et al., 2019)."""

from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.language_model import Encoder
from jaxbig.pretrained.family import Config, Family, count_classes, in_blocks, numbered_classes
from jaxbig.pretrained.weight_table import Row

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
INWARD = "(h k) d -> d h k"
BLOCK = (
    Row("attention/query/kernel", "attention.self.query.weight", INWARD),
    Row("attention/query/bias", "attention.self.query.bias", "(h k) -> h k"),
    Row("attention/key_value/kernel", "attention.self.key.weight", "(h k) d -> d 0 h k"),
    Row("attention/key_value/bias", "attention.self.key.bias", "(h k) -> 0 h k"),
    Row("attention/key_value/kernel", "attention.self.value.weight", "(h k) d -> d 1 h k"),
    Row("attention/key_value/bias", "attention.self.value.bias", "(h k) -> 1 h k"),
    Row("attention/out/kernel", "attention.output.dense.weight", "d (h k) -> h k d"),
    Row("attention/out/bias", "attention.output.dense.bias"),
    Row("attention_norm/scale", "attention.output.LayerNorm.weight"),
    Row("attention_norm/bias", "attention.output.LayerNorm.bias"),
    Row("up/kernel", "intermediate.dense.weight", "f d -> d f"),
    Row("up/bias", "intermediate.dense.bias"),
    Row("down/kernel", "output.dense.weight", "d f -> f d"),
    Row("down/bias", "output.dense.bias"),
    Row("mlp_norm/scale", "output.LayerNorm.weight"),
    Row("mlp_norm/bias", "output.LayerNorm.bias"),
)


def body(prefix: str, skip: int = 0) -> list[Row]:
    """The rows of the encoder without a head.

    Args:
      prefix: of the names of its tensors.
      skip: how many positions come before the first of a text.
    """
    return [
        Row("tokens/embedding", f"{prefix}embeddings.word_embeddings.weight"),
        Row("positions/embedding", f"{prefix}embeddings.position_embeddings.weight", skip=skip),
        Row("types/embedding", f"{prefix}embeddings.token_type_embeddings.weight"),
        Row("norm/scale", f"{prefix}embeddings.LayerNorm.weight"),
        Row("norm/bias", f"{prefix}embeddings.LayerNorm.bias"),
        *in_blocks("blocks", f"{prefix}encoder.layer.*", BLOCK),
    ]


class Bert(Family):
    """BERT with its masked-token head, or with a classifier; that of sentence pairs is left
    out."""

    model_type = "bert"
    module = Encoder
    same = {
        "vocab": "vocab_size",
        "depth": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_length": "max_position_embeddings",
        "types": "type_vocab_size",
        "epsilon": "layer_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
    }
    words = {"activation": ("hidden_act", ACTIVATIONS)}
    theirs = {
        "add_cross_attention": False,
        "is_decoder": False,
        "position_embedding_type": "absolute",
    }
    defaults = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "tie_word_embeddings": True,
    }
    prefix = "bert."
    older = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    ignored = (r"bert\.embeddings\.position_ids",)
    left_out = (r"bert\.pooler\..*", r"classifier\..*", r"cls\..*")
    heads = (
        "transform/.*",
        "transform_norm/.*",
        "bias",
        "head/embedding",
        "pooler/.*",
        "classifier/.*",
    )
    tied = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    classifier = "BertForSequenceClassification"
    masked = "BertForMaskedLM"

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        if config.get("architectures") == [self.classifier]:
            fields["classes"] = count_classes(config)
        return fields

    def config(self, model: Any) -> Config:
        config = super().config(model)
        if not model.types:
            raise Refused("it has no types")
        if model.classes is None:
            if model.activation != "gelu":
                raise Refused(f"it has activation {model.activation!r}, and gelu in its head")
            return config
        return {**config, **numbered_classes(model.classes)}

    def architecture(self, model: Any) -> str:
        return self.masked if model.classes is None else self.classifier

    def rows(self, model: Any) -> list[Row]:
        bias = "cls.predictions.bias" if model.tie_embeddings else "cls.predictions.decoder.bias"
        return [
            *body("bert."),
            Row("transform/kernel", "cls.predictions.transform.dense.weight", "o i -> i o"),
            Row("transform/bias", "cls.predictions.transform.dense.bias"),
            Row("transform_norm/scale", "cls.predictions.transform.LayerNorm.weight"),
            Row("transform_norm/bias", "cls.predictions.transform.LayerNorm.bias"),
            Row("bias", bias),
            Row("head/embedding", "cls.predictions.decoder.weight"),
            Row("pooler/kernel", "bert.pooler.dense.weight", "o i -> i o"),
            Row("pooler/bias", "bert.pooler.dense.bias"),
            Row("classifier/kernel", "classifier.weight", "c d -> d c"),
            Row("classifier/bias", "classifier.bias"),
        ]
