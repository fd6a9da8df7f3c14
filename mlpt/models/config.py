"""The encoder a run trains: from scratch by its dimensions, or from a folder or hub name."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError, one_line
from mlpt.settings import Settings

# What a new model is where nothing is said. A pretrained one is what it is.
_NEW: dict[str, Any] = {"architecture": "bert", "hidden_size": 256, "layers": 4, "heads": 4, "dropout": 0.1}
OF_NEW = ("architecture", "hidden_size", "layers", "heads", "intermediate_size", "vocabulary_multiple", "options")


class ModelConfig(Settings):
    """Which encoder: a new one, or a pretrained one, which brings all that has no value here.

    architecture          a Hugging Face model type that `AutoModelForMaskedLM` builds: bert (default), roberta, ...; or
                          `metalmo`, MetaLMO's own encoder (`mlpt.models.student`).
    pretrained            a local folder or a hub name to start from. Of what follows it takes the next four.
    objective_heads       of a pretrained model: `keep` the objectives' heads that were trained with it, where there are
                          any, or draw `new` ones. (`heads: keep` and `heads: new` mean the same.)
    dropout               of hidden states and attention; of a new model .1.
    attention             `sdpa` (fast kernels) or `eager`.
    attend_within         what a token of packed text may attend to: its whole `block`, or its own `document` there. A
                          document's separator belongs to it, the block's first token to the document that stands first.
                          Positions are those in the block. Labelled rows are attended to whole.
    hidden_size           width of every layer; 256.
    layers                number of layers; 4.
    heads                 attention heads of a layer; 4.
    intermediate_size     width of the feed-forward layers; None: 4 * hidden_size.
    vocabulary_multiple   round the embedding rows up to a multiple of this, in the saved model too; None: exactly the
                          tokenizer's size. (For speed alone train.pad_vocabulary does without.)
    options               further attributes of the architecture's own configuration, by its names.
    """

    architecture: str | None = None
    pretrained: str | None = None
    objective_heads: Literal["keep", "new"] = "keep"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    attention: Literal["sdpa", "eager"] = "sdpa"
    attend_within: Literal["block", "document"] = "block"
    hidden_size: int | None = Field(default=None, gt=0)
    layers: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    intermediate_size: int | None = Field(default=None, gt=0)
    vocabulary_multiple: int | None = Field(default=None, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _as_it_will_be(cls, values: Any) -> Any:
        """A new model's defaults; of a pretrained one, nothing that it could not honour."""
        if not isinstance(values, Mapping):
            return values
        said = {name: value for name, value in values.items() if value is not None}
        if said.get("heads") in ("keep", "new"):
            said["objective_heads"] = said.pop("heads")
        if "pretrained" not in said:
            return _NEW | said
        for name in OF_NEW:
            if said.get(name):
                raise ValueError(
                    f"{name}={said[name]} is for new models; {said['pretrained']} stays as it is: leave {name} out"
                )
        return said


METALMO = "metalmo"  # the one architecture that is not transformers' own: `mlpt.models.student`

