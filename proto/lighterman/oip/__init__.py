"""Generated stubs of the Open Inference Protocol v2. Holds no code of ours."""
