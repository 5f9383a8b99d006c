"""The service: schedule, queue, runs as processes of their own, control socket, metrics, page."""
