"""Few examples, for tests of which each takes long: ``@few``."""

from hypothesis import Phase, settings

#: Three with `pytest` alone, five with a path, 25 a night. A failure is not made smaller.
few = settings(
    max_examples=max(3, settings.default.max_examples // 20),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
