"""Conversations and documents as prompts: the `chat` and `summarise` workloads.

Both go through the model's own chat template. A base model has none; it gets the same words with plain role names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferoptim.bench import corpus
from inferoptim.bench.traffic import TokenizerLike, WorkloadRequest
from inferoptim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ChatShape:
    """How long the conversations of a workload are."""

    output_tokens: tuple[int, int]  # shortest and longest answer; drawn evenly in log
    previous_turns: tuple[int, ...]  # turns already exchanged, drawn evenly from this
    system_sentences: int | None = None  # of the shared system prompt; None: all
    tries: int = 1  # draws before a turn is added, to find a conversation that is new


SHAPES = {
    "chat": ChatShape((16, 256), (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)),
    "chat-short": ChatShape((3, 48), (0,), system_sentences=3, tries=100),
}
NO_TEMPLATE = "the model has no chat template: its prompts were written with plain role names"

SYSTEM: dict[corpus.Language, str] = {
    "en": (
        "You are the assistant of a town library. You answer readers of every age, in plain words and complete sentences. "
        "Give the answer first, then the reason, then what the reader can do next. If a question needs a figure, say where "
        "it can be checked. If a question is unclear, say what you understood before you answer. Never invent a title, an "
        "author, an opening time or a price. Do not comment on the reader's spelling. When a reader writes about a personal "
        "worry, stay kind and brief and name the person or the office that can help. When a reader asks for a text, write "
        "it as it could be sent, without a preface. Lists have at most five entries."
    ),
    "fr": (
        "Tu es l'assistant d'une bibliothèque municipale. Tu réponds à des lecteurs de tout âge, avec des mots simples et des "
        "phrases complètes. Donne d'abord la réponse, puis la raison, puis ce que le lecteur peut faire ensuite. Si une question "
        "demande un chiffre, dis où il peut être vérifié. Si une question est obscure, dis ce que tu as compris avant de "
        "répondre. N'invente jamais un titre, un auteur, un horaire ou un prix. Ne relève pas les fautes du lecteur. Quand un "
        "lecteur parle d'un souci personnel, reste bienveillant et bref et nomme la personne ou le service qui peut l'aider. "
        "Quand un lecteur demande un texte, rédige-le prêt à être envoyé, sans préambule. Une liste a cinq points au plus."
    ),
}
TASK: dict[corpus.Language, tuple[str, str]] = {
    "en": (
        "Here is issue {number} of our bulletin.\n\n",
        "\n\nSummarise the bulletin: for each item, copy the sentence that matters most, word for word.",
    ),
    "fr": (
        "Voici le numéro {number} de notre bulletin.\n\n",
        "\n\nRésume ce bulletin : pour chaque article, recopie mot pour mot la phrase la plus importante.",
    ),
}

Messages = list[dict[str, str]]


def chat(
    tokenizer: TokenizerLike,
    count: int,
    rng: np.random.Generator,
    output_tokens: int | None,
    shape: ChatShape,
) -> tuple[list[WorkloadRequest], tuple[str, ...]]:
    """Conversations in English and French in turn: one shared system prompt a language, then turns before the question.

    Output lengths are spread evenly over the shape's range and dealt in random order, so that their total does not
    depend on the seed; `output_tokens` makes them all equal. No conversation comes twice.
    """
    low, high = shape.output_tokens
    spread = [round(low * (high / low) ** ((i + 0.5) / count)) for i in range(count)]
    lengths = [output_tokens] * count if output_tokens is not None else rng.permutation(spread).tolist()
    seen: set[str] = set()
    requests = []
    for number, length in enumerate(lengths):
        language = corpus.LANGUAGES[number % len(corpus.LANGUAGES)]
        turns, attempts = int(rng.choice(shape.previous_turns)), 0
        system = _system(language, shape)
        while (key := str(messages := _conversation(language, system, turns, rng))) in seen:
            attempts += 1
            if attempts % shape.tries == 0:  # the questions alone are soon used up
                turns = min(turns + 1, 3)
            if attempts > 1000:
                raise ConfigError(
                    f"workload chat: {count} requests are more than the shipped texts can make different"
                )
        seen.add(key)
        requests.append(WorkloadRequest(_encode(tokenizer, messages), length, tag=language))
    return requests, () if tokenizer.has_chat_template else (NO_TEMPLATE,)


def summarise(
    tokenizer: TokenizerLike, count: int, rng: np.random.Generator, input_tokens: int, output_tokens: int
) -> tuple[list[WorkloadRequest], tuple[str, ...]]:
    """A bulletin of several items, and the task to quote from it: the answer repeats what stands in the prompt.

    Each prompt holds as many whole sentences as fit in `input_tokens`.

    Raises:
        ConfigError: not even one sentence fits.
    """
    requests = []
    for number in range(count):
        language = corpus.LANGUAGES[number % len(corpus.LANGUAGES)]
        before, after = TASK[language]
        order = rng.permutation(len(corpus.paragraphs(language)))
        sentences: list[str] = []
        for index in order:
            parts = corpus.sentences(corpus.paragraphs(language)[index])
            sentences += [*parts[:-1], parts[-1] + "\n\n"]

        def prompt(
            kept: int,
            texts: Sequence[str] = sentences,
            head: str = before,
            tail: str = after,
            issue: int = number,
        ) -> tuple[int, ...]:
            document = "".join(texts[:kept]).strip()
            return _encode(
                tokenizer, [{"role": "user", "content": head.format(number=issue + 1) + document + tail}]
            )

        fits, too_many = 0, len(sentences) + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if len(prompt(middle)) <= input_tokens:
                fits = middle
            else:
                too_many = middle
        if fits == 0:
            raise ConfigError(
                f"workload summarise: the task and one sentence take {len(prompt(1))} tokens, more than input_tokens={input_tokens}"
            )
        if fits == len(sentences):
            raise ConfigError(
                f"workload summarise: the shipped {language} text makes documents of at most {len(prompt(fits))} tokens, "
                f"not {input_tokens}; use a file of prompts"
            )
        requests.append(WorkloadRequest(prompt(fits), output_tokens, tag=language))
    return requests, () if tokenizer.has_chat_template else (NO_TEMPLATE,)


def _system(language: corpus.Language, shape: ChatShape) -> str:
    return "".join(corpus.sentences(SYSTEM[language])[: shape.system_sentences]).strip()


def _conversation(language: corpus.Language, system: str, turns: int, rng: np.random.Generator) -> Messages:
    questions, prose = corpus.questions(language), corpus.paragraphs(language)
    asked = rng.choice(len(questions), turns + 1, replace=False)
    answers = rng.choice(len(prose), turns, replace=False)
    messages = [{"role": "system", "content": system}]
    for question, answer in zip(asked, answers, strict=False):  # the last question has no answer yet
        messages += [
            {"role": "user", "content": questions[question]},
            {"role": "assistant", "content": prose[answer]},
        ]
    return [*messages, {"role": "user", "content": questions[asked[-1]]}]


def _encode(tokenizer: TokenizerLike, messages: Messages) -> tuple[int, ...]:
    if tokenizer.has_chat_template:
        return tuple(tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False))
    text = "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in messages) + "Assistant:"
    return tuple(tokenizer.encode(text))
