"""How processors turn pages into views, by the files of a checkpoint and the options of a request."""
