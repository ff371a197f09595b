"""int8 products inside the branches of a merged decoder: as in the two decoders that it was merged from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers as hf

from edgewise.exporter.quantize import quantize_seq2seq, resolve_recipe
from edgewise.exporter.saturation import bundle_saturation, saturation
from edgewise.exporter.sessions import first_feeds, open_graphs
from edgewise.exporter.tracing import DECODER, DECODER_WITH_PAST, ENCODER, MERGED, export_graphs
from edgewise.recipe import Recipe

VOCABULARY = 300
Feed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A small T5 in int8 with signed weights: encoder, both decoders, and these merged."""
    torch.manual_seed(5)
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    model = hf.T5ForConditionalGeneration(hf.T5Config(VOCABULARY, **sizes, feed_forward_proj="gated-gelu")).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "relative" not in name and "shared" not in name:
                # As in trained models some activations are far out, and meet weights of one sign.
                p.copy_(torch.sign(p) * p.abs().clamp(max=float(p.std()) * 1.2))
    made: Path = tmp_path_factory.mktemp("t5")
    export_graphs(model, "text2text-generation", made / "fp32", None)
    recipe = resolve_recipe(Recipe.parse("int8-dynamic+preset=avx512_vnni"))
    return quantize_seq2seq(made / "fp32", made / "int8", recipe)


@pytest.fixture(scope="module")
def calls(folder: Path) -> tuple[Feed, Feed]:
    """What the merged decoder is given first, and for one token more."""
    graphs = open_graphs(folder, "text2text-generation")
    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCABULARY, (3, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found, given = first_feeds(graphs, {**feeds, "decoder_input_ids": rng.integers(3, VOCABULARY, (3, 5))})
    session = graphs.sessions[MERGED]
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, found[MERGED]), strict=True))
    past = {n.replace("present", "past_key_values", 1): v for n, v in outputs.items() if n.startswith("present")}
    more = {"input_ids": outputs["logits"][:, -1:].argmax(-1), "use_cache_branch": np.array([True])}
    return found[MERGED], {**given, **more, **past}


def taken(graph: Path, feed: Feed) -> Feed:
    """Of a feed of the merged decoder, what one of the two takes."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return {i.name: feed[i.name] for i in session.get_inputs()}


@pytest.mark.parametrize(("file", "call"), [(DECODER, 0), (DECODER_WITH_PAST, 1)])
def test_a_merged_decoder_saturates_as_the_one_it_was(
    folder: Path, calls: tuple[Feed, Feed], file: str, call: int
) -> None:
    merged = saturation(folder / MERGED, [calls[call]])
    alone = saturation(folder / file, [taken(folder / file, calls[call])])
    print(merged)
    assert (merged.applies, merged.why, merged.n) == (True, "", 3)
    assert merged.products == alone.products == (23 if call == 0 else 19)  # keys and values of the text: once
    assert merged.saturated_share == alone.saturated_share > 0
    assert merged.by_node == alone.by_node
    assert merged.largest_output_difference == pytest.approx(alone.largest_output_difference, rel=1e-4)
    assert merged.changed == alone.changed


def test_both_branches_in_one_look(folder: Path, calls: tuple[Feed, Feed]) -> None:
    both = saturation(folder / MERGED, calls)
    single = [saturation(folder / MERGED, [call]) for call in calls]
    assert both.n == 6
    assert both.products == single[0].products  # those of the first call, and of them some again
    assert both.changed == sum(s.changed for s in single)
    assert both.largest_output_difference == max(s.largest_output_difference for s in single)


def test_the_graphs_of_a_bundle_in_one_look(folder: Path, calls: tuple[Feed, Feed]) -> None:
    read = {name: np.full((2, 6), 7) for name in ("input_ids", "attention_mask")}
    parts = [saturation(folder / ENCODER, [read]), saturation(folder / MERGED, calls)]
    both = bundle_saturation({folder / ENCODER: [read], folder / MERGED: calls})
    assert both.applies
    assert (both.n, both.changed) == (parts[1].n, parts[1].changed)
    assert both.products == sum(p.products for p in parts)
    assert both.sums == sum(p.sums for p in parts)
    low, high = sorted(p.saturated_share for p in parts)
    assert low < both.saturated_share < high
    assert len(both.by_node) == sum(len(p.by_node) for p in parts)
    assert bundle_saturation({folder / MERGED: calls}) == parts[1]
