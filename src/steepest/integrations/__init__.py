"""Other people's tools, in their own language."""

from steepest.integrations.sinks import Channel, Sinks, open_sinks
from steepest.integrations.trackers import TRACKERS, Sink

__all__ = ["TRACKERS", "Channel", "Sink", "Sinks", "open_sinks"]
