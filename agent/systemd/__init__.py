"""The unit that an operator installs. Refuses code: `lighterman-agent service-file` prints it."""
