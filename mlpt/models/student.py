"""MetaLMO's student as an architecture of transformers, so that everything which takes an encoder takes it.

`architecture: metalmo` is `mlpt.models.teacher.Student` behind the interface of a `...ForMaskedLM`: same modules, same
names of weights. Saved folders load wherever this module was imported.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import METALMO
from mlpt.models.teacher import Attention, NetworkConfig, TokenHead, Trunk


class MetaLMOConfig(PreTrainedConfig):
    """Sizes under the names that transformers gives them; `norm` is "pre" or "post"."""

    model_type = METALMO

    vocab_size: int = 30000
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    max_position_embeddings: int = 128
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    activation_dropout: float = 0.0
    hidden_act: str = "gelu"
    norm: str = "pre"
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    cls_token_id: int | None = 3
    sep_token_id: int | None = 2
    mask_token_id: int | None = 1
    bos_token_id: int | None = 3
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = True

    @property
    def network(self) -> NetworkConfig:
        """The same sizes for `mlpt.models.teacher`."""
        return NetworkConfig.model_validate(
            {
                "hidden_size": self.hidden_size,
                "layers": self.num_hidden_layers,
                "heads": self.num_attention_heads,
                "intermediate_size": self.intermediate_size,
                "dropout": self.hidden_dropout_prob,
                "attention_dropout": self.attention_probs_dropout_prob,
                "activation_dropout": self.activation_dropout,
                "activation": self.hidden_act,
                "norm": self.norm,
                "positions": self.max_position_embeddings,
                "attention": "eager" if self._attn_implementation == "eager" else "sdpa",
            }
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """What the networks need to know of the tokenizer: its size and its padding."""
        ids = (self.pad_token_id, self.mask_token_id, self.cls_token_id, self.sep_token_id)
        pad, mask, cls, sep = (0 if one is None else one for one in ids)
        return Vocabulary(self.vocab_size, pad=pad, mask=mask, cls=cls, sep=sep, unk=mask)


class _Body(Trunk):
    """The trunk, called as transformers calls an encoder."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        """Last hidden states of ids or of token embeddings; an absent mask means that nothing is padding."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embedded = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        real = None if attention_mask is None else attention_mask.bool()
        states = self.encode(embedded, real)
        return BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if output_hidden_states else None
        )


class _PreTrained(PreTrainedModel):
    config_class = MetaLMOConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True
    trunk: _Body

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Attention):
            init.xavier_uniform_(module.in_weight)
            init.zeros_(module.in_bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.trunk.tokens = value  # type: ignore[assignment]


class MetaLMOModel(_PreTrained):
    """The encoder without its head, as `AutoModel` gives it."""

    def __init__(self, config: MetaLMOConfig):
        super().__init__(config)
        self.trunk = _Body(config.network, config.vocabulary)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """As the trunk's."""
        return self.trunk(*args, **kwargs)


class MetaLMOForMaskedLM(_PreTrained):
    """The student: the encoder and a head whose decoder is tied to the embeddings."""

    _tied_weights_keys = {"head.decoder.weight": "trunk.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MetaLMOConfig):
        super().__init__(config)
        self.trunk = _Body(config.network, config.vocabulary)
        self.head = TokenHead(config.network, config.vocabulary)
        self.post_init()

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> MaskedLMOutput:
        """Logits of every position, and the mean loss where `labels` (batch, length) is not -100."""
        states = self.trunk(*args, **kwargs)
        logits = self.head(states[0])
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=states.hidden_states)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head.decoder = value


AutoConfig.register(METALMO, MetaLMOConfig)
AutoModel.register(MetaLMOConfig, MetaLMOModel)
AutoModelForMaskedLM.register(MetaLMOConfig, MetaLMOForMaskedLM)
