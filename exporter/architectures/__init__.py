"""One flat file per architecture, one key-map file beside it, and the list of them all."""
