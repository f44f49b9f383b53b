"""WeSpeaker's files in: its configs and its models."""
