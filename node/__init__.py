"""The node: receives series, remembers them, decides, delivers results. Needs neither torch nor TensorRT."""
