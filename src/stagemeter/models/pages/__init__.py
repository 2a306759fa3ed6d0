"""Rules by which processors turn pages into views, from a checkpoint's files and a request's options."""
