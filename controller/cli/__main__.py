"""Entry point of ``fleetctl``. Names the missing extra before importing what it needs."""

from lighterman.extras import require_extra
from lighterman.quiet import quiet_grpc


def main() -> None:
    """Run fleetctl and end the process with its exit code."""
    quiet_grpc()
    require_extra("cli", "click", "rich", "grpc", "google.protobuf", "yaml", command="fleetctl")
    from controller.cli.root import run

    raise SystemExit(run())


if __name__ == "__main__":
    main()
