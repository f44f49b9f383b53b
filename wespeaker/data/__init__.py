"""Manifests, audio, shards, noise banks, features and samplers: everything between a disk and a batch."""
