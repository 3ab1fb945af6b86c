"""What a run leaves and shows: run directory, metrics, samples, console, dashboards."""

from azr.log.run_log import RunLog

__all__ = ["RunLog"]
