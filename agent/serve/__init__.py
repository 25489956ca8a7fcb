"""Local inference API (Open Inference Protocol v2). Loads no model itself."""
