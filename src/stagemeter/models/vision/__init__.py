"""Vision encoders: sizes, parameters and closed forms."""

#: Colour channels of a page.
CHANNELS = 3
