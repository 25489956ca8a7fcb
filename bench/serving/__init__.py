"""What the agent's inference API does under load: `python -m bench.serving --json F`."""
