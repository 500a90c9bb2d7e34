"""Vocabularies of the tokenizers library: `tokenizer.json`, as Gemma's, GPT-2's and LLaMA's are published."""

import os
from collections.abc import Sequence

import tokenizers

from vlm_jax import errors
from vlm_jax.data import text

_BEGIN = ("<bos>", "<s>", "<|begin_of_text|>", "[CLS]", "<|startoftext|>")
_END = ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]")
_PAD = ("<pad>", "[PAD]", "<|pad|>")


class TokenizerJson(text.LoadedTokenizer):
    """A `tokenizer.json` with its own normalisation, whatever its algorithm.

    The file does not say which of its tokens begin, end and fill a text. Those that the configuration does not name are found by
    their usual names. The ids of a text are those of its characters: a special token that a text spells out is text.
    """

    def __init__(self, config: text.Tokenizer):
        super().__init__(config)
        try:
            self._model = tokenizers.Tokenizer.from_file(config.path)
        except Exception as error:  # the library raises nothing narrower
            raise errors.InputError(f"tokenizer.path {config.path}: not a file of the tokenizers library ({error})") from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        self.vocab_size = 1 + max(self._model.get_vocab(with_added_tokens=True).values(), default=-1)
        begin, end, pad = (self._found(names) for names in (_BEGIN, _END, _PAD))
        bos_id, eos_id = self.named("begin", begin), self.named("end", end)
        if eos_id is None:
            raise errors.InputError(f"tokenizer.end {config.end!r}: {config.path} has none of {', '.join(_END)}; name its token")
        if config.pad == "pad" and pad is None:
            name = os.path.basename(config.path)
            raise errors.InputError(f'tokenizer.pad "pad": {name} has none of {", ".join(_PAD)}; use "eos" or "zero"')
        self.bos_id, self.eos_id = bos_id, eos_id
        self.pad_id = {"pad": pad, "eos": eos_id, "zero": 0}[config.pad]

    def id_of(self, token: str) -> int | None:
        return self._model.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(self._clean(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in self._content(ids) if i != self.pad_id], skip_special_tokens=True)

    def _found(self, names: Sequence[str]) -> int | None:
        return next((i for name in names if (i := self.id_of(name)) is not None), None)
