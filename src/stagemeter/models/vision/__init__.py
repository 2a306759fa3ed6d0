"""Vision encoders: sizes, parameters and closed forms, one file a kind."""
