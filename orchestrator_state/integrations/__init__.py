"""What applications have beside the package, each behind an extra of its own, and loaded only where it is imported.

Users import the modules themselves: `from orchestrator_state.integrations.opentelemetry import OpenTelemetry`.
"""

__all__: list[str] = []