# What architectures call dropout; each takes those it knows.
_DROPOUT_NAMES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
# Architectures whose position ids begin after the padding id.
_POSITIONS_AFTER_PAD = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def hugging_face_config(config: ModelConfig, vocabulary: Vocabulary, max_length: int) -> PreTrainedConfig:
    """The architecture's own configuration for blocks of `max_length` tokens of `vocabulary`.

    Raises `UserError` for an architecture that has no masked language model, an option it does not know, and
    dimensions that do not fit together.
    """
    architecture, hidden_size, layers, heads = config.architecture, config.hidden_size, config.layers, config.heads
    if architecture is None or hidden_size is None or layers is None or heads is None:
        raise ValueError(f"{config.pretrained} brings its own configuration")
    known = [*MODEL_FOR_MASKED_LM_MAPPING_NAMES, METALMO]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "bert, roberta, electra and modernbert are tested"
        raise UserError(f"'{architecture}' is no architecture with a masked language model; {hint}")
    if hidden_size % heads:
        raise UserError(f"hidden_size {hidden_size} is not a multiple of {heads} heads; change one")
    if architecture == METALMO:
        register_metalmo()
    made = AutoConfig.for_model(architecture)
    if made.get_text_config() is not made:  # and its text's model would have sizes of its own
        raise UserError(
            f"'{architecture}' is made for more than text; bert, roberta, electra and modernbert are tested"
        )
    values: dict[str, Any] = _special_ids(vocabulary) | {
        "vocab_size": _rounded(vocabulary.size, config.vocabulary_multiple),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": config.intermediate_size or 4 * hidden_size,
        "max_position_embeddings": positions_needed(architecture, vocabulary.pad, max_length),
    }
    values |= dropout_values(made, config.dropout)
    for name, value in config.options.items():
        if not hasattr(made, name):
            near = difflib.get_close_matches(name, vars(made), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "; see its Hugging Face configuration"
            raise UserError(f"'{architecture}' has no option '{name}'{hint}")
        values[name] = value
    with fitting_options(config):
        made = AutoConfig.for_model(architecture, **values)
    most = config.options.get("max_position_embeddings")
    room = None if most is None else room_for_tokens(made, vocabulary.pad)
    if room is not None and max_length > room:
        raise UserError(
            f"model.options.max_position_embeddings={most} leaves room for {room} tokens, and blocks have "
            f"{max_length}; raise it, or leave it out"
        )
    return made


@contextlib.contextmanager
def fitting_options(config: ModelConfig) -> Iterator[None]:
    """Make one line of what transformers says of sizes and options that make no model. Raises `UserError`.

    That may be any exception: of a value of the wrong type, an activation that is not there, sizes beyond memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        options = f"model.options={config.options} and its sizes" if config.options else "these sizes"
        name, why = config.architecture or config.pretrained, f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(
            f"'{name}' cannot be made with {options} ({why}); see its Hugging Face configuration"
        ) from error


def attends_within_documents(config: PreTrainedConfig) -> bool:
    """Whether the model with this configuration was trained by `attend_within=document`."""
    return getattr(config, "attend_within", "block") == "document"


def dropout_values(made: PreTrainedConfig, dropout: float | None) -> dict[str, float]:
    """`dropout` under the names that the configuration `made` has for it; nothing for None."""
    return {} if dropout is None else {name: dropout for name in _DROPOUT_NAMES if hasattr(made, name)}


def register_metalmo() -> None:
    """Make `metalmo` known to transformers' auto classes. Only where it may be needed: importing models is slow."""
    import mlpt.models.student  # noqa: F401


def check_pretrained(config: PreTrainedConfig, vocabulary: Vocabulary, max_length: int, where: str) -> None:
    """Raise `UserError` where the model at `where` can't take blocks of `max_length` tokens of `vocabulary`."""
    if config.vocab_size < vocabulary.size:
        raise UserError(
            f"the model {where} has {config.vocab_size} tokens and the tokenizer {vocabulary.size}: "
            "use the tokenizer that came with the model"
        )
    if config.pad_token_id is not None and config.pad_token_id != vocabulary.pad:
        raise UserError(
            f"the model {where} pads with token {config.pad_token_id} and the tokenizer with {vocabulary.pad}: "
            "use the tokenizer that came with the model"
        )
    room = room_for_tokens(config, vocabulary.pad)
    if room is not None and max_length > room:
        raise UserError(f"the model {where} takes {room} tokens and the blocks have {max_length}: use shorter blocks")


def room_for_tokens(config: PreTrainedConfig, pad: int) -> int | None:
    """Tokens that the model's position table has room for, special ones included, by the padding id; None: no limit."""
    most = getattr(config, "max_position_embeddings", None)
    return None if most is None else most - positions_needed(config.model_type, pad, 0)


def positions_needed(architecture: str, pad: int, max_length: int) -> int:
    """Rows that a position table needs for `max_length` tokens: RoBERTa counts from the padding id + 1, MPNet from 2,
    whatever its padding id."""
    if architecture == "mpnet":
        return max_length + 2
    return max_length + (pad + 1 if architecture in _POSITIONS_AFTER_PAD else 0)


def _special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {
        "pad_token_id": vocabulary.pad,
        "cls_token_id": vocabulary.cls,
        "sep_token_id": vocabulary.sep,
        "mask_token_id": vocabulary.mask,
        "bos_token_id": vocabulary.cls,
        "eos_token_id": vocabulary.sep,
    }


def _rounded(size: int, multiple: int | None) -> int:
    return size if multiple is None else -(-size // multiple) * multiple
