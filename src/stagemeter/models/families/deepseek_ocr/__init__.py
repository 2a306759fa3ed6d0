"""DeepSeek-OCR: family, configuration, modes, tiling, page and prompt."""
