"""Edge agent: sensor messages in, explained alarms out, on the device itself."""

__version__ = "0.1.0"
