"""Lengths that come to the same: where no text has more tokens than one of them, a longer one cuts no less."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.errors import EdgewiseError
from edgewise.profiler.graphs import GraphFile
from edgewise.profiler.plumbing import Subject, length_of
from edgewise.runtime.text import TextEncoder, is_far_longer
from edgewise.types import RunSettings, Target

_TASKS = ("text-classification", "token-classification", "feature-extraction", "text2text-generation")
"""Whose texts are read once, up to the length. Of a running text the length says how many of the texts before it are
read too."""
_CHUNK = 256


@dataclass
class Lengths:
    """Which targets come to the same on these rows, as their lengths leave the same tokens of every one."""

    rows: Sequence[Row]
    _longest: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    """(sha256 of a tokenizer, tokens that matter) -> tokens of the longest row."""

    def alike(self, subject: Subject, targets: Iterable[Target]) -> dict[Target, Target]:
        """Target -> the shortest, and of these the first, of those that it comes to the same with; those that are this
        one themselves are left out. Alike are targets of one device with the same settings but for the length.

        Of a bundle or rows that cannot be read none are: measuring them says why.
        """
        if isinstance(subject.bundle, GraphFile) or subject.manifest.task not in _TASKS:
            return {}
        families: dict[Target, list[tuple[float, Target]]] = {}
        for target in targets:
            families.setdefault(target.at_any_length(), []).append((length_of(subject, target), target))
        found: dict[Target, Target] = {}
        for members in families.values():
            lengths = sorted({length for length, _ in members})
            longest = self._tokens(subject.bundle, int(lengths[-2])) if len(lengths) > 1 else math.inf
            first: dict[float, Target] = {}
            for length, target in sorted(members, key=lambda x: x[0]):
                other = first.setdefault(min(length, longest), target)
                if other != target:
                    found[target] = other
        return found

    def _tokens(self, bundle: Bundle, most: int) -> float:
        """Of the longest row, special tokens included; infinity where it has more than `most`."""
        key = bundle.manifest.files[bundle.manifest.preprocessing["tokenizer"]].sha256, most
        if key not in self._longest:
            try:
                self._longest[key] = self._count(TextEncoder.read(bundle, RunSettings()), most)
            except EdgewiseError:
                self._longest[key] = math.inf
        return self._longest[key]

    def _count(self, encoder: TextEncoder, most: int) -> float:
        encoder.tokenizer.no_truncation()
        whole, longest = replace(encoder, length=None), 0
        for start in range(0, len(self.rows), _CHUNK):
            items = [
                r.text if r.text_pair is None else (r.text, r.text_pair) for r in self.rows[start : start + _CHUNK]
            ]
            if any(is_far_longer(item, most) for item in items):
                return math.inf
            longest = max(longest, *map(len, whole.encode(items)))
            if longest > most:
                return math.inf
        return longest
