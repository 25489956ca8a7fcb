"""The demo: the main job on real photos and real weights. Every claim it prints is checked."""
