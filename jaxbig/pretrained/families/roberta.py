"""RoBERTa (Liu et al., 2019): BERT with other heads, and positions that begin at 2."""

from typing import Any

from jaxbig.pretrained.families.bert import Bert, body
from jaxbig.pretrained.family import Config
from jaxbig.pretrained.weight_table import Row

SKIP = 2
"""The number of a text's first position: those before are of padding and of nothing."""


class Roberta(Bert):
    """RoBERTa with its masked-token head, or with a classifier."""

    model_type = "roberta"
    defaults = {**Bert.defaults, "layer_norm_eps": 1e-5}
    theirs = {**Bert.theirs, "pad_token_id": SKIP - 1}
    prefix = "roberta."
    ignored = (r"roberta\.embeddings\.position_ids",)
    left_out = (r"roberta\.pooler\..*", r"classifier\..*", r"lm_head\..*")
    tied = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    classifier = "RobertaForSequenceClassification"
    masked = "RobertaForMaskedLM"

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        fields["max_length"] -= SKIP
        return fields

    def config(self, model: Any) -> Config:
        return {**super().config(model), "max_position_embeddings": model.max_length + SKIP}

    def rows(self, model: Any) -> list[Row]:
        bias = "lm_head.bias" if model.tie_embeddings else "lm_head.decoder.bias"
        return [
            *body("roberta.", SKIP),
            Row("transform/kernel", "lm_head.dense.weight", "o i -> i o"),
            Row("transform/bias", "lm_head.dense.bias"),
            Row("transform_norm/scale", "lm_head.layer_norm.weight"),
            Row("transform_norm/bias", "lm_head.layer_norm.bias"),
            Row("bias", bias),
            Row("head/embedding", "lm_head.decoder.weight"),
            Row("pooler/kernel", "classifier.dense.weight", "o i -> i o"),
            Row("pooler/bias", "classifier.dense.bias"),
            Row("classifier/kernel", "classifier.out_proj.weight", "c d -> d c"),
            Row("classifier/bias", "classifier.out_proj.bias"),
        ]
