"""Decoders: one file for each kind of layer, the decoder of such layers, and its stages."""
