"""Build worker: client of BuildService, supervisor and sandboxed job. Has no database."""
