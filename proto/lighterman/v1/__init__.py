"""Version 1 of the wire protocol: generated stubs and MQTT topic names. Written by `make proto`."""
