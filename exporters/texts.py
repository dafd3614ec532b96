"""Texts that an archive is proved with: generated, always the same, of every kind that breaks something."""

from __future__ import annotations

import random

_ENGLISH_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said
what its about than into them can only other time new some could these two may first then do any like my
now over such our man me even most made after also did many off before must well back through years
where much your way down should because long each just state those people too mister how little good
world make very year still see own work men day get here old life both between being under three never
know same last another while us might great go come since against right came take used himself few house
use place during concrete bridge beam column foundation asphalt steel drainage tender contract invoice
schedule supplier
"""
_SWEDISH_TEXT = """
och i att det som en på är av för med till den har de inte om ett han men var sig från vi så kan när nu
betong broar vägar räcken grundläggning armering gjutning förfrågningsunderlag åtgärder överlämning
"""
_WORDS, _SWEDISH = _ENGLISH_TEXT.split(), _SWEDISH_TEXT.split()
_CHINESE = "混凝土桥梁工程的质量控制和安全管理是施工现场最重要的工作之一我们需要检查所有的材料"
_EMOJI = "🙂🚧🏗️🇸🇪👩🏽‍🔧🛣️🔥"
_ODD = (
    "\x00\x01\x02\x1b\x7f",
    "tab\tand\nnewline\r\nand\x0bvertical\x0cform",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "right\u202eto\u202cleft שלום مرحبا",
    "cafe\u0301 naïve \uff21 Ⅷ ﬁ ½ ß İ \u017f",
    "\ufffd\ufffd \U0010ffff \ue000",
    "[CLS] [SEP] [PAD] [MASK] [UNK] <s> </s> <pad> <unk> <mask>",
    "don't won't it's O'Brien's rock'n'roll",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "C++ C# .NET node.js 3.14159 1,000,000 -5°C 50% $9.99 №7",
    "!" * 40,
    "a" * 300,
    "ƒ∂ß∑√∫ ≤≥≠ αβγ δεζ жук Ёж हिन्दी ไทย 한국어 日本語",
)


PROBE_TEXTS = (
    "hello world",
    "How long must concrete cure before the bridge is opened?",
    "Hur bygger man en bro?",
)
"""A few texts for the manifest, short enough to be read."""


def parity_texts() -> list[str]:
    """At least 200 texts: empty, one token, beyond 512 tokens, other scripts, emoji, control characters."""
    chosen = random.Random(20240229)  # noqa: S311 - test material, not a secret
    texts = ["", " ", "\n\t ", "a", "the", ".", "🙂", "混", "ö", *_ODD]
    texts += [" ".join(chosen.choices(_WORDS, k=chosen.randint(1, 60))) for _ in range(110)]
    texts += [" ".join(chosen.choices(_SWEDISH, k=chosen.randint(1, 40))) for _ in range(30)]
    texts += ["".join(chosen.choices(_CHINESE, k=chosen.randint(1, 60))) for _ in range(20)]
    texts += [_mixed(chosen) for _ in range(30)]
    texts += [" ".join(chosen.choices(_WORDS, k=count)) for count in (509, 510, 511, 800)]
    texts += ["".join(chosen.choices(_CHINESE, k=600)), "x" * 5000]
    return texts


def _mixed(chosen: random.Random) -> str:
    parts = [
        *chosen.choices(_WORDS, k=chosen.randint(1, 10)),
        *chosen.choices(_SWEDISH, k=chosen.randint(0, 5)),
        "".join(chosen.choices(_CHINESE, k=chosen.randint(0, 8))),
        "".join(chosen.choices(_EMOJI, k=chosen.randint(0, 4))),
        str(chosen.randint(0, 10**6)),
    ]
    chosen.shuffle(parts)
    return chosen.choice([" ", "  ", ", ", "\n"]).join(parts)
