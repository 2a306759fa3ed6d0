"""From a page to what the model reads: views (`tiling`), pixels (`page`) and token ids (`prompt`)."""
