"""The agent: serves models on a device, brings bad versions back. Never imports the controller."""
