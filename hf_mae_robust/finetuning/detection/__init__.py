"""Object detection and instance segmentation with Mask R-CNN."""
