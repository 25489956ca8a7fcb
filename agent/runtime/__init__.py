"""Model host and one file per runtime library. The only room that imports numpy."""
