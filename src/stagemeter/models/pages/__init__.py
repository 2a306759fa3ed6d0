"""How image processors cut a page to views, from the files of a checkpoint."""
