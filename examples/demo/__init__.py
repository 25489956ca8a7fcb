"""The demo: the main job on real photos and real ImageNet weights. Every claim it prints is checked."""
