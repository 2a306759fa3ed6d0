"""Decoders: one file a kind of layer, the decoder that is made of them, and its stages."""
