"""The agent: serves models on a device and brings bad versions back. Never imports the controller."""
