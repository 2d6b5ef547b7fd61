"""OpenVINO within a Python step."""
