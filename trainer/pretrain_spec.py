"""What `pretrain` is asked to do, and what it hands back. No torch here: the command line reads it first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from edgewise.data_spec import Whole
from edgewise.plan import Seed, Share

Objective = Literal["mlm", "nsp", "clm", "span", "mim"]

OBJECTIVES: dict[Objective, str] = {
    "mlm": "masked tokens (BERT)",
    "nsp": "masked tokens and next-sentence prediction (BERT)",
    "clm": "the next token (GPT)",
    "span": "corrupted spans, sequence to sequence (T5)",
    "mim": "masked patches of images (SimMIM)",
}

MODEL_TYPE: dict[Objective, str] = {"mlm": "bert", "nsp": "bert", "clm": "gpt2", "span": "t5", "mim": "vit"}
"""What is built from sizes alone."""

NOISE: dict[Objective, float] = {"mlm": 0.15, "nsp": 0.15, "span": 0.15, "mim": 0.6}
"""Share of the tokens, or of the patches, that is hidden: Devlin et al. 2019, Raffel et al. 2020, Xie et al. 2022."""

LEARNING_RATE_FRESH = 5e-4
LEARNING_RATE_CONTINUED = 5e-5


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a new model; `pretrain` reads them only where neither a checkpoint nor a config is given."""

    layers: Whole = 4
    """Of the encoder and of the decoder, for T5."""
    hidden: Whole = 256
    heads: Whole = 4
    image_size: Whole = 224
    """Pixels a side."""
    patch_size: Whole = 16
    """Pixels a side."""


@dataclass(frozen=True)
class PretrainSpec:
    """How a model is pretrained."""

    objective: Objective
    epochs: Annotated[float, Meta(gt=0)] = 1
    steps: Whole | None = None
    """Instead of epochs."""
    batch_size: Whole = 32
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    """Unless given: 5e-4 for a model from its config, 5e-5 for a checkpoint."""
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises; it then falls linearly to 0."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    block_length: Annotated[int, Meta(ge=8)] = 128
    """Tokens of one example, special tokens included; for span corruption those of the corrupted input."""
    pack: bool = True
    """Documents follow one another in a block; False: each document stands alone, cut where it is too long."""
    noise: Share | None = None
    """Share of tokens or patches that is hidden: 0.15, for images 0.6, unless given."""
    whole_word: bool = False
    """MLM and NSP: a word is masked whole or not at all."""
    mean_span: Annotated[float, Meta(ge=1)] = 3.0
    """Span corruption: mean length of a hidden span, in tokens."""
    mask_patch: Whole | None = None
    """Images: side of a hidden square in pixels, a multiple of the model's patch; the patch itself unless given."""
    vocab_size: Annotated[int, Meta(ge=300)] = 8000
    """Of a tokenizer that is trained: at most so many entries, the sentinels of T5 included."""
    lowercase: bool = True
    """Of a WordPiece tokenizer that is trained."""
    size: ModelSize = field(default_factory=ModelSize)
    keep_layers: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] | None = None
    """Depth cut before training: the layers of the checkpoint that stay."""
    val_share: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    """Share of the documents or images that is held out, by a hash of each."""
    seed: Seed = 0


@dataclass(frozen=True)
class PretrainResult:
    """A pretrained checkpoint and how it was made."""

    path: Path
    objective: Objective
    model_type: str
    steps: int
    documents: int
    """Texts or images trained on."""
    examples: int
    """Blocks, pairs or images in one epoch."""
    val_examples: int
    tokens: int
    """In one epoch of the train part; 0 for images."""
    unknown_share: float
    """Of the tokens, those that the tokenizer does not know."""
    train_loss: float
    """Mean over all steps."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean training loss since the last one)."""
    val_loss: float | None
    """On what was held out, after training; None where nothing was. Each hidden token (or pixel) weighs the same."""
    val_loss_before: float | None
    val_parts: Mapping[str, float]
    """The sum's parts: 'masked tokens', 'pairs', 'next token', 'spans' or 'patches'."""
    val_perplexity: float | None
    """exp(loss over tokens): of the masked, the next or the spans' tokens; None for images."""
    parameters: int
    fresh: tuple[str, ...]
    """Weights that the checkpoint did not have and that were drawn anew; ('all',) for a model from its config."""
    seconds: float
    seed: int
    device: str
    versions: Mapping[str, str]
    key: str
    """Hash of the start, the corpus, the options and the versions."""
    warnings: tuple[str, ...] = ()
    reused: bool = False
    """True when a finished run with the same key stood there."""
