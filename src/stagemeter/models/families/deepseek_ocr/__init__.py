"""DeepSeek-OCR: its family, configuration, tiling, page and prompt."""
