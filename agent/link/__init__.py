"""The wire: convert, controller client, MQTT, fetcher, signature checks. Decides nothing."""
