"""Pairs of a query and a key in a prompt: those that a mask shows, and those that it would show but for the order.

All functions take numbers or arrays. Lengths are tokens of one sequence, queries and keys the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stagemeter.models.blocks import smaller


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit on the keys that a token attends to.

    Attributes
    ----------
    tokens : int
        Most keys, the token's own included; 0 without a limit.
    chunked : bool
        Whether sequences are cut into chunks of so many tokens, each of which attends to itself. Otherwise a token
        attends to so many of the last ones, or to as many chosen ones.
    keeps_prompt : bool
        Whether all of the prompt is attended to besides.
    steps_only : bool
        Whether a prompt is attended to without the limit, since only a cache has it.
    chosen : bool
        Whether the tokens attended to are chosen among all earlier ones, rather than the last ones.
    """

    tokens: int = 0
    chunked: bool = False
    keeps_prompt: bool = False
    steps_only: bool = False
    chosen: bool = False

    def last_keys(self, tokens: int, prompt: int) -> int:
        """Return the keys that the last of some tokens attends to; the first `prompt` of them are the prompt."""
        if not self.tokens:
            return tokens
        if self.chunked:
            return (tokens - 1) % self.tokens + 1
        return smaller(tokens, self.tokens + (prompt if self.keeps_prompt else 0))

    def keys(self, tokens: int, past: int = 0) -> int:
        """Return the keys that the last tokens of a prompt attend to, all together, after `past` ones."""
        if not self.tokens or self.keeps_prompt:
            return past + tokens
        if self.chosen:
            return smaller(past + tokens, tokens * self.tokens)
        return tokens + (past % self.tokens if self.chunked else smaller(past, self.tokens - 1))

    def pairs(self, tokens: int, past: int = 0) -> int:
        """Return the pairs of a prompt's last tokens, each with as many keys as it can have were it not for the order.

        `past` tokens of the prompt precede them.
        """
        if self.chunked:
            # The first tokens may end a chunk that past ones began.
            began = past % self.tokens
            first = smaller(tokens, (self.tokens - began) % self.tokens)
            rest = tokens - first
            whole = rest // self.tokens * self.tokens**2 + (rest % self.tokens) ** 2
            return first * (began + first) + whole
        return tokens * (self.keys(tokens, past) if self.steps_only else self._most_keys(past + tokens))

    def visible(self, tokens: int, past: int = 0) -> int:
        """Return the pairs of a prompt's last tokens in which the key does not come after the query; see `pairs`."""
        if self.steps_only:
            return tokens * (self.keys(tokens, past) - tokens) + causal_pairs(tokens)
        return self._visible(past + tokens) - self._visible(past)

    def _visible(self, tokens: int) -> int:
        if self.chunked:
            return tokens // self.tokens * causal_pairs(self.tokens) + causal_pairs(tokens % self.tokens)
        growing = self._most_keys(tokens)
        return causal_pairs(growing) + (tokens - growing) * growing

    def _most_keys(self, tokens: int) -> int:
        """Return the most keys that a token of a prompt attends to."""
        return self.last_keys(tokens, tokens)

    def beyond(self, prompt: int) -> Limit:
        """Return the limit for tokens that follow a prompt; one that keeps the prompt lets them see it besides."""
        return replace(self, tokens=self.tokens + prompt, keeps_prompt=False) if self.keeps_prompt else self

    def bends(self, first: int, last: int, prompt: int) -> tuple[int, ...]:
        """Return the contexts between two at which the growth of `last_keys` changes; `prompt` may be an array."""
        if not self.tokens:
            return ()
        if not self.chunked:
            return (self.tokens + (prompt if self.keeps_prompt else 0),)
        ends = range(first // self.tokens * self.tokens, last + 1, self.tokens)
        # The step after the end of a chunk begins the next one.
        return tuple(context for end in ends for context in (end, end + 1))


def causal_pairs(tokens: int) -> int:
    """Return the pairs of tokens in which the second does not come after the first."""
    return tokens * (tokens + 1) // 2


def later_pairs(tokens: int) -> int:
    """Return the pairs of tokens in which the second comes after the first."""
    return causal_pairs(tokens) - tokens
