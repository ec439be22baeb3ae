"""What a person reads: terminal text, an HTML page, a picture, a trace. Sees data types only."""
