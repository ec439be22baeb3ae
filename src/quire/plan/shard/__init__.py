"""Sharding: placements by flow, a way for each attention, memory, head and losses."""
