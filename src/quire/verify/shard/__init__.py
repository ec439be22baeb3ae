"""Sharded programs: that what each rank runs is the model."""
