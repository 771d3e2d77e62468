"""CLIP's byte-level byte-pair tokenizer: prompts to token ids."""

import html
import re
import unicodedata
from collections.abc import Sequence
from gzip import open as gzip_open
from importlib.resources import files
from itertools import islice, pairwise

import torch

from basicsr.utils.errors import UserError

MERGES_FILE = files("ldm.modules.encoders") / "bpe_simple_vocab_16e6.txt.gz"
VOCAB_SIZE = 49408
START, END = VOCAB_SIZE - 2, VOCAB_SIZE - 1
SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
FIRST_MERGE = 512  # ids 0..255: a byte inside a word; 256..511: the same byte at a word's end; then one id per merge

# Which piece of a prompt is a "word": special names, English contractions, a run of letters (or one number, which
# `_words` has isolated), or a run of anything else but white space.
WORD = re.compile(rf"{'|'.join(SPECIAL)}|'(?:s|t|re|ve|m|ll|d)|[^\W_]+|(?:[^\s\w]|_)+", re.IGNORECASE)

# The everyday part of what the reference leaves to ftfy: curly quotes become straight, ligatures and full-width forms
# become plain characters, and invisible control characters go.
TIDY: dict[int, str | None] = {
    **dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **{c: unicodedata.normalize("NFKC", chr(c)) for c in [*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0)]},
    **dict.fromkeys([*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0xFEFF]),
}


def clean(text: str) -> str:
    """`text` as the tokenizer sees it: NFC, HTML entities resolved twice, white space collapsed, lower case.

    ftfy is not used: text in a wrong encoding ("cafÃ©" for "café") is taken as it stands, not repaired.
    """
    text = unicodedata.normalize("NFC", text.translate(TIDY))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _words(text: str) -> list[str]:
    """Cleaned text in words; each number character (Unicode N*) is a word of its own."""
    return WORD.findall("".join(f" {c} " if unicodedata.category(c)[0] == "N" else c for c in text))


def _byte_symbols() -> list[tuple[int, str]]:
    """The 256 bytes in vocabulary order, each with the character that stands for it in the merges file.

    Bytes that print in Latin-1 come first and stand for themselves; the others follow and are U+0100, U+0101, ...
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return [(byte, chr(byte)) for byte in printing] + [(byte, chr(0x100 + n)) for n, byte in enumerate(others)]


def merges() -> list[tuple[str, str]]:
    """The pairs of symbols that become one, in their order."""
    with MERGES_FILE.open("rb") as packed, gzip_open(packed, "rt", encoding="utf-8") as lines:
        # A header, then more merges than are in use.
        pairs = (line.split() for line in islice(lines, 1, START - FIRST_MERGE + 1))
        return [(left, right) for left, right in pairs]


def vocabulary() -> list[str]:
    """The symbols of all ids but the two special ones."""
    symbols = [symbol for _, symbol in _byte_symbols()]
    return [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges())]


class ClipTokenizer:
    """Prompts to ids of OpenCLIP's 49408-entry vocabulary (Radford et al. 2021; BPE: Sennrich et al. 2016)."""

    def __init__(self) -> None:
        symbols = _byte_symbols()
        self._byte_ids = {byte: index for index, (byte, _) in enumerate(symbols)}
        ids = {symbol: index for index, (_, symbol) in enumerate(symbols)}
        ids |= {symbol + "</w>": len(symbols) + index for index, (_, symbol) in enumerate(symbols)}
        self._merges: dict[tuple[int, int], int] = {}  # two neighbours -> their id as one; low ids come first
        for merged, (left, right) in enumerate(merges(), FIRST_MERGE):
            self._merges[ids[left], ids[right]] = ids[left + right] = merged

    def _encode_word(self, word: str) -> list[int]:
        if word in SPECIAL:
            return [SPECIAL[word]]
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8", "replace")]  # lone surrogates become "?"
        ids[-1] += len(self._byte_ids)
        while len(ids) > 1:
            merged, best = min((self._merges.get(pair, VOCAB_SIZE), pair) for pair in pairwise(ids))
            if merged == VOCAB_SIZE:
                break
            joined = []
            at = 0
            while at < len(ids):
                found = tuple(ids[at : at + 2]) == best
                joined.append(merged if found else ids[at])
                at += 2 if found else 1
            ids = joined
        return ids

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of `text` without start and end token, the first `limit` of them."""
        ids: list[int] = []
        for word in _words(clean(text)):
            if limit is not None and len(ids) >= limit:
                break
            ids += self._encode_word(word)
        return ids[:limit]

    def __call__(self, texts: Sequence[str], length: int = 77) -> torch.Tensor:
        """(B, length) int64 on the CPU: start token, the text cut to `length` - 2 tokens, end token, zeros.

        Raises UserError where a prompt is not text.
        """
        tokens = torch.zeros(len(texts), length, dtype=torch.int64, device="cpu")
        for row, text in zip(tokens, texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"prompt {text!r} is of type {type(text).__name__}, not text: put it in quotes")
            ids = [START, *self.encode(text, length - 2), END]
            row[: len(ids)] = torch.tensor(ids, device="cpu")
        return tokens
