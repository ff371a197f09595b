"""Writes the small models that the example plans train from scratch: a config and a tokenizer each, no weights.

    python examples/models/make.py            (needs the asset kjv: python -m edgewise.assets fetch kjv)

The folders it writes are committed; `edgewise tune` initialises a folder without weights from its config.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2TokenizerFast, PreTrainedTokenizerFast, T5Config, ViTConfig, ViTImageProcessor

HERE = Path(__file__).parent
ARPABET = """
AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH
"""
PHONEMES = ARPABET.split()
"""Without stress, as the asset has them."""


def phoneme_t5(folder: Path) -> None:
    """Letters in, phonemes out: each letter and each phoneme is one token."""
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = [*special, *"abcdefghijklmnopqrstuvwxyz", *PHONEMES]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("[A-Z]+|[^A-Z]"), behavior="isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    T5Config(
        vocab_size=len(vocabulary), d_model=192, d_kv=32, d_ff=512, num_layers=3, num_decoder_layers=3, num_heads=6,
        dropout_rate=0.1, decoder_start_token_id=0, tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip


def bible_gpt(folder: Path) -> None:
    """A small GPT-2 with a byte-level BPE of 2,000 tokens, trained on the King James Bible."""
    from edgewise.assets import asset_path

    lines = asset_path("kjv").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    end = "<|endoftext|>"
    GPT2TokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end, model_max_length=256
    ).save_pretrained(folder)
    GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=256, n_embd=192, n_layer=4, n_head=6,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    ).save_pretrained(folder)  # fmt: skip


def fashion_vit(folder: Path) -> None:
    """A small ViT for images of 28 x 28: 49 patches."""
    ViTConfig(
        image_size=28, patch_size=4, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
    ).save_pretrained(folder)  # fmt: skip
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)


def main() -> None:
    phoneme_t5(HERE / "phoneme-t5")
    bible_gpt(HERE / "bible-gpt")
    fashion_vit(HERE / "fashion-vit")
    for left in HERE.glob("*/*"):
        if left.name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
            left.unlink()  # tokenizer.json and its config hold the same


if __name__ == "__main__":
    main()
