"""The model families, one file each; `stagemeter.models.registry` finds them here."""
