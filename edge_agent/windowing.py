"""Chunks in, gap-free windows of fixed length out."""
