"""A real byte-level BPE tokenizer with merges, special tokens and a chat template, trained in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from inferoptim.bench import corpus

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_bpe_tokenizer(
    folder: Path, *, vocab_size: int = 1024, bos: bool = False, template: bool = True
) -> None:
    """Write tokenizer.json and tokenizer_config.json; with `bos`, plain text is encoded with <s> in front, as Llama does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*corpus.paragraphs("en"), *corpus.paragraphs("fr")), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **({"chat_template": TEMPLATE} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
