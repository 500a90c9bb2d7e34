"""A small vocabulary of the tokenizers library, built as Gemma's."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ["a photo of a dog", "two cats and a bird", "a red circle on a blue square"] * 5


GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>")


def write(path: Path, special: tuple[str, ...] = GEMMA) -> str:
    """Byte pairs with single bytes to fall back to and spaces as a character of their own; it cuts and fills texts."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=360, special_tokens=tokens, show_progress=False))
    made.enable_truncation(4)
    made.enable_padding(length=7)
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]  # bytes are ordinary tokens
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)
