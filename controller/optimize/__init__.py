"""Import, passes, compile, evaluate; one file per heavy library. The controller's only torch room."""
