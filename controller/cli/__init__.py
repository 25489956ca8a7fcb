"""fleetctl: a remote client of FleetService, a file per noun. Decides nothing, has no database."""
