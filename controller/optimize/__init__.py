"""Import, passes, compile, evaluate; one file per heavy library. The only torch room here."""
