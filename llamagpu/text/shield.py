"""A tokenizer that recognises special tokens at given places only."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import tokenizers

from llamagpu.errors import UsageError

NONCHARACTER = "\U0010fffe"  # a noncharacter, which no text contains
_FIRST = 0x100000


class Shield:
    """Encodes text with special tokens at some places, and with their texts as ordinary text elsewhere.

    A copy of the tokenizer treats special tokens as text. In the text, a stand-in replaces each special token that is
    meant: a token of the copy alone, with the same rules. So normalizers and pre-tokenizers see the same stretches of
    text as in the original, and the ids of all other text are the same.

    Args:
        unknown: special tokens that stand for text which the vocabulary lacks. Ordinary text may give them.
    """

    def __init__(self, original: tokenizers.Tokenizer, unknown: Collection[int]):
        self._copy = tokenizers.Tokenizer.from_str(original.to_str())
        self._copy.encode_special_tokens = True
        added = self._copy.get_added_tokens_decoder()
        special = [i for i, token in added.items() if token.special]
        self._stand_ins = {i: NONCHARACTER + chr(_FIRST + n) for n, i in enumerate(special)}
        self._copy.add_tokens([_like(added[i], text) for i, text in self._stand_ins.items()])
        self._meant = {self._copy.token_to_id(text): i for i, text in self._stand_ins.items()}
        self._reserved = frozenset(special).difference(unknown)

    def encode(self, text: str, places: Sequence[tuple[int, int, int]]) -> list[int]:
        """Ids of a text.

        Args:
            places: (id, begin, end) of each special token that is meant, in order.

        Raises:
            UsageError: the text contains the noncharacter of the stand-ins.
        """
        if NONCHARACTER in text:
            raise UsageError(
                "The conversation contains the noncharacter U+10FFFE beside a special token's text.",
                "It has no meaning in text.",
                "Remove it.",
            )
        pieces, at = [], 0
        for token, begin, end in places:
            pieces += [text[at:begin], self._stand_ins[token]]
            at = end
        ids = self._copy.encode("".join([*pieces, text[at:]]), add_special_tokens=False).ids
        return [i for found in ids for i in self._translated(found)]

    def _translated(self, found: int) -> list[int]:
        if found in self._meant:
            return [self._meant[found]]
        # Some vocabularies hold the text of special tokens, and can make them from plain text. Then it is taken apart.
        return self._letters(found) if found in self._reserved else [found]

    def _letters(self, token: int) -> list[int]:
        model = self._copy.model
        text = self._copy.id_to_token(token) or ""
        parts = [part.id for letter in text for part in model.tokenize(letter)]
        if any(part in self._reserved for part in parts):
            raise UsageError(
                f"The text {text!r} cannot be encoded without a special token.",
                "It is a single character of the vocabulary.",
                "Remove it.",
            )
        return parts


def _like(token: tokenizers.AddedToken, text: str) -> tokenizers.AddedToken:
    """A stand-in with the rules of a special token."""
    return tokenizers.AddedToken(
        text,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )
