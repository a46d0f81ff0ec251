"""Scores from features: objectives, training, and one file per head. Arrays in, arrays out.

Knows nothing of text, backbones or how a score is judged, and opens no file except its own save and load.
"""
