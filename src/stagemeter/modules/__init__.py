"""Costs of any ``nn.Module``, part by part, from shapes alone where possible."""
