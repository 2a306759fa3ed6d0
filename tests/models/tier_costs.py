"""Costs of stages by one tier, to be equal to those of other tiers.

Visible pairs are left out: masks of shapes do not show them, and what a model needs has them.
"""

from dataclasses import replace


def costs(tier):
    """Return the cost of each stage."""
    assert not tier.failures, tier.failures
    return {name: replace(count.cost, macs_causal=0) for name, count in tier.stages.items()}


def all_steps(tier):
    """Return the cost of a request's decode steps."""
    return replace(tier.stages["decode"].request_cost, macs_causal=0)
