"""What prompt-lookup speculation would have proposed on the trace's own answers: exact, on a sample, without a model.

Greedy verification accepts a proposal exactly where it equals the answer, so the answer itself is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
PROPOSED = 4


def tokens_per_step(
    prompt: Sequence[int], answer: Sequence[int], ngram: int = NGRAM, most: int = PROPOSED
) -> float:
    """Answer tokens per verification step, when each step proposes what followed the last `ngram` tokens before.

    Source: prompt lookup decoding, Saxena 2023.
    """
    if not answer:
        return 1.0
    known: dict[tuple[int, ...], int] = {}
    text = list(prompt)
    for end in range(ngram, len(text)):
        known[tuple(text[end - ngram : end])] = end
    at = steps = 0
    while at < len(answer):
        steps += 1
        start = known.get(tuple(text[-ngram:])) if len(text) >= ngram else None
        proposal = text[start : start + most] if start is not None else []
        accepted = 0
        while (
            accepted < len(proposal)
            and at + accepted < len(answer)
            and proposal[accepted] == answer[at + accepted]
        ):
            accepted += 1
        for token in answer[at : at + accepted + 1]:
            if len(text) >= ngram:
                known[tuple(text[-ngram:])] = len(text)
            text.append(token)
        at += accepted + 1
    return len(answer) / steps
